"""Check every reference between tables, and unique rows: set-wise, large tables a bounded part at a time."""

from collections.abc import Iterator

import duckdb

from labelstore.store.relations import OWNERS, REFERENCES, TARGETS, UNIQUE, Reference
from labelstore.upkeep.verify.findings import COPY, Finding

PART = 4_000_000  # rows of a large table that are grouped at once
_LARGE = {"candidates": "query", "permutation_items": "permutation", "request_passages": "request"}


def dangling(con: duckdb.DuckDBPyConnection) -> Iterator[Finding]:
    """Find rows that refer to a missing row of another table."""
    for reference in REFERENCES:
        for owner, n, example in _dangling(con, reference):
            yield _finding(reference, owner, n, example)


def _dangling(con: duckdb.DuckDBPyConnection, of: Reference) -> list[tuple[str | None, int, str]]:
    name, join = OWNERS.get(of.table, ("NULL", ""))
    return con.execute(
        f"""SELECT {name}, count(*), min(t."{of.column}")::VARCHAR
            FROM (SELECT * FROM "{of.table}" WHERE "{of.column}" IN (
                    SELECT "{of.column}" FROM (SELECT DISTINCT "{of.column}" FROM "{of.table}") t
                    ANTI JOIN "{of.target}" o ON o."{of.key}" = t."{of.column}" WHERE "{of.column}" IS NOT NULL)) t {join}
            GROUP BY 1 ORDER BY 1 NULLS FIRST"""
    ).fetchall()


def _finding(of: Reference, owner: str | None, n: int, example: str) -> Finding:
    problem = f"{n:,} rows refer to a missing {TARGETS[of.target]} ({of.column} {example})"
    hint = COPY
    if of.part:
        hint = (
            f'msft sql --write "DELETE FROM {of.table} WHERE {of.column} NOT IN (SELECT {of.key} FROM {of.target})"'
            " removes what belongs to nothing; or put the missing row back from a copy: `msft merge COPY.duckdb`"
        )
    elif of.table in ("candidates", "qrels", "dataset_queries"):
        again = {"candidates": "`msft runs import --replace`", "qrels": "`msft data add --update`"}
        hint = f"bring it in again: {again.get(of.table, '`msft data add --update`')}; or {COPY}"
    return Finding(of.table, owner or of.column, problem, hint)


_DATASET = "JOIN datasets o ON o.dataset = t.dataset"
_RUN = "JOIN runs o ON o.run = t.run"
_MINING = "JOIN minings o ON o.mining = t.mining"
_LABELING = "JOIN labelings o ON o.labeling = t.labeling"
_ITEM = "JOIN permutations p ON p.permutation = t.permutation JOIN labelings o ON o.labeling = p.labeling"
_JUDGING = "JOIN judgings o ON o.judging = t.judging"
_CHECKING = "JOIN checkings o ON o.checking = t.checking"
_SCOPED = (
    ("dataset_queries", _DATASET, "query"),
    ("qrels", _DATASET, "query"),
    ("qrels", _DATASET, "document"),
    ("candidates", _RUN, "query"),
    ("candidates", _RUN, "document"),
    ("negatives", _MINING, "query"),
    ("negatives", _MINING, "document"),
    ("permutations", _LABELING, "query"),
    ("permutation_items", _ITEM, "document"),
    ("query_origins", _DATASET, "query"),
    ("query_origins", _DATASET, "document"),
    ("llm_judgments", _JUDGING, "query"),
    ("llm_judgments", _JUDGING, "document"),
    ("verdicts", _CHECKING, "query"),
    ("verdicts", _CHECKING, "document"),
)


def in_other_collections(con: duckdb.DuckDBPyConnection) -> Iterator[Finding]:
    """Find rows whose query or passage is in another collection than their dataset."""
    (collections,) = con.execute("SELECT count(*) FROM collections").fetchall()[0]
    if collections < 2:
        return
    for table, join, column in _SCOPED:
        target, text = ("queries", "query_id") if column == "query" else ("documents", "doc_id")
        name = "d.name || '/' || o.name" if table == "candidates" else "o.name"
        for owner, collection, n, key in con.execute(
            f"""SELECT {name}, c.name, count(*), min(t.{column}) FROM {table} t {join}
                JOIN datasets d ON d.dataset = o.dataset JOIN collections c ON c.collection = d.collection
                JOIN {target} x ON x.{column} = t.{column}
                WHERE x.collection <> d.collection GROUP BY 1, 2 ORDER BY 1"""
        ).fetchall():
            (example,) = con.execute(f"SELECT {text} FROM {target} WHERE {column} = ?", [key]).fetchall()[0]
            problem = f"{n:,} rows name a {column} of another collection than {collection} (e.g. {example})"
            yield Finding(table, owner, problem, COPY)


def repeated(con: duckdb.DuckDBPyConnection) -> Iterator[Finding]:
    """Find rows that must be unique and are not."""
    for table, columns in UNIQUE:
        n = 0
        example: str | None = None
        for where in _parts(con, table):
            more, first = con.execute(
                f"""SELECT count(*), min(concat_ws(' ', {", ".join(columns)})) FROM (
                      SELECT {", ".join(columns)} FROM {table} {where} GROUP BY ALL HAVING count(*) > 1)"""
            ).fetchall()[0]
            n, example = n + more, example or first
        if n:
            yield Finding(
                table,
                " ".join(columns),
                f"{n:,} come more than once (first {example})",
                f'msft sql "SELECT {", ".join(columns)}, count(*) FROM {table} GROUP BY ALL HAVING count(*) > 1"'
                f" lists them; {COPY}",
            )


def _parts(con: duckdb.DuckDBPyConnection, table: str) -> Iterator[str]:
    """Make WHERE clauses that cut a large table into parts of about PART rows, by ranges of its order key."""
    if table not in _LARGE:
        yield ""
        return
    key = _LARGE[table]
    n, low, high = con.execute(f"SELECT count(*), min({key}), max({key}) FROM {table}").fetchall()[0]
    if n <= PART:
        yield ""
        return
    step = max(1, (high - low + 1) * PART // n)
    for start in range(low, high + 1, step):
        yield f"WHERE {key} BETWEEN {start} AND {start + step - 1}"
