"""A stored file of every released schema opens as a store of today, with every row that it had.

The files lie in tests/fixtures/stores, one a version. Version 1 is not released yet: until it is, `make fixtures` writes
its file anew after a change of labelstore/schema.sql. From then on a change is a migration, and the file stays.
"""

from pathlib import Path
from typing import Any

import duckdb
import pytest
import zstandard

from labelstore.errors import StoreError
from labelstore.store import migrations
from labelstore.store.label_store import LabelStore
from labelstore.store.migrations import CURRENT_VERSION, FIRST_VERSION, Migration

STORES = Path(__file__).resolve().parents[2] / "fixtures" / "stores"
VERSIONS = range(FIRST_VERSION, CURRENT_VERSION + 1)
AGAIN = "`make fixtures` writes it anew while this version is not released"


def stored(version: int, path: Path) -> Path:
    path.write_bytes(zstandard.decompress((STORES / f"v{version}.duckdb.zst").read_bytes(), 1 << 24))
    return path


def schema(store: LabelStore) -> dict[str, list[tuple[Any, ...]]]:
    """Tables, columns, types, constraints, names of views, and comments."""
    with store.read() as con:
        return {
            what: con.execute(sql).fetchall()
            for what, sql in {
                "tables": "SELECT table_name, comment FROM duckdb_tables() ORDER BY ALL",
                "columns": """SELECT table_name, column_name, data_type, is_nullable, column_default FROM duckdb_columns()
                              WHERE NOT internal ORDER BY table_name, column_name""",
                "constraints": """SELECT table_name, constraint_type, constraint_column_names FROM duckdb_constraints()
                                  ORDER BY ALL""",
                "views": "SELECT view_name, comment FROM duckdb_views() WHERE NOT internal ORDER BY ALL",
            }.items()
        }


def view_texts(store: LabelStore, scratch: LabelStore) -> list[tuple[str, str]]:
    """The SQL of each view, as this DuckDB writes it down: versions write the same view differently."""
    with store.read() as con:
        texts = con.execute("SELECT sql FROM duckdb_views() WHERE NOT internal ORDER BY view_oid").fetchall()
    with scratch.write() as con:
        for (text,) in texts:
            con.execute(text.replace("CREATE VIEW", "CREATE OR REPLACE VIEW", 1))
        return con.execute(
            "SELECT view_name, sql FROM duckdb_views() WHERE NOT internal ORDER BY 1"
        ).fetchall()


def content(
    con: duckdb.DuckDBPyConnection, columns: dict[str, list[str]]
) -> dict[str, list[tuple[Any, ...]]]:
    return {
        table: con.execute(f"SELECT {', '.join(names)} FROM {table} ORDER BY ALL").fetchall()
        for table, names in columns.items()
    }


def columns_of(con: duckdb.DuckDBPyConnection) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for table, column in con.execute(
        """SELECT table_name, column_name FROM duckdb_columns() WHERE NOT internal AND table_name IN (
             SELECT table_name FROM duckdb_tables()) AND table_name <> 'migrations' ORDER BY table_name, column_index"""
    ).fetchall():
        found.setdefault(table, []).append(column)
    return found


@pytest.mark.parametrize("version", VERSIONS)
def test_a_stored_file_has_rows_in_every_table(version: int, tmp_path: Path) -> None:
    path = stored(version, tmp_path / "old.duckdb")
    with duckdb.connect(str(path), read_only=True) as con:
        assert con.execute("SELECT max(version) FROM migrations").fetchall() == [(version,)]
        (tags,) = con.execute("SELECT tags FROM duckdb_databases() WHERE database_name = 'old'").fetchall()[0]
        assert tags["storage_version"].startswith("v1.5"), "written as DuckDB 1.5 reads it"
        columns = columns_of(con)
        empty = [table for table, rows in content(con, columns).items() if not rows]
    assert not empty, f"v{version}.duckdb.zst holds no row in {empty}; {AGAIN}"


@pytest.mark.parametrize("version", VERSIONS)
def test_it_opens_as_a_store_of_today_with_all_its_rows(version: int, tmp_path: Path) -> None:
    path = stored(version, tmp_path / "old.duckdb")
    with duckdb.connect(str(path), read_only=True) as con:
        columns = columns_of(con)
        before = content(con, columns)
    store, new = LabelStore(path), LabelStore(tmp_path / "new.duckdb")
    with new.write():
        pass
    assert schema(store) == schema(new), f"v{version}.duckdb.zst differs from a new store; {AGAIN}"
    views_today = view_texts(new, new)  # before the old texts replace them there
    assert view_texts(store, new) == views_today, f"views of v{version}.duckdb.zst differ; {AGAIN}"
    with store.read() as con:
        assert con.execute("SELECT max(version) FROM migrations").fetchall() == [(CURRENT_VERSION,)]
        today = columns_of(con)
        kept = {table: [n for n in names if n in today.get(table, ())] for table, names in columns.items()}
        if kept == columns:
            assert content(con, columns) == before
        for view in ("labels", "results", "student_sources", "labeling_quality", "teacher_calls", "mined"):
            assert con.execute(f"SELECT count(*) FROM {view}").fetchall()[0][0] > 0
    with store.write() as con:
        con.execute("INSERT INTO qrels SELECT 1, query, document, 3 FROM qrels LIMIT 1")


def test_a_migration_is_applied_once_with_its_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = stored(FIRST_VERSION, tmp_path / "old.duckdb")
    step = Migration(CURRENT_VERSION + 1, "note_runs", "ALTER TABLE runs ADD COLUMN note VARCHAR")
    monkeypatch.setattr(migrations, "MIGRATIONS", (*migrations.MIGRATIONS, step))
    monkeypatch.setattr(migrations, "CURRENT_VERSION", step.version)
    store = LabelStore(path)
    for _ in range(2):
        with store.read() as con:
            assert con.execute("SELECT count(*), count(note) FROM runs").fetchall() == [(2, 0)]
            names = con.execute("SELECT version, name FROM migrations ORDER BY version").fetchall()
    assert names[-1] == (step.version, "note_runs")
    assert [name for _, name in names].count("note_runs") == 1


def test_a_migration_that_fails_leaves_the_store_at_its_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = stored(FIRST_VERSION, tmp_path / "old.duckdb")
    before = path.read_bytes()
    with monkeypatch.context() as patch:
        bad = "ALTER TABLE runs ADD COLUMN note VARCHAR; ALTER TABLE nothing ADD COLUMN note VARCHAR"
        patch.setattr(migrations, "MIGRATIONS", (Migration(CURRENT_VERSION + 1, "bad", bad),))
        patch.setattr(migrations, "CURRENT_VERSION", CURRENT_VERSION + 1)
        with pytest.raises(duckdb.Error), LabelStore(path).read():
            pass
    assert path.read_bytes() == before
    with LabelStore(path).read() as con:
        assert "note" not in columns_of(con)["runs"]


def test_a_newer_store_is_refused(tmp_path: Path) -> None:
    path = stored(FIRST_VERSION, tmp_path / "old.duckdb")
    with LabelStore(path).write() as con:
        con.execute("INSERT INTO migrations (version, name) VALUES (?, 'of tomorrow')", [CURRENT_VERSION + 1])
    with pytest.raises(StoreError, match="has schema version") as raised, LabelStore(path).read():
        pass
    assert "upgrade" in (raised.value.hint or "")
