"""SIGKILL during imports, mining, view building and merging: all of a job is stored or nothing, and a rerun ends it."""

import random
from pathlib import Path

import pytest
import store_jobs
from store_jobs import JOBS, content, copy, duration, findings, kill_at

pytestmark = pytest.mark.test_all

# What may lie about after a kill, which `verify` names and a rerun takes up or sweeps away.
TOLERATED = {"leftover", "view"}


def trials(tmp_path: Path, name: str, number: int, seed: int) -> dict[str, int]:
    """Kill a job at random points of its duration and check each time.

    Returns:
        trials, killed (before the job was done), stored (the kill came after its transaction), losses.
    """
    rng = random.Random(seed)
    job = JOBS[name]
    store = store_jobs.made(tmp_path / "made")
    before = content(store)
    whole = copy(store, tmp_path / "whole")
    seconds = duration(job, whole)
    after = content(whole)
    assert after != before
    assert findings(whole) == []
    count = {"trials": number, "killed": 0, "stored": 0, "losses": 0}
    for trial in range(number):
        victim = copy(store, tmp_path / f"trial{trial}")
        count["killed"] += kill_at(job, victim, rng.uniform(0, seconds))
        found = content(victim)
        assert found in (before, after), f"trial {trial}: neither all of it is stored nor nothing"
        count["stored"] += found == after
        wrong = findings(victim)
        assert {f.what for f in wrong} <= TOLERATED, wrong
        assert all(f.hint for f in wrong)
        job(victim)
        count["losses"] += content(victim) != after
        assert findings(victim) == [], f"trial {trial}: a rerun leaves nothing behind"
    return count


@pytest.mark.parametrize("name", JOBS)
def test_killed_at_random_points(tmp_path: Path, name: str) -> None:
    count = trials(tmp_path, name, 2, seed=len(name))
    assert count["losses"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", JOBS)
def test_killed_at_fifty_random_points(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    count = trials(tmp_path, name, 50, seed=100 + len(name))
    with capsys.disabled():
        print(f"\n{name}: " + ", ".join(f"{n} {what}" for what, n in count.items()))
    assert count["killed"] > 25
    assert count["losses"] == 0
