"""SIGKILL of one of Ray's workers in the middle of labelling with vLLM (the scripted trials: tests/teachers)."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "teachers" / "generate"))
from test_cluster import Killer, local_ray, rows

from benchmarks.labelling_store import make
from benchmarks.tiny_mistral import make as make_model
from teachers.generate.job import generate
from teachers.generate.settings import Settings

pytestmark = pytest.mark.test_all

__all__ = ["local_ray"]  # the fixture


@pytest.fixture
def killer(tmp_path: Path) -> Iterator[Any]:
    # the first to have calls: on a busy machine one worker may be at work long before the other has its model
    own = Killer(tmp_path / "s.files" / "journal", busy=1, seconds=500)
    own.start()
    yield own
    own.join()


@pytest.mark.slow
@pytest.mark.needs("ray", "vllm")
def test_killed_with_vllm_on_two_workers(tmp_path: Path, killer: Any) -> None:
    store = make(tmp_path / "s.duckdb", 30, length=lambda k: 60)
    model = str(make_model(tmp_path / "tiny"))
    result = generate(store, Settings(model=model, engine="ray", workers=2, max_in_flight=4))
    killer.join()
    assert killer.killed is not None
    assert (result.labelled, result.quarantined, result.left) == (30, 0, 0)
    assert rows(store, "SELECT count(*), count(DISTINCT request) FROM calls") == [(150, 150)]
    stored = {key: (request, reply) for key, request, reply in rows(
        store, "SELECT call_key, request_key, reply FROM calls JOIN requests USING (request)"
    )}  # fmt: skip
    assert {key: stored[key] for key in killer.kept} == killer.kept
    assert rows(store, "SELECT count(*), min(n_calls), max(n_calls) FROM permutations") == [(30, 5, 5)]
