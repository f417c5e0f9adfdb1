"""Read and check a TREC run into a staging file, while the store is free.

DuckDB parses the file and turns ids into keys; numpy checks blocks of whole queries as they stream by: ids known,
scores finite, ranks in the order of scores, no passage twice. The checked rows go into an Arrow stream of 24 bytes a candidate,
with the hash sums of `row_hashes`; `runs.import_run` inserts it in one short transaction. Memory holds one batch of lines,
the ids of the collection and one sum per query.

If a collection's ids are whole numbers (as MS MARCO's), an id's key is one look-up in an array; other ids are joined. If the
lines of a file are not in order, DuckDB sorts them, on disk if necessary, and they are checked again.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from labelstore.errors import BadInput
from labelstore.files import trec
from labelstore.runs import raw_lines as run_source
from labelstore.store import lookup
from labelstore.store.interrupts import interruptible
from labelstore.store.label_store import LabelStore, configure
from labelstore.store.row_hashes import id_hash, number_hashes, row_hashes, whole_number

UNKNOWN_QUERY = "query unknown to the collection"
UNKNOWN_PASSAGE = "passage unknown to the collection"
OTHER_QUERY = "query of another dataset over the collection"

_ROWS = pa.schema([("query", pa.int32()), ("rank", pa.int32()), ("document", pa.int32()), ("score", pa.float32())])  # fmt: skip
_MOST_NUMBERS = 1 << 26  # keys of whole-number ids below this always fit an array (256 MiB)

Say = Callable[[str], None]
Drops = dict[str, tuple[int, str | None]]


@dataclass
class Staged:
    """A run that was read and checked.

    Attributes:
        dataset: its state when the reading began.
        rows: an Arrow stream of (query, rank, document, score), each query's candidates together, best first.
        sums: query, and the hash sum of its rows in two halves.
        depth: the deepest rank.
    """

    dataset: lookup.Dataset
    rows: Path
    sums: pa.Table
    depth: int
    n_read: int
    drops: Drops

    def open(self) -> pa.RecordBatchReader:
        return pa.ipc.open_stream(pa.OSFile(str(self.rows)))


def read(
    store: LabelStore, path: Path, dataset_name: str | None, folder: Path, *, skip_unknown: bool, say: Say
) -> Staged:
    """Read and check a TREC run; the store is read at the beginning and then free.

    Args:
        folder: where to stage; the caller removes it.
        skip_unknown: leave out lines with unknown ids instead of refusing the file.
        say: called if ranks in the file disagree with its scores.

    Raises:
        BadInput: with file:line, a malformed line, a score that is not finite, or a passage that a query has twice;
            without `skip_unknown` also the first unknown id, with the counts.
    """
    with (
        duckdb.connect(":memory:", config={"temp_directory": str(folder / "spill")}) as con,
        interruptible(con),
    ):
        configure(con)
        # Joins keep the file's order only while the file is what probes.
        con.execute("SET disabled_optimizers = 'join_order, build_side_probe_side'")
        con.execute("SET streaming_buffer_size = '64MB'")
        known = _Known.load(store, con, dataset_name)
        lines = run_source.quick(path)
        while True:
            try:
                return _read(con, path, known, lines, folder, skip_unknown, say)
            except duckdb.Error as error:
                if lines == run_source.SLOW:
                    raise BadInput(
                        f"{path}: cannot be read: {str(error).splitlines()[0]}",
                        hint="is there room on the disk and in memory?",
                    ) from error
                # The reference reader takes any white space, and names the line that it refuses.
                lines = run_source.SLOW
            except _Odd:
                if lines == run_source.SLOW:
                    raise BadInput(f"{path}: changed while it was read") from None
                lines = run_source.SLOW


class _Odd(Exception):
    """The fast reader found a line that only the reference reader can judge."""


class _Unordered(Exception):
    """Lines are not in the order of queries and scores."""


@dataclass
class _Known:
    """The ids of a collection and their keys, and which queries are the dataset's."""

    store: LabelStore
    dataset: lookup.Dataset
    queries: Any  # key of each whole-number id, -1 for none; None where ids are text
    documents: Any
    member: Any  # by query key
    joined: bool = False  # whether the tables known_queries and known_documents are there

    @classmethod
    def load(cls, store: LabelStore, con: duckdb.DuckDBPyConnection, dataset_name: str | None) -> "_Known":
        with store.read() as held:
            dataset = lookup.pick_dataset(held, dataset_name)
            queries = _keys(held, "queries", "query", "query_id", dataset.collection)
            documents = _keys(held, "documents", "document", "doc_id", dataset.collection)
            (top,) = held.execute("SELECT coalesce(max(query), 0) FROM queries").fetchall()[0]
            member = np.zeros(top + 1, dtype=bool)
            own = held.sql(f"SELECT query FROM dataset_queries WHERE dataset = {dataset.dataset}")
            member[own.to_arrow_table()["query"].to_numpy()] = True
        known = cls(store, dataset, queries, documents, member)
        if queries is None or documents is None:
            known.join(con)
        return known

    @property
    def numbered(self) -> bool:
        return self.queries is not None and self.documents is not None

    def join(self, con: duckdb.DuckDBPyConnection) -> None:
        """Copy the ids into the tables known_queries and known_documents."""
        if self.joined:
            return
        with self.store.read() as held:
            for table, sql in (
                (
                    "known_queries",
                    f"""SELECT query, query_id, query IN (SELECT query FROM dataset_queries
                               WHERE dataset = {self.dataset.dataset}) AS member FROM queries""",
                ),
                (
                    "known_documents",
                    f"SELECT document, doc_id, {id_hash('doc_id')} AS id_hash FROM documents",
                ),
            ):
                rows = held.sql(f"{sql} WHERE collection = {self.dataset.collection}")
                con.register("ids", rows.to_arrow_reader(run_source.BATCH))
                con.execute(f"CREATE TABLE {table} AS SELECT * FROM ids")
                con.unregister("ids")
        self.joined = True


