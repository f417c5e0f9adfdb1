"""The working file gives back what was learnt, whether it is still in memory, in the file, or of an earlier process."""

from pathlib import Path

import pytest

from teachers.generate import worklist as module
from teachers.generate.worklist import Work
from teachers.scheduling.job import Answer


def answer(k: int, status: str = "ok", **fields: object) -> Answer:
    order = [1, 0, 2] if status == "ok" else None
    return Answer(f"call-{k}", status, order, attempt=k + 1, tokens_in=k, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("fresh", [1, 3, 1000])
def test_answers_are_known_at_once_and_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh: int
) -> None:
    monkeypatch.setattr(module, "FRESH", fresh)
    work = Work(tmp_path / "w")
    told = {
        f"{k:032x}": answer(
            k, scores=[float("-inf"), None, 0.5] if k % 2 else None, detail="\udc80é" * (k % 3)
        )
        for k in range(10)
    }
    work.begin()
    for key, one in told.items():
        assert work.known(key) is None
        work.learn(key, one)
        assert work.known(key) == one
    assert {key: work.known(key) for key in told} == told
    again = answer(99)
    work.learn(f"{0:032x}", again)
    assert work.known(f"{0:032x}") == again
    work.close()


def test_answers_on_record_survive_the_process_and_a_complete_one_is_never_replaced(tmp_path: Path) -> None:
    work = Work(tmp_path / "w")
    good, bad = answer(1), answer(2, "wrong_format")
    work.add_answers([(7, "a", good), (7, "a", bad), (8, "b", bad), (8, "b", good)])
    work.close()
    kept = Work(tmp_path / "w", keep=True)
    assert kept.known("a") == good
    assert kept.known("b") == good
    assert kept.known("c") is None
    assert {(number, key): one for number, key, one in kept.answers_of([7, 8])} == {
        (7, "a"): good,
        (8, "b"): good,
    }
    assert kept.answers_of([9]) == []
    kept.close()
