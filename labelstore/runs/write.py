"""Store runs. `import_run` reads and checks TREC runs before they are stored.

The ranks of a run follow its scores, best first; ties keep the file's order. If a file has an error, the message names the
line, and nothing of the file is stored.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import duckdb

from labelstore.errors import BadInput
from labelstore.provenance import record as provenance
from labelstore.store import lookup
from labelstore.store.keys import canonical_json
from labelstore.store.label_store import next_id
from labelstore.store.row_hashes import id_hash, ranking_hash, row_sum


def _value(con: duckdb.DuckDBPyConnection, sql: str, parameters: list[Any] | None = None) -> Any:
    return con.execute(sql, parameters or []).fetchall()[0][0]


@dataclass(frozen=True)
class Checked:
    """A ranking that may be stored: its rows, the sums that its hash is made from, its deepest rank."""

    sums: str
    depth: int
    rows: str


def store_run(
    con: duckdb.DuckDBPyConnection,
    job: provenance.Job,
    *,
    dataset: int,
    name: str,
    kind: str,
    system: str,
    relation: str,
    source_run: int | None = None,
    student: int | None = None,
    parameters: Mapping[str, Any] | None = None,
    replace: bool = False,
) -> lookup.Run:
    """Store a ranking inside the caller's transaction.

    Args:
        relation: a table, view or registered frame with columns query, document, score and optionally rank.
            Candidates are ranked by score, ties by rank if there is one, otherwise by doc_id.
        replace: replace a run of the same name with other content.

    Returns:
        The run; an existing one with the same name and content is returned (its job is then another).

    Raises:
        BadInput: a query has a passage twice, a score is not finite, the run has no row, or another run has the
            name.
    """
    columns = {row[0] for row in con.execute(f"DESCRIBE SELECT * FROM {relation}").fetchall()}
    tie = "r.rank" if "rank" in columns else "d.doc_id"
    con.execute(
        f"""CREATE OR REPLACE TEMP TABLE ranked_rows AS
            SELECT r.query::INTEGER AS query, r.document::INTEGER AS document, r.score::FLOAT AS score,
                   (row_number() OVER (PARTITION BY r.query ORDER BY r.score DESC, {tie}))::INTEGER AS rank,
                   {id_hash("d.doc_id")} AS id_hash
            FROM {relation} r JOIN documents d ON d.document = r.document"""
    )
    n = _value(con, f"SELECT count(*) FROM {relation}")
    if not n:
        raise BadInput(f"run {name} has no candidate", hint="give at least one")
    if n != _value(con, "SELECT count(*) FROM ranked_rows"):
        raise BadInput(f"run {name}: some of its {n:,} candidates name no document of the store")
    bad = _value(con, "SELECT count(*) FROM ranked_rows WHERE score IS NULL OR NOT isfinite(score)")
    if bad:
        raise BadInput(f"run {name}: {bad:,} scores are not finite", hint="repair the system that scored")
    twice = con.execute(
        """SELECT q.query_id, d.doc_id FROM (
             SELECT query, document FROM ranked_rows GROUP BY query, document HAVING count(*) > 1 LIMIT 1)
           JOIN queries q USING (query) JOIN documents d USING (document)"""
    ).fetchall()
    if twice:
        raise BadInput(f"run {name}: passage {twice[0][1]} comes twice for query {twice[0][0]}")
    con.execute(f"CREATE OR REPLACE TEMP TABLE ranked_sums AS {row_sum('ranked_rows')}")
    checked = Checked(
        sums="ranked_sums",
        depth=_value(con, "SELECT max(rank) FROM ranked_rows"),
        rows="SELECT query, rank, document, score FROM ranked_rows ORDER BY query, rank",
    )
    run = keep_run(
        con, job, dataset, name, kind, system, source_run, student, parameters or {}, replace, checked
    )
    con.execute("DROP TABLE ranked_rows")
    con.execute("DROP TABLE ranked_sums")
    return run


def keep_run(
    con: duckdb.DuckDBPyConnection,
    job: provenance.Job,
    dataset: int,
    name: str,
    kind: str,
    system: str,
    source_run: int | None,
    student: int | None,
    parameters: Mapping[str, Any],
    replace: bool,
    checked: Checked,
) -> lookup.Run:
    """Record checked rows as a run. An equal run is returned; other content needs `replace`."""
    content, n_queries, n_rows = ranking_hash(con, checked.sums, "queries")
    held = con.execute(
        "SELECT run, content_hash FROM runs WHERE dataset = ? AND name = ?", [dataset, name]
    ).fetchall()
    if held and held[0][1] == content:
        return lookup.run_by_id(con, held[0][0])
    if held and not replace:
        raise BadInput(
            f"run {name} is there with other content",
            hint="choose another name with --name, or replace the run with --replace",
        )
    key = held[0][0] if held else next_id(con, "runs", "run")
    if held:
        con.execute("DELETE FROM candidates WHERE run = ?", [key])
        con.execute("DELETE FROM runs WHERE run = ?", [key])
    con.execute(
        "INSERT INTO runs VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [
            key, name, dataset, kind, system, source_run, student, canonical_json(dict(parameters)), checked.depth,
            n_queries, n_rows, content, job.job,
        ],
    )  # fmt: skip
    con.execute(f"INSERT INTO candidates SELECT {key}, * FROM ({checked.rows})")
    return lookup.run_by_id(con, key)
