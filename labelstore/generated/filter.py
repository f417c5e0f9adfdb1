"""Apply filters to a dataset of generated queries, and undo them: a filter is a row, and no query is deleted.

A query that fails an active filter is taken out of the dataset: retrieval, teachers, negatives and views do not see it. It
keeps its text, its origin and its results. One filter of each kind is active; a new one takes the old one's place.
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import duckdb

from labelstore.errors import DataMissing, UsageError
from labelstore.generated.tests import KINDS, Result, Test
from labelstore.provenance import record as provenance
from labelstore.provenance.record import Job
from labelstore.store import keys, lookup
from labelstore.store.label_store import LabelStore, Undo, next_id
from labelstore.store.rows import fetch, insert

EXAMPLES = 3


@dataclass(frozen=True)
class Applied:
    """A filter's result; `new` is False if it was there, with the same parameters, for all queries."""

    kind: str
    n_in: int
    n_kept: int
    new: bool


def pick(con: duckdb.DuckDBPyConnection, name: str) -> lookup.Dataset:
    """Look up a dataset of generated queries.

    Raises:
        DataMissing: it is not found, or it has no generated query.
    """
    of = lookup.dataset(con, name)
    if not con.execute("SELECT 1 FROM query_origins WHERE dataset = ? LIMIT 1", [of.dataset]).fetchall():
        raise DataMissing(
            f"{of.name} has no generated queries: filters take out what a model has written, never what people asked",
            hint="msft queries generate --model MODEL --collection COLLECTION",
        )
    return of


def generated(con: duckdb.DuckDBPyConnection) -> set[str]:
    """Name the datasets that have generated queries."""
    sql = "SELECT name FROM datasets WHERE dataset IN (SELECT dataset FROM query_origins)"
    return {name for (name,) in con.execute(sql).fetchall()}


def apply(store: LabelStore, name: str, tests: Sequence[Test]) -> list[Applied]:
    """Apply filters one after another, in one transaction: each tests what the ones before it left.

    Raises:
        DataMissing: the dataset has no generated queries, or a filter has nothing to measure.
    """
    done: list[Applied] = []
    ordered = sorted(tests, key=lambda test: KINDS.index(test.kind))
    clock = provenance.Clock()
    with store.write() as con, provenance.recorded_in(con, "queries.filter", clock) as job:
        of = pick(con, name)
        for test in ordered:
            done.append(_apply(con, job, of, test))
        if not any(one.new for one in done):
            raise Undo
    return done


def undo(store: LabelStore, name: str, kinds: Sequence[str]) -> int:
    """Undo active filters, and return the number of queries that came back.

    Raises:
        UsageError: a kind is unknown. DataMissing: none of the kinds is active.
    """
    for kind in kinds:
        if kind not in (*KINDS, "all"):
            raise UsageError(
                f"--undo {kind}: there is no such filter", hint=f"--undo all | {' | '.join(KINDS)}"
            )
    chosen = KINDS if "all" in kinds else tuple(kinds)
    clock = provenance.Clock()
    with store.write() as con, provenance.recorded_in(con, "queries.filter", clock) as job:
        of = pick(con, name)
        found = con.execute(
            "SELECT kind FROM query_filters WHERE dataset = ? AND active AND list_contains(?, kind) ORDER BY filter",
            [of.dataset, list(chosen)],
        ).fetchall()
        if not found:
            raise DataMissing(
                f"{of.name} has no active filter {', '.join(kinds)}", hint=f"msft queries show {of.name}"
            )
        _deactivate(con, of, chosen)
        back = _set_members(con, of)
        job.count(con, f"undo {', '.join(kind for (kind,) in found)}", of.name, back)
    return back


def _apply(con: duckdb.DuckDBPyConnection, job: Job, of: lookup.Dataset, test: Test) -> Applied:
    parameters = keys.canonical_json(dict(test.parameters))
    known = _known(con, of, test.kind, parameters)
    if known is not None:
        return known
    _deactivate(con, of, (test.kind,))
    _set_members(con, of)
    results = test.measure(con, of)
    key = next_id(con, "query_filters", "filter")
    kept = sum(result.passed for result in results.values())
    con.execute(
        "INSERT INTO query_filters VALUES (?, ?, ?, ?, ?, true, ?, ?, ?)",
        [key, secrets.token_hex(16), of.dataset, test.kind, parameters, len(results), kept, job.job],
    )
    insert(
        con,
        "query_tests",
        [(key, query, one.passed, one.value, one.evidence) for query, one in sorted(results.items())],
    )
    _set_members(con, of)
    job.count(con, f"queries {test.kind}", of.name, len(results), _drops(con, test.kind, results))
    return Applied(test.kind, len(results), kept, True)


