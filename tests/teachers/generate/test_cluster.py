"""`--engine ray` on a local Ray: complete and unchanged whatever is killed, within its budget, clear when it fails."""

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import cluster_engines
import pytest

from benchmarks.labelling_store import make
from labelstore.errors import UsageError
from labelstore.store.label_store import LabelStore
from teachers.errors import TeacherError
from teachers.generate.cluster import driver as cluster
from teachers.generate.job import Labelled, generate
from teachers.generate.settings import Settings
from teachers.journal import segments as journal
from tests.helpers import scripted_engine
from tests.helpers.scripted_engine import ScriptedEngine, hashed_order

pytestmark = pytest.mark.needs("ray")

CONTENT = """SELECT q.query_id, p.status, p.n_calls, p.content_hash FROM permutations p JOIN queries q USING (query)
             ORDER BY q.query_id"""


@pytest.fixture(scope="module", autouse=True)
def local_ray() -> Iterator[Any]:
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
    import ray

    for module in (cluster_engines, scripted_engine):  # workers do not import the tests
        ray.cloudpickle.register_pickle_by_value(module)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100 << 20)
    yield ray
    ray.shutdown()


@pytest.fixture
def store(tmp_path: Path) -> LabelStore:
    return make(tmp_path / "s.duckdb", 60, length=lambda k: 20 + k % 60)


def rows(store: LabelStore, sql: str) -> list[tuple[Any, ...]]:
    with store.read() as con:
        return con.execute(sql).fetchall()


def label(store: LabelStore, build: Any, **settings: Any) -> Labelled:
    own = Settings(**({"model": "rankzephyr", "engine": "ray", "canaries": 0} | settings))
    return generate(store, own, build=build)


def answered(folder: Path) -> dict[int, list[str]]:
    """Process -> keys of the requests that it answered."""
    return {int(path.name): path.read_text().split() for path in folder.iterdir()}


class Killer(threading.Thread):
    """Kills one worker once the journal has calls of so many; `kept` holds what was on record right after."""

    def __init__(self, folder: Path, busy: int = 2, seconds: float = 120) -> None:
        super().__init__()
        self._folder, self._busy, self._seconds = folder, busy, seconds
        self.killed: int | None = None
        self.kept: dict[str, tuple[str, str]] = {}  # call_key -> request, reply

    def run(self) -> None:
        deadline = time.monotonic() + self._seconds
        while time.monotonic() < deadline and self.killed is None:
            time.sleep(0.01)
            busy = {pid for pid, n in Counter(pid for pid, _ in self._calls()).items() if n > 10}
            if len(busy) >= self._busy:
                self.killed = max(busy)
                os.kill(self.killed, signal.SIGKILL)
                time.sleep(0.05)
                self.kept = {
                    record["key"]: (record["request"], record["reply"]) for _, record in self._calls()
                }

    def _calls(self) -> Iterator[tuple[int, journal.Record]]:
        """(process, call) of all segments; their names hold the process."""
        for path in journal.segments(self._folder):
            with suppress(FileNotFoundError):  # merged meanwhile
                for record in journal.read(path):
                    if record["t"] == "call":
                        yield int(path.name.split(".")[2]), record


@pytest.mark.parametrize("shared", [True, False], ids=["shared folder", "shipped"])
def test_a_killed_worker_costs_no_completed_call(
    store: LabelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared: bool
) -> None:
    whole = make(tmp_path / "whole.duckdb", 60, length=lambda k: 20 + k % 60)
    alone = ScriptedEngine(hashed_order)
    alone.name = "ray"  # so that it is asked the same: constrained
    generate(whole, Settings(model="rankzephyr", canaries=0), engine=alone)
    monkeypatch.setattr(cluster, "Driver", partial(cluster.Driver, shared=shared))
    log = tmp_path / "log"
    log.mkdir()
    killer = Killer(store.files / "journal")
    killer.start()
    result = label(store, partial(cluster_engines.logged, log))
    killer.join()
    assert killer.killed is not None
    assert (result.labelled, result.quarantined, result.left) == (60, 0, 0)
    assert rows(store, CONTENT) == rows(whole, CONTENT)
    assert rows(store, "SELECT count(*) = count(DISTINCT request) FROM calls") == [(True,)]
    stored = {key: (request, reply) for key, request, reply in rows(
        store, "SELECT call_key, request_key, reply FROM calls JOIN requests USING (request)"
    )}  # fmt: skip
    assert {key: stored[key] for key in killer.kept} == killer.kept, "completed calls are unchanged"
    by_process = answered(log)
    assert len(by_process) == 3, "another worker took its place"
    times = Counter(key for keys in by_process.values() for key in keys)
    again = {key for key, n in times.items() if n > 1}
    assert not again & {request for request, _ in killer.kept.values()}, "no completed call is asked again"
    assert len(killer.kept) > 20
    if shared:
        assert len(again) <= 1, "what the killed worker had read and not yet written"
    assert {server.split("@")[0] for (server,) in rows(store, "SELECT DISTINCT server FROM calls")} == {
        "ray0", "ray1"
    }  # fmt: skip
    assert not list((store.files / "journal").iterdir())


def test_the_workers_share_one_budget(store: LabelStore, tmp_path: Path) -> None:
    result = label(store, partial(cluster_engines.logged, tmp_path), max_calls=90)
    assert result.figures.calls <= 90
    assert 0 < result.labelled < 60
    error = result.partly_done()
    assert error is not None
    assert error.exit_code == 6
    assert "--max-calls" in str(error)
    rest = label(store, partial(cluster_engines.logged, tmp_path))
    assert rest.labelled == 60
    assert rows(store, "SELECT count(*) = count(DISTINCT request) FROM calls") == [(True,)]


def test_what_cannot_work_is_said_at_once(store: LabelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TeacherError, match="no model at nowhere") as missing:
        label(store, cluster_engines.missing)
    assert missing.value.exit_code == 4
    assert missing.value.hint == "look again"
    with pytest.raises(UsageError, match="the cluster has 2 cores") as many:
        label(store, cluster_engines.missing, workers=3)
    assert many.value.hint == "--workers 2"
    monkeypatch.setattr(cluster, "FRUITLESS", 0)
    with pytest.raises(TeacherError, match="before they complete a call") as dying:
        label(store, cluster_engines.dying)
    assert dying.value.exit_code == 5
    assert rows(store, "SELECT DISTINCT status FROM provenance WHERE kind = 'teachers.generate'") == [
        ("failed",)
    ]


@pytest.mark.needs("vllm")
def test_two_workers_with_a_vllm_each(tmp_path: Path) -> None:
    """The command itself: constrained replies of a tiny random model, canaries asked once."""
    from benchmarks.tiny_mistral import make as make_model
    from cli.main import app

    store = make(tmp_path / "s.duckdb", 8, length=lambda k: 25)
    app(
        ["teachers", "generate", "--store", str(store.path), "--model", str(make_model(tmp_path / "tiny")), "-q",
         "--engine", "ray", "--workers", "2", "--max-in-flight", "2", "--format", "json"],
        standalone_mode=False,
    )  # fmt: skip
    assert rows(store, "SELECT status, count(*), count(DISTINCT request) FROM calls GROUP BY 1") == [
        ("ok", 16, 16)
    ]
    assert rows(store, "SELECT count(*), min(n_calls) FROM permutations") == [(8, 2)]
    assert rows(store, "SELECT count(*), count(DISTINCT request_key) FROM canaries") == [(3, 3)]
    assert rows(store, "SELECT engine FROM teachers") == [("ray",)]
