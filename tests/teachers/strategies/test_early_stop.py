"""What `benchmarks.early_stop` replays: replies stopped early settle what a strategy carries on, and cost less."""

from random import Random

import pytest

from benchmarks.early_stop import STRATEGIES, orders, shared
from benchmarks.real_lists import Candidates
from msft.rankings import kendall_tau

N = 90


@pytest.fixture
def lists() -> Candidates:
    ids = [[f"d{k}" for k in range(N)]]
    return Candidates("made", ["q"], [("query", ["text"] * N)], ids, {"q": {"d7": 1}})


@pytest.fixture
def ranked() -> dict[str, dict[str, int]]:
    places = list(range(N))
    Random(3).shuffle(places)
    return {"q": {f"d{k}": place for k, place in enumerate(places)}}


@pytest.mark.parametrize("name", STRATEGIES)
def test_stopping_after_ten_keeps_the_first_ten(
    lists: Candidates, ranked: dict[str, dict[str, int]], name: str
) -> None:
    (whole,), named = orders(lists, ranked, name, None)
    (stopped,), fewer = orders(lists, ranked, name, 10)
    assert sorted(range(N), key=lambda k: -whole[k])[:10] == sorted(range(N), key=lambda k: -stopped[k])[:10]
    assert fewer < named
    assert kendall_tau(whole, stopped) < 1


def test_stopping_before_what_a_window_carries_on_loses_the_head(
    lists: Candidates, ranked: dict[str, dict[str, int]]
) -> None:
    (whole,), _ = orders(lists, ranked, "sliding", None)
    (stopped,), _ = orders(lists, ranked, "sliding", 2)
    best = [sorted(range(N), key=lambda k: -scores[k])[:10] for scores in (whole, stopped)]
    assert best[0] == sorted(range(N), key=lambda k: ranked["q"][f"d{k}"])[:10]
    assert best[1] != best[0]


def test_lists_are_what_the_teacher_ranked_in_the_runs_order(lists: Candidates) -> None:
    kept = shared(lists, {"q": {"d5": 0, "d2": 1, "x": 2}})
    assert kept.doc_ids == [["d2", "d5"]]
    assert shared(lists, {"q": {"d5": 0}}).query_ids == []
