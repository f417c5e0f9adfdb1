"""Runs: rankings into and out of the store. TREC runs are read and checked (`run_lines`) before they are stored.

A run's ranks follow its scores, best first; ties keep the file's order. Whatever is wrong with a file is named with
its line, and nothing of it is stored.
"""

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import duckdb

from labelstore import formats, lookup, provenance, run_lines
from labelstore.errors import BadInput
from labelstore.keys import canonical_json
from labelstore.row_hashes import id_hash, ranking_hash, row_sum
from labelstore.staging import work_folder
from labelstore.store import LabelStore, next_id


@dataclass(frozen=True)
class Imported:
    """What an import did: the run, whether it is new, rows read, and what was left out by reason."""

    run: lookup.Run
    new: bool
    n_read: int
    drops: dict[str, tuple[int, str | None]]


def _value(con: duckdb.DuckDBPyConnection, sql: str, parameters: list[Any] | None = None) -> Any:
    return con.execute(sql, parameters or []).fetchall()[0][0]


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
        relation: a table, view or registered frame with columns query, document, score and, at will, rank. Without
            rank candidates are ranked by score, ties by doc_id; with rank by score, ties by that rank.
        replace: put it in the place of a run of the same name and other content.

    Returns:
        The run; the one that is there already if name and content are the same (its job is then another).

    Raises:
        BadInput: on a passage that comes twice for a query, a score that is not finite, a run without a row, or a
            name that is taken by other content.
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
        raise BadInput(f"run {name}: there is no candidate", hint="a run needs at least one")
    if n != _value(con, "SELECT count(*) FROM ranked_rows"):
        raise BadInput(f"run {name}: some of its {n:,} candidates name no document of the store")
    bad = _value(con, "SELECT count(*) FROM ranked_rows WHERE score IS NULL OR NOT isfinite(score)")
    if bad:
        raise BadInput(f"run {name}: {bad:,} scores are not finite", hint="mend the system that scored")
    twice = con.execute(
        """SELECT q.query_id, d.doc_id FROM (
             SELECT query, document FROM ranked_rows GROUP BY query, document HAVING count(*) > 1 LIMIT 1)
           JOIN queries q USING (query) JOIN documents d USING (document)"""
    ).fetchall()
    if twice:
        raise BadInput(f"run {name}: passage {twice[0][1]} comes twice for query {twice[0][0]}")
    con.execute(f"CREATE OR REPLACE TEMP TABLE ranked_sums AS {row_sum('ranked_rows')}")
    run = _keep(
        con, job, dataset, name, kind, system, source_run, student, parameters or {}, replace,
        sums="ranked_sums", depth=_value(con, "SELECT max(rank) FROM ranked_rows"),
        rows="SELECT query, rank, document, score FROM ranked_rows ORDER BY query, rank",
    )  # fmt: skip
    con.execute("DROP TABLE ranked_rows")
    con.execute("DROP TABLE ranked_sums")
    return run


def _keep(
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
    *,
    sums: str,
    depth: int,
    rows: str,
) -> lookup.Run:
    """Record checked rows as a run: the same again is returned as it is, other content needs `replace`."""
    content, n_queries, n_rows = ranking_hash(con, sums, "queries")
    held = con.execute(
        "SELECT run, content_hash FROM runs WHERE dataset = ? AND name = ?", [dataset, name]
    ).fetchall()
    if held and held[0][1] == content:
        return lookup.run_by_id(con, held[0][0])
    if held and not replace:
        raise BadInput(
            f"run {name} is there with other content", hint="--name names another, --replace takes its place"
        )
    key = held[0][0] if held else next_id(con, "runs", "run")
    if held:
        con.execute("DELETE FROM candidates WHERE run = ?", [key])
        con.execute("DELETE FROM runs WHERE run = ?", [key])
    con.execute(
        "INSERT INTO runs VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [
            key, name, dataset, kind, system, source_run, student, canonical_json(dict(parameters)), depth,
            n_queries, n_rows, content, job.job,
        ],
    )  # fmt: skip
    con.execute(f"INSERT INTO candidates SELECT {key}, * FROM ({rows})")
    return lookup.run_by_id(con, key)


