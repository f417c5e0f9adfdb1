"""Re-ranking on a local Ray: scores equal to one process's, complete when a worker is killed, with and without its folder."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import made_store
import numpy as np
import pytest
import tiny_models

from msft.errors import MsftError
from students.jobs.register import add_student
from students.jobs.rerank import rerank_run
from students.rerank.machines import Scoring
from students.rerank.ray_workers import on_cluster
from students.rerank.reranker import Reranker

pytestmark = pytest.mark.needs("ray")


@pytest.fixture(scope="module", autouse=True)
def local_ray() -> Iterator[Any]:
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100 << 20)
    yield ray
    ray.shutdown()


def lists(n: int) -> list[tuple[str, list[str]]]:
    queries, passages = tiny_models.sentences(n, 3, 8), tiny_models.sentences(50, 4, 50)
    return [(query, passages[i % 10 : i % 10 + 3 + i % 13]) for i, query in enumerate(queries)]


@pytest.mark.parametrize("shared", [True, False], ids=["shared folder", "shipped"])
def test_a_killed_worker_costs_no_score(tiny: Callable[[str], Path], local_ray: Any, shared: bool) -> None:
    options: dict[str, Any] = {"max_length": 32, "batch_tokens": 64, "precision": "fp32"}
    given, notes, killed = lists(80), [], []
    alone = Reranker.load(tiny("electra"), device="cpu", workers=1, **options).scores(given)

    def kill(done: int, total: int | None) -> None:
        if not killed:
            killed.extend(worker_pids())
            os.kill(killed[0], signal.SIGKILL)

    with on_cluster(tiny("electra"), 2, note=notes.append, shared=shared, **options) as reranker:

        def worker_pids() -> list[int]:
            workers = reranker._scorers._workers
            return [
                local_ray.get(worker._actor.__ray_call__.remote(lambda _: os.getpid()))
                for worker in workers
                if worker is not None
            ]

        together = reranker.scores(given, kill)
    for mine, theirs in zip(together, alone, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert len(set(killed)) == 2
    assert any("is lost" in note and "scored again" in note for note in notes), notes


def test_a_run_is_the_same_from_a_cluster(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    store = made_store.make(tmp_path / "s.duckdb")
    add_student(store, str(tiny("bert")), name="tiny", max_length=48)
    notes: list[str] = []
    given: dict[str, Any] = {"student": "tiny", "dataset": "c/test", "precision": "fp32"}
    far = rerank_run(store, **given, scoring=Scoring(engine="ray", workers=2), name="far", note=notes.append)
    near = rerank_run(store, **given, name="near")
    assert (far.n_candidates, far.content_hash) == (near.n_candidates, near.content_hash)
    assert any(note.startswith("ray: 2 workers with 1 CPU each") for note in notes), notes
    again = rerank_run(store, **given, scoring=Scoring(engine="ray"), note=notes.append)
    assert again.run in (far.run, near.run)
    assert "nothing to score" in notes[-1]


def test_more_workers_than_the_cluster_has_are_refused_before_work(tiny: Callable[[str], Path]) -> None:
    with (
        pytest.raises(MsftError, match="3 workers: the cluster has 2 cores") as many,
        on_cluster(tiny("bert"), 3),
    ):
        pass
    assert (many.value.exit_code, many.value.hint) == (2, "--workers 2")


def test_a_student_that_cannot_be_loaded_is_told(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(MsftError, match="cannot load the model"), on_cluster(tmp_path, 2):
        pass
