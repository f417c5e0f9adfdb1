"""Runs: rankings into and out of the store. TREC runs are read set-wise by DuckDB and checked before they count.

A run's ranks follow its scores, best first; ties keep the file's order. Whatever is wrong with a file is named with
its line, and nothing of it is stored.
"""

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import duckdb
import pyarrow as pa

from labelstore import formats, lookup, provenance
from labelstore.errors import BadInput
from labelstore.keys import canonical_json
from labelstore.row_hashes import id_hash, ranking_hash, row_sum
from labelstore.store import LabelStore, in_transaction, next_id

UNKNOWN_QUERY = "query unknown to the collection"
UNKNOWN_PASSAGE = "passage unknown to the collection"
OTHER_QUERY = "query of another dataset over the collection"

_LINES = pa.schema([("query_id", pa.string()), ("doc_id", pa.string()), ("rank", pa.int32()), ("score", pa.float64())])  # fmt: skip
_BATCH = 100_000


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
        "SELECT query, rank, document, score FROM ranked_rows ORDER BY query, rank",
        "ranked_rows", "ranked_sums",
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
    rows: str,
    table: str,
    sums: str,
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
    depth = _value(con, f"SELECT max(rank) FROM {table}")
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
    """Import a TREC run (plain, gz or zst) over a dataset, in one transaction.

    Queries that the collection knows from another dataset are left out with a count; the rest must be known.

    Args:
        system: what ranked; the file's tag when None.
        skip_unknown: leave out unknown queries and passages with counts instead of refusing the file.
        note: told what a user should know, e.g. ranks in the file that disagree with its scores.

    Raises:
        BadInput: naming file:line of a malformed line, a score that is not finite, a passage that comes twice for a
            query, or (without `skip_unknown`) the first unknown id with the counts.
    """
    say = note or (lambda message: None)
    tag = first_tag(path)
    damage: list[BadInput] = []
    checker = threading.Thread(target=_check, args=(path, damage), daemon=True)
    checker.start()
    try:
        # Reading and checking touch temporary tables alone, outside the transaction: a statement that fails (DuckDB's
        # reader refuses a file) would end it.
        with store.write(transaction=False) as con:
            dataset = lookup.pick_dataset(con, dataset_name)
            _read_lines(con, path, dataset)
            checker.join()
            if damage:
                raise damage[0]
            n_read, drops = _drop_unknown(con, path, dataset, skip_unknown)
            _check_rows(con, path)
            _rank_lines(con, path, say)
            con.execute(f"CREATE OR REPLACE TEMP TABLE run_sums AS {row_sum('run_lines')}")
            with in_transaction(con), provenance.recorded_in(con, "runs.import") as job:
                run = _keep(
                    con, job, dataset.dataset, run_name, kind, system or tag, None, None,
                    {"file": path.name, **(parameters or {})}, replace,
                    "SELECT query, rank, document, score::FLOAT FROM run_lines ORDER BY query, rank",
                    "run_lines", "run_sums",
                )  # fmt: skip
                job.count(con, "run", f"{dataset.name}/{run_name}", n_read, drops)
                held = con.execute("SELECT job FROM runs WHERE run = ?", [run.run]).fetchall()[0][0]
                if held != job.job:
                    raise _Unchanged(Imported(run, False, n_read, drops))
            return Imported(run, True, n_read, drops)
    except _Unchanged as unchanged:
        return unchanged.imported
    finally:
        checker.join()


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


