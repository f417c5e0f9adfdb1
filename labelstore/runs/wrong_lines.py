"""Say what is wrong with a run: the line reader finds the line.

Only refused runs, and runs with unknown ids, are read here.
"""

from pathlib import Path
from typing import NoReturn

import duckdb

from labelstore.errors import BadInput
from labelstore.files import trec
from labelstore.files.run_lines import RunLines
from labelstore.runs.known_ids import KnownIds


def candidate(path: Path, row: int) -> trec.Candidate:
    """Read the candidate in row `row` of a run, counted from 0."""
    for k, found in enumerate(trec.read_run(path)):
        if k == row:
            return found
    raise BadInput(f"{path}: changed while it was read")


def passage_twice(path: Path, rows: list[int]) -> NoReturn:
    """Refuse a passage that is in several rows of a query."""
    first, again = (candidate(path, row) for row in sorted(rows)[:2])
    raise BadInput(
        f"{path}:{again.line}: passage {again.doc_id} comes again for query {again.query_id} (first on line"
        f" {first.line})",
        hint="keep one line per query and passage; of the windows of a passage keep the best one",
    )


def unknown_ids(
    con: duckdb.DuckDBPyConnection,
    lines: RunLines,
    known: KnownIds,
    first: int,
    n_read: int,
    n_lines: dict[str, int],
) -> NoReturn:
    """Refuse unknown queries and passages, with their numbers.

    Args:
        con: it holds known_queries and known_documents.
        first: the first row with an unknown id.
        n_lines: lines with unknown "queries", and with unknown "passages" of known ones.
    """
    line = candidate(lines.path, first)
    n_queries, n_passages, unknown_query = con.execute(
        f"""SELECT count(DISTINCT CASE WHEN q.query IS NULL THEN l.query_id END),
                   count(DISTINCT CASE WHEN d.document IS NULL THEN l.doc_id END) FILTER (q.member IS NULL OR q.member),
                   bool_or(q.query IS NULL AND l.query_id = ?)
            FROM {lines.relation} l LEFT JOIN known_queries q USING (query_id)
            LEFT JOIN known_documents d USING (doc_id)""",
        [line.query_id],
    ).fetchall()[0]
    named = f"query {line.query_id}" if unknown_query else f"passage {line.doc_id}"
    counts = [
        f"{n:,} {what} ({n_lines[what]:,} lines)"
        for n, what in ((n_queries, "queries"), (n_passages, "passages"))
        if n_lines[what]
    ]
    raise BadInput(
        f"{lines.path}:{line.line}: {named} is unknown to {known.dataset.collection_name}; unknown in all:"
        f" {' and '.join(counts)} of {n_read:,} lines",
        hint="add what is missing (msft data add), or leave these lines out with --skip-unknown",
    )
