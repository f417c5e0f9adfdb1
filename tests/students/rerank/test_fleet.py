"""Several processes re-rank as one: equal scores, lost ones replaced, errors in one line."""

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch

from students.errors import StudentError
from students.rerank import fleet as fleets
from students.rerank import gpus
from students.rerank.fleet import About, Fleet, Lost, Part
from students.rerank.gpus import on_devices
from students.rerank.pairs import Pairs, Scores
from students.rerank.reranker import Reranker

pytestmark = pytest.mark.test_all


def lists(n: int, seed: int = 5) -> list[tuple[str, list[str]]]:
    """Lists of uneven lengths whose passages recur, so that batches need few of the texts."""
    queries, passages = tiny_models.sentences(n, seed, 8), tiny_models.sentences(40, seed + 1, 50)
    return [
        (query, [passages[(7 * i + k) % 40] for k in range(3 + 5 * i % 17)])
        for i, query in enumerate(queries)
    ]


@pytest.mark.parametrize(
    ("architecture", "long", "precision"),
    [("electra", "", "fp32"), ("roberta", "max", "fp32"), ("modernbert", "mean", "bf16")],
)
def test_two_processes_rerank_as_one(
    tiny: Callable[[str], Path], architecture: str, long: str, precision: str
) -> None:
    options = {"max_length": 24, "batch_tokens": 300, "long": long, "precision": precision}
    given = lists(30)
    alone = Reranker.load(tiny(architecture), device="cpu", workers=1, **options).scores(given)
    ticks: list[int] = []
    with on_devices(tiny(architecture), ["cpu", "cpu"], **options) as shared:
        together = shared.scores(given, lambda done, _: ticks.append(done))
        again = shared.scores(given[:2])
    assert [len(one) for one in together] == [len(one) for one in alone]
    for mine, theirs in zip(together, alone, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    for mine, theirs in zip(again, alone[:2], strict=True):
        np.testing.assert_allclose(mine, theirs, atol=2e-6 if precision == "fp32" else 0.05)
    assert ticks == sorted(set(ticks)), "counted up once"
    assert np.ptp(np.concatenate(alone)) > 2e-3


def children(shared: Reranker) -> list[int]:
    return [worker._process.pid for worker in shared._scorers._workers if worker is not None]


def test_a_killed_process_is_replaced_and_its_batches_are_scored_again(tiny: Callable[[str], Path]) -> None:
    given, notes = lists(60), []
    options: dict[str, Any] = {"max_length": 32, "batch_tokens": 64, "precision": "fp32"}
    alone = Reranker.load(tiny("electra"), device="cpu", workers=1, **options).scores(given)
    with on_devices(tiny("electra"), ["cpu", "cpu"], note=notes.append, **options) as shared:
        killed: list[int] = []

        def kill(done: int, _: int | None) -> None:
            if not killed:
                killed.append(children(shared)[0])
                os.kill(killed[0], signal.SIGKILL)

        together = shared.scores(given, kill)
        alive = children(shared)
    for mine, theirs in zip(together, alone, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert killed
    assert killed[0] not in alive
    assert any("killed by signal 9" in note and "scored again" in note for note in notes), notes
    time.sleep(0.1)
    assert not any(Path(f"/proc/{pid}").exists() for pid in alive), "no process stays"


class InProcess:
    """A worker in a thread's place: adds up its token ids, fails or is lost as told."""

    def __init__(
        self, fate: Callable[[int], BaseException | None], about: About = About("cpu", "fp32")
    ) -> None:
        self.name, self._fate, self._about, self._n = "worker", fate, about, 0
        self._held: list[Part] = []

    def about(self) -> About:
        return self._about

    def send(self, part: Part) -> None:
        self._held.append(part)

    def receive(self) -> Scores:
        self._n += 1
        if (error := self._fate(self._n)) is not None:
            raise error
        pairs = self._held.pop(0).pairs
        return np.array([pairs.passages[int(i)].sum() for i in pairs.passage], dtype=np.float32)

    def close(self) -> None:
        pass


def score(fleet: Fleet, pairs: Pairs, batches: list[Any], form: Any) -> Scores:
    """The scores of all pairs, in their order."""
    found = np.full(len(pairs.query), np.nan, dtype=np.float32)
    for item, rows, scores in fleet.score(((n, pairs, rows) for n, rows in enumerate(batches)), form):
        assert np.array_equal(batches[item], rows)
        found[rows] = scores
    return found


def numbered(tiny: Callable[[str], Path]) -> tuple[Pairs, list[Any], Any]:
    encoder = Reranker.load(tiny("bert"), device="cpu", precision="fp32").encoder
    texts = encoder.tokenise(tiny_models.sentences(50, 2, 20))
    rows = np.arange(50)
    return Pairs(texts, texts, rows, rows[::-1].copy()), np.array_split(rows, 11), encoder.form


def test_every_pair_gets_its_score_however_often_workers_are_lost(tiny: Callable[[str], Path]) -> None:
    pairs, batches, form = numbered(tiny)
    lives = iter(range(1, 100))

    def start(place: int) -> InProcess:
        life = next(lives)
        return InProcess(lambda n: Lost("gone") if n > life % 3 + 1 else None)

    notes: list[str] = []
    scores = score(Fleet(start, 3, notes.append), pairs, batches, form)
    wanted = [pairs.passages[int(i)].sum() for i in pairs.passage]
    np.testing.assert_array_equal(scores, np.array(wanted, dtype=np.float32))
    assert len(notes) > 2


def test_workers_that_are_lost_before_any_score_end_the_call(tiny: Callable[[str], Path]) -> None:
    pairs, batches, form = numbered(tiny)
    with pytest.raises(StudentError, match=f"{fleets.FRUITLESS + 1} times in a row: gone") as lost:
        score(Fleet(lambda place: InProcess(lambda n: Lost("gone")), 2), pairs, batches, form)
    assert lost.value.hint


def test_a_workers_own_error_ends_the_call_for_all(tiny: Callable[[str], Path]) -> None:
    pairs, batches, form = numbered(tiny)
    closed = threading.Event()

    class Waiting(InProcess):
        def receive(self) -> Scores:
            if closed.wait(30):
                raise Lost("closed")
            raise AssertionError("never closed")

        def close(self) -> None:
            closed.set()

    wrong = InProcess(lambda n: StudentError("no memory", hint="less"))
    fleet = Fleet(lambda place: wrong if place else Waiting(lambda n: None), 2)
    with pytest.raises(StudentError, match="no memory"):
        score(fleet, pairs, batches, form)


def test_workers_of_several_kinds_are_refused(tiny: Callable[[str], Path]) -> None:
    pairs, batches, form = numbered(tiny)
    fleet = Fleet(
        lambda place: InProcess(lambda n: time.sleep(0.1), About("cpu", ("fp32", "bf16")[place])), 2
    )
    fleet.begin()
    with pytest.raises(StudentError, match="bf16, the first worker on cpu in fp32"):
        score(fleet, pairs, batches, form)


def test_a_student_that_cannot_be_loaded_is_told_in_one_line(
    tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text("{}")
    with pytest.raises(StudentError, match="cannot load the model"):
        on_devices(broken, ["cpu", "cpu"])


@pytest.mark.parametrize(
    ("there", "wanted", "hint"), [(0, 2, "leave --gpus out"), (2, 3, "--gpus 2"), (2, 0, "--gpus 1")]
)
def test_more_gpus_than_there_are(
    monkeypatch: pytest.MonkeyPatch, there: int, wanted: int, hint: str
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: there)
    with pytest.raises(
        StudentError, match=f"--gpus {wanted}: this machine has {there or 'no'} GPUs"
    ) as refused:
        gpus.check_gpus(wanted)
    assert refused.value.exit_code == 2
    assert hint in (refused.value.hint or "")


def test_each_child_sees_one_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[str] = []

    class Popen:
        returncode = 1

        def __init__(self, *_: Any, env: dict[str, str], **__: Any) -> None:
            seen.append(env["CUDA_VISIBLE_DEVICES"])

        def kill(self) -> None:
            pass

        def wait(self, timeout: float | None = None) -> int:
            return 1

    monkeypatch.setattr(gpus.subprocess, "Popen", Popen)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    gpus.ChildProcess(tmp_path, "cuda:1", 1, {})
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    gpus.ChildProcess(tmp_path, "cuda:1", 1, {})
    assert seen == ["1", "6"]
