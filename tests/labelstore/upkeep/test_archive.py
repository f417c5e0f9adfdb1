"""A store as Parquet and back: the same verify hash, readable by any engine, refused when changed."""

import json
import os
from pathlib import Path
from typing import Any

import duckdb
import made_store
import pandas
import polars
import pyarrow.parquet
import pytest

from benchmarks.labelling_store import make as make_labelled
from labelstore.errors import BadInput, DataMissing, UsageError
from labelstore.store.label_store import LabelStore
from labelstore.store.relations import REFERENCES
from labelstore.upkeep.archive import _comments, export_store, import_store
from labelstore.upkeep.verify.verify import verify
from labelstore.views import build as views
from teachers.generate.job import generate
from teachers.generate.settings import Settings
from teachers.journal.segments import Journal
from tests.helpers.scripted_engine import ScriptedEngine, hashed_order


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> LabelStore:
    """A store with calls, a view and a journal segment that waits to be merged."""
    made = make_labelled(tmp_path_factory.mktemp("made") / "s.duckdb", 4, length=lambda k: 25)
    generate(made, Settings(model="rankzephyr", canaries=2), engine=ScriptedEngine(hashed_order))
    views.build(made, "distillation", labels=["rankzephyr@first"], name="kd")
    with Journal(made.files / "journal", "job", {"labeling": {"name": "rankzephyr@first"}}) as writer:
        writer.append({"t": "call", "status": "ok"})
    (made.files / "views" / ".msft-add-1-0123abcd").mkdir()
    return made


