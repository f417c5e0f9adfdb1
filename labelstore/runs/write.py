"""Store runs. `import_run` reads and checks TREC runs before they are stored.

The ranks of a run follow its scores, best first; ties keep the file's order. If a file has an error, the message names the
line, and nothing of the file is stored.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import duckdb

from labelstore.errors import BadInput
from labelstore.provenance import record as provenance
from labelstore.store import lookup
from labelstore.store.keys import canonical_json
from labelstore.store.label_store import next_id
from labelstore.store.row_hashes import id_hash, ranking_hash, row_sum
from labelstore.store.rows import first_row


@dataclass(frozen=True)
class Checked:
    """A ranking that may be stored: its rows, the sums that its hash is made from, its deepest rank."""

    sums: str
    depth: int
    rows: str


@dataclass(frozen=True)
class NewRun:
    """A run's row, without the counts of its candidates."""

    dataset: int
    name: str
    kind: str
    system: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    source_run: int | None = None
    student: int | None = None


def store_run(
    con: duckdb.DuckDBPyConnection, job: provenance.Job, new: NewRun, relation: str, *, replace: bool = False
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
    _check_ranked(con, new.name, first_row(con, f"SELECT count(*) FROM {relation}")[0])
    con.execute(f"CREATE OR REPLACE TEMP TABLE ranked_sums AS {row_sum('ranked_rows')}")
    checked = Checked(
        sums="ranked_sums",
        depth=first_row(con, "SELECT max(rank) FROM ranked_rows")[0],
        rows="SELECT query, rank, document, score FROM ranked_rows ORDER BY query, rank",
    )
    run = keep_run(con, job, new, checked, replace=replace)
    con.execute("DROP TABLE ranked_rows")
    con.execute("DROP TABLE ranked_sums")
    return run


def _check_ranked(con: duckdb.DuckDBPyConnection, name: str, n: int) -> None:
    """Refuse rows of ``ranked_rows`` that make no run; `n` counts them before they were joined to their documents."""
    if not n:
        raise BadInput(f"run {name} has no candidate", hint="give at least one")
    if n != first_row(con, "SELECT count(*) FROM ranked_rows")[0]:
        raise BadInput(f"run {name}: some of its {n:,} candidates name no document of the store")
    bad = first_row(con, "SELECT count(*) FROM ranked_rows WHERE score IS NULL OR NOT isfinite(score)")[0]
    if bad:
        raise BadInput(f"run {name}: {bad:,} scores are not finite", hint="repair the system that scored")
    twice = con.execute(
        """SELECT q.query_id, d.doc_id FROM (
             SELECT query, document FROM ranked_rows GROUP BY query, document HAVING count(*) > 1 LIMIT 1)
           JOIN queries q USING (query) JOIN documents d USING (document)"""
    ).fetchall()
    if twice:
        raise BadInput(f"run {name}: passage {twice[0][1]} comes twice for query {twice[0][0]}")


def keep_run(
    con: duckdb.DuckDBPyConnection, job: provenance.Job, new: NewRun, checked: Checked, *, replace: bool
) -> lookup.Run:
    """Record checked rows as a run. An equal run is returned; other content needs `replace`."""
    content, n_queries, n_rows = ranking_hash(con, checked.sums)
    held = con.execute(
        "SELECT run, content_hash FROM runs WHERE dataset = ? AND name = ?", [new.dataset, new.name]
    ).fetchall()
    if held and held[0][1] == content:
        return lookup.run_by_id(con, held[0][0])
    if held and not replace:
        raise BadInput(
            f"run {new.name} is there with other content",
            hint="choose another name with --name, or replace the run with --replace",
        )
    key = held[0][0] if held else next_id(con, "runs", "run")
    if held:
        con.execute("DELETE FROM candidates WHERE run = ?", [key])
        con.execute("DELETE FROM runs WHERE run = ?", [key])
    con.execute(
        "INSERT INTO runs VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [
            key, new.name, new.dataset, new.kind, new.system, new.source_run, new.student,
            canonical_json(dict(new.parameters)), checked.depth, n_queries, n_rows, content, job.job,
        ],
    )  # fmt: skip
    con.execute(f"INSERT INTO candidates SELECT {key}, * FROM ({checked.rows})")
    return lookup.run_by_id(con, key)