def _keys(con: duckdb.DuckDBPyConnection, table: str, key: str, id_: str, collection: int) -> Any:
    """Return an array from id to key, -1 for an id without a key; None if an id is not a whole number, or ids are too sparse."""
    rows = con.sql(
        f"SELECT {key} AS key, {whole_number(id_)} AS number FROM {table} WHERE collection = {collection}"
    )
    keys = np.full(1 << 16, -1, dtype=np.int32)
    n = 0
    with rows.to_arrow_reader(run_source.BATCH) as batches:
        for batch in batches:
            numbers = batch.column("number")
            n += len(numbers)
            if numbers.null_count:
                return None
            if not len(numbers):
                continue
            values = numbers.to_numpy()
            top = int(values.max())
            if top >= min(max(_MOST_NUMBERS, 4 * n), 1 << 32):
                return None
            if top >= len(keys):
                grown = np.full(max(top + 1, 2 * len(keys)), -1, dtype=np.int32)
                grown[: len(keys)] = keys
                keys = grown
            keys[values] = batch.column("key").to_numpy()
    return keys


# ------------------------------------------------------------------------------------------------ checking
def _read(
    con: duckdb.DuckDBPyConnection, path: Path, known: _Known, lines: str, folder: Path, skip: bool, say: Say
) -> Staged:
    source, slow = run_source.relation(con, path, lines)
    try:
        checker = _Checker(path, known, folder / "rows.arrow")
        sql = _numbered(source) if known.numbered else _joined(source)
        try:
            checker.run(con.sql(sql).to_arrow_reader(run_source.BATCH), ordered=False)
        except _Unordered:
            known.join(con)
            source, slow = run_source.relation(con, path, lines)
            con.execute(f"CREATE OR REPLACE TABLE run_lines AS {_joined(source)}")
            checker = _Checker(path, known, folder / "rows.arrow")
            rows = con.sql(
                "SELECT * FROM run_lines ORDER BY query NULLS FIRST, score DESC, row"
            ).to_arrow_reader(run_source.BATCH)
            checker.run(rows, ordered=True)
            _say_upset(con, path, checker, say)
        if checker.n_query or checker.n_passage:
            known.join(con)
            source, slow = run_source.relation(con, path, lines)
            drops = _unknown(con, path, known, source, checker, skip)
        else:
            drops = {}
    except duckdb.Error:
        if slow is not None and slow.error is not None:
            raise slow.error from None
        raise
    if not checker.n_read:
        if slow is None:
            raise _Odd  # the reference reader has the last word on a file that seems empty
        raise BadInput(f"{path}: there is no candidate in it", hint="is this the right file?")
    if checker.n_other:
        drops[OTHER_QUERY] = (checker.n_other, None)
    if not checker.n_kept:
        raise BadInput(
            f"{path}: none of its {checker.n_read:,} lines belongs to a query of {known.dataset.name} with a known"
            " passage",
            hint="is this a run over another dataset? `msft data list`",
        )
    return Staged(known.dataset, checker.out, checker.sums(), checker.depth, checker.n_read, drops)


