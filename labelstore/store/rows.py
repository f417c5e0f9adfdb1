"""Rows of queries as dictionaries, by the names of the columns."""

from collections.abc import Iterable, Sequence
from typing import Any

import duckdb

Row = dict[str, Any]


def fetch(con: duckdb.DuckDBPyConnection, sql: str, parameters: Sequence[Any] = ()) -> list[Row]:
    """Run a query and return all its rows."""
    cursor = con.execute(sql, parameters)
    return named(columns(cursor), cursor.fetchall())


def columns(cursor: duckdb.DuckDBPyConnection) -> list[str]:
    """The names of the columns of a query that has run."""
    return [column[0] for column in cursor.description or ()]


def named(names: Sequence[str], found: Iterable[Sequence[Any]]) -> list[Row]:
    """Rows of values as dictionaries.

    Raises:
        ValueError: a row has another number of values than there are names.
    """
    return [dict(zip(names, row, strict=True)) for row in found]
