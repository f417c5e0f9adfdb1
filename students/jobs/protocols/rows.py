"""Measure students by the protocols of re-ranking benchmarks (`labelstore.evaluation.protocols`)."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from labelstore.errors import DataMissing, MsftError
from labelstore.evaluation import bases, protocols, significance, systems
from labelstore.evaluation import measures as measuring
from labelstore.evaluation.measures import Scores
from labelstore.store import lookup
from labelstore.store.label_store import LabelStore
from students.jobs.bases.rank import of_run, opened
from students.jobs.rerank import Note, load_reranker

if TYPE_CHECKING:
    import duckdb

    from students.rerank.reranker import Reranker

Row = dict[str, Any]


def rows(
    store: LabelStore,
    dataset: str,
    first_stages: Sequence[lookup.Run],
    students: Sequence[str] | None,
    measures: Sequence[str],
    depth: int,
    protocol: str,
    note: Note,
    base_runs: Sequence[int] = (),
) -> list[Row]:
    """Measure first stages and the students that re-ranked them, with their bases; nothing is stored.

    Scores of stored runs are used. Only relevant passages that a first stage missed are scored anew.

    Args:
        depth: candidates per query.
        base_runs: the runs of the students' bases that are measured too.

    Returns:
        Rows as those of `labelstore.evaluation.scores.evaluate`, with the protocol.
    """
    with store.read() as con:
        of = lookup.dataset(con, dataset)
        relevant = protocols.positives(systems.qrels(con, of))
        re_ranked = lookup.runs(con, of, ("student", *bases.KINDS))
    made: list[Row] = []
    for run in first_stages:
        asked = min(depth, run.depth)
        with store.read() as con:
            lists = {query: list(own) for query, own in _scores(con, run, asked).items()}
        lacking = protocols.missing(lists, relevant)
        base = protocols.first_stage(lists, relevant, measures)
        made += _rows(of.name, run.name, "first_stage", run, asked, protocol, base, None, None)
        for other in re_ranked:
            if other.source_run != run.run or other.parameters.get("probabilities"):
                continue
            if other.kind in bases.KINDS and other.run not in base_runs:
                continue
            with store.read() as con:
                by = _student(con, other) if other.kind == "student" else None
                scored = _scores(con, other, other.depth)
            if students and by is not None and by.name not in students:
                continue
            if other.depth < asked:
                note(f"{other.name} is left out: it has {other.depth} of {asked} candidates per query")
                continue
            scored = {query: {d: own[d] for d in lists[query]} for query, own in scored.items()}
            if protocol == protocols.POSITIVES_IN and lacking:
                try:
                    found = _score(store, of, by, other, lacking)
                except MsftError as error:
                    if by is not None:
                        raise
                    note(f"{other.name} is left out: {error.message}")
                    continue
                for query, own in found.items():
                    scored.setdefault(query, {}).update(own)
            values = protocols.student(scored, lists, relevant, protocol, measures)
            regime = by.regime if by is not None else None
            made += _rows(of.name, other.name, other.kind, run, asked, protocol, values, base, regime)
    return made


def _student(con: "duckdb.DuckDBPyConnection", run: lookup.Run) -> lookup.Student:
    ((name,),) = con.execute("SELECT name FROM students WHERE student = ?", [run.student]).fetchall()
    return lookup.student(con, name)


def _scores(con: "duckdb.DuckDBPyConnection", run: lookup.Run, depth: int) -> dict[int, dict[int, float]]:
    """Read a run's documents and scores of each query, best first."""
    found: dict[int, dict[int, float]] = {}
    for query, document, score in con.execute(
        "SELECT query, document, score FROM candidates WHERE run = ? AND rank <= ? ORDER BY query, rank",
        [run.run, depth],
    ).fetchall():
        found.setdefault(query, {})[document] = score
    return found


def _score(
    store: LabelStore,
    of: lookup.Dataset,
    student: lookup.Student | None,
    run: lookup.Run,
    pairs: protocols.Lists,
) -> dict[int, dict[int, float]]:
    """Score passages as a run's were scored.

    Args:
        student: None: the run is that of a base.

    Raises:
        DataMissing: a passage has no text.
        MsftError: the base is not on this machine.
    """
    with store.read() as con:
        texts = _texts(con, pairs)
    with _reranker(store, of, student, run) as reranker:
        scores = reranker.scores([(query, list(own.values())) for query, own in texts.values()])
    return {
        key: dict(zip(own, np.asarray(part).tolist(), strict=True))
        for (key, (_, own)), part in zip(texts.items(), scores, strict=True)
    }


@contextmanager
def _reranker(
    store: LabelStore, of: lookup.Dataset, student: lookup.Student | None, run: lookup.Run
) -> "Iterator[Reranker]":
    """Load what made a run."""
    precision = run.parameters.get("precision", "auto")
    if student is None:
        with opened(store, of_run(store, run), of.name, precision) as reranker:
            yield reranker
        return
    settings = {
        key: run.parameters[key] for key in ("long", "instruction", "backend") if key in run.parameters
    }
    yield load_reranker(store, student.name, precision=precision, **settings)


def _texts(con: "duckdb.DuckDBPyConnection", pairs: protocols.Lists) -> dict[int, tuple[str, dict[int, str]]]:
    """Read the texts of queries and their documents: query -> (text, document -> text).

    Raises:
        DataMissing: a passage has no text.
    """
    each = [(query, document) for query, own in pairs.items() for document in own]
    con.register("wanted", pl.DataFrame(each, schema=["query", "document"], orient="row").to_arrow())
    found: dict[int, tuple[str, dict[int, str]]] = {}
    for query, text, document, doc_id, passage, held in con.execute(
        f"""SELECT query, asked, document, doc_id, {lookup.FULL_TEXT}, text IS NOT NULL FROM wanted
            JOIN (SELECT query, text AS asked FROM queries) USING (query) JOIN documents USING (document)
            ORDER BY query, document"""
    ).fetchall():
        if not held:
            raise DataMissing(
                f"the relevant passage {doc_id} has no text in the store",
                hint="add the collection with its passages: msft data add DATASET --from FOLDER",
            )
        found.setdefault(query, (text, {}))[1][document] = passage
    return found


def _rows(
    dataset: str,
    name: str,
    kind: str,
    run: lookup.Run,
    depth: int,
    protocol: str,
    values: dict[str, Scores],
    base: dict[str, Scores] | None,
    regime: str | None,
) -> list[Row]:
    made = []
    for measure, own in values.items():
        queries = sorted(own)
        p_value = None
        if base is not None:
            pair = (np.array([by[measure][query] for query in queries]) for by in (values, base))
            p_value = significance.paired_t(*pair).p_value
        made.append(
            {
                "dataset": dataset, "system": name, "kind": kind, "first_stage": run.name, "measure": measure,
                "value": measuring.mean(own), "n_queries": len(own), "p_value": p_value, "regime": regime,
                "judged": None, "depth": depth, "recall": None, "judge": None, "protocol": protocol,
            }
        )  # fmt: skip
    return made
