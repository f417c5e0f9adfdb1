"""Read and check a run into a staging file, while the store is free.

DuckDB parses the lines and turns ids into keys or numbers; numpy checks blocks of whole queries as they stream by: ids
known, scores finite, ranks in the order of scores, no passage twice. What is left goes into an Arrow stream of 24 bytes
a candidate, and DuckDB sums its hashes. Memory holds one batch of lines, the ids of the collection and one sum for each
query. If the lines are not in order DuckDB sorts them, on disk if need be, and they are checked again.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import numpy as np
import pyarrow as pa

from labelstore.files import trec
from labelstore.files.run_lines import RunLines
from labelstore.runs import wrong_lines
from labelstore.runs.known_ids import BATCH, UNKNOWN, KnownIds
from labelstore.store.row_hashes import row_sum, small_number_hash

_ROWS = pa.schema([("query", pa.int32()), ("rank", pa.int32()), ("document", pa.int32()), ("score", pa.float32()), ("id_hash", pa.uint64())])  # fmt: skip
_NO_NUMBER = "4294967295::UINTEGER"  # above all numbers that are looked up
_REFUSED = re.compile("(Invalid Input|Conversion) Error")


@dataclass
class StagedRun:
    """A run that was read and checked.

    Attributes:
        rows: a file with an Arrow stream (query, rank, document, score, id_hash), each query's candidates together,
            best first.
        n_read: candidates in the file.
        n_query: of them, those of unknown queries.
        n_passage: unknown passages of the dataset's queries.
        n_other: candidates of queries of other datasets over the collection.
        n_kept: candidates in `rows`.
        n_out_of_order: queries with a passage whose rank in the file is above one that scores higher.
        first_unknown: the first candidate with an unknown query or passage, counted from 0.
        depth: the deepest rank.
        sums: (query, total, n) as `row_sum` gives, the total as text.
    """

    rows: Path
    n_read: int = 0
    n_query: int = 0
    n_passage: int = 0
    n_other: int = 0
    n_kept: int = 0
    n_out_of_order: int = 0
    first_unknown: int | None = None
    depth: int = 0
    sums: pa.Table = None

    def open(self) -> pa.RecordBatchReader:
        return pa.ipc.open_stream(pa.OSFile(str(self.rows)))

    def open_bits(self) -> pa.RecordBatchReader:
        """Open the rows with the bits of each score in its place; DuckDB would take longer to find them."""
        at = _ROWS.get_field_index("score")
        field = pa.field("score", pa.uint32())
        batches = (batch.set_column(at, field, batch.column(at).view(field.type)) for batch in self.open())
        return pa.RecordBatchReader.from_batches(_ROWS.set(at, field), batches)


class _Lines(NamedTuple):
    """Columns of candidates, `row` counted from 0 in the file."""

    row: Any
    query: Any
    document: Any
    rank: Any
    score: Any
    id_hash: Any

    def part(self, where: Any) -> "_Lines":
        return _Lines(*(column[where] for column in self))


class _Unordered(Exception):
    """Lines are not in the order of queries and scores."""


class _NotFinite(Exception):
    """A rank or a score is not a finite number."""


def stage_run(con: duckdb.DuckDBPyConnection, lines: RunLines, known: KnownIds, rows: Path) -> StagedRun:
    """Check a run and write its rows.

    Args:
        con: a database in memory; it may hold the tables of `known`.
        rows: the file to write.

    Raises:
        BadInput: naming file:line of a malformed line, a score that is not finite, or a passage that comes twice for a
            query.
    """
    try:
        try:
            staged = _checked(con, lines, known, rows, in_order=False)
        except _Unordered:
            staged = _checked(con, lines, known, rows, in_order=True)
    except _NotFinite as error:
        trec.refuse_run(lines.path, error)
    except (duckdb.Error, OSError) as error:  # the latter from an Arrow stream
        if _REFUSED.match(str(error)):
            trec.refuse_run(lines.path, error)
        raise
    con.register("staged_rows", staged.open_bits())
    staged.sums = con.sql(
        f"SELECT query, total::VARCHAR AS total, n FROM ({row_sum('staged_rows', 'score::UBIGINT')})"
    ).to_arrow_table()
    con.unregister("staged_rows")
    return staged


# ------------------------------------------------------------------------------------------------------- ids to keys
def _with_keys(lines: RunLines, known: KnownIds, in_order: bool) -> str:
    """Make SQL for a run's candidates: keys of ids that were joined, numbers of ids to look up."""
    order = "ORDER BY query NULLS FIRST, score DESC, row" if in_order else ""
    if known.queries is None:
        return f"""SELECT l.row, q.query, d.document, l.rank, l.score, d.id_hash
                   FROM (SELECT *, row_number() OVER () - 1 AS row FROM {lines.relation}) l
                   LEFT JOIN known_queries q USING (query_id) LEFT JOIN known_documents d USING (doc_id) {order}"""
    row = ", row_number() OVER () - 1 AS row" if in_order else ""
    return f"""SELECT *, {small_number_hash("document")} AS id_hash {row} FROM (
                 SELECT {_number("query_id")} AS query, {_number("doc_id")} AS document, rank, score
                 FROM {lines.relation}) {order}"""


