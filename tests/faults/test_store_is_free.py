"""Long jobs never hold the store: `msft sql` answers while labels are generated and a student is trained."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import forked
import pytest
from test_kill_generate import ROOT, SCRIPTED, calls_written, start

from benchmarks.labelling_store import make
from labelstore.store.label_store import LabelStore

pytestmark = pytest.mark.test_all


SLOW = SCRIPTED.replace("/ 2000", "/ 20 + .2")
ASKED = 3


def msft(store: Path, *arguments: str) -> "subprocess.Popen[str]":
    """A command of msft that is under way; it waits 20 s at most for the store."""
    environment = {**os.environ, "MSFT_STORE": str(store), "MSFT_LOCK_WAIT": "20", "OMP_NUM_THREADS": "1"}
    return forked.Popen(
        [sys.executable, "-m", "cli.main", *arguments], cwd=ROOT, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def ask_beside(job: "subprocess.Popen[str]", store: Path, begun: Callable[[], bool]) -> None:
    """Ask the store while the job works; it must be under way before and after each answer."""
    deadline = time.monotonic() + 240
    while not begun() and job.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert job.poll() is None, f"the job ended before it was asked beside: {job.communicate()}"
    for _ in range(ASKED):
        asked = msft(store, "sql", "SELECT count(*) AS n FROM candidates", "--format", "json")
        output, errors = asked.communicate()
        assert asked.returncode == 0, errors
        assert json.loads(output)[0]["n"] > 0
        assert job.poll() is None, "the answer came while the job worked"


def test_while_labels_are_generated(tmp_path: Path) -> None:
    store = make(tmp_path / "s.duckdb", 400, length=lambda k: 100)
    job = start(SLOW, str(store.path), str(tmp_path / "asked"))
    ask_beside(job, store.path, lambda: calls_written(store) > 0)
    job.kill()
    job.communicate()


def test_while_a_cross_encoder_labels(tmp_path: Path) -> None:
    import tiny_models

    model = tiny_models.make("bert", tmp_path / "model")
    store = make(tmp_path / "s.duckdb", 3_000, length=lambda k: 100)
    job = msft(store.path, "teachers", "generate", "--model", str(model), "--engine", "cross-encoder")
    ask_beside(job, store.path, lambda: calls_written(store) > 0)
    job.kill()
    job.communicate()


def _begun(store: LabelStore) -> bool:
    return any((store.files / "students").glob(".*/training_log.jsonl"))


def test_while_a_student_is_trained(tmp_path: Path) -> None:
    import tiny_models

    model = tiny_models.make("bert", tmp_path / "model")
    store = make(tmp_path / "s.duckdb", 300, length=lambda k: 40)
    with store.write() as con:
        con.execute(
            "INSERT INTO qrels SELECT 1, query, document, 1 FROM candidates WHERE rank = 1"
        )  # its first candidate is every query's positive
    job = msft(
        store.path, "students", "train", "--regime", "cl", "--base", str(model), "--dataset", "made", "--run",
        "first", "--name", "s", "--batch", "8", "--max-steps", "100000",
    )  # fmt: skip
    ask_beside(job, store.path, lambda: _begun(store))
    job.kill()
    job.communicate()
