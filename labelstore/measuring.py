"""Measures by their ir-measures names, computed per query; no store here.

Rankings go to ir-measures with score = -rank, so ties in a system's scores stand in the stored rank order and a
measure is the same on every machine. A judged query that the ranking lacks scores 0 and is counted.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ir_measures
import numpy as np

from labelstore.errors import UsageError

Scores = dict[int, float]  # query -> value

_QUERIES_AT_ONCE = 500  # bounds the memory of the nested dicts that ir-measures reads


@dataclass(frozen=True)
class Ranking:
    """A ranking as three arrays of one length, sorted by query, then rank (1 is best)."""

    query: np.ndarray
    document: np.ndarray
    rank: np.ndarray

    def queries(self) -> Iterator[tuple[int, slice]]:
        """Each query with the slice of its rows."""
        if not len(self.query):
            return
        starts = np.flatnonzero(np.r_[True, self.query[1:] != self.query[:-1]])
        ends = np.r_[starts[1:], len(self.query)]
        for start, end in zip(starts, ends, strict=True):
            yield int(self.query[start]), slice(int(start), int(end))


@dataclass(frozen=True)
class Qrels:
    """Judgments: query -> document (as text) -> relevance, with the hash that evaluations are kept under."""

    judged: dict[int, dict[str, int]]
    qrels_hash: str


def parse(name: str) -> Any:
    """The ir-measures measure of that name.

    Raises:
        UsageError: for a name that ir-measures does not know, or one that is no mean over queries.
    """
    hint = "names are ir-measures': nDCG@10, RR@10, RR(rel=2)@10, AP(rel=2), R@100, Judged@10"
    try:
        measure = ir_measures.parse_measure(name)
    except (NameError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"--measure {name}: {error}", hint=hint) from error
    if not isinstance(measure.aggregator(), ir_measures.measures.MeanAgg):
        raise UsageError(f"--measure {name} is not a mean over queries", hint=hint)
    if not any(p.is_available() and p.supports(measure) for p in ir_measures.DefaultPipeline.providers):
        raise UsageError(f"--measure {name} has no provider installed", hint="pip install 'ir-measures[all]'")
    return measure


def canonical(name: str) -> str:
    """The one spelling of a measure under which evaluations are kept."""
    return str(parse(name))


def relevance_level(measures: Sequence[str]) -> int:
    """The grade from which a passage counts as relevant in these measures: the highest ``rel`` they name, or 1."""
    return max((int(parse(m).params.get("rel", 1)) for m in measures), default=1)


def per_query(ranking: Ranking, qrels: Qrels, measures: Sequence[str]) -> dict[str, Scores]:
    """Each measure's value on each judged query; 0 for a judged query that the ranking lacks.

    Args:
        measures: canonical names.

    Returns:
        measure -> query -> value, every judged query present.
    """
    parsed = {parse(name): name for name in measures}
    values: dict[str, Scores] = {name: dict.fromkeys(qrels.judged, 0.0) for name in measures}
    batch: dict[str, dict[str, float]] = {}
    for query, rows in ranking.queries():
        if query not in qrels.judged:
            continue
        documents, ranks = ranking.document[rows].tolist(), ranking.rank[rows].tolist()
        batch[str(query)] = {str(d): -float(r) for d, r in zip(documents, ranks, strict=True)}
        if len(batch) == _QUERIES_AT_ONCE:
            _measure(batch, qrels, parsed, values)
            batch = {}
    if batch:
        _measure(batch, qrels, parsed, values)
    return values


def _measure(
    batch: dict[str, dict[str, float]],
    qrels: Qrels,
    parsed: dict[Any, str],
    values: dict[str, Scores],
) -> None:
    judged = {query: qrels.judged[int(query)] for query in batch}
    for metric in ir_measures.iter_calc(list(parsed), judged, batch):
        values[parsed[metric.measure]][int(metric.query_id)] = float(metric.value)


def mean(scores: Scores) -> float:
    """Mean over the judged queries (0 where there is none)."""
    return float(np.mean(list(scores.values()))) if scores else 0.0
