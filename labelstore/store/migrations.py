"""Migrate older stores. `schema.sql` is always the newest schema; a migration takes an older file one version further.

The list is append only: a released migration never changes. Each one runs in one transaction with its record, so a
store is at one version or the next, never between. A test migrates a stored file of every released version and compares
the result with a new store.
"""

from dataclasses import dataclass
from importlib.resources import files

import duckdb

from labelstore.errors import StoreError

FIRST_VERSION = 1


@dataclass(frozen=True)
class Migration:
    """One step: the version after it, a name that says what it does, and its SQL."""

    version: int
    name: str
    sql: str


MIGRATIONS: tuple[Migration, ...] = ()

CURRENT_VERSION = MIGRATIONS[-1].version if MIGRATIONS else FIRST_VERSION

_RECORDS = """CREATE TABLE migrations (
    version    INTEGER PRIMARY KEY,
    name       VARCHAR NOT NULL,
    applied_at TIMESTAMPTZ NOT NULL DEFAULT now()
)"""


def schema_version(con: duckdb.DuckDBPyConnection) -> int | None:
    """Return the store's version; None for an empty DuckDB file.

    Raises:
        StoreError: the file holds tables that are not msft's.
    """
    tables = {name for (name,) in con.execute("SELECT table_name FROM duckdb_tables()").fetchall()}
    if "migrations" not in tables:
        if tables:
            raise StoreError(
                "this DuckDB file holds other tables and is not an msft store",
                hint="name a new file with --store",
            )
        return None
    row = con.execute("SELECT max(version) FROM migrations").fetchall()
    return int(row[0][0])


def check_not_newer(version: int, path: object) -> None:
    """Refuse a store that a newer msft wrote.

    Raises:
        StoreError: ``version`` is above :data:`CURRENT_VERSION`.
    """
    if version > CURRENT_VERSION:
        raise StoreError(
            f"{path} has schema version {version}, and this msft supports versions up to {CURRENT_VERSION}",
            hint="upgrade msft (pip install -U msft), or use another --store",
        )


def create(con: duckdb.DuckDBPyConnection) -> None:
    """Make the newest schema in an empty file, in one transaction."""
    con.execute("BEGIN")
    con.execute(files("labelstore").joinpath("schema.sql").read_text("utf-8"))
    con.execute(_RECORDS)
    con.execute("INSERT INTO migrations (version, name) VALUES (?, 'create_schema')", [CURRENT_VERSION])
    con.execute("COMMIT")


def migrate(con: duckdb.DuckDBPyConnection) -> list[str]:
    """Bring the store to the newest version; returns the names of the applied migrations."""
    version = schema_version(con)
    if version is None:
        create(con)
        return ["create_schema"]
    applied = []
    for migration in MIGRATIONS:
        if migration.version <= version:
            continue
        con.execute("BEGIN")
        con.execute(migration.sql)
        con.execute(
            "INSERT INTO migrations (version, name) VALUES (?, ?)", [migration.version, migration.name]
        )
        con.execute("COMMIT")
        applied.append(migration.name)
    return applied
