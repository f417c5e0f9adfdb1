"""A command that waits for a held store says so after two seconds, and who holds it."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import forked
import made_store
import pytest
from shelves import msft

from labelstore.store import label_store
from labelstore.store.label_store import LabelStore

ROOT = Path(__file__).resolve().parents[3]
HOLD = """
import sys, time
from labelstore.store.label_store import LabelStore
with getattr(LabelStore(sys.argv[1]), sys.argv[2])():
    print("held", flush=True)
    time.sleep(float(sys.argv[3]))
"""


@contextmanager
def held(store: LabelStore, way: str, seconds: float) -> Iterator[int]:
    """Hold the store in another process; yields its PID."""
    process = forked.Popen(
        [sys.executable, "-c", HOLD, str(store.path), way, str(seconds)], cwd=ROOT, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    try:
        yield process.pid
    finally:
        process.kill()
        process.communicate()


@pytest.fixture
def store(tmp_path: Path) -> LabelStore:
    return made_store.make(tmp_path / "s.duckdb")


@pytest.mark.test_all
@pytest.mark.parametrize(
    ("way", "words"),
    [("write", "data list"), ("write", "eval --dataset c/test"), ("write", "report"),
     ("read", "views build --kind distillation --labels teacher@first --allow-overlap"), ("write", "status")],
)  # fmt: skip
def test_a_wait_of_any_command_is_told_with_its_holder(store: LabelStore, way: str, words: str) -> None:
    with held(store, way, 120) as holder:
        waiting = forked.Popen(
            [sys.executable, "-m", "cli.main", *words.split(), "--store", str(store.path)], cwd=store.path.parent,
            env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert waiting.stderr is not None
        told = next(line for line in waiting.stderr if line.startswith("waiting for "))
    _, rest = waiting.communicate(timeout=120)
    assert waiting.returncode == 0, rest
    assert f"(PID {holder})" in told
    assert str(store.path) in told
    assert "waiting for " not in rest


def test_a_wait_is_told_once_after_two_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that the test moves, so that no machine is too slow."""
    now, told = [100.0], []
    monkeypatch.setattr(label_store.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(label_store.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(LabelStore, "tell", staticmethod(told.append))
    wait = label_store._Wait(Path("s.duckdb"), 60)
    for seconds, n in ((0, 0), (1.99, 0), (2, 1), (30, 1), (59, 1)):
        now[0] = 100 + seconds
        wait.on("msft eval (PID 7)")
        assert len(told) == n, seconds
        assert not wait.over
    assert told == ["waiting for s.duckdb: held by msft eval (PID 7), for 60 s at most"]
    now[0] = 160
    assert wait.over


@pytest.mark.parametrize("words", ["data list", "negatives list", "runs list"])
def test_a_short_wait_is_silent(store: LabelStore, words: str) -> None:
    with held(store, "write", 0.5):
        done = msft(store, *words.split())
    assert "waiting" not in done.err


@pytest.mark.test_all
def test_a_reader_behind_a_waiting_writer_is_told_too(store: LabelStore) -> None:
    """The writer waits for a reader, and later readers wait for the writer."""
    told: list[str] = []
    LabelStore.tell = staticmethod(told.append)
    try:
        with held(store, "read", 4):
            writer = forked.Popen(
                [sys.executable, "-c", HOLD, str(store.path), "write", "0"], cwd=ROOT, stdout=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )  # fmt: skip
            gate = store.path.with_name(f".{store.path.name}.turn")
            while not _locked(gate):
                time.sleep(0.01)
            with store.read():
                pass
            writer.communicate()
    finally:
        LabelStore.tell = staticmethod(lambda message: None)
    assert told
    assert "about to write" in told[0]


def _locked(gate: Path) -> bool:
    from labelstore.store.writer_first import writer_waits

    return writer_waits(gate.with_name(gate.name.removeprefix(".").removesuffix(".turn")))
