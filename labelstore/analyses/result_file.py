"""Write a query's result to a csv, json or parquet file, a batch at a time; the file appears whole or not at all."""

import csv
import json
import os
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from labelstore.errors import BadInput, MsftError, UsageError

ENDINGS = (".csv", ".json", ".parquet")
_BATCH = 10_000


def check(path: Path) -> None:
    """Check a file's ending.

    Raises:
        UsageError: the ending is not known.
    """
    if path.suffix not in ENDINGS:
        raise UsageError(
            f"-o {path}: expected a name that ends in {', '.join(ENDINGS)}", hint="-o results.csv"
        )


def write(con: duckdb.DuckDBPyConnection, sql: str, names: list[str], limit: int, path: Path) -> None:
    """Write the rows of one query.

    Args:
        limit: rows at most; 0 is all.

    Raises:
        MsftError: if the file cannot be written.
        BadInput: the file's format has no such type.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    reader = con.sql(sql).to_arrow_reader(_BATCH)
    schema = pa.schema([field.with_name(name) for field, name in zip(reader.schema, names, strict=True)])
    try:
        _write(beside, path.suffix, schema, _cut(reader, schema, limit))
        os.replace(beside, path)
    except OSError as error:
        raise MsftError(
            f"{path} cannot be written: {error.strerror}", hint="-o FILE names another"
        ) from error
    except pa.ArrowNotImplementedError as error:
        raise BadInput(f"{path}: {error}", hint="CAST the column to VARCHAR in the query") from error
    finally:
        if beside.exists():
            beside.unlink()


def _cut(reader: pa.RecordBatchReader, schema: pa.Schema, limit: int) -> Iterator[pa.RecordBatch]:
    left = limit
    for batch in reader:
        named = pa.RecordBatch.from_arrays(batch.columns, schema=schema)
        if limit and named.num_rows >= left:
            yield named.slice(0, left)
            return
        left -= named.num_rows
        yield named


def _write(path: Path, ending: str, schema: pa.Schema, batches: Iterator[pa.RecordBatch]) -> None:
    if ending == ".parquet":
        with path.open("wb") as binary, pq.ParquetWriter(binary, schema) as parquet:
            for batch in batches:
                parquet.write_batch(batch)
        return
    with path.open("w", encoding="utf-8", newline="") as file:
        if ending == ".csv":
            lines = csv.writer(file, lineterminator="\n")
            lines.writerow(schema.names)
            for batch in batches:
                lines.writerows(zip(*(column.to_pylist() for column in batch.columns), strict=True))
            return
        mark = "[\n"
        for batch in batches:
            for row in batch.to_pylist():
                file.write(mark + json.dumps(row, ensure_ascii=False, default=str))
                mark = ",\n"
        file.write("[]\n" if mark == "[\n" else "\n]\n")
