"""Another's store is data: folders that escape, views in tables' places, names and links are refused; nothing is lost."""

import os
from collections.abc import Callable
from pathlib import Path

import duckdb
import made_store
import pytest

from labelstore.errors import BadInput, MsftError, StoreError
from labelstore.negatives.mine import mine
from labelstore.store import foreign, lookup
from labelstore.store.label_store import LabelStore
from labelstore.upkeep.archive import export_store
from labelstore.upkeep.merge.job import merge_stores
from labelstore.upkeep.verify.verify import verify
from labelstore.views import build as views
from labelstore.views import folder as view_folder
from students.jobs.register import clear
from students.jobs.rerank import student_folder

pytestmark = pytest.mark.test_all  # each case is a hostile store of its own

HASH = "0123abcd"


@pytest.fixture
def store(tmp_path: Path) -> LabelStore:
    made = LabelStore(tmp_path / "other.duckdb")
    with made.write():
        pass
    return made


def add_student(store: LabelStore, name: str = "s", folder: str = "students/s") -> lookup.Student:
    with store.write() as con:
        con.execute(
            "INSERT INTO students VALUES (1, ?, 'b', NULL, 'bert', 'kd', ?, 'h', 64, 42, NULL, NULL, 1)",
            [name, folder],
        )
    return lookup.Student(1, name, "b", "bert", "kd", folder, "h", 64, None)


def add_view(
    store: LabelStore, folder: str = f"views/{HASH}", kind: str = "distillation", parameters: str = "{}"
) -> lookup.View:
    with store.write() as con:
        con.execute(
            "INSERT INTO views VALUES (1, 'v', ?, 'SELECT 1', ?, 42, ?, ?, 1, 1, NULL, 1)",
            [kind, parameters, HASH, folder],
        )
    return lookup.View(1, "v", kind, HASH, folder, 1, 1, None)


@pytest.mark.parametrize(
    "folder",
    [
        "students/../../precious", "/etc", "students/a/../../b", "views/a", "students/.x", "", "students/a/b",
        "students/a:b", "students/..", "students//etc", "students/a\nb", "STUDENTS/a",
    ],
)  # fmt: skip
def test_a_students_folder_that_escapes_is_refused_and_reported(
    store: LabelStore, tmp_path: Path, folder: str
) -> None:
    student = add_student(store, folder=folder)
    with pytest.raises(BadInput, match="is not students/NAME"):
        merge_stores(LabelStore(tmp_path / "own.duckdb"), store)
    with pytest.raises(BadInput, match="leads out"):
        student_folder(store, student)
    assert any("leads out" in finding.problem for finding in verify(store).findings)


@pytest.mark.parametrize(
    "folder",
    [f"views/../{HASH}", f"/views/{HASH}", f"views/{HASH}/..", "views/other", f"students/{HASH}", "."],
)
def test_a_views_folder_that_escapes_is_refused_and_reported(
    store: LabelStore, tmp_path: Path, folder: str
) -> None:
    view = add_view(store, folder)
    with pytest.raises(BadInput, match=f"is not views/{HASH}"):
        merge_stores(LabelStore(tmp_path / "own.duckdb"), store)
    with pytest.raises(BadInput, match="leads out"):
        views.folder_of(store, view)
    assert any("leads out" in finding.problem for finding in verify(store).findings)


@pytest.mark.parametrize("link", ["views", f"views/{HASH}", "students", "students/s"])
def test_a_link_in_a_folders_place_is_not_followed(store: LabelStore, tmp_path: Path, link: str) -> None:
    view, student = add_view(store), add_student(store)
    precious = tmp_path / "precious"
    for name in ("", "s", HASH):
        (precious / name).mkdir(parents=True, exist_ok=True)
        (precious / name / "config.json").write_text("{}")
    place = store.files / link
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(precious)
    read: Callable[[], Path] = (
        (lambda: views.folder_of(store, view))
        if link.startswith("views")
        else (lambda: student_folder(store, student))
    )
    with pytest.raises(BadInput, match="no link"):
        read()
    assert any("no link" in finding.problem for finding in verify(store).findings)
    merge_stores(LabelStore(tmp_path / "own.duckdb"), store)
    assert not list((tmp_path / "own.files").glob("*/*"))
    assert len(list(precious.rglob("config.json"))) == 3


@pytest.mark.parametrize("inside", ["lists.parquet", "sub/deep", ".hidden"])
@pytest.mark.parametrize("odd", ["link", "fifo", "dangling"])
def test_a_copy_follows_no_link_inside_a_folder(
    store: LabelStore, tmp_path: Path, inside: str, odd: str
) -> None:
    add_view(store)
    folder = store.files / "views" / HASH
    path = folder / inside
    path.parent.mkdir(parents=True)
    (tmp_path / "private").write_text("a key")
    if odd == "fifo":
        os.mkfifo(path)
    else:
        path.symlink_to(tmp_path / ("private" if odd == "link" else "nothing"))
    for copy in (
        lambda: view_folder.copy_folder(folder, tmp_path / "out"),
        lambda: export_store(store, tmp_path / "archive"),
    ):
        with pytest.raises(BadInput, match="link, or neither file nor folder"):
            copy()
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "archive").exists()