def _read_lines(con: duckdb.DuckDBPyConnection, path: Path, dataset: lookup.Dataset) -> None:
    """The temporary table run_lines, in the file's order, with surrogate keys; NULL where an id is unknown."""
    con.execute(
        f"""CREATE OR REPLACE TEMP TABLE run_queries AS
            SELECT q.query, q.query_id, d.query IS NOT NULL AS member
            FROM queries q LEFT JOIN (SELECT query FROM dataset_queries WHERE dataset = {dataset.dataset}) d
                 ON d.query = q.query WHERE q.collection = {dataset.collection};
            CREATE OR REPLACE TEMP TABLE run_documents AS
            SELECT document, doc_id, {id_hash("doc_id")} AS id_hash
            FROM documents WHERE collection = {dataset.collection}"""
    )
    keyed = """SELECT q.query, d.document, l.rank, l.score, d.id_hash, q.member,
                      CASE WHEN q.query IS NULL THEN l.query_id END AS unknown_query,
                      CASE WHEN d.document IS NULL THEN l.doc_id END AS unknown_passage
               FROM {source} l LEFT JOIN run_queries q USING (query_id) LEFT JOIN run_documents d USING (doc_id)"""
    try:
        con.execute("CREATE OR REPLACE TEMP TABLE run_lines AS " + keyed.format(source=_csv(path)))
    except duckdb.Error:
        # The reference reader: it takes any white space between fields, and names the line it refuses.
        empty = keyed.format(source="(SELECT '' AS query_id, '' AS doc_id, 0 AS rank, 0.0::DOUBLE AS score)")
        con.execute(f"CREATE OR REPLACE TEMP TABLE run_lines AS SELECT * FROM ({empty}) LIMIT 0")
        for batch in _batches(path):
            con.register("line_batch", batch)
            con.execute("INSERT INTO run_lines " + keyed.format(source="line_batch"))
            con.unregister("line_batch")


def _csv(path: Path) -> str:
    """DuckDB's reader over a TREC run in its common form: one space or one tab between six fields."""
    skip, delimiter = 0, " "
    for number, line in formats.lines(path):
        if not line.strip() or line.split()[0] == b"#":
            skip = number
            continue
        delimiter = "\t" if line.count(b"\t") == 5 else " "
        break
    quoted = str(path).replace("'", "''")
    return f"""read_csv('{quoted}', delim = '{delimiter}', header = false, auto_detect = false, quote = '',
        escape = '', comment = '', compression = '{formats.compression(path)}', strict_mode = true, skip = {skip},
        columns = {{'query_id': 'VARCHAR', 'q0': 'VARCHAR', 'doc_id': 'VARCHAR', 'rank': 'INTEGER',
                    'score': 'DOUBLE', 'tag': 'VARCHAR'}})"""


def _batches(path: Path) -> Iterable[pa.Table]:
    rows: list[tuple[str, str, int, float]] = []
    for c in formats.read_run(path):
        rows.append((c.query_id, c.doc_id, c.rank, c.score))
        if len(rows) == _BATCH:
            yield _table(rows)
            rows = []
    if rows:
        yield _table(rows)


def _table(rows: list[tuple[str, str, int, float]]) -> pa.Table:
    columns = zip(*rows, strict=True)
    return pa.table([pa.array(c, type=f.type) for c, f in zip(columns, _LINES, strict=True)], schema=_LINES)


def _line(path: Path, row: int) -> formats.Candidate:
    """The candidate that stands in row `row` (from 0) of run_lines: read again only to name its line."""
    for k, candidate in enumerate(formats.read_run(path)):
        if k == row:
            return candidate
    raise BadInput(f"{path}: changed while it was read")


