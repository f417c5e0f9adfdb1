"""Read rows of queries as dictionaries, with the names of the columns as keys."""

from collections.abc import Iterable, Sequence
from typing import Any

import duckdb

Row = dict[str, Any]


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
