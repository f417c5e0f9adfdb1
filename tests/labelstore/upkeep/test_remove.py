"""Removing a thing: with what depends on it or not at all, its folder too, and nothing half after a kill."""

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import forked
import made_store
import pytest
from shelves import msft

from benchmarks.labelling_store import make as make_labelled
from labelstore.errors import BadInput, DataMissing, MsftError, UsageError
from labelstore.evaluation import scores as evaluation
from labelstore.negatives import mine as negatives
from labelstore.store import lookup
from labelstore.store.job_lock import labeling_alone
from labelstore.store.label_store import LabelStore
from labelstore.store.relations import REFERENCES
from labelstore.upkeep import remove as removing
from labelstore.upkeep.verify.digest import content_hash
from labelstore.upkeep.verify.verify import verify
from labelstore.views import build as views
from teachers.generate.job import generate
from teachers.generate.settings import Settings
from tests.helpers.scripted_engine import ScriptedEngine, hashed_order

pytestmark = pytest.mark.test_all  # each test removes something else from a store of its own

ROOT = Path(__file__).resolve().parents[3]
THINGS = [
    ("dataset", "c/train"),
    ("dataset", "c/test"),
    ("run", "first"),
    ("run", "tiny@first"),
    ("negatives", "hard"),
    ("labels", "teacher@first"),
    ("view", "kd"),
    ("view", "cl"),
    ("student", "tiny"),
]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a store with two views, negatives, labels, and a student with a run and evaluations."""
    made = made_store.make(tmp_path_factory.mktemp("template") / "s.duckdb")
    kd = views.build(made, "distillation", labels=["teacher@first"], name="kd", allow_overlap=True)
    negatives.mine(made, dataset="c/train", runs=["first"], name="hard", depth=20, per_query=3)
    views.build(
        made,
        "contrastive",
        datasets=["c/train"],
        negatives=["hard"],
        name="cl",
        per_query=2,
        allow_overlap=True,
    )
    made_store.add_student(made, "kd")
    with made.write() as con:
        con.execute(
            """INSERT INTO stages SELECT 1, 1, 'kd', 'ranknet', view, view_hash, 'a', 'b', '{}', 1, 2, 0, 0, 1, .1, NULL, NULL, 'end'
               FROM views WHERE view = ?""",
            [kd.view],
        )
        con.execute("INSERT INTO training_log VALUES (1, 1, 1, 2, .5, 'loss', .7)")
        made_store.add_run(
            con, 2, "tiny@first", 0, [made_store.TEST + n for n in range(4)], 60, 20, 1, 3, step=5
        )
        con.execute("UPDATE runs SET kind = 'student', student = 1, source_run = 2 WHERE run = 3")
    evaluation.evaluate(made, "c/test", measures=["nDCG@10", "RR@10"])
    assert verify(made).findings == []
    return made.path.parent


@pytest.fixture
def store(template: Path, tmp_path: Path) -> LabelStore:
    shutil.copytree(template, tmp_path, dirs_exist_ok=True)
    return LabelStore(tmp_path / "s.duckdb")


def dataset_of(kind: str, name: str) -> str | None:
    return None if kind != "run" else "c/test"


def count(store: LabelStore, sql: str) -> int:
    with store.read() as con:
        return int(con.execute(sql).fetchall()[0][0])


def hash_of(store: LabelStore) -> str:
    with store.read() as con:
        return content_hash(con)


def folders(store: LabelStore) -> set[str]:
    return {
        f"{p.parent.name}/{p.name}" for sub in ("views", "students") for p in (store.files / sub).iterdir()
    }


@pytest.mark.parametrize(("kind", "name"), THINGS)
def test_a_thing_goes_with_all_that_depends_on_it(store: LabelStore, kind: str, name: str) -> None:
    planned = removing.plan(store, kind, name, dataset_of(kind, name))
    assert (planned.affected[0].what, planned.affected[0].becomes) == (kind, "removed")
    assert name in planned.affected[0].name
    before = folders(store)
    removing.remove(store, kind, name, planned, dataset_of(kind, name))
    assert verify(store).findings == []
    assert before - folders(store) == {removed.folder for removed in planned.folders}
    with pytest.raises(DataMissing):
        removing.plan(store, kind, name, dataset_of(kind, name))
    for row in planned.affected:
        if row.what in removing.KINDS:
            gone = row.becomes == "removed"
            listed = f"SELECT count(*) FROM {removing._TABLES[row.what]} WHERE name = '{row.name.rsplit('/', 1)[-1]}'"
            left = count(store, listed) if row.what != "dataset" else 0
            assert gone or left, row
    n = count(
        store, "SELECT count(*) FROM filters f JOIN provenance p USING (job) WHERE p.kind LIKE '%.remove'"
    )
    assert n == len(planned.affected)


def test_every_reference_is_either_a_part_or_handled(store: LabelStore) -> None:
    """A new table that refers to something removable needs a line in `remove`: the tests above would miss it."""
    handled = {(table, column) for table, column, *_ in removing._WITH} | {
        ("negatives", "source_run"), ("labelings", "run"), ("stages", "view"),  # with their mining; detached
    }  # fmt: skip
    removable = set(removing._TABLES.values()) | {"evaluations"}
    open_ = [(r.table, r.column) for r in REFERENCES if r.target in removable and not r.part]
    assert set(open_) <= handled


def test_the_last_dataset_takes_its_collection_along(store: LabelStore) -> None:
    for name in ("c/test", "c/train"):
        removing.remove(store, "dataset", name, removing.plan(store, "dataset", name))
    for table in ("collections", "documents", "queries", "candidates", "permutation_items", "evaluations"):
        assert count(store, f"SELECT count(*) FROM {table}") == 0, table
    assert verify(store).findings == []


@pytest.mark.parametrize(
    ("group", "name", "depends"),
    [("runs", "first", "labels"), ("negatives", "hard", "view"), ("teachers", "teacher@first", "view"),
     ("students", "tiny", "run"), ("data", "c/test", "evaluations")],
)  # fmt: skip
def test_without_yes_nothing_that_others_need_goes(
    store: LabelStore, group: str, name: str, depends: str
) -> None:
    before = hash_of(store)
    more = ("--dataset", "c/train") if group == "runs" else ()
    done = msft(store, group, "remove", name, *more, "--format", "json", code=2)
    rows = json.loads(done.out)
    assert depends in {row["what"] for row in rows[1:]}
    assert "nothing was removed" in done.err
    assert "--yes" in done.err
    assert hash_of(store) == before
    done = msft(store, group, "remove", name, *more, "--yes", "--format", "json")
    assert json.loads(done.out) == rows
    assert verify(store).findings == []


def test_what_nothing_depends_on_goes_at_once_and_names_are_checked(store: LabelStore) -> None:
    msft(store, "views", "remove", "cl")
    done = msft(store, "views", "remove", "cl", code=4)
    assert "kd" in done.err
    done = msft(store, "runs", "remove", "first", code=2)
    assert "--dataset c/test | c/train" in done.err
    assert "tiny@first" in msft(store, "runs", "remove", "tiny", code=4).err


def test_views_of_one_name_are_told_and_go_one_by_one_or_all(store: LabelStore) -> None:
    for per_query in (1, 3):
        views.build(
            store, "contrastive", datasets=["c/train"], negatives=["hard"], name="cl", per_query=per_query,
            allow_overlap=True,
        )  # fmt: skip
    assert "of several views with this name, remove all" in " ".join(
        msft(store, "views", "remove", "--help").out.split()
    )
    before = hash_of(store)
    with store.read() as con:
        hashes = [row["view_hash"] for row in views.listed(con) if row["view"] == "cl"]
        newest = lookup.view(con, "cl").view_hash
    assert len(hashes) == 3
    done = msft(store, "views", "remove", "cl", "--format", "json", code=2)
    assert [row["name"] for row in json.loads(done.out)] == ["cl"] * 3
    assert done.err == (
        "error: 3 views are named cl; nothing was removed\n"
        "hint: --yes removes all; `msft views remove HASH` removes one, and `msft views list` tells them apart: "
        f"{' | '.join(hashes)}\n"
    )
    assert hash_of(store) == before
    shown = msft(store, "views", "show", "cl")
    assert f"3 views are named cl; this is the newest, {newest}" in shown.err
    assert "views are named" not in msft(store, "views", "show", hashes[0]).err
    checked = msft(store, "verify")
    assert checked.out == ""
    assert "no faults found" in checked.err
    msft(store, "views", "remove", hashes[1])
    assert not any(hashes[1] in folder for folder in folders(store))
    done = msft(store, "views", "remove", "cl", "--yes", "--format", "json")
    assert done.err == f"2 views are named cl, all are removed: {hashes[0]}, {hashes[2]}\n"
    assert len(json.loads(done.out)) == 2
    assert not any(one in folder for folder in folders(store) for one in hashes)
    assert verify(store).findings == []


@pytest.mark.parametrize("others", [0, 1])
def test_a_view_that_was_replaced_by_one_of_its_name_is_not_removed_unseen(
    store: LabelStore, others: int
) -> None:
    """The new view has the key and the number of pairs of the old one."""

    def build(seed: int) -> str:
        return views.build(
            store, "contrastive", datasets=["c/train"], negatives=["hard"], name="twin", seed=seed, per_query=1,
            allow_overlap=True,
        ).view_hash  # fmt: skip

    for seed in range(others):
        build(10 + seed)
    first = build(1)
    planned = removing.plan(store, "view", "twin")
    removing.remove(store, "view", first, removing.plan(store, "view", first))
    second = build(2)
    again = removing.plan(store, "view", "twin")
    assert (again.affected, again.keys) == (planned.affected, planned.keys)
    with pytest.raises(BadInput, match="has changed meanwhile"):
        removing.remove(store, "view", "twin", planned)
    assert any(second in folder for folder in folders(store))


KILLED = """
import os, signal, sys
from labelstore.store import removed_folders
from labelstore.store.label_store import LabelStore
from labelstore.upkeep import remove as removing