def _numbered(source: str) -> str:
    query, document = (
        f"CASE WHEN try_cast({column} AS UINTEGER)::VARCHAR = {column} THEN try_cast({column} AS UINTEGER) END::BIGINT"
        for column in ("query_id", "doc_id")
    )  # as whole_number; none beyond 32 bits is known
    return f"SELECT {query} AS query_id, {document} AS doc_id, rank, score, odd FROM {source}"


def _joined(source: str) -> str:
    return f"""SELECT l.row, q.query, d.document, l.rank, l.score, d.id_hash, l.odd
               FROM (SELECT *, row_number() OVER () - 1 AS row FROM {source}) l
               LEFT JOIN known_queries q USING (query_id) LEFT JOIN known_documents d USING (doc_id)"""


@dataclass
class _Checker:
    """Blocks of lines in, rows of whole queries out; counts what is left out."""

    path: Path
    known: _Known
    out: Path
    n_read: int = 0
    n_query: int = 0  # lines of unknown queries
    n_passage: int = 0  # lines of the dataset's queries with unknown passages
    n_other: int = 0  # lines of queries of other datasets
    n_kept: int = 0
    depth: int = 0
    first: int | None = None  # the first unknown line, from 0
    _sums: list[tuple[Any, Any, Any, Any]] = field(default_factory=list)
    _tail: list[Any] | None = None  # the lines of the last query so far

    def run(self, batches: pa.RecordBatchReader, ordered: bool) -> None:
        """Check all lines.

        Args:
            ordered: the lines were sorted by query and score, so the ranks of the file do not count.

        Raises:
            _Unordered: if not `ordered` and a line shows that they should be.
        """
        self._ordered = ordered
        self._seen = np.zeros(len(self.known.member), dtype=bool)
        with batches, pa.OSFile(str(self.out), "wb") as file, pa.ipc.new_stream(file, _ROWS) as writer:
            for batch in batches:
                columns = self._columns(batch)
                if columns is None:
                    continue
                turns = np.flatnonzero(columns[1][1:] != columns[1][:-1]) + 1
                if (
                    self._tail is not None
                ):  # the last query so far ends with this batch's first lines, or before them
                    same = columns[1][0] == self._tail[1][0]
                    head = 0 if not same else int(turns[0]) if len(turns) else len(columns[1])
                    pairs = zip(self._tail, columns, strict=True)
                    self._tail = [np.concatenate((tail, column[:head])) for tail, column in pairs]
                    if head == len(columns[1]):
                        continue
                    self._block(writer, *self._tail)
                    columns = [column[head:] for column in columns]
                    turns = turns[turns > head] - head
                cut = int(turns[-1]) if len(turns) else 0
                if cut:
                    self._block(writer, *(column[:cut] for column in columns))
                self._tail = [column[cut:] for column in columns]
            if self._tail is not None:
                self._block(writer, *self._tail)

    def _columns(self, batch: pa.RecordBatch) -> list[Any] | None:
        """row, query, document, rank, score, score as stored, id_hash of the lines that are kept; None without such a line."""
        n = batch.num_rows
        if not n:
            return None
        if batch.column("odd").true_count:
            raise _Odd
        if "row" in batch.schema.names:
            row, query, document = (_filled(batch.column(name)) for name in ("row", "query", "document"))
            hashes = batch.column("id_hash").fill_null(0).to_numpy()
            if not self._ordered and (row[0] != self.n_read or (np.diff(row) != 1).any()):
                raise _Unordered
        else:
            row = np.arange(self.n_read, self.n_read + n)
            query, _ = _look_up(self.known.queries, batch.column("query_id"))
            document, numbers = _look_up(self.known.documents, batch.column("doc_id"))
            hashes = number_hashes(numbers)
        self.n_read += n
        rank, score = (batch.column(name).to_numpy(zero_copy_only=False) for name in ("rank", "score"))
        with np.errstate(over="ignore", invalid="ignore"):
            stored, whole = score.astype(np.float32), rank.astype(np.int32)
        if not (np.isfinite(stored).all() and (whole == rank).all()):
            raise _Odd
        columns = [row, query, document, whole, score, stored, hashes]
        if query.min() >= 0 and document.min() >= 0 and self.known.member[query].all():
            return columns
        lost = query < 0
        other = ~lost & ~self.known.member[query]
        blank = ~lost & ~other & (document < 0)
        self.n_query += int(lost.sum())
        self.n_other += int(other.sum())
        self.n_passage += int(blank.sum())
        if (lost | blank).any():
            first = int(row[lost | blank].min())
            self.first = first if self.first is None else min(self.first, first)
        kept = ~(lost | other | blank)
        return [column[kept] for column in columns] if kept.any() else None

    def _block(
        self,
        writer: Any,
        row: Any,
        query: Any,
        document: Any,
        rank: Any,
        score: Any,
        stored: Any,
        hashes: Any,
    ) -> None:
        """Lines of whole queries: check, rank, hash, write."""
        new = np.ones(len(query), dtype=bool)
        new[1:] = query[1:] != query[:-1]
        starts = np.flatnonzero(new)
        if not self._ordered:
            first = query[starts]
            fallen = (score[1:] > score[:-1]) | (rank[1:] <= rank[:-1])
            if (fallen & ~new[1:]).any() or self._seen[first].any() or len(np.unique(first)) < len(first):
                raise _Unordered
            self._seen[first] = True
        pairs = (query.astype(np.uint64) << np.uint64(32)) | document.astype(np.uint64)
        order = np.sort(pairs)
        again = np.flatnonzero(order[1:] == order[:-1])
        if len(again):
            self._refuse_twice(row[pairs == order[again[0]]])
        counts = np.diff(np.append(starts, len(query)))
        place = np.arange(1, len(query) + 1, dtype=np.int32) - np.repeat(starts.astype(np.int32), counts)
        hashed = row_hashes(hashes, place, stored)
        high, low = hashed >> np.uint64(32), hashed & np.uint64(0xFFFFFFFF)
        self._sums.append(
            (query[starts], np.add.reduceat(high, starts), np.add.reduceat(low, starts), counts)
        )
        self.n_kept += len(query)
        self.depth = max(self.depth, int(counts.max()))
        writer.write_batch(
            pa.record_batch([pa.array(c) for c in (query, place, document, stored)], schema=_ROWS)
        )

    def _refuse_twice(self, rows: Any) -> None:
        first, again = sorted(int(row) for row in rows)[:2]
        before, line = _line(self.path, first), _line(self.path, again)
        raise BadInput(
            f"{self.path}:{line.line}: passage {line.doc_id} comes again for query {line.query_id} (first on line"
            f" {before.line})",
            hint="a run ranks a passage once per query; passages split into windows need their best one kept",
        )

    def sums(self) -> pa.Table:
        """query, high, low, n: the sums of its rows' hashes in two halves, which never overflow."""
        columns = [np.concatenate(parts) for parts in zip(*self._sums, strict=True)]
        types = {"query": pa.int32(), "high": pa.uint64(), "low": pa.uint64(), "n": pa.int64()}
        return pa.table({name: pa.array(c, t) for (name, t), c in zip(types.items(), columns, strict=True)})


