"""Two labelling jobs of one labeling at once: the second ends with the holder's PID, and no call is paid twice."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import forked
import pytest
from openai_servers import Answer, Server, good, serving

from benchmarks.labelling_store import make
from labelstore.store.label_store import LabelStore

pytestmark = pytest.mark.test_all

ROOT = Path(__file__).resolve().parents[3]


def start(store: LabelStore, server: Server, name: str, *more: str) -> "subprocess.Popen[str]":
    command = [
        sys.executable, "-m", "cli.main", "teachers", "generate", "--store", str(store.path), "--model", "tiny",
        "--engine", "openai", "--base-url", server.url, "--canaries", "0", "--name", name, "--max-in-flight", "1", *more,
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return forked.Popen(
        command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def slow(k: int, body: dict[str, object]) -> Answer:
    time.sleep(0.7)
    return good(body)


def asked(server: Server, number: int) -> None:
    deadline = time.monotonic() + 60
    while len(server.asked) < number and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(server.asked) >= number


@pytest.mark.parametrize("name", ["plain", "with/slash and space", "naïve\u2603"])
def test_a_second_job_of_one_labeling_ends_with_the_holders_pid(tmp_path: Path, name: str) -> None:
    store = make(tmp_path / "s.duckdb", 6, length=lambda k: 4)
    second_ended = (
        threading.Event()
    )  # until then the first job waits for its first answer, however slow the machine is

    def held(k: int, body: dict[str, object]) -> Answer:
        second_ended.wait(60)
        return good(body)

    with serving(held) as server:
        first = start(store, server, name)
        asked(server, 1)
        second = start(store, server, name)
        _, said = second.communicate(timeout=60)
        second_ended.set()
        assert second.returncode == 3, said
        assert f"PID {first.pid}" in said
        assert "hint: wait for it or end it" in said
        other = start(store, server, name + "-other", "--limit", "1", "--temperature", "0.5")
        _, said = other.communicate(timeout=60)
        assert other.returncode == 0, said
        _, said = first.communicate(timeout=60)
        assert first.returncode == 0, said
        third = start(store, server, name)
        third.communicate(timeout=60)
        assert third.returncode == 0
        assert len(server.asked) == 7, "six of the one, one of the other, none twice"


def test_a_killed_job_holds_nothing(tmp_path: Path) -> None:
    store = make(tmp_path / "s.duckdb", 3, length=lambda k: 4)
    with serving(slow) as server:
        first = start(store, server, "x")
        asked(server, 2)
        first.send_signal(signal.SIGKILL)
        first.communicate()
        again = start(store, server, "x")
        _, said = again.communicate(timeout=60)
        assert again.returncode == 0, said
    with store.read() as con:
        assert con.execute("SELECT count(*), count(DISTINCT request) FROM calls").fetchall() == [(3, 3)]
