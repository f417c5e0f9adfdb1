"""Test generated queries: each filter measures every query, and says which ones fail and why."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import duckdb
import numpy as np

from labelstore.errors import DataMissing, UsageError
from labelstore.generated.near_duplicates import near_duplicates
from labelstore.store import keys, lookup
from labelstore.views import leakage

# The order in which one command applies filters: the cheap ones first, and duplicates of what is left.
LEAKAGE, LENGTH, COPIED, LOG_PROBABILITY, DUPLICATE, ROUND_TRIP, RERANKER = KINDS = (
    "leakage",
    "length",
    "copied",
    "log-probability",
    "duplicate",
    "round-trip",
    "reranker",
)


@dataclass(frozen=True)
class Result:
    """One query's result.

    Attributes:
        value: what was measured; None if there was nothing to measure.
        evidence: the other query, or why it failed.
    """

    passed: bool
    value: float | None = None
    evidence: str | None = None


@dataclass(frozen=True)
class Test:
    """A filter before it is applied.

    Attributes:
        parameters: what the result depends on; the same filter with the same parameters is the same.
        measure: a query of the dataset (by its key) to its result.
    """

    kind: str
    parameters: Mapping[str, Any]
    measure: Callable[[duckdb.DuckDBPyConnection, lookup.Dataset], dict[int, Result]] = field(compare=False)


def _members(con: duckdb.DuckDBPyConnection, of: lookup.Dataset) -> list[tuple[int, str, str]]:
    """List (query, query_id, text) of the generated queries that the dataset has now."""
    return con.execute(
        """SELECT o.query, q.query_id, q.text FROM query_origins o JOIN dataset_queries m USING (dataset, query)
           JOIN queries q USING (query) WHERE o.dataset = ? ORDER BY q.query_id""",
        [of.dataset],
    ).fetchall()


def leaks() -> Test:
    """Fail queries that a test set has: those of a test set that was added later."""

    def measure(con: duckdb.DuckDBPyConnection, of: lookup.Dataset) -> dict[int, Result]:
        leakage.protect(con, allow_overlap=False)
        protected = {value for (value,) in con.execute("SELECT normal_hash FROM protected").fetchall()}
        return {
            query: Result(False, evidence=leakage.REASON)
            if keys.normal_hash(text) in protected
            else Result(True)
            for query, _, text in _members(con, of)
        }

    return Test(LEAKAGE, {}, measure)


def length(least: int, most: int) -> Test:
    """Fail queries with fewer or more words.

    Raises:
        UsageError: the bounds are no bounds.
    """
    if not 1 <= least <= most:
        raise UsageError(
            f"--words {least}-{most}: expected from 1 on, the smaller first", hint="--words 3-40"
        )

    def measure(con: duckdb.DuckDBPyConnection, of: lookup.Dataset) -> dict[int, Result]:
        counts = {query: len(keys.normalise_query(text).split()) for query, _, text in _members(con, of)}
        return {
            query: Result(
                least <= n <= most,
                n,
                None if least <= n <= most else "too short" if n < least else "too long",
            )
            for query, n in counts.items()
        }

    return Test(LENGTH, {"least": least, "most": most}, measure)


def copied() -> Test:
    """Fail queries that stand word for word in the passage that they were made from."""

    def measure(con: duckdb.DuckDBPyConnection, of: lookup.Dataset) -> dict[int, Result]:
        rows = con.execute(
            """SELECT o.query, q.text, concat_ws(' ', d.title, d.text), d.doc_id FROM query_origins o
               JOIN dataset_queries m USING (dataset, query) JOIN queries q USING (query)
               JOIN documents d ON d.document = o.document WHERE o.dataset = ?""",
            [of.dataset],
        ).fetchall()
        found = {}
        for query, text, passage, doc_id in rows:
            stands = f" {keys.normalise_query(text)} " in f" {keys.normalise_query(passage)} "
            found[query] = Result(not stands, evidence=f"stands in {doc_id}" if stands else None)
        return found

    return Test(COPIED, {}, measure)


def log_probability(least: float) -> Test:
    """Fail queries whose tokens are less probable on average; a query without a known value passes."""

    def measure(con: duckdb.DuckDBPyConnection, of: lookup.Dataset) -> dict[int, Result]:
        rows = con.execute(
            """SELECT query, log_probability FROM query_origins JOIN dataset_queries USING (dataset, query)
               WHERE dataset = ?""",
            [of.dataset],
        ).fetchall()
        if rows and all(value is None for _, value in rows):
            raise DataMissing(
                f"no query of {of.name} has a log-probability: its engine gave none",
                hint="leave out --min-log-probability",
            )
        bound = np.float32(least)  # the store has 32 bits
        return {
            query: Result(value is None or bool(np.float32(value) >= bound), value) for query, value in rows
        }

    return Test(LOG_PROBABILITY, {"least": least}, measure)


def duplicates(least: float) -> Test:
    """Fail queries that are like an earlier one of the dataset, or like any other query in the store.

    Raises:
        UsageError: the threshold is no similarity.
    """
    if not 0 < least <= 1:
        raise UsageError(
            f"--near-duplicates {least:g}: expected above 0 and at most 1", hint="--near-duplicates 0.8"
        )

    def measure(con: duckdb.DuckDBPyConnection, of: lookup.Dataset) -> dict[int, Result]:
        members = _members(con, of)
        others = con.execute(
            """SELECT DISTINCT concat_ws(' ', c.name, q.query_id), q.text FROM queries q JOIN dataset_queries m USING (query)
               JOIN collections c USING (collection)
               WHERE m.dataset <> ? AND q.query NOT IN (SELECT query FROM query_origins WHERE dataset = ?)""",
            [of.dataset, of.dataset],
        ).fetchall()
        near = near_duplicates(((query_id, text) for _, query_id, text in members), dict(others), least)
        return {
            query: Result(False, near[query_id].similarity, near[query_id].name)
            if query_id in near
            else Result(True)
            for query, query_id, _ in members
        }

    return Test(DUPLICATE, {"least": least, "of": "character trigrams"}, measure)


def round_trip(run: lookup.Run, most: int) -> Test:
    """Fail queries whose passage is not among the first passages of a run.

    Raises:
        UsageError: the run is not as deep.
    """
    depth = max(
        run.depth, int(run.parameters.get("depth") or 0)
    )  # what was asked for; fewer may have been found
    if not 1 <= most <= depth:
        raise UsageError(
            f"--round-trip {most}: the run {run.name} has {depth} passages a query",
            hint=f"--round-trip {min(max(most, 1), depth)}, or retrieve with a larger --depth",
        )

    def measure(con: duckdb.DuckDBPyConnection, of: lookup.Dataset) -> dict[int, Result]:
        rows = con.execute(
            """SELECT o.query, c.rank, r.query IS NULL FROM query_origins o JOIN dataset_queries m USING (dataset, query)
               LEFT JOIN candidates c ON c.run = ? AND c.query = o.query AND c.document = o.document
               LEFT JOIN (SELECT DISTINCT query FROM candidates WHERE run = ?) r ON r.query = o.query
               WHERE o.dataset = ?""",
            [run.run, run.run, of.dataset],
        ).fetchall()
        unranked = sum(lacks for _, _, lacks in rows)
        if unranked and unranked == len(rows):
            raise DataMissing(
                f"the run {run.name} ranks none of the {len(rows):,} queries of {of.name}",
                hint=f"msft retrieve --dataset {of.name} --retriever bm25s --depth {most} --replace",
            )
        return {
            query: Result(
                rank is not None and rank <= most,
                rank,
                "the run finds nothing"
                if lacks
                else f"not within {most}"
                if rank is None or rank > most
                else None,
            )
            for query, rank, lacks in rows
        }

    return Test(ROUND_TRIP, {"run": run.name, "run_hash": run.content_hash, "most": most}, measure)


def check_reranker(top: int | None, least: float | None) -> None:
    """Check that one bound on a re-ranker's scores is given.

    Raises:
        UsageError: neither or both are given, or the number is below 1.
    """
    if (top is None) == (least is None) or (top is not None and top < 1):
        raise UsageError(
            "--reranker needs either --top N, from 1 on, or --min-score X",
            hint="--reranker MODEL --top 10000",
        )


def reranker(model: str, scores: Mapping[int, float], top: int | None, least: float | None) -> Test:
    """Fail queries that a re-ranker scores low with their own passage.

    Args:
        scores: a query (by its key) to its score with its passage.
        top: the number of best-scored queries that pass. least: the lowest score that passes.

    Raises:
        UsageError: as :func:`check_reranker`.
    """
    check_reranker(top, least)

    def measure(con: duckdb.DuckDBPyConnection, of: lookup.Dataset) -> dict[int, Result]:
        members = [(query, query_id) for query, query_id, _ in _members(con, of)]
        best = sorted(members, key=lambda member: (-scores[member[0]], member[1]))
        passing = {query for query, _ in best[:top]} if top is not None else None
        return {
            query: Result(
                query in passing if passing is not None else scores[query] >= (least or 0.0), scores[query]
            )
            for query, _ in members
        }

    return Test(RERANKER, {"model": model, "top": top, "least": least}, measure)