def _number(id_: str) -> str:
    """Make SQL like `whole_number`, with a number that no known id has for other text and for larger numbers."""
    value = f"try_cast({id_} AS UINTEGER)"
    return f"CASE WHEN {value}::VARCHAR = {id_} THEN {value} ELSE {_NO_NUMBER} END"


def _keyed(batches: pa.RecordBatchReader, known: KnownIds, staged: StagedRun) -> Iterator[_Lines]:
    """Select the candidates with known ids, and count the others."""
    for batch in batches:
        n = batch.num_rows
        if not n:
            continue
        if "row" in batch.schema.names:
            row = batch.column("row").to_numpy()
        else:
            row = np.arange(staged.n_read, staged.n_read + n)
        rank, score = (batch.column(name).to_numpy(zero_copy_only=False) for name in ("rank", "score"))
        with np.errstate(invalid="ignore"):
            whole = rank.astype(np.int32)
        if not ((whole == rank).all() and whole.min() > -(2**31)):
            raise _NotFinite
        lines = _Lines(
            row,
            _look_up(known.queries, batch.column("query")),
            _look_up(known.documents, batch.column("document")),
            whole,
            score,
            batch.column("id_hash").fill_null(0).to_numpy(),
        )
        staged.n_read += n
        lines = _known(lines, known, staged)
        if len(lines.row):
            yield lines


def _look_up(keys: Any, column: pa.Array) -> Any:
    if keys is None:
        return column.fill_null(UNKNOWN).to_numpy()
    return keys.take(column.to_numpy(), mode="clip")  # the last one is UNKNOWN


def _known(lines: _Lines, known: KnownIds, staged: StagedRun) -> _Lines:
    if lines.query.min() >= 0 and lines.document.min() >= 0 and known.members[lines.query].all():
        return lines
    lost = lines.query == UNKNOWN
    other = ~lost & ~known.members[lines.query]
    blank = ~lost & ~other & (lines.document == UNKNOWN)
    staged.n_query += int(lost.sum())
    staged.n_other += int(other.sum())
    staged.n_passage += int(blank.sum())
    if (lost | blank).any():
        first = int(lines.row[lost | blank].min())
        staged.first_unknown = first if staged.first_unknown is None else min(staged.first_unknown, first)
    return lines.part(~(lost | other | blank))


# ---------------------------------------------------------------------------------------------------------- checking
def _checked(
    con: duckdb.DuckDBPyConnection, lines: RunLines, known: KnownIds, rows: Path, *, in_order: bool
) -> StagedRun:
    """Check all lines as they come, or in the order of queries and scores.

    Raises:
        _Unordered: if they are to be checked as they come, and one shows that they are not in order.
    """
    staged = StagedRun(rows)
    seen = np.zeros(len(known.members), dtype=bool)
    batches = con.sql(_with_keys(lines, known, in_order)).to_arrow_reader(BATCH)
    with batches, pa.OSFile(str(rows), "wb") as file, pa.ipc.new_stream(file, _ROWS) as writer:
        for block in _whole_queries(_keyed(batches, known, staged)):
            starts = np.flatnonzero(np.append(True, block.query[1:] != block.query[:-1]))
            if in_order:
                staged.n_out_of_order += _queries_out_of_order(block, starts)
            else:
                _refuse_disorder(block, starts, seen)
            _refuse_twice(block, starts, lines.path)
            writer.write_batch(_ranked(block, starts, staged))
    return staged


