"""Make a DuckDB relation of a TREC run's lines: by DuckDB's reader for the common form, otherwise by the reference reader.

Both give (query_id, doc_id, rank, score, odd). A line is odd if DuckDB's reader may read it differently from the reference
reader (`trec.read_run`); then the file is read again with `SLOW`.
"""

from collections.abc import Iterator
from pathlib import Path

import duckdb
import pyarrow as pa

from labelstore.files import lines as formats
from labelstore.files import trec

BATCH = 1 << 16  # lines at a time: what is made of them fits the processor's cache
SLOW = "lines_as_they_come"  # the reference reader, in place of a relation
_LINES = pa.schema([("query_id", pa.string()), ("doc_id", pa.string()), ("rank", pa.float64()), ("score", pa.float64())])  # fmt: skip
_GROUPED = "contains(rank, '_') OR contains(score, '_')"  # DuckDB takes 1_000 for a number
ODD = r"[\x00\t\n\x0b\f\r ]"  # what DuckDB's reader takes for part of a field, and the reference reader does not


def quick(path: Path) -> str:
    """DuckDB's reader over a TREC run in its common form: one space or one tab between six fields, lines end with ``\\n``.

    Lines that end with ``\\r\\n`` are left to the reference reader, since DuckDB skips some without an error.
    """
    skip, delimiter, usual = 0, " ", ["", ""]
    if set(str(path)) & set("*?[\\"):  # DuckDB would read the files that fit the pattern
        return SLOW
    try:
        with formats.open_bytes(path) as file:
            while line := file.readline(formats.MAX_LINE):
                fields = line.split()
                if b"\r" in line:
                    return SLOW
                if fields and fields[0] != b"#":
                    delimiter = "\t" if line.count(b"\t") == 5 else " "
                    if len(fields) != 6 or b"\x00" in line:
                        return SLOW
                    usual = [fields[k].decode("utf-8", "replace").replace("'", "''") for k in (1, 5)]
                    break
                skip += 1
    except formats.DAMAGED:
        return SLOW
    # Of the fields that nothing is made of, those that are as in the first line need no further look.
    odd = f"""CASE WHEN q0 = '{usual[0]}' AND tag = '{usual[1]}' AND query_id IS NOT NULL AND doc_id IS NOT NULL
              THEN {_GROUPED} ELSE {_GROUPED} OR q0 IS NULL OR tag IS NULL OR query_id IS NULL OR doc_id IS NULL
                              OR regexp_matches(concat(q0, tag), '{ODD}') END"""
    return f"""(SELECT query_id, doc_id, rank::DOUBLE AS rank, score::DOUBLE AS score, {odd} AS odd
        FROM read_csv('{str(path).replace("'", "''")}', delim = '{delimiter}', header = false, auto_detect = false,
        quote = '', escape = '', comment = '', new_line = '\\n', compression = '{formats.compression(path)}',
        strict_mode = true, skip = {skip},
        columns = {{'query_id': 'VARCHAR', 'q0': 'VARCHAR', 'doc_id': 'VARCHAR', 'rank': 'VARCHAR',
                    'score': 'VARCHAR', 'tag': 'VARCHAR'}}))"""


class Slow:
    """The reference reader as an Arrow stream; it keeps its own errors, since DuckDB would only quote them."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.error: BaseException | None = None

    def reader(self) -> pa.RecordBatchReader:
        return pa.RecordBatchReader.from_batches(_LINES, self._batches())

    def _batches(self) -> Iterator[pa.RecordBatch]:
        rows: list[tuple[str, str, int, float]] = []
        try:
            for c in trec.read_run(self._path):
                rows.append((c.query_id, c.doc_id, c.rank, c.score))
                if len(rows) == BATCH:
                    yield _batch(rows)
                    rows = []
        except BaseException as error:
            self.error = error
            raise
        if rows:
            yield _batch(rows)


def _batch(rows: list[tuple[str, str, int, float]]) -> pa.RecordBatch:
    columns = zip(*rows, strict=True)
    return pa.record_batch(
        [pa.array(c, type=f.type) for c, f in zip(columns, _LINES, strict=True)], schema=_LINES
    )


def relation(con: duckdb.DuckDBPyConnection, path: Path, lines: str) -> tuple[str, Slow | None]:
    """A relation of the file's lines, fresh: an Arrow stream can be read once."""
    if lines != SLOW:
        return lines, None
    slow = Slow(path)
    con.register(SLOW, slow.reader())
    return f"(SELECT *, false AS odd FROM {SLOW})", slow
