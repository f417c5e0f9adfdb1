"""Setwise and pairwise: the true head under a perfect oracle, bounds that hold whatever the replies, both orders of a pair."""

import itertools
from collections.abc import Callable, Sequence
from itertools import combinations
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from teachers.errors import ExitCode, TeacherError
from teachers.strategies import by_name as windows
from teachers.strategies.by_name import Pairwise, Setwise, Strategy, Window, run

SORTING: list[Strategy] = [
    Setwise(), Setwise(sort="bubble"), Setwise(children=1), Setwise(children=7, keep=3), Setwise(5, 20, "bubble"),
    Pairwise(), Pairwise(sort="bubble"), Pairwise(keep=4), Pairwise(sort="all"),
]  # fmt: skip
IDS = [f"{s.name}-{'-'.join(map(str, s.parameters.values()))}" for s in SORTING]


def oracle(relevance: Sequence[float]) -> Callable[[Window], list[int]]:
    return lambda window: sorted(range(len(window)), key=lambda k: -relevance[window[k]])


def chooser(seed: int, inconsistent: bool = True) -> Callable[[Window], list[int]]:
    """Replies without any relevance behind them, as of a model that answers at random."""
    rng = Random(seed)

    def reply(window: Window) -> list[int]:
        best = rng.randrange(len(window)) if inconsistent else 0
        return [best, *(k for k in range(len(window)) if k != best)]

    return reply


@pytest.mark.parametrize("strategy", SORTING, ids=IDS)
@pytest.mark.parametrize("seed", range(5))
def test_a_perfect_oracle_gives_the_true_head_within_the_forecast(strategy: Strategy, seed: int) -> None:
    n = 100 if strategy.parameters.get("sort") != "all" else 30
    relevance = Random(seed).sample(range(n), n)
    ranked, asked = run(strategy, n, oracle(relevance))
    depth = strategy.reliable_depth(n)
    truth = sorted(range(n), key=lambda k: -relevance[k])
    assert list(ranked.order[:depth]) == truth[:depth]
    assert sorted(ranked.order) == list(range(n))
    bounds = strategy.calls(n)
    assert bounds.least <= len(asked) <= bounds.most
    assert ranked.settled == (depth if depth < n else None)


def test_setwise_heap_finds_the_true_ten_of_a_hundred_in_no_more_calls_than_its_forecast() -> None:
    for seed in range(200):
        relevance = Random(seed).sample(range(100), 100)
        ranked, asked = run(Setwise(), 100, oracle(relevance))
        assert {relevance[k] for k in ranked.order[:10]} == set(range(90, 100))
        assert len(asked) <= Setwise().calls(100).most == 85
    assert Setwise().calls(100).least == 42


@pytest.mark.parametrize("strategy", SORTING, ids=IDS)
@given(n=st.integers(0, 40), seed=st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_calls_stay_within_their_bounds_whatever_the_replies(strategy: Strategy, n: int, seed: int) -> None:
    ranked, asked = run(strategy, n, chooser(seed))
    assert sorted(ranked.order) == list(range(n))
    bounds = strategy.calls(n)
    assert bounds.least <= len(asked) <= bounds.most
    assert all(len(set(window)) == len(window) >= 2 for window in asked)
    window = getattr(strategy, "window")  # noqa: B009
    assert all(len(one) <= window for one in asked)


@pytest.mark.parametrize("strategy", SORTING, ids=IDS)
@pytest.mark.parametrize("n", [2, 3, 5, 11, 34])
def test_the_bounds_are_reached(strategy: Strategy, n: int) -> None:
    """The least if the head of every group stays; the most by some replies out of many."""
    bounds = strategy.calls(n)
    turns = itertools.cycle(
        [[1, 0], [0, 1]]
    )  # of a pair (challenger, head), and of the same the other way round

    def head_stays(window: Window) -> list[int]:
        return next(turns) if strategy.name == "pairwise" else list(range(len(window)))

    assert len(run(strategy, n, head_stays)[1]) == bounds.least
    if bounds.exact or n > 5:
        return
    assert max(len(run(strategy, n, chooser(seed))[1]) for seed in range(3000)) == bounds.most


def test_nothing_that_a_pass_left_as_it_was_is_asked_again() -> None:
    _, asked = run(Setwise(sort="bubble"), 40, lambda window: list(range(len(window))))
    assert len(asked) == len(set(asked))


def test_a_pair_is_asked_in_both_orders() -> None:
    for strategy in (Pairwise(), Pairwise(sort="bubble"), Pairwise(sort="all")):
        _, asked = run(strategy, 12, oracle(Random(1).sample(range(12), 12)))
        assert all((b, a) in asked for a, b in asked)


def test_all_pairs_give_points_and_half_points() -> None:
    def reply(window: Window) -> list[int]:
        if set(window) == {0, 1}:
            return [0, 1]  # whoever comes first: the orders disagree
        return oracle([2, 3, 5])(window)

    ranked, asked = run(Pairwise(sort="all"), 3, reply)
    assert len(asked) == 6
    assert ranked.scores == (0.5, 0.5, 2.0)
    assert ranked.order == (2, 0, 1), "equal points keep the prior order"
    assert ranked.disagreement == pytest.approx(2 / 3)


@pytest.mark.parametrize("sort", ["heap", "bubble", "all"])
def test_a_model_that_always_names_the_first_moves_nothing(sort: str) -> None:
    ranked, _ = run(Pairwise(sort=sort), 14, lambda window: list(range(len(window))))
    assert ranked.order == tuple(range(14))
    assert ranked.disagreement == 2.0, "the two orders of every pair contradict each other"


def test_disagreement_is_one_minus_tau_over_the_pairs_asked() -> None:
    noisy = {frozenset(pair) for pair in combinations(range(8), 2) if sum(pair) % 3 == 0}

    def reply(window: Window) -> list[int]:
        return [0, 1] if frozenset(window) in noisy else oracle(range(8))(window)

    ranked, asked = run(Pairwise(sort="all"), 8, reply)
    assert ranked.disagreement == pytest.approx(2 * len(noisy) / (len(asked) / 2))


def test_the_rest_keeps_its_prior_order() -> None:
    relevance = Random(3).sample(range(30), 30)
    for strategy in (Setwise(keep=4), Setwise(keep=4, sort="bubble"), Pairwise(keep=4)):
        ranked, _ = run(strategy, 30, oracle(relevance))
        rest = ranked.order[4:]
        assert list(rest) == sorted(rest)


def test_nodes_of_a_level_are_asked_side_by_side() -> None:
    steps = Setwise().steps(100)
    first = next(steps)
    assert len(first) == 20, "the nodes of the deepest level with children"
    assert len({position for window in first for position in window}) == sum(map(len, first))


@pytest.mark.parametrize(
    ("name", "given", "said"),
    [
        ("setwise", {"children": 0}, "--children 0"),
        ("setwise", {"keep": 0}, "--keep 0"),
        ("setwise", {"sort": "all"}, "setwise has no sort named 'all'"),
        ("pairwise", {"sort": "quick"}, "pairwise has no sort named 'quick'"),
        ("pairwise", {"children": 3}, "takes no children"),
        ("setwise", {"stride": 3}, "takes no stride"),
    ],
)
def test_wrong_parameters_are_refused(name: str, given: dict[str, object], said: str) -> None:
    with pytest.raises(TeacherError, match=said) as caught:
        windows.strategy(name, **given)
    assert caught.value.exit_code == ExitCode.USAGE
