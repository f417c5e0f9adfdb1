"""`msft status --stale` lists what interrupted work left, `msft clean` removes it, and work under way stays."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import made_store
import pytest
from shelves import msft

from labelstore.store.job_lock import student_alone
from labelstore.store.label_store import LabelStore
from labelstore.upkeep.stale import stale
from labelstore.upkeep.verify.verify import verify

ROOT = Path(__file__).resolve().parents[3]
KILLED_BUILD = """
import os, signal, sys
from pathlib import Path
from labelstore.store.label_store import LabelStore
from labelstore.views import build as views

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

if sys.argv[2] == "before the row":
    views.provenance.recorded_in = die
else:
    views._record = die
views.build(LabelStore(sys.argv[1]), "distillation", labels=["teacher@first"], name="kd", allow_overlap=True)
"""


@pytest.fixture
def store(tmp_path: Path) -> LabelStore:
    return made_store.make(tmp_path / "s.duckdb")


def killed(script: str, *arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr


def training(store: LabelStore, name: str) -> Path:
    """A training's working folder, as an interrupted training leaves it."""
    work = store.folder("students") / f".{name}.0123456789ab"
    work.mkdir()
    (work / "training.json").write_text("{}")
    (work / "training_log.jsonl").write_text("")
    (work / "checkpoint-3").mkdir()
    (work / "checkpoint-3" / "weights").write_bytes(bytes(3_000_000))
    return work


def leftover(store: LabelStore, name: str) -> Path:
    folder = store.files / name if "/" in name else store.path.parent / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir()
    (folder / "half").write_text("x")
    return folder


DEAD = 2**22 + 1  # beyond any process id


@pytest.mark.parametrize(
    "name",
    [f"views/.msft-add-{DEAD}-01234567", f".msft-add-{DEAD}-89abcdef", f"indexes/.bm25s-ab-{DEAD}-00000000",
     f"students/.tiny-{DEAD}.adding"],
)  # fmt: skip
def test_working_files_of_killed_processes_go(store: LabelStore, name: str) -> None:
    path = leftover(store, name)
    rows = json.loads(msft(store, "status", "--stale", "--format", "json").out)
    assert [row["name"] for row in rows] == [path.name]
    rows = json.loads(msft(store, "clean", "--format", "json").out)
    assert [(row["what"], row["becomes"]) for row in rows] == [("leftover", "removed")]
    assert not path.exists()
    assert verify(store).findings == []


@pytest.mark.parametrize("name", ["one", "with.dots.0", "naïve,name"])
def test_an_interrupted_training_goes_with_yes_alone(store: LabelStore, name: str) -> None:
    work = training(store, name)
    (row,) = json.loads(msft(store, "clean", "--format", "json").out)
    assert (row["what"], row["name"], row["size_mb"]) == ("training", name, 3.0)
    assert "--yes" in row["becomes"]
    assert work.exists()
    assert "msft clean --yes removes it" in msft(store, "clean").err
    assert "msft clean --yes removes it" in msft(store, "status", "--stale").err
    with student_alone(store, name):
        assert stale(store) == []
    msft(store, "clean", "--yes")
    assert not work.exists()


@pytest.mark.test_all
@pytest.mark.parametrize(
    ("moment", "left"), [("before the row", ["leftover", "view"]), ("before the move", ["leftover"])]
)
def test_what_a_killed_build_left_goes(store: LabelStore, moment: str, left: list[str]) -> None:
    killed(KILLED_BUILD, str(store.path), moment)
    assert [one.what for one in stale(store)] == left
    msft(store, "clean", "--yes")
    assert stale(store) == []
    assert verify(store).findings == []


def test_what_may_be_a_users_own_stays(store: LabelStore) -> None:
    outside = store.path.parent / "outside"
    outside.mkdir()
    (outside / "precious").write_text("x")
    own = store.folder("views") / "mine"
    own.mkdir()
    (own / "notes.txt").write_text("x")
    (store.folder("students") / ".linked.0123456789ab").symlink_to(outside)
    (store.files / "views" / "linked").symlink_to(outside)
    msft(store, "clean", "--yes")
    assert (own / "notes.txt").exists()
    assert (outside / "precious").exists()
