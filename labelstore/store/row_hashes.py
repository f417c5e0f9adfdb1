"""Hash the content of large tables in SQL, independent of surrogate keys, row order and DuckDB's version.

DuckDB's own hash() may change between versions, and md5 of 50 million rows takes a minute. So each id is hashed once, a
row mixes integers (products of 32-bit halves, which never overflow 64 bits), a query sums its rows exactly, and the
total is the exact sum of one md5 per query. `python -m benchmarks.store` times it.
"""

import duckdb

from labelstore.store.keys import content_key

_LOW = 0xFFFFFFFF
_A, _B, _RANK, _SCORE = 2654435769, 2246822519, 3266489917, 668265263


def whole_number(column: str) -> str:
    """Make SQL for the value of a text id that is a canonical whole number (no sign, no leading zero); NULL for others."""
    value = f"try_cast({column} AS UBIGINT)"
    return f"CASE WHEN length({column}) < 18 AND {value}::VARCHAR = {column} THEN {value} END"


def id_hash(column: str) -> str:
    """Make SQL for the 64-bit hash of a text id: a canonical whole number mixes its value, other text uses md5."""
    return f"coalesce({number_hash(whole_number(column))}, md5_number_lower({column}))"


def number_hash(number: str) -> str:
    """Make SQL for :func:`id_hash` of a canonical whole number, by its value."""
    return _mix(f"({number} + 1)::UBIGINT")


def small_number_hash(number: str) -> str:
    """Make SQL for :func:`number_hash` of a number below 2**32 - 1, in one product: the upper half of its mix is 0."""
    return f"({number}::UBIGINT + 1) * {_A}"


def _mix(x: str) -> str:
    """Make SQL for one round: multiply both 32-bit halves of `x` by odd constants and combine them."""
    return f"xor(({x} & {_LOW}) * {_A}, ({x} >> 32) * {_B})"


SCORE_BITS = f"(score::FLOAT::BIT::INTEGER::BIGINT & {_LOW})::UBIGINT"


def row_sum(relation: str, score_bits: str = SCORE_BITS) -> str:
    """Make SQL for (query, total HUGEINT, n) of a relation with query, id_hash UBIGINT, rank and score FLOAT.

    Args:
        score_bits: SQL for the 32 bits of the score, if `score` is not a FLOAT.
    """
    return f"""
        SELECT query, sum(xor(h, h >> 29)) AS total, count(*) AS n FROM (
          SELECT query, {_mix("h")} AS h FROM (
            SELECT query, {_mix("h")} AS h FROM (
              SELECT query, xor({_mix("h")}, {score_bits} * {_SCORE}) AS h FROM (
                SELECT query, score, xor(id_hash, rank::UBIGINT * {_RANK}) AS h FROM {relation}))))
        GROUP BY query"""


def ranking_hash(con: duckdb.DuckDBPyConnection, sums: str) -> tuple[str, int, int]:
    """Compute (content hash, queries, rows) of a ranking from its sums (query, total, n), see :func:`row_sum`."""
    total, n_queries, n_rows = con.execute(
        f"""SELECT coalesce(sum(md5_number_lower(q.query_id || ' ' || s.total::VARCHAR || ' ' || s.n::VARCHAR)), 0),
                   count(*), coalesce(sum(s.n), 0)
            FROM {sums} s JOIN queries q USING (query)"""
    ).fetchall()[0]
    return content_key("ranking", [f"{int(total):x}", int(n_queries), int(n_rows)]), n_queries, n_rows


def run_facts(con: duckdb.DuckDBPyConnection, run: int) -> tuple[str, int, int, int]:
    """Compute (content hash, queries, candidates, depth) of a stored run again from its rows."""
    n, depth = con.execute(
        "SELECT count(*), coalesce(max(rank), 0) FROM candidates WHERE run = ?", [run]
    ).fetchall()[0]
    (n_documents,) = con.execute("SELECT count(*) FROM documents").fetchall()[0]
    documents, hashed = "documents", id_hash("d.doc_id")
    if n > n_documents:  # hash each id once, instead of once per candidate
        documents = f"(SELECT document, {id_hash('doc_id')} AS id_hash FROM documents)"
        hashed = "d.id_hash"
    relation = f"""(SELECT c.query, c.rank, c.score, {hashed} AS id_hash
                    FROM candidates c JOIN {documents} d USING (document) WHERE c.run = {int(run)})"""
    content, n_queries, n_rows = ranking_hash(con, f"({row_sum(relation)})")
    return content, n_queries, n_rows, int(depth)


def run_hash(con: duckdb.DuckDBPyConnection, run: int) -> str:
    """Compute the content hash of a stored run again from its rows."""
    return run_facts(con, run)[0]


def qrels_hash(con: duckdb.DuckDBPyConnection, dataset: int) -> str | None:
    """Compute the content hash of a dataset's judgments by text ids; None without judgments."""
    total, n = con.execute(
        """SELECT sum(md5_number_lower(q.query_id || ' ' || d.doc_id || ' ' || r.relevance::VARCHAR)), count(*)
           FROM qrels r JOIN queries q USING (query) JOIN documents d ON d.document = r.document
           WHERE r.dataset = ?""",
        [dataset],
    ).fetchall()[0]
    return content_key("qrels", [f"{int(total):x}", n]) if n else None
