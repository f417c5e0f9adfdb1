"""Check a store from outside: what its file may hold, and where its rows may lead.

A file from elsewhere can hold a view in a table's place, a column that computes something, or a folder that leads out
of the store. This module checks it before anything else reads it, with access to other files off.
"""

from functools import cache
from pathlib import Path

import duckdb

from labelstore.errors import BadInput, UsageError
from labelstore.store import migrations
from labelstore.store.label_store import LabelStore
from labelstore.store.own_folders import (
    CONTROL,
    check_name,
    check_plain,
    odd_files,
    own_folder,
    student_inside,
    view_inside,
)

__all__ = [
    "check_name",
    "check_plain",
    "check_rows",
    "check_store",
    "lock",
    "odd_files",
    "own_folder",
    "student_inside",
    "view_inside",
]

_NAMED = (
    "collections",
    "datasets",
    "runs",
    "minings",
    "teachers",
    "labelings",
    "views",
    "judgings",
    "checkings",
)
_SHAPE = """SELECT table_name, column_name, data_type, coalesce(column_default, '') FROM duckdb_columns()
            WHERE NOT internal AND schema_name = 'main' AND table_name IN
                  (SELECT table_name FROM duckdb_tables() WHERE schema_name = 'main' AND NOT temporary)"""


def lock(con: duckdb.DuckDBPyConnection) -> None:
    """Deny a connection all files but its databases. No later statement can undo this."""
    con.execute("SET enable_external_access = false")
    con.execute("SET lock_configuration = true")


def check_store(store: LabelStore) -> None:
    """Check a store from outside before anything is read from it.

    Raises:
        BadInput: its tables are not those of a store, or a name or folder is not allowed.
        StoreError: it is locked, from a newer version, or not a store.
    """
    with store.as_it_is() as con:
        lock(con)
        version = _version(con)
        _check_shape(con, store.path, older=version is not None and version < migrations.CURRENT_VERSION)
        version = migrations.schema_version(con)
        if version is not None:
            migrations.check_not_newer(version, store.path)
            check_rows(con, store.path)


def _version(con: duckdb.DuckDBPyConnection) -> int | None:
    """Read the version that a file claims; None if it claims none."""
    try:
        ((version,),) = con.execute("SELECT max(version) FROM migrations").fetchall()
    except duckdb.Error:
        return None
    return version if isinstance(version, int) else None


def _check_shape(con: duckdb.DuckDBPyConnection, path: Path, older: bool) -> None:
    """Check tables, columns, views and macros; an older store may lack what migrations add."""
    own_tables, own_views, own_shape = _schema()
    tables = {name for (name,) in con.execute(
        "SELECT table_name FROM duckdb_tables() WHERE schema_name = 'main'").fetchall()}  # fmt: skip
    views = {name for (name,) in con.execute(
        "SELECT view_name FROM duckdb_views() WHERE NOT internal").fetchall()}  # fmt: skip
    functions = [name for (name,) in con.execute(
        "SELECT function_name FROM duckdb_functions() WHERE NOT internal ORDER BY 1").fetchall()]  # fmt: skip
    hint = "name a store that msft made; take nothing from this file"
    if instead := sorted(views - own_views):
        raise BadInput(f"{path} holds the view {instead[0]!r}, which no store has", hint=hint)
    if functions:
        raise BadInput(f"{path} holds the macro {functions[0]!r}, which no store has", hint=hint)
    if "migrations" in tables and (odd := sorted(tables - own_tables if older else tables ^ own_tables)):
        raise BadInput(f"{path} holds other tables than a store: {', '.join(odd[:5])}", hint=hint)
    shape = set(con.execute(_SHAPE).fetchall())
    if "migrations" in tables and (odd_columns := sorted(shape - own_shape if older else shape ^ own_shape)):
        table, column, kind, value = odd_columns[0]
        raise BadInput(f"{path}: {table}.{column} ({kind} {value}) is not a column of a store", hint=hint)


@cache
def _schema() -> tuple[frozenset[str], frozenset[str], frozenset[tuple[str, ...]]]:
    """List the tables, views and columns of a new store."""
    with duckdb.connect(":memory:") as con:
        migrations.create(con)
        tables = con.execute("SELECT table_name FROM duckdb_tables()").fetchall()
        views = con.execute("SELECT view_name FROM duckdb_views() WHERE NOT internal").fetchall()
        shape = con.execute(_SHAPE).fetchall()
    return frozenset(t for (t,) in tables), frozenset(v for (v,) in views), frozenset(shape)


def check_rows(con: duckdb.DuckDBPyConnection, path: Path) -> None:
    """Check names and folders in the rows of a store from outside, or of an archive.

    Raises:
        BadInput: a name or folder is not allowed.
    """
    hint = f"take nothing from {path}, or correct the row in a copy of it"
    held = {table for (table,) in con.execute("SELECT table_name FROM duckdb_tables()").fetchall()}
    for table in held.intersection(_NAMED):
        for (name,) in con.execute(f"SELECT name FROM {table}").fetchall():
            if not name or CONTROL.search(name):
                raise BadInput(f"{path}: {name!r} in {table} cannot be a name", hint=hint)
    for name, folder in con.execute("SELECT name, folder FROM students").fetchall():
        try:
            check_name(name)
        except UsageError as error:
            raise BadInput(f"{path}: {error.message}", hint=hint) from error
        if not student_inside(folder):
            raise BadInput(f"{path}: the folder {folder!r} of student {name} is not students/NAME", hint=hint)
    for name, view_hash, folder in con.execute("SELECT name, view_hash, folder FROM views").fetchall():
        if not view_inside(folder, view_hash):
            raise BadInput(
                f"{path}: the folder {folder!r} of view {name} is not views/{view_hash}", hint=hint
            )
