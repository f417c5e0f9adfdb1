"""SIGKILL in the middle of labelling: completed calls are kept and never asked again, whatever the moment."""

import os
import random
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
from teachers.journal import segments as journal

pytestmark = pytest.mark.test_all

ROOT = Path(__file__).resolve().parents[2]
QUERIES = 200

SCRIPTED = """
import sys
from pathlib import Path
from labelstore.store.label_store import LabelStore
from tests.helpers.scripted_engine import ScriptedEngine, hashed_order
from teachers.generate.job import generate
from teachers.generate.settings import Settings

store, asked = LabelStore(sys.argv[1]), open(sys.argv[2], "a", buffering=1)

class Counting(ScriptedEngine):
    def submit(self, requests):
        super().submit(requests)
        for request in requests:
            asked.write(request.key + "\\n")

engine = Counting(hashed_order, delay=lambda request: (int(request.key[:4], 16) % 10) / 2000, capacity=16)
result = generate(store, Settings(model="rankzephyr", canaries=0), engine=engine)
print(result.labelled)
"""

CONTENT = """SELECT q.query_id, p.status, p.n_calls, p.content_hash FROM permutations p JOIN queries q USING (query)
             ORDER BY q.query_id"""
CALLS = "SELECT call_key, reply, status, completed_at FROM calls ORDER BY call_key"


def rows(store: LabelStore, sql: str) -> list[tuple[Any, ...]]:
    with store.read() as con:
        return con.execute(sql).fetchall()


