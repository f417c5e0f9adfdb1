"""Fill the working file from the store: queries left to label, their passages, and the recorded answers."""

from collections.abc import Iterator, Sequence
from typing import Any

import duckdb

from labelstore.errors import DataMissing
from teachers.generate.plan import Plan
from teachers.generate.worklist import Work
from teachers.scheduling.job import Answer

QUERIES = 1000  # queries per batch


def fill(con: duckdb.DuckDBPyConnection, made: Plan, work: Work) -> int:
    """Add the queries left to label, in order, with passages and recorded answers; return the job's total of queries.

    Labelled queries are left out, and quarantined ones unless the settings retry them.

    Raises:
        DataMissing: if a passage's text is blank.
    """
    settings = made.settings
    chosen, values = made.queries()
    con.execute(
        f"""CREATE TEMP TABLE asked AS
            SELECT row_number() OVER (ORDER BY query) - 1 AS number, query FROM ({chosen})""",
        values,
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
    for first in range(0, int(queries), QUERIES):
        work.add_lists(_lists(con, made, first))
    shown, values = made.candidates()
    work.add_documents(
        _documents(
            con,
            f"""SELECT document, doc_id, title, text, text_hash FROM documents
                WHERE document IN (SELECT c.document FROM ({shown}) c WHERE c.query IN (SELECT query FROM todo))""",
            values,
        )
    )
    work.add_answers(answers(con, made, "SELECT number, query FROM todo"))
    return int(queries)


def _documents(
    con: duckdb.DuckDBPyConnection, sql: str, parameters: Sequence[Any]
) -> Iterator[tuple[Any, ...]]:
    for row in _rows(con, sql, parameters):
        _, doc_id, _, text, _ = row
        if not text.strip():
            raise DataMissing(
                f"the passage {doc_id!r} is blank, so it cannot be shown",
                hint="add its text with `msft data add … --update`, or give a --depth that ends above it",
            )
        yield row


def _lists(con: duckdb.DuckDBPyConnection, made: Plan, first: int) -> Iterator[tuple[Any, ...]]:
    """Yield (number, query_id, text, documents, ranks, scores) of a batch of queries, so that memory does not grow with all."""
    shown, values = made.candidates()
    return _rows(
        con,
        f"""SELECT l.number, q.query_id, q.text, l.documents, l.ranks, l.scores FROM
              (SELECT t.number, c.query, list(c.document ORDER BY c.place) AS documents,
                      list(c.place ORDER BY c.place) AS ranks, list(c.score ORDER BY c.place) AS scores
               FROM ({shown}) c JOIN todo t USING (query) WHERE t.number >= ? AND t.number < ? GROUP BY ALL) l
            JOIN queries q USING (query) ORDER BY l.number""",
        [*values, first, first + QUERIES],
    )


def answers(con: duckdb.DuckDBPyConnection, made: Plan, queries: str) -> Iterator[tuple[int, str, Answer]]:
    """Yield (number, request_key, answer) of all recorded calls, in the order in which they were made.

    Args:
        queries: an SQL query that returns (number, query).
    """
    rows = _rows(
        con,
        f"""SELECT q.number, r.request_key, c.call_key, c.status, c.parsed, c.scores,
                   c.n_missing + c.n_repeated + c.n_out_of_range, c.tokens_in, c.tokens_out, c.attempt, c.reply
            FROM ({queries}) q JOIN requests r USING (query) JOIN calls c USING (request)
            JOIN teachers t ON t.teacher = r.teacher WHERE t.teacher_key = ? ORDER BY c.call""",
        [made.row.teacher_key],
    )
    return ((row[0], row[1], answer_of(row[2:])) for row in rows)


def answer_of(row: tuple[Any, ...]) -> Answer:
    """Make an answer from call_key, status, parsed, scores, repairs, tokens_in, tokens_out, attempt and reply."""
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


def _rows(
    con: duckdb.DuckDBPyConnection, sql: str, parameters: Sequence[Any] = ()
) -> Iterator[tuple[Any, ...]]:
    result = con.execute(sql, list(parameters))
    while batch := result.fetchmany(1000):
        yield from batch
