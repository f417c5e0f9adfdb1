"""The protocols of re-ranking benchmarks: which passages a list holds, and which judgments count.

``standard``: the first stage's candidates, and every judgment. A relevant passage that the first stage missed is lost. This is
the protocol of the literature and of mteb.
``positives-in``: relevant passages that the first stage missed are put into its list, so a re-ranker can always find them.
This is the default of sentence-transformers' evaluators. It flatters: a perfect re-ranker reaches 1.
``found-only``: judgments of passages that the first stage missed do not count. This is sentence-transformers'
``always_rerank_positives=False``.

The last two count a passage as relevant or not, as sentence-transformers does, and their first stage is its list with the
missing passages at the end, or 0 for a query of which it found none.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from labelstore.errors import UsageError
from labelstore.evaluation import measures as measuring
from labelstore.evaluation.measures import Qrels, Ranking, Scores

STANDARD, POSITIVES_IN, FOUND_ONLY = "standard", "positives-in", "found-only"
PROTOCOLS = (STANDARD, POSITIVES_IN, FOUND_ONLY)

Lists = Mapping[int, Sequence[int]]  # query -> documents, best first
Scored = Mapping[int, Mapping[int, float]]  # query -> document -> score


def check(protocol: str, *, judge: str | None = None, fuse: bool | str = False) -> None:
    """Refuse an unknown protocol, and one beside a judge or fused systems.

    Raises:
        UsageError: the message names the protocols, or what excludes it.
    """
    if protocol not in PROTOCOLS:
        raise UsageError(f"protocol {protocol!r} is not known", hint=f"--protocol {' | '.join(PROTOCOLS)}")
    if protocol != STANDARD and (judge is not None or fuse):
        what = "an LLM judge" if judge is not None else "fused systems"
        raise UsageError(f"--protocol {protocol} is not defined for {what}", hint="leave one of the two out")


def positives(qrels: Qrels) -> dict[int, list[int]]:
    """List the relevant documents of each judged query that has some, in the order of their keys."""
    found = {
        query: sorted(int(document) for document, grade in judged.items() if grade > 0)
        for query, judged in qrels.judged.items()
    }
    return {query: documents for query, documents in found.items() if documents}


def missing(lists: Lists, relevant: Lists) -> dict[int, list[int]]:
    """List the relevant documents that each query's list lacks; queries without one are left out."""
    found = {
        query: [d for d in documents if d not in set(lists.get(query, ()))]
        for query, documents in relevant.items()
    }
    return {query: documents for query, documents in found.items() if documents}


def first_stage(lists: Lists, relevant: Lists, measures: Sequence[str]) -> dict[str, Scores]:
    """Measure a first stage with the missing relevant passages at the end of its lists."""
    lacking = missing(lists, relevant)
    whole = {
        query: [*documents, *lacking.get(query, ())]
        for query, documents in lists.items()
        if set(documents) & set(relevant.get(query, ()))
    }
    return _measured(whole, relevant, measures)


def student(
    scored: Scored, lists: Lists, relevant: Lists, protocol: str, measures: Sequence[str]
) -> dict[str, Scores]:
    """Measure a student.

    Args:
        scored: its scores of the lists' passages; with positives in also of the missing relevant ones.
    """
    orders = {query: sorted(own, key=own.__getitem__, reverse=True) for query, own in scored.items()}
    if protocol == POSITIVES_IN:
        return _measured(orders, relevant, measures)
    found = {query: [d for d in own if d in set(lists.get(query, ()))] for query, own in relevant.items()}
    values = _measured(orders, {query: own for query, own in found.items() if own}, measures)
    return {name: {query: own.get(query, 0.0) for query in relevant} for name, own in values.items()}


def _measured(orders: Lists, relevant: Lists, measures: Sequence[str]) -> dict[str, Scores]:
    """Measure rankings; a passage counts as relevant or not."""
    queries = sorted(orders)
    ranking = Ranking(
        np.repeat(queries, [len(orders[q]) for q in queries]) if queries else np.zeros(0, dtype=np.int64),
        np.array([d for q in queries for d in orders[q]], dtype=np.int64),
        np.array([rank for q in queries for rank in range(1, len(orders[q]) + 1)], dtype=np.int64),
    )
    qrels = Qrels({query: {str(d): 1 for d in own} for query, own in relevant.items()}, "")
    return measuring.per_query(ranking, qrels, measures)
