"""Ctrl-C in the middle of labelling with a scoring model loses at most the round under way."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import forked
import pytest

from benchmarks.labelling_store import make
from labelstore.store.label_store import LabelStore

pytestmark = pytest.mark.test_all

ROOT = Path(__file__).resolve().parents[3]
QUERIES = 200

LABEL = """
import sys, time
from labelstore.store.label_store import LabelStore
from teachers.generate import make_engine
from teachers.generate.job import generate
from teachers.generate.settings import Settings

path, model, kind, log = sys.argv[1:]
answers = open(log, "a", buffering=1)

def build(plan):
    engine = make_engine.build(plan)
    poll = engine.poll

    def recording(timeout):
        done = poll(timeout)
        if done:
            time.sleep(0.1)  # a tiny model answers at once; SIGINT is to come in the middle of a round
            answers.write(f"{len(done)}\\n")
        return done

    engine.poll = recording
    return engine

print(generate(LabelStore(path), Settings(model=model, engine=kind, canaries=0), build=build).labelled)
"""


def label(store: LabelStore, model: Path, kind: str, log: Path) -> "subprocess.Popen[str]":
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    return forked.Popen(
        [sys.executable, "-c", LABEL, str(store.path), str(model), kind, str(log)], cwd=ROOT, env=environment,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def rounds(log: Path) -> list[int]:
    """Read how many queries each round has answered."""
    return [int(line) for line in log.read_text().split()] if log.exists() else []


def value(store: LabelStore, sql: str) -> Any:
    with store.read() as con:
        return con.execute(sql).fetchall()[0][0]


@pytest.mark.parametrize(
    ("kind", "depth", "after"),
    [("bi-encoder", 40, 3), ("bi-encoder", 100, 6), ("cross-encoder", 20, 4)],
)
def test_the_rerun_asks_at_most_one_round_anew(
    tmp_path: Path, tiny_bert: Path, kind: str, depth: int, after: int
) -> None:
    store = make(tmp_path / "s.duckdb", QUERIES, length=lambda k: depth, passages=20_000)
    log = tmp_path / "rounds"
    process = label(store, tiny_bert, kind, log)
    deadline = time.monotonic() + 120
    while len(rounds(log)) < after and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert "KeyboardInterrupt" in errors
    first = rounds(log)
    stored = value(store, "SELECT count(*) FROM calls")
    largest = max(first)
    assert largest <= QUERIES / 8, "rounds are small"
    assert 0 < stored < QUERIES
    assert sum(first) - stored <= largest, "what was answered before the round under way is stored"

    again = label(store, tiny_bert, kind, log)
    output, errors = again.communicate(timeout=120)
    assert output.strip() == str(QUERIES), errors
    second = rounds(log)[len(first) :]
    assert sum(second) == QUERIES - stored, "what is stored is not asked again"
    assert value(store, "SELECT count(*) = count(DISTINCT request) FROM calls")