path, kind, name, moment = sys.argv[1:]

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

if moment == "before the commit":
    noted = removed_folders.Note.__init__
    removed_folders.Note.__init__ = lambda self, *a: (noted(self, *a), die())
elif moment == "before the note":
    removed_folders.os.fsync = die
elif moment == "after the commit":
    removed_folders.Note.move_away = die
elif moment == "in the middle of moving":
    moved = removed_folders._move_away
    removed_folders._move_away = lambda *a: (moved(*a), die())
elif moment == "before the folder is gone":
    removed_folders.shutil.rmtree = die
store = LabelStore(path)
removing.remove(store, kind, name, removing.plan(store, kind, name))
"""


MOMENTS = {
    "before the note": False, "before the commit": False, "after the commit": True, "in the middle of moving": True,
    "before the folder is gone": True,
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "name", "moment", "goes"),
    [(*thing, *moment) for thing in [("student", "tiny"), ("view", "kd")] for moment in MOMENTS.items()]
    + [("dataset", "c/train", "before the commit", False), ("dataset", "c/train", "after the commit", True)],
)
def test_a_kill_leaves_nothing_half(store: LabelStore, kind: str, name: str, moment: str, goes: bool) -> None:
    planned = removing.plan(store, kind, name)
    before, was = folders(store), hash_of(store)
    process = forked.run(
        [sys.executable, "-c", KILLED, str(store.path), kind, name, moment], cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert process.returncode == -signal.SIGKILL, process.stderr
    assert verify(store).findings == []
    assert not (store.files / ".removing").exists()
    if goes:
        assert before - folders(store) == {removed.folder for removed in planned.folders}
    else:
        assert folders(store) == before
        assert hash_of(store) == was


@pytest.mark.parametrize("folder", ["../outside", "students/link", "students/../../outside"])
def test_a_folder_that_leads_out_of_the_store_is_left(store: LabelStore, folder: str) -> None:
    outside = store.path.parent / "outside"
    outside.mkdir()
    (outside / "precious").write_text("x")
    (store.files / "students" / "link").symlink_to(outside)
    with store.write() as con:
        con.execute("UPDATE students SET folder = ?", [folder])
    done = msft(store, "students", "remove", "tiny", "--yes")
    assert "leads out of the store" in done.err
    assert (outside / "precious").read_text() == "x"
    assert count(store, "SELECT count(*) FROM students") == 0


@pytest.mark.parametrize("note", ['[["x", "../outside", null]]', '[["x", "views/../..", "ab"]]'])
def test_a_note_that_leads_out_of_the_store_removes_nothing(store: LabelStore, note: str) -> None:
    outside = store.path.parent / "outside"
    outside.mkdir()
    (store.files / ".removing").mkdir()
    (store.files / ".removing" / "0.json").write_text(note)
    with pytest.raises(BadInput, match="leads out"), store.read():
        pass
    assert outside.exists()


def test_calls_stay_and_are_used_again(tmp_path: Path) -> None:
    store = make_labelled(tmp_path / "s.duckdb", 5, length=lambda k: 8)
    settings = Settings(model="rankzephyr", canaries=0)
    name = generate(store, settings, engine=ScriptedEngine(hashed_order)).plan.name
    orders = "SELECT string_agg(content_hash, ' ' ORDER BY query) FROM permutations"
    with store.read() as con:
        before = con.execute(orders).fetchall()
    removing.remove(store, "labels", name, removing.plan(store, "labels", name))
    assert count(store, "SELECT count(*) FROM permutations") == 0
    again = generate(store, settings, engine=ScriptedEngine(hashed_order))
    assert (again.figures.calls, again.labelled) == (0, 5)
    with store.read() as con:
        assert con.execute(orders).fetchall() == before
    removing.remove(store, "dataset", "made", removing.plan(store, "dataset", "made"))
    assert count(store, "SELECT (SELECT count(*) FROM calls) + (SELECT count(*) FROM teachers)") == 0
    assert verify(store).findings == []


def test_what_a_job_is_making_stays(store: LabelStore) -> None:
    planned = removing.plan(store, "labels", "teacher@first")
    with labeling_alone(store, "teacher@first"), pytest.raises(MsftError, match="is being made") as raised:
        removing.remove(store, "labels", "teacher@first", planned)
    assert raised.value.exit_code == 3
    with pytest.raises(UsageError, match="wait in the journal"):
        removing.remove(store, "labels", "teacher@first", planned, waiting=["teacher@first"])
    removing.remove(store, "view", "kd", removing.plan(store, "view", "kd"))
    with pytest.raises(BadInput, match="has changed meanwhile"):
        removing.remove(store, "labels", "teacher@first", planned)