def _filled(column: Any) -> Any:
    return column.fill_null(-1).to_numpy()


def _look_up(keys: Any, numbers: Any) -> tuple[Any, Any]:
    """Return (keys, numbers): -1 and 0 for ids that are not whole numbers or beyond the array."""
    values = numbers.fill_null(len(keys)).to_numpy() if numbers.null_count else numbers.to_numpy()
    if values.max() < len(keys):
        return keys[values], values
    known = values < len(keys)
    values = np.where(known, values, 0)
    return np.where(known, keys[values], -1), values


def _line(path: Path, row: int) -> trec.Candidate:
    """Read the candidate in row `row` (from 0) of the file again, to name its line."""
    for k, candidate in enumerate(trec.read_run(path)):
        if k == row:
            return candidate
    raise BadInput(f"{path}: changed while it was read")


def _unknown(
    con: duckdb.DuckDBPyConnection, path: Path, known: _Known, source: str, checker: _Checker, skip: bool
) -> Drops:
    """Count the lines with unknown ids by a second reading; refuse them unless `skip_unknown`."""
    odd, queries, passages = con.execute(
        f"""SELECT count(*) FILTER (regexp_matches(coalesce(unknown_query, unknown_passage), '{run_source.ODD}') OR unknown_query = '#'),
                   count(DISTINCT unknown_query), count(DISTINCT unknown_passage) FILTER (member IS NULL OR member)
            FROM (SELECT q.member, CASE WHEN q.query IS NULL THEN l.query_id END AS unknown_query,
                         CASE WHEN d.document IS NULL THEN l.doc_id END AS unknown_passage
                  FROM {source} l LEFT JOIN known_queries q USING (query_id)
                  LEFT JOIN known_documents d USING (doc_id))"""
    ).fetchall()[0]
    if odd:
        raise _Odd
    line = _line(path, checker.first or 0)
    where = f"{path}:{line.line}"
    if not skip:
        (known_query,) = con.execute(
            "SELECT count(*) FROM known_queries WHERE query_id = ?", [line.query_id]
        ).fetchall()[0]
        named = f"passage {line.doc_id}" if known_query else f"query {line.query_id}"
        counts = [
            f"{total:,} {what} ({rows:,} lines)"
            for total, what, rows in (
                (queries, "queries", checker.n_query),
                (passages, "passages", checker.n_passage),
            )
            if rows
        ]
        raise BadInput(
            f"{where}: {named} is unknown to {known.dataset.collection_name}; unknown in all: {' and '.join(counts)}"
            f" of {checker.n_read:,} lines",
            hint="add what is missing (msft data add), or --skip-unknown leaves these lines out",
        )
    return {UNKNOWN_QUERY: (checker.n_query, where), UNKNOWN_PASSAGE: (checker.n_passage, where)}


def _say_upset(con: duckdb.DuckDBPyConnection, path: Path, checker: _Checker, say: Say) -> None:
    """Tell in how many queries the file's ranks put a passage above one that scores higher."""
    con.register("kept_sums", checker.sums())
    upset, n_queries = con.execute(
        """SELECT count(DISTINCT query) FILTER (upset), count(DISTINCT query) FROM (
             SELECT query, rank < max(rank) OVER (PARTITION BY query ORDER BY score DESC
                    RANGE BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW EXCLUDE TIES) AS upset
             FROM run_lines SEMI JOIN kept_sums USING (query) WHERE document IS NOT NULL)"""
    ).fetchall()[0]
    con.unregister("kept_sums")
    if upset:
        say(f"{path}: ranks disagree with scores in {upset:,} of {n_queries:,} queries; the scores count")