# ------------------------------------------------------------------------------------------------ TREC import
def import_run(
    store: LabelStore,
    path: Path,
    dataset_name: str | None,
    run_name: str,
    *,
    kind: str = "first_stage",
    system: str | None = None,
    skip_unknown: bool = False,
    replace: bool = False,
    parameters: Mapping[str, Any] | None = None,
    note: Callable[[str], None] | None = None,
) -> Imported:
    """Import a TREC run (plain, gz or zst) over a dataset, in one transaction at the end: reading it holds nothing.

    Queries that the collection knows from another dataset are left out with a count; the rest must be known.

    Args:
        system: what ranked; the file's tag when None.
        skip_unknown: leave out unknown queries and passages with counts instead of refusing the file.
        note: told what a user should know, e.g. ranks in the file that disagree with its scores.

    Raises:
        BadInput: naming file:line of a malformed line, a score that is not finite, a passage that comes twice for a
            query, or (without `skip_unknown`) the first unknown id with the counts.
    """
    clock = provenance.Clock()
    tag = first_tag(path)
    damage: list[BadInput] = []
    checker = threading.Thread(target=_check, args=(path, damage), daemon=True)
    checker.start()
    try:
        with work_folder(store.path.parent) as folder:
            staged = run_lines.read(
                store,
                path,
                dataset_name,
                folder,
                skip_unknown=skip_unknown,
                say=note or (lambda message: None),
            )
            checker.join()
            if damage:
                raise damage[0]
            with store.write() as con, provenance.recorded_in(con, "runs.import", clock) as job:
                con.register("staged_sums", staged.sums)
                _still_known(con, staged)
                con.register("staged_rows", staged.open())
                run = _keep(
                    con, job, staged.dataset.dataset, run_name, kind, system or tag, None, None,
                    {"file": path.name, **(parameters or {})}, replace,
                    sums="(SELECT query, high::HUGEINT * 4294967296 + low AS total, n FROM staged_sums)",
                    depth=staged.depth, rows="SELECT query, rank, document, score FROM staged_rows",
                )  # fmt: skip
                job.count(con, "run", f"{staged.dataset.name}/{run_name}", staged.n_read, staged.drops)
                held = con.execute("SELECT job FROM runs WHERE run = ?", [run.run]).fetchall()[0][0]
                if held != job.job:
                    raise _Unchanged(Imported(run, False, staged.n_read, staged.drops))
            return Imported(run, True, staged.n_read, staged.drops)
    except _Unchanged as unchanged:
        return unchanged.imported
    finally:
        checker.join()


def _still_known(con: duckdb.DuckDBPyConnection, staged: run_lines.Staged) -> None:
    """Refuse rows whose queries left the dataset, or whose dataset was replaced, while the file was read."""
    now = lookup.dataset(con, staged.dataset.name)
    (gone,) = con.execute(
        "SELECT count(*) FROM staged_sums ANTI JOIN (SELECT query FROM dataset_queries WHERE dataset = ?) USING (query)",
        [now.dataset],
    ).fetchall()[0]
    if gone or (now.dataset, now.collection) != (staged.dataset.dataset, staged.dataset.collection):
        raise BadInput(
            f"{staged.dataset.name} was changed while the run was read", hint="import the run again"
        )


class _Unchanged(Exception):
    """Rolls the transaction back: the same run again leaves no trace."""

    def __init__(self, imported: Imported) -> None:
        super().__init__()
        self.imported = imported


def _check(path: Path, damage: list[BadInput]) -> None:
    try:
        formats.check_intact(path)
    except BadInput as error:
        damage.append(error)


def first_tag(path: Path) -> str:
    """The tag of a run's first line: what ranked.

    Raises:
        BadInput: if the file holds no candidate, or its first is malformed.
    """
    for candidate in formats.read_run(path):
        return candidate.tag
    raise BadInput(f"{path}: there is no candidate in it", hint="is this the right file?")


# ------------------------------------------------------------------------------------------------------ out
def listed(con: duckdb.DuckDBPyConnection, dataset: lookup.Dataset | None = None) -> list[dict[str, Any]]:
    """Every run with its counts, for `runs list`."""
    found = con.execute(
        f"""SELECT d.name AS dataset, r.name AS run, r.kind, r.system, s.name AS source, r.depth,
                   r.n_queries AS queries, r.n_candidates AS candidates, r.content_hash
            FROM runs r JOIN datasets d USING (dataset) LEFT JOIN runs s ON s.run = r.source_run
            {"WHERE r.dataset = ?" if dataset else ""} ORDER BY d.dataset, r.run""",
        [dataset.dataset] if dataset else [],
    )
    names = [column[0] for column in found.description or ()]
    return [dict(zip(names, row, strict=True)) for row in found.fetchall()]


def write_trec(
    store: LabelStore,
    dataset: lookup.Dataset,
    run: lookup.Run,
    out: IO[str],
    *,
    header: Iterable[str] = (),
    tag: str | None = None,
) -> int:
    """Write a run as a TREC run, queries in the store's order, and return its number of lines.

    Args:
        header: lines of an ir_metadata header, without the leading ``# ``.
        tag: last field; the run's name when None.
    """
    name = "-".join((tag or run.name).split())
    for line in header:
        out.write(f"# {line}".rstrip() + "\n")
    n = 0
    with store.read() as con:
        rows = con.execute(
            """SELECT q.query_id || ' Q0 ' || d.doc_id || ' ' || c.rank || ' ' || c.score::VARCHAR || ' ' || ?
               FROM candidates c JOIN queries q USING (query) JOIN documents d ON d.document = c.document
               WHERE c.run = ? ORDER BY c.query, c.rank""",
            [name, run.run],
        )
        while block := rows.fetchmany(50_000):
            out.write("\n".join(line for (line,) in block) + "\n")
            n += len(block)
    return n