def _whole_queries(blocks: Iterator[_Lines]) -> Iterator[_Lines]:
    """Yield the same lines in blocks that end at the end of a query. Only the lines of a cut query are copied."""
    held: _Lines | None = None
    for block in blocks:
        if held:
            same = block.query == held.query[-1]
            end = len(same) if same.all() else int(same.argmin())
            held = _Lines(*map(np.concatenate, zip(held, block.part(slice(end)), strict=True)))
            if end == len(same):
                continue
            yield held
            block = block.part(slice(end, None))
        others = block.query[::-1] != block.query[-1]
        cut = len(others) - int(others.argmax()) if others.any() else 0
        if cut:
            yield block.part(slice(cut))
        held = block.part(slice(cut, None))
    if held:
        yield held


def _sizes(block: _Lines, starts: Any) -> Any:
    """Count the lines of each query."""
    return np.diff(np.append(starts, len(block.query)))


def _refuse_disorder(block: _Lines, starts: Any, seen: Any) -> None:
    """Refuse lines that are not in the order of queries, scores and ranks.

    Args:
        seen: by the key of a query, whether it came in an earlier block.
    """
    queries = block.query[starts]
    fallen = (block.score[1:] > block.score[:-1]) | (block.rank[1:] <= block.rank[:-1])
    fallen[starts[1:] - 1] = False
    if fallen.any() or seen[queries].any() or len(np.unique(queries)) < len(queries):
        raise _Unordered
    seen[queries] = True


def _refuse_twice(block: _Lines, starts: Any, path: Path) -> None:
    n_documents = int(block.document.max()) + 1
    number = np.uint32 if len(starts) * n_documents < 2**32 else np.uint64  # the smaller sorts faster
    first = (np.arange(len(starts)) * n_documents).astype(number)
    pairs = np.repeat(first, _sizes(block, starts)) + block.document.astype(number)
    order = np.sort(pairs)
    again = np.flatnonzero(order[1:] == order[:-1])
    if len(again):
        wrong_lines.passage_twice(path, block.row[pairs == order[again[0]]].tolist())


def _ranked(block: _Lines, starts: Any, staged: StagedRun) -> pa.RecordBatch:
    """Make the rows to store, ranked from 1 in each query."""
    with np.errstate(over="ignore"):
        score = block.score.astype(np.float32)
    if not np.isfinite(score).all():
        raise _NotFinite
    counts = _sizes(block, starts)
    rank = np.arange(1, len(block.query) + 1, dtype=np.int32) - np.repeat(starts.astype(np.int32), counts)
    staged.n_kept += len(rank)
    staged.depth = max(staged.depth, int(counts.max()))
    columns = (block.query, rank, block.document, score, block.id_hash)
    return pa.record_batch([pa.array(column) for column in columns], schema=_ROWS)


def _queries_out_of_order(block: _Lines, starts: Any) -> int:
    """Count queries in which the file ranks a passage above one that scores higher; lines are in the order of scores."""
    query = np.repeat(np.arange(len(starts)), _sizes(block, starts))
    deepest = np.maximum.accumulate(block.rank + query * 2.0**32)  # of the lines so far in each query
    falls = np.append(True, (query[1:] != query[:-1]) | (block.score[1:] != block.score[:-1]))
    first = np.maximum.accumulate(
        np.where(falls, np.arange(len(query)), 0)
    )  # of the lines with the same score
    before = np.where(first > starts[query], deepest[first - 1], -np.inf)
    return len(np.unique(query[block.rank + query * 2.0**32 < before]))
