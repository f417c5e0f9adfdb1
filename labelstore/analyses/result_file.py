"""Write a query's result to a csv, json or parquet file, a batch at a time; the file appears whole or not at all."""

import csv
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from labelstore.analyses.plain_values import csv_cell, plain
from labelstore.errors import BadInput, UsageError
from labelstore.files.whole_file import appearing

ENDINGS = (".csv", ".json", ".parquet")
_BATCH = 2048  # rows that DuckDB hands over at once
_GROUP = 16 << 20  # bytes of a Parquet row group, before they are packed


def check(path: Path) -> None:
    """Check a file's ending.

    Raises:
        UsageError: the ending is not known.
    """
    if path.suffix not in ENDINGS:
        raise UsageError(
            f"-o {path}: expected a name that ends in {', '.join(ENDINGS)}", hint="-o results.csv"
        )


def write_text(names: list[str], blocks: Iterable[list[tuple[Any, ...]]], path: Path) -> None:
    """Write rows as CSV or JSON.

    Raises:
        MsftError: if the file cannot be written.
    """
    with appearing(path) as beside, beside.open("w", encoding="utf-8", newline="") as file:
        if path.suffix == ".csv":
            lines = csv.writer(file, lineterminator="\n")
            lines.writerow(names)
            for block in blocks:
                lines.writerows([csv_cell(value) for value in row] for row in block)
            return
        mark = "[\n"
        for block in blocks:
            for row in block:
                item = {n: plain(value) for n, value in zip(names, row, strict=True)}
                file.write(mark + json.dumps(item, ensure_ascii=False))
                mark = ",\n"
        file.write("[]\n" if mark == "[\n" else "\n]\n")


def write_parquet(found: duckdb.DuckDBPyRelation, names: list[str], limit: int, path: Path) -> None:
    """Write a query's rows as Parquet, with its types.

    Args:
        limit: rows at most; 0 is all.

    Raises:
        MsftError: if the file cannot be written.
        BadInput: for a type that Parquet lacks.
    """
    reader = (found.limit(limit) if limit else found).to_arrow_reader(_BATCH)
    schema = pa.schema([field.with_name(name) for field, name in zip(reader.schema, names, strict=True)])
    try:
        with (
            appearing(path) as beside,
            beside.open("wb") as binary,
            pq.ParquetWriter(binary, schema) as parquet,
        ):
            for group in _groups(reader):
                named = [pa.RecordBatch.from_arrays(batch.columns, schema=schema) for batch in group]
                parquet.write_table(pa.Table.from_batches(named, schema))
    except (pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
        raise BadInput(f"{path}: {error}", hint="CAST the column to VARCHAR in the query") from error


def _groups(reader: pa.RecordBatchReader) -> Iterator[list[pa.RecordBatch]]:
    group: list[pa.RecordBatch] = []
    for batch in reader:
        group.append(batch)
        if sum(held.nbytes for held in group) >= _GROUP:
            yield group
            group = []
    if group:
        yield group