def _known(con: duckdb.DuckDBPyConnection, of: lookup.Dataset, kind: str, parameters: str) -> Applied | None:
    """Return the active filter with these parameters if it has tested every query that the dataset has."""
    found = con.execute(
        """SELECT filter, n_in, n_kept FROM query_filters
           WHERE dataset = ? AND active AND kind = ? AND parameters::VARCHAR = ?""",
        [of.dataset, kind, parameters],
    ).fetchall()
    if not found:
        return None
    key, n_in, n_kept = found[0]
    ((untested,),) = con.execute(
        """SELECT count(*) FROM query_origins o JOIN dataset_queries m USING (dataset, query)
           ANTI JOIN (SELECT query FROM query_tests WHERE filter = ?) t USING (query) WHERE o.dataset = ?""",
        [key, of.dataset],
    ).fetchall()
    return None if untested else Applied(kind, n_in, n_kept, False)


def _deactivate(con: duckdb.DuckDBPyConnection, of: lookup.Dataset, kinds: Sequence[str]) -> None:
    con.execute(
        "UPDATE query_filters SET active = false WHERE dataset = ? AND active AND list_contains(?, kind)",
        [of.dataset, list(kinds)],
    )


def _set_members(con: duckdb.DuckDBPyConnection, of: lookup.Dataset) -> int:
    """Make the dataset's generated queries those that fail no active filter, and return how many came back."""
    failed = """(SELECT t.query FROM query_tests t JOIN query_filters f USING (filter)
                 WHERE f.dataset = ? AND f.active AND NOT t.passed)"""
    con.execute(
        f"DELETE FROM dataset_queries WHERE dataset = ? AND query IN {failed}", [of.dataset, of.dataset]
    )
    ((back,),) = con.execute(
        f"""INSERT INTO dataset_queries SELECT dataset, query FROM query_origins
            WHERE dataset = ? AND query NOT IN {failed} EXCEPT FROM dataset_queries ORDER BY ALL""",
        [of.dataset, of.dataset],
    ).fetchall()
    return int(back)


def _drops(
    con: duckdb.DuckDBPyConnection, kind: str, results: dict[int, Result]
) -> dict[str, tuple[int, str | None]]:
    failed = [query for query, result in results.items() if not result.passed]
    if not failed:
        return {}
    ((example,),) = con.execute(
        "SELECT min(query_id) FROM queries WHERE list_contains(?, query)", [failed]
    ).fetchall()
    return {f"fails {kind}": (len(failed), example)}


def counts(con: duckdb.DuckDBPyConnection, of: lookup.Dataset) -> tuple[int, int]:
    """Count the queries that were generated for a dataset, and those that are in it."""
    ((generated, kept),) = con.execute(
        """SELECT count(*), count(m.query) FROM query_origins o
           LEFT JOIN dataset_queries m ON m.dataset = o.dataset AND m.query = o.query WHERE o.dataset = ?""",
        [of.dataset],
    ).fetchall()
    return int(generated), int(kept)


def show(
    con: duckdb.DuckDBPyConnection, of: lookup.Dataset, examples: int = EXAMPLES
) -> list[dict[str, Any]]:
    """List the dataset's filters with examples of what each threw out, a row an example."""
    return fetch(
        con,
        """WITH failed AS (
               SELECT t.filter, q.query_id, q.text, d.doc_id, t.value, t.evidence,
                      row_number() OVER (PARTITION BY t.filter ORDER BY md5(q.query_id)) AS number
               FROM query_tests t JOIN query_filters f USING (filter) JOIN queries q ON q.query = t.query
               JOIN query_origins o ON o.dataset = f.dataset AND o.query = t.query
               JOIN documents d ON d.document = o.document WHERE NOT t.passed)
           SELECT f.kind AS filter, f.active, f.parameters::VARCHAR AS parameters, f.n_in AS tested, f.n_kept AS kept,
                  f.n_in - f.n_kept AS left_out, x.query_id, x.text AS query, x.doc_id, x.value, x.evidence
           FROM query_filters f LEFT JOIN failed x ON x.filter = f.filter AND x.number <= ?
           WHERE f.dataset = ? ORDER BY f.filter, x.number""",
        [examples, of.dataset],
    )