@pytest.fixture(scope="module")
def archive(store: LabelStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("archives") / "archive"
    export_store(store, folder)
    return folder


def content(store: LabelStore) -> dict[str, list[tuple[Any, ...]]]:
    with store.read() as con:
        tables = [t for (t,) in con.execute("SELECT table_name FROM duckdb_tables() ORDER BY 1").fetchall()]
        return {t: con.execute(f"SELECT * FROM {t}").fetchall() for t in tables if t != "migrations"}


@pytest.mark.test_all
def test_a_round_trip_gives_the_same_rows_and_the_same_hash(
    store: LabelStore, archive: Path, tmp_path: Path
) -> None:
    back = LabelStore(tmp_path / "back.duckdb")
    done = import_store(archive, back)
    checked = verify(back)
    assert checked.hash == verify(store).hash == done.verify_hash
    assert [finding.what for finding in checked.findings] == [], "views and keys are what they were"
    assert content(back) == content(store)
    assert [path.name for path in (back.files / "journal").iterdir()] == [
        path.name for path in (store.files / "journal").glob("*.calls")
    ]
    assert sorted(os.listdir(tmp_path)) == ["back.duckdb", "back.files"], "nothing is left beside it"
    again = tmp_path / "again"
    export_store(back, again)
    assert json.loads((again / "manifest.json").read_text())["verify_hash"] == done.verify_hash


def test_any_engine_reads_it(store: LabelStore, archive: Path) -> None:
    manifest = json.loads((archive / "manifest.json").read_text())
    n = manifest["tables"]["candidates"]["rows"]
    joined = (
        polars.read_parquet(archive / "candidates.parquet")
        .join(polars.read_parquet(archive / "documents.parquet"), on="document")
        .join(polars.read_parquet(archive / "queries.parquet"), on="query")
    )
    assert len(joined) == n == 100
    assert len(pandas.read_parquet(archive / "calls.parquet")) == manifest["tables"]["calls"]["rows"] == 8
    assert pyarrow.parquet.read_table(archive / "permutation_items.parquet").num_rows == 100
    con = duckdb.connect()
    con.execute(f"SET file_search_path = '{archive}'")
    con.execute((archive / "open.sql").read_text())
    assert con.execute("SELECT count(*) FROM ranked").fetchall() == [(n,)]
    with store.read() as own:
        for view in ("labels", "teacher_calls", "labeling_quality"):
            sql = f"SELECT * FROM {view} ORDER BY ALL"
            assert con.execute(sql).fetchall() == own.execute(sql).fetchall()


def test_the_manifest_says_what_every_column_holds_and_names(archive: Path) -> None:
    tables = json.loads((archive / "manifest.json").read_text())["tables"]
    for table, described in tables.items():
        schema = pyarrow.parquet.read_schema(archive / described["file"])
        assert schema.names == list(described["columns"])
        assert all(column["holds"] for column in described["columns"].values()), table
    assert tables["candidates"]["columns"]["query"]["names"] == "queries.query"
    named = {(t, c) for t, d in tables.items() for c, column in d["columns"].items() if "names" in column}
    assert named == {(r.table, r.column) for r in REFERENCES}


def test_schema_says_what_every_column_holds(store: LabelStore) -> None:
    with store.read() as con:
        columns = set(
            con.execute(
                """SELECT table_name, column_name FROM duckdb_columns() WHERE NOT internal AND table_name <> 'migrations'
                   AND table_name IN (SELECT table_name FROM duckdb_tables())"""
            ).fetchall()
        )
        assert con.execute(
            "SELECT table_name FROM duckdb_tables() WHERE comment IS NULL AND table_name <> 'migrations'"
        ).fetchall() == []  # fmt: skip
        assert (
            con.execute(
                "SELECT view_name FROM duckdb_views() WHERE NOT internal AND comment IS NULL"
            ).fetchall()
            == []
        )
    assert columns == set(_comments())


def test_it_appears_whole_or_not_at_all(store: LabelStore, archive: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="exists already"):
        export_store(store, archive)
    with pytest.raises(UsageError, match="there is a store"):
        import_store(archive, store)
    with pytest.raises(DataMissing, match="not an archive"):
        import_store(tmp_path, LabelStore(tmp_path / "x.duckdb"))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("damage", "error", "says"),
    [
        (lambda folder: (folder / "qrels.parquet").unlink(), DataMissing, "qrels.parquet is missing"),
        (lambda folder: _flip(folder / "candidates.parquet"), BadInput, "candidates.parquet was changed"),
        (lambda folder: _edit(folder, schema_version=99), BadInput, "schema version 99"),
        (lambda folder: _edit(folder, format=2), BadInput, "not a manifest of format 1"),
        (lambda folder: _edit(folder, verify_hash="0" * 32), BadInput, "gives the verify hash"),
        (lambda folder: (folder / "manifest.json").write_text("{"), BadInput, "not the manifest"),
        (lambda folder: _forget(folder, "qrels"), BadInput, "other tables than a store: qrels"),
    ],
)
def test_a_changed_archive_is_refused_and_leaves_nothing(
    archive: Path, tmp_path: Path, damage: Any, error: type[Exception], says: str
) -> None:
    import shutil

    folder = tmp_path / "archive"
    shutil.copytree(archive, folder)
    damage(folder)
    (tmp_path / "to").mkdir()
    with pytest.raises(error, match=says) as raised:
        import_store(folder, LabelStore(tmp_path / "to" / "s.duckdb"))
    assert getattr(raised.value, "hint", None)
    assert os.listdir(tmp_path / "to") == []


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)


def _edit(folder: Path, **values: Any) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def _forget(folder: Path, table: str) -> None:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["tables"][table]
    path.write_text(json.dumps(manifest))


@pytest.mark.test_all
def test_an_archive_of_another_machine_is_merged_by_way_of_a_store(tmp_path: Path) -> None:
    from labelstore.upkeep.merge.job import merge_stores

    here, there = made_store.make(tmp_path / "here.duckdb"), make_labelled(tmp_path / "there.duckdb", 3)
    export_store(there, tmp_path / "archive")
    back = LabelStore(tmp_path / "back.duckdb")
    import_store(tmp_path / "archive", back)
    merge_stores(here, back)
    assert verify(here).findings == []