@pytest.mark.parametrize(
    ("table", "name"),
    [
        ("students", ".."), ("students", "a/b"), ("students", ".git"), ("students", "c:x"), ("students", "x\\y"),
        ("datasets", "\x1b[2J"), ("runs", "a\nb"), ("collections", ""), ("labelings", "\u202ex"), ("teachers", "\x9b"),
        ("minings", "\u2066a"),
    ],
)  # fmt: skip
def test_a_name_that_nobody_could_type_is_refused(tmp_path: Path, table: str, name: str) -> None:
    other = made_store.make(tmp_path / "made.duckdb")
    if table == "students":
        add_student(other)
    if table == "minings":
        mine(other, dataset="c/train", runs=["first"])
    with other.write() as con:
        assert con.execute(f"SELECT count(*) > 0 FROM {table}").fetchall() == [(True,)]
        con.execute(f"UPDATE {table} SET name = ? WHERE rowid = (SELECT min(rowid) FROM {table})", [name])
    own = LabelStore(tmp_path / "own.duckdb")
    with pytest.raises(BadInput, match=r"cannot be a") as raised:
        merge_stores(own, other)
    assert "\x1b" not in str(raised.value)
    assert not own.exists


@pytest.mark.parametrize(
    ("kind", "parameters"), [("distillation", "[1]"), ("distillation", '{"sources": [7]}'), ("odd", "{}"),
                             ("distillation", '{"sources": {"a": 1}}'), ("contrastive", "null")],
)  # fmt: skip
def test_a_views_row_of_another_shape_is_reported(store: LabelStore, kind: str, parameters: str) -> None:
    add_view(store, kind=kind, parameters=parameters)
    assert any("no view has the kind" in finding.problem for finding in verify(store).findings)


@pytest.mark.parametrize(
    "sql",
    [
        "DROP TABLE qrels; CREATE VIEW qrels AS SELECT * FROM read_text('/etc/hosts')",
        "CREATE MACRO f(x) AS x + 1",
        "CREATE VIEW more AS SELECT 1",
        "CREATE TABLE more (a INTEGER)",
    ],
)
def test_a_file_of_another_shape_is_refused(store: LabelStore, tmp_path: Path, sql: str) -> None:
    with duckdb.connect(store.path) as con:
        con.execute(sql)
    with pytest.raises(BadInput, match=r"which no store has|other tables"):
        merge_stores(LabelStore(tmp_path / "own.duckdb"), store)


@pytest.mark.parametrize(
    "reader", ["read_text('{}/key.txt')", "read_csv('{}/key.txt', header = false)", "glob('{}/*')", "read_blob('{}/key.txt')",
               "read_json_objects('{}/key.txt')"],
)  # fmt: skip
@pytest.mark.parametrize("use", ["list", "write", "macro"])
def test_a_view_of_anothers_store_reads_no_file(
    store: LabelStore, tmp_path: Path, reader: str, use: str
) -> None:
    (tmp_path / "key.txt").write_text('"secret"\n')
    with duckdb.connect(store.path) as con:
        if use == "macro":
            con.execute(f"CREATE MACRO stolen() AS TABLE SELECT * FROM {reader.format(tmp_path)}")
            con.execute("DROP TABLE datasets CASCADE; CREATE VIEW datasets AS FROM stolen()")
        else:
            con.execute("DROP TABLE datasets CASCADE")
            con.execute(f"CREATE VIEW datasets AS SELECT * FROM {reader.format(tmp_path)}")
    opened = store.write() if use == "write" else store.read()
    with pytest.raises(StoreError, match="reads another file") as raised, opened as con:
        con.execute("SELECT * FROM datasets").fetchall()
    assert "secret" not in str(raised.value)


def test_what_may_be_reached_is_said_and_nothing_else(store: LabelStore, tmp_path: Path) -> None:
    place, beside = tmp_path / "place", tmp_path / "place-2"
    place.mkdir()
    beside.mkdir()
    with store.read(reach=[place]) as con:
        con.execute(f"COPY (SELECT 1 AS a) TO '{place}/a.parquet'")
        assert con.execute(f"FROM '{place}/a.parquet'").fetchall() == [(1,)]
    for target in (f"{beside}/a.csv", f"{place}/../place-2/a.csv", f"{tmp_path}/a.csv", "a.csv"):
        with pytest.raises(MsftError), store.read(reach=[place]) as con:
            con.execute(f"COPY (SELECT 1 AS a) TO '{target}'")
    assert not list(beside.iterdir())


@pytest.mark.parametrize("held", ["notes.txt", "model.safetensors", "config.json"])
def test_a_folder_in_a_students_way_is_set_aside_not_removed(tmp_path: Path, held: str) -> None:
    folder = tmp_path / "students" / "s"
    for n in (1, 2):
        folder.mkdir(parents=True)
        (folder / held).write_text(f"of the user, {n}")
        clear(folder, "another hash")
        assert not folder.exists()
        assert (folder.with_name(f"s.aside-{n}") / held).read_text() == f"of the user, {n}"


def test_what_an_earlier_add_left_is_removed(tmp_path: Path) -> None:
    from labelstore.store.keys import file_hash

    folder = tmp_path / "s"
    folder.mkdir()
    (folder / "model.safetensors").write_text("weights")
    clear(folder, file_hash(folder / "model.safetensors"))
    assert os.listdir(tmp_path) == []


def test_check_name_and_rows_share_one_rule() -> None:
    for name in ("a/b", ".x", "..", "a:b", "a\\b", "\x00", ""):
        assert not foreign.student_inside(f"students/{name}")
