"""Large work on the store in a process of its own: same results, same errors, and nobody's calls lost between two merges."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import forked
import pytest

from benchmarks.labelling_store import make
from labelstore.errors import DataMissing, MsftError, StoreError
from labelstore.store.label_store import LabelStore
from teachers.errors import TeacherError
from teachers.generate import child_process, job
from teachers.generate.job import generate
from teachers.generate.merge_journal import MergedJournal, merge_journal
from teachers.generate.settings import Settings
from teachers.journal import segments as journal
from teachers.journal.segments import Journal
from tests.helpers.scripted_engine import ScriptedEngine, hashed_order

ROOT = Path(__file__).resolve().parents[3]
SETTINGS = Settings(model="rankzephyr", canaries=0)
CONTENT = """SELECT q.query_id, p.status, p.n_calls, p.content_hash FROM permutations p JOIN queries q USING (query)
             ORDER BY q.query_id"""


def rows(store: LabelStore, sql: str) -> list[tuple[Any, ...]]:
    with store.read() as con:
        return con.execute(sql).fetchall()


@pytest.mark.parametrize(
    "error",
    [
        MsftError("what", hint="next"),
        DataMissing("no run", hint="msft runs list"),
        StoreError("locked by 7", hint="wait"),
        TeacherError("no engine", hint="install it", exit_code=5),
        KeyError("k"),
    ],
)
def test_what_is_raised_there_is_raised_here(error: Exception) -> None:
    with pytest.raises(type(error)) as caught:
        child_process.Call(_raise, error).result()
    assert str(caught.value) == str(error)
    for name in ("hint", "exit_code"):
        assert getattr(caught.value, name, None) == getattr(error, name, None)


def _raise(error: Exception) -> None:
    raise error


def _talk(words: str) -> str:
    print(words)
    return words + "!"


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_what_is_printed_there_is_no_answer(capfd: pytest.CaptureFixture[str]) -> None:
    call = child_process.Call(_talk, "hello")
    assert call.result() == "hello!"
    assert call.done
    assert capfd.readouterr() == ("", "hello\n")


def test_a_process_that_dies_is_an_error() -> None:
    with pytest.raises(MsftError, match="code -9") as caught:
        child_process.Call(_die).result()
    assert "run the same command again" in (caught.value.hint or "")


@pytest.mark.test_all
def test_a_job_that_reads_and_merges_apart_makes_the_same_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = make(tmp_path / "here.duckdb", 12, length=lambda k: 20 + 7 * k)
    there = make(tmp_path / "there.duckdb", 12, length=lambda k: 20 + 7 * k)
    generate(here, SETTINGS, engine=ScriptedEngine(hashed_order))
    monkeypatch.setattr(child_process, "LARGE_BYTES", 0)
    monkeypatch.setattr(child_process, "LARGE_CANDIDATES", 0)
    monkeypatch.setattr(job, "MERGE_SECONDS", 0.3)
    began: list[Any] = []
    real = child_process.Call

    def noted(function: Any, *arguments: Any) -> child_process.Call:
        began.append(function)
        return real(function, *arguments)

    monkeypatch.setattr(child_process, "Call", noted)
    slow = ScriptedEngine(hashed_order, delay=lambda request: 0.2, capacity=4)
    result = generate(there, SETTINGS, engine=slow)
    assert (result.labelled, result.left) == (12, 0)
    assert job.filled in began
    assert began.count(merge_journal) >= 3, "at the start, while the engine works, and at the end"
    assert rows(there, CONTENT) == rows(here, CONTENT)
    assert rows(there, "SELECT count(*) = count(DISTINCT request) FROM calls") == [(True,)]
    assert not list((there.files / "journal").iterdir())


MERGING = """
import sys, time
from labelstore.store.label_store import LabelStore
from teachers.generate import merge_journal as merge
real = merge.Target.calls
def slow(self, con, records):
    print("merging", flush=True)
    time.sleep(1.5)
    return real(self, con, records)
merge.Target.calls = slow
store = LabelStore(sys.argv[1])
merge.merge_journal(store, store.files / "journal")
"""


def test_a_merge_that_outlives_its_job_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when a job is killed while its merge runs beside it, and is started again at once."""
    store = make(tmp_path / "s.duckdb", 6)
    folder = store.folder("journal")
    with monkeypatch.context() as patch:
        patch.setattr(child_process, "merge_small_or_large", lambda *_: MergedJournal())
        generate(store, SETTINGS, engine=ScriptedEngine(hashed_order))
    assert journal.segments(folder)
    orphan = forked.Popen(
        [sys.executable, "-c", MERGING, str(store.path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert orphan.stdout is not None
    assert orphan.stdout.readline() == "merging\n"
    engine = ScriptedEngine(hashed_order)
    result = generate(store, SETTINGS, engine=engine)
    assert orphan.wait() == 0
    assert (result.labelled, engine.answered) == (6, 0)
    assert rows(store, "SELECT count(*), count(DISTINCT request) FROM calls") == [(54, 54)]


@pytest.mark.test_all
def test_no_segment_is_removed_under_its_writer(tmp_path: Path) -> None:
    """A writer rotates all the time; beside it closed segments are taken away: every record is found once."""
    taken: list[int] = []
    ending = threading.Event()

    def take() -> None:
        while not ending.is_set():
            for path, _ in journal.closed(tmp_path):
                taken.extend(r["k"] for r in journal.read(path) if r["t"] == "call")
                journal.remove(path)

    thread = threading.Thread(target=take)
    thread.start()
    with Journal(tmp_path, "job", {}, rotate_bytes=300) as own:
        k = 0
        deadline = time.monotonic() + 2
        while k <= 200 or time.monotonic() < deadline:
            own.append({"t": "call", "status": "ok", "k": k, "reply": "x" * 100})
            k += 1
    ending.set()
    thread.join()
    left = [r["k"] for path in journal.segments(tmp_path) for r in journal.read(path) if r["t"] == "call"]
    assert sorted(taken + left) == list(range(k))
    assert k > 200
