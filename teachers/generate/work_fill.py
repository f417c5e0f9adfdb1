"""The working file filled from the store: what is left to label, its passages, and the answers already on record."""

from collections.abc import Iterator
from typing import Any

import duckdb

from teachers.generate.plan import Plan
from teachers.generate.work import Work
from teachers.scheduler import Answer


def fill(con: duckdb.DuckDBPyConnection, made: Plan, work: Work) -> int:
    """Queries in order, those that are labelled or quarantined left out; their passages; the answers on record."""
    settings = made.settings
    limit = "" if settings.limit is None else f"LIMIT {int(settings.limit)}"
    con.execute(
        f"""CREATE TEMP TABLE asked AS
            SELECT row_number() OVER (ORDER BY query) - 1 AS number, query FROM
              (SELECT DISTINCT query FROM candidates WHERE run = ? ORDER BY query {limit})""",
        [made.run.run],
    )
    (queries,) = con.execute("SELECT count(*) FROM asked").fetchall()[0]
    kept = (
        ""
        if settings.retry_quarantined
        else "UNION ALL SELECT query FROM quarantine WHERE labeling = l.labeling"
    )
    con.execute(
        f"""CREATE TEMP TABLE todo AS SELECT number, query FROM asked WHERE query NOT IN
              (SELECT done.query FROM labelings l, LATERAL
                 (SELECT query FROM permutations WHERE labeling = l.labeling {kept}) done
               WHERE l.name = ? AND done.query IS NOT NULL)""",
        [made.name],
    )
    scope = "c.run = ? AND c.rank <= ? AND c.query IN (SELECT query FROM todo)"
    where = [made.run.run, made.depth]
    work.add_lists(
        _rows(
            con,
            f"""SELECT t.number, q.query_id, q.text, l.documents, l.ranks FROM
                  (SELECT c.query, list(c.document ORDER BY c.rank) AS documents, list(c.rank ORDER BY c.rank) AS ranks
                   FROM candidates c WHERE {scope} GROUP BY c.query) l
                JOIN todo t USING (query) JOIN queries q USING (query) ORDER BY t.number""",
            where,
        )
    )
    work.add_documents(
        _rows(
            con,
            f"""SELECT document, doc_id, title, text, text_hash FROM documents
                WHERE document IN (SELECT c.document FROM candidates c WHERE {scope})""",
            where,
        )
    )
    work.add_answers(answers(con, made, "SELECT number, query FROM todo"))
    return int(queries)


def answers(con: duckdb.DuckDBPyConnection, made: Plan, queries: str) -> Iterator[tuple[int, str, Answer]]:
    """(number, request_key, answer) of all calls on record, in the order in which they were made.

    Args:
        queries: a query that gives (number, query).
    """
    rows = _rows(
        con,
        f"""SELECT q.number, r.request_key, c.call_key, c.status, c.parsed, c.scores,
                   c.n_missing + c.n_repeated + c.n_out_of_range, c.tokens_in, c.tokens_out, c.attempt, c.reply
            FROM ({queries}) q JOIN requests r USING (query) JOIN calls c USING (request)
            JOIN teachers t ON t.teacher = r.teacher WHERE t.teacher_key = ? ORDER BY c.call""",
        [made.row.teacher_key],
    )
    return ((row[0], row[1], _answer(row[2:])) for row in rows)


def _answer(row: tuple[Any, ...]) -> Answer:
    call_key, status, parsed, scores, repairs, tokens_in, tokens_out, attempt, reply = row
    return Answer(
        call_key=call_key,
        status=status,
        order=None if parsed is None else [position - 1 for position in parsed],
        scores=scores,
        repairs=repairs,
        tokens_in=tokens_in,
        tokens_out=tokens_out,
        attempt=attempt,
        detail=(reply or "")[:2000],
    )


def _rows(con: duckdb.DuckDBPyConnection, sql: str, parameters: list[Any]) -> Iterator[tuple[Any, ...]]:
    result = con.execute(sql, parameters)
    while batch := result.fetchmany(1000):
        yield from batch
