"""Fill the working file from the store: queries left to label, their passages, and the recorded answers."""

from collections.abc import Iterator, Sequence
from typing import Any

import duckdb

from labelstore.errors import DataMissing
from teachers.generate.plan import Plan
from teachers.generate.worklist import Work
from teachers.scheduling.job import Answer

QUERIES = 1000  # queries per batch
# The queries of a run, without generated ones that a filter has taken out; the parameter, twice, is the run.
OF_RUN = """SELECT DISTINCT query FROM candidates WHERE run = ? AND query NOT IN
              (SELECT f.query FROM filtered_out f JOIN runs r USING (dataset) WHERE r.run = ?) ORDER BY query"""


def fill(con: duckdb.DuckDBPyConnection, made: Plan, work: Work) -> int:
    """Add the queries left to label, in order, with passages and recorded answers; return the job's total of queries.

    Labelled queries are left out, and quarantined ones unless the settings retry them.

    Raises:
        DataMissing: if a passage's text is blank.
    """
    settings = made.settings
    limit = "" if settings.limit is None else f"LIMIT {int(settings.limit)}"
    con.execute(
        f"""CREATE TEMP TABLE asked AS
            SELECT row_number() OVER (ORDER BY query) - 1 AS number, query FROM
              ({OF_RUN} {limit})""",
        [made.run.run, made.run.run],
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
    work.add_documents(
        _documents(
            con,
            """SELECT document, doc_id, title, text, text_hash FROM documents
               WHERE document IN (SELECT c.document FROM candidates c
                                  WHERE c.run = ? AND c.rank <= ? AND c.query IN (SELECT query FROM todo))""",
            [made.run.run, made.depth],
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
    """Yield (number, query_id, text, documents, ranks) of a batch of queries, so that memory does not grow with all."""
    return _rows(
        con,
        """SELECT l.number, q.query_id, q.text, l.documents, l.ranks FROM
             (SELECT t.number, c.query, list(c.document ORDER BY c.rank) AS documents,
                     list(c.rank ORDER BY c.rank) AS ranks
              FROM candidates c JOIN todo t USING (query)
              WHERE c.run = ? AND c.rank <= ? AND t.number >= ? AND t.number < ? GROUP BY ALL) l
           JOIN queries q USING (query) ORDER BY l.number""",
        [made.run.run, made.depth, first, first + QUERIES],
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