def _drop_unknown(
    con: duckdb.DuckDBPyConnection, path: Path, dataset: lookup.Dataset, skip: bool
) -> tuple[int, dict[str, tuple[int, str | None]]]:
    """Take rows with unknown ids out of run_lines, or refuse the file; (rows read, what was left out)."""
    n, n_query, n_passage, n_other, queries, passages, first = con.execute(
        """SELECT count(*), count(unknown_query), count(*) FILTER (unknown_passage IS NOT NULL AND member),
                  count(*) FILTER (NOT member), count(DISTINCT unknown_query),
                  count(DISTINCT unknown_passage) FILTER (member IS NULL OR member),
                  min(rowid) FILTER (unknown_query IS NOT NULL OR unknown_passage IS NOT NULL AND member)
           FROM run_lines"""
    ).fetchall()[0]
    if not (n_query or n_passage or n_other):
        return n, {}
    where = None
    if first is not None:
        line = _line(path, first)
        where = f"{path}:{line.line}"
        of_query = _value(con, "SELECT unknown_query IS NOT NULL FROM run_lines WHERE rowid = ?", [first])
        named = f"query {line.query_id}" if of_query else f"passage {line.doc_id}"
        counts = [
            f"{total:,} {what} ({rows:,} lines)"
            for total, what, rows in ((queries, "queries", n_query), (passages, "passages", n_passage))
            if rows
        ]
        if not skip:
            raise BadInput(
                f"{where}: {named} is unknown to {dataset.collection_name}; unknown in all: {' and '.join(counts)}"
                f" of {n:,} lines",
                hint="add what is missing (msft data add), or --skip-unknown leaves these lines out",
            )
    con.execute(
        "DELETE FROM run_lines WHERE query IS NULL OR NOT member OR document IS NULL",
    )
    kept = _value(con, "SELECT count(*) FROM run_lines")
    if not kept:
        raise BadInput(
            f"{path}: none of its {n:,} lines belongs to a query of {dataset.name} with a known passage",
            hint="is this a run over another dataset? `msft data list`",
        )
    return n, {
        UNKNOWN_QUERY: (n_query, where),
        UNKNOWN_PASSAGE: (n_passage, where),
        OTHER_QUERY: (n_other, None),
    }


def _check_rows(con: duckdb.DuckDBPyConnection, path: Path) -> None:
    """Refuse scores that are not finite and passages that come twice for a query."""
    bad, n = con.execute(
        "SELECT min(rowid), count(*) FROM run_lines WHERE score IS NULL OR NOT isfinite(try_cast(score AS FLOAT)) OR try_cast(score AS FLOAT) IS NULL"
    ).fetchall()[0]
    if n:
        for candidate in formats.read_run(path):  # names the line itself
            del candidate
        raise BadInput(f"{path}: row {bad + 1} has a score that is no finite float32 ({n:,} such rows)")
    twice = con.execute(
        """SELECT query, document FROM run_lines GROUP BY query, document HAVING count(*) > 1"""
    ).fetchmany(1)
    if twice:
        query_id, doc_id = con.execute(
            """SELECT query_id, doc_id FROM run_queries, run_documents WHERE query = ? AND document = ?""",
            [*twice[0]],
        ).fetchall()[0]
        seen = [c.line for c in formats.read_run(path) if c.query_id == query_id and c.doc_id == doc_id]
        raise BadInput(
            f"{path}:{seen[1]}: passage {doc_id} comes again for query {query_id} (first on line {seen[0]})",
            hint="a run ranks a passage once per query; passages split into windows need their best one kept",
        )


def _rank_lines(con: duckdb.DuckDBPyConnection, path: Path, say: Callable[[str], None]) -> None:
    """Give run_lines the ranks of its scores; a file in order keeps the ranks that it has."""
    unsorted, n_starts, misnumbered = con.execute(
        """SELECT count(*) FILTER (query = before AND (score > last OR rank <= place)),
                  count(*) FILTER (before IS NULL OR query <> before),
                  count(*) FILTER (rank <> CASE WHEN query = before THEN place + 1 ELSE 1 END)
           FROM (SELECT query, score, rank, lag(query) OVER () AS before, lag(score) OVER () AS last,
                        lag(rank) OVER () AS place FROM run_lines)"""
    ).fetchall()[0]
    n_queries = _value(con, "SELECT count(DISTINCT query) FROM run_lines")
    if not unsorted and not misnumbered and n_starts == n_queries:
        return
    con.execute(
        """CREATE OR REPLACE TEMP TABLE run_lines AS
           SELECT query, document, score, id_hash, rank AS place,
                  (row_number() OVER (PARTITION BY query ORDER BY score DESC, rowid))::INTEGER AS rank
           FROM run_lines"""
    )
    if unsorted:
        disagree = _value(
            con,
            """SELECT count(DISTINCT query) FROM (
                 SELECT query, place < max(place) OVER (PARTITION BY query ORDER BY score DESC
                        RANGE BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW EXCLUDE TIES) AS upset FROM run_lines)
               WHERE upset""",
        )
        if disagree:
            say(
                f"{path}: ranks disagree with scores in {disagree:,} of {n_queries:,} queries; the scores count"
            )


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
