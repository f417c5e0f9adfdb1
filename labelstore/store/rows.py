"""Read rows of queries as dictionaries, with the names of the columns as keys."""

from collections.abc import Iterable, Sequence
from typing import Any

import duckdb
import pyarrow as pa

Row = dict[str, Any]
_ARROW = {
    "BOOLEAN": pa.bool_(), "USMALLINT": pa.uint16(), "SMALLINT": pa.int16(), "INTEGER": pa.int32(), "BIGINT": pa.int64(),
    "UBIGINT": pa.uint64(), "FLOAT": pa.float32(), "DOUBLE": pa.float64(), "VARCHAR": pa.string(),
}  # fmt: skip


def fetch(con: duckdb.DuckDBPyConnection, sql: str, parameters: Sequence[Any] = ()) -> list[Row]:
    """Run a query and return all its rows."""
    cursor = con.execute(sql, parameters)
    return named(columns(cursor), cursor.fetchall())


def columns(cursor: duckdb.DuckDBPyConnection) -> list[str]:
    """Return the names of the columns of a query that has run."""
    return [column[0] for column in cursor.description or ()]


def named(names: Sequence[str], found: Iterable[Sequence[Any]]) -> list[Row]:
    """Make dictionaries from rows of values.

    Raises:
        ValueError: a row has more or fewer values than names.
    """
    return [dict(zip(names, row, strict=True)) for row in found]


def first_row(con: duckdb.DuckDBPyConnection, sql: str, parameters: Sequence[Any] = ()) -> tuple[Any, ...]:
    """Run a query and return its first row."""
    return con.execute(sql, parameters).fetchall()[0]


def insert(con: duckdb.DuckDBPyConnection, table: str, rows: Sequence[Sequence[Any]]) -> None:
    """Insert rows in one statement, since DuckDB's executemany runs one for each row.

    Raises:
        KeyError: the table has a column of another type than `_ARROW` has.
    """
    if not rows:
        return
    types = [
        (name, _ARROW[kind])
        for name, kind in con.execute(
            """SELECT column_name, data_type FROM duckdb_columns()
               WHERE table_name = ? AND database_name = current_database() AND schema_name = 'main' ORDER BY column_index""",
            [table],
        ).fetchall()
    ]
    columns = zip(types, zip(*rows, strict=True), strict=True)
    frame = pa.table({name: pa.array(values, type=kind) for (name, kind), values in columns})
    con.register("rows_to_insert", frame)
    con.execute(f"INSERT INTO {table} SELECT * FROM rows_to_insert")
    con.unregister("rows_to_insert")