def start(script: str, *arguments: str) -> "subprocess.Popen[str]":
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return forked.Popen(
        [sys.executable, "-c", script, *arguments], forked.VLLM if '"vllm"' in script else forked.HEAVY, cwd=ROOT,
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def journaled(store: LabelStore) -> dict[str, Any]:
    """call_key -> (request, reply) of completed calls in the journal."""
    return {
        record["key"]: (record["request"], record["reply"])
        for path in journal.segments(store.files / "journal")
        for record in journal.read(path)
        if record["t"] == "call"
    }


def calls_written(store: LabelStore) -> int:
    return sum(path.stat().st_size for path in journal.segments(store.files / "journal"))


def kills(
    store: LabelStore, number: int, seed: int, longest: float, script: str, *arguments: str
) -> dict[str, Any]:
    """Kill the job at random moments of its work; what was completed at each kill, by call key.

    Args:
        longest: seconds that it works after its first call, at most.
    """
    rng = random.Random(seed)
    done: dict[str, Any] = {}
    for _ in range(number):
        process = start(script, str(store.path), *arguments)
        before = calls_written(store)
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline and calls_written(store) <= before:
            time.sleep(0.005)
        time.sleep(rng.uniform(0.0, longest))
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.communicate()
        done |= journaled(store)
    return done


def check(tmp_path: Path, number: int, seed: int) -> None:
    whole = make(tmp_path / "whole.duckdb", QUERIES, length=lambda k: 20 + k % 60)
    store = make(tmp_path / "killed.duckdb", QUERIES, length=lambda k: 20 + k % 60)
    asked = tmp_path / "asked"
    reference = start(SCRIPTED, str(whole.path), str(tmp_path / "reference"))
    assert reference.communicate()[0].strip() == str(QUERIES)
    done = kills(store, number, seed, 0.25, SCRIPTED, str(asked))
    assert done, "the kills came in the middle of the work"
    final = start(SCRIPTED, str(store.path), str(asked))
    output, errors = final.communicate()
    assert output.strip() == str(QUERIES), errors
    assert rows(store, CONTENT) == rows(whole, CONTENT)
    stored = {key: reply for key, reply, *_ in rows(store, CALLS)}
    assert {key: stored.get(key) for key in done} == {key: reply for key, (_, reply) in done.items()}
    assert rows(store, "SELECT count(*) = count(DISTINCT request) FROM calls") == [(True,)], (
        "nothing was asked twice"
    )
    assert not journal.segments(store.files / "journal")
    assert not list((store.files / "journal").glob("*.work"))


def test_killed_at_random_points(tmp_path: Path) -> None:
    check(tmp_path, 3, seed=1)


@pytest.mark.slow
def test_killed_at_twenty_random_points(tmp_path: Path) -> None:
    check(tmp_path, 20, seed=2)


def test_killed_while_merging(tmp_path: Path) -> None:
    """The merge itself dies between a segment's calls and its permutations, and after them, before the removal."""
    merging = SCRIPTED.replace(
        "result = generate(",
        """
import os, signal
from teachers.generate import merge_journal as merge
which, count = sys.argv[3], [0]
def dying(name):
    real = getattr(merge.Target, name)
    def die(self, con, records):
        result = real(self, con, records)
        count[0] += 1
        if count[0] == (2 if name == "calls" else 1):
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    setattr(merge.Target, name, die)
if which == "remove":
    merge.journal.remove = lambda path: os.kill(os.getpid(), signal.SIGKILL)
elif which != "none":
    dying(which)
result = generate(""",
    )
    store = make(tmp_path / "s.duckdb", 60)
    asked = tmp_path / "asked"
    for which in ("calls", "lists", "remove"):
        process = start(merging, str(store.path), str(asked), which)
        process.communicate()
        assert process.returncode == -signal.SIGKILL, which
    process = start(merging, str(store.path), str(asked), "none")
    output, errors = process.communicate()
    assert output.strip() == "60", errors
    assert len(asked.read_text().split()) == 60 * 9
    assert rows(store, "SELECT count(*), count(DISTINCT call_key), count(DISTINCT request) FROM calls") == [
        (540, 540, 540)
    ]
    assert rows(store, "SELECT count(*), count(DISTINCT query) FROM permutations") == [(60, 60)]
    assert rows(store, "SELECT count(*) FROM labeling_calls") == [(540,)]


VLLM = """
import sys
from cli.main import run
run(["teachers", "generate", "--store", sys.argv[1], "--model", sys.argv[2], "--engine", "vllm", "--dataset", "dl19",
     "--run", "bm25", "--limit", sys.argv[3], "--format", "json", "--max-in-flight", "4"])
"""


def kill_vllm(tmp_path: Path, shared: Path, queries: int) -> None:
    """Queries of dl19 at depth 100, 9 calls each; SIGKILL in the middle; again: no completed call is repeated."""
    from benchmarks.tiny_mistral import make as make_model
    from cli.main import app

    folder, path = make_model(tmp_path / "tiny"), tmp_path / "s.duckdb"
    source = shared / "dl19-passage"
    for arguments in (
        ["data", "add", "dl19", "--from", str(source)],
        ["runs", "import", str(source / "runs" / "bm25.run.gz"), "--dataset", "dl19", "--name", "bm25"],
    ):
        app([*arguments, "--store", str(path), "-q"], standalone_mode=False)
    store, total = LabelStore(path), 9 * queries
    process = start(VLLM, str(path), str(folder), str(queries))
    deadline = time.monotonic() + 240
    while process.poll() is None and time.monotonic() < deadline and len(journaled(store)) < total // 4:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    done = journaled(store)
    assert total // 4 <= len(done) < total
    process = start(VLLM, str(path), str(folder), str(queries))
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert rows(store, "SELECT count(*), count(DISTINCT request) FROM calls") == [(total, total)]
    poor = "status IS NULL OR tokens_in < 1000 OR tokens_out < 1 OR seconds <= 0"
    assert rows(store, f"SELECT count(*) FROM calls WHERE {poor}") == [(0,)]
    stored = {key: reply for key, reply, *_ in rows(store, CALLS)}
    assert {key: stored.get(key) for key in done} == {key: reply for key, (_, reply) in done.items()}
    assert rows(store, "SELECT count(*), min(n_calls), max(n_calls) FROM permutations") == [(queries, 9, 9)]
    jobs = rows(store, "SELECT job_key, count(*) FROM calls GROUP BY 1 ORDER BY min(completed_at)")
    assert [n for _, n in jobs] == [len(done), total - len(done)]


@pytest.mark.needs("vllm", "shared")
def test_killed_with_vllm(tmp_path: Path, shared: Path) -> None:
    kill_vllm(tmp_path, shared, 5)


@pytest.mark.slow
@pytest.mark.needs("vllm", "shared")
def test_killed_with_vllm_over_180_calls(tmp_path: Path, shared: Path) -> None:
    kill_vllm(tmp_path, shared, 20)


@pytest.mark.slow
@pytest.mark.needs("vllm")
def test_killed_with_vllm_at_twenty_random_points(tmp_path: Path) -> None:
    from benchmarks.labelling_store import WORDS
    from benchmarks.tiny_mistral import make as make_model

    folder = make_model(tmp_path / "tiny", [" ".join(WORDS)])
    store = make(tmp_path / "s.duckdb", QUERIES, length=lambda k: 60 + k % 40)
    script = VLLM.replace('"dl19"', '"made"').replace('"bm25"', '"first"')
    done = kills(store, 20, 3, 0.8, script, str(folder), str(QUERIES))
    jobs = rows(store, "SELECT count(DISTINCT job_key) FROM calls")[0][0]
    final = start(script, str(store.path), str(folder), str(QUERIES))
    _, errors = final.communicate()
    assert final.returncode == 0, errors
    assert jobs >= 15, "the kills came in the middle of the work"
    stored = {key: (request, reply) for key, request, reply in rows(
        store, "SELECT call_key, request_key, reply FROM calls JOIN requests USING (request)"
    )}  # fmt: skip
    assert {key: stored.get(key) for key in done} == done
    assert len({request for request, _ in stored.values()}) == len(stored), "nothing was asked twice"
    assert rows(store, "SELECT count(*), count(DISTINCT query) FROM permutations") == [(QUERIES, QUERIES)]
    assert rows(store, "SELECT sum(n_calls) FROM permutations") == [(len(stored),)]
