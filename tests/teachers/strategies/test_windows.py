"""Strategies: every order is a permutation, every call is announced, and the reliable depth holds."""

import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from teachers.errors import TeacherError
from teachers.strategies.base import apply
from teachers.strategies.by_name import STRATEGIES, Strategy, Window, run, strategy
from teachers.strategies.consistent import merged

ALL = [
    strategy("sliding"),
    strategy("sliding", window=7, stride=3),
    strategy("sliding", window=2, stride=1),
    strategy("sliding", window=10, stride=9),
    strategy("sliding", passes=3),
    strategy("single"),
    strategy("single", window=5),
    strategy("full"),
    strategy("top-down"),
    strategy("top-down", window=8, pivot=3),
    strategy("top-down", window=3, pivot=1),
    strategy("tournament"),
    strategy("tournament", window=6, keep=2),
    strategy("tournament", window=20, keep=10),
    strategy("sliding", samples=3),
    strategy("top-down", samples=2, merge="reciprocal"),
    strategy("single", samples=4, window=5),
]
NAMES = [f"{s.name}-{'-'.join(map(str, s.parameters.values()))}" for s in ALL]


@pytest.mark.parametrize(
    ("n", "calls"),
    [(100, 9), (95, 9), (25, 2), (20, 1), (5, 1), (2, 1), (1, 0), (0, 0), (21, 2), (30, 2), (31, 3)],
)
def test_sliding_calls(n: int, calls: int) -> None:
    bounds = strategy("sliding").calls(n)
    assert (bounds.least, bounds.most) == (calls, calls)
    _, asked = run(strategy("sliding"), n, lambda window: range(len(window)))
    assert len(asked) == calls


def test_sliding_windows_are_those_of_the_field_notes() -> None:
    _, asked = run(strategy("sliding"), 95, lambda window: range(len(window)))
    assert [(window[0], window[-1]) for window in asked] == [
        (75, 94), (65, 84), (55, 74), (45, 64), (35, 54), (25, 44), (15, 34), (5, 24), (0, 14),
    ]  # fmt: skip
    _, asked = run(strategy("sliding"), 25, lambda window: range(len(window)))
    assert [(window[0], window[-1]) for window in asked] == [(5, 24), (0, 14)]  # the top five are seen


def by_truth(truth: Sequence[int]):  # type: ignore[no-untyped-def]
    """A teacher that orders every window rightly: lower truth is better."""

    def rank(window: Window) -> list[int]:
        return sorted(range(len(window)), key=lambda k: truth[window[k]])

    return rank


@pytest.mark.parametrize("chosen", ALL, ids=NAMES)
@settings(max_examples=60, deadline=None)
@given(n=st.integers(0, 130), seed=st.integers(0, 10_000))
def test_any_replies_give_a_permutation_within_the_announced_calls(
    chosen: Strategy, n: int, seed: int
) -> None:
    dice = random.Random(seed)
    ranked, asked = run(chosen, n, lambda window: dice.sample(range(len(window)), len(window)))
    assert sorted(ranked.order) == list(range(n))
    bounds = chosen.calls(n)
    assert bounds.least <= len(asked) <= bounds.most
    for window in asked:
        assert len(set(window)) == len(window) >= 2
        assert set(window) <= set(range(n))
        assert len(window) <= chosen.parameters.get("window", n)
    assert 0 <= chosen.reliable_depth(n) <= n


@pytest.mark.parametrize(
    "chosen",
    [s for s in ALL if "samples" not in s.parameters],
    ids=[n for s, n in zip(ALL, NAMES, strict=True) if "samples" not in s.parameters],
)
@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 120), seed=st.integers(0, 10_000))
def test_a_right_teacher_settles_the_reliable_depth(chosen: Strategy, n: int, seed: int) -> None:
    if chosen.name == "single":
        n = min(n, chosen.parameters["window"])  # it settles the order of its window, not who is in it
    truth = random.Random(seed).sample(range(n), n)
    ranked, _ = run(chosen, n, by_truth(truth))
    right = sorted(range(n), key=lambda i: truth[i])
    depth = chosen.reliable_depth(n)
    assert list(ranked.order[:depth]) == right[:depth]


def test_the_worst_first_stage_costs_top_down_its_most_calls_and_not_its_depth() -> None:
    chosen = strategy("top-down")
    ranked, asked = run(chosen, 100, by_truth(range(100, 0, -1)))
    assert ranked.order[:10] == tuple(range(99, 89, -1))
    assert len(asked) == chosen.calls(100).most == 17
    ranked, asked = run(chosen, 100, by_truth(range(100)))
    assert len(asked) == chosen.calls(100).least == 6
    assert ranked.order[:10] == tuple(range(10))


def test_top_down_and_tournament_ask_their_windows_together() -> None:
    for name, rounds in (("top-down", [1, 5]), ("tournament", [5, 2, 1])):
        steps = strategy(name).steps(100)
        sizes, batch = [], next(steps)
        while True:
            sizes.append(len(batch))
            try:
                batch = steps.send([range(len(window)) for window in batch])
            except StopIteration:
                break
        assert sizes == rounds


def test_replies_decide_and_order_of_completion_cannot() -> None:
    """A batch's replies are given together: two runs over the same replies are equal."""
    for chosen in ALL:
        first, _ = run(chosen, 60, by_truth([(i * 37) % 60 for i in range(60)]))
        second, _ = run(chosen, 60, by_truth([(i * 37) % 60 for i in range(60)]))
        assert first == second


def test_single_leaves_what_it_did_not_show() -> None:
    ranked, asked = run(strategy("single"), 50, lambda window: range(len(window))[::-1])
    assert asked == [tuple(range(20))]
    assert ranked.order == (*range(19, -1, -1), *range(20, 50))
    assert ranked.settled == 20
    assert run(strategy("single"), 20, lambda w: range(len(w)))[0].settled is None


def test_each_pass_settles_a_stride_more() -> None:
    truth = [(99 - i) for i in range(100)]  # the best are at the bottom
    right = list(range(99, -1, -1))
    for passes in (1, 2, 3):
        chosen = strategy("sliding", passes=passes)
        ranked, asked = run(chosen, 100, by_truth(truth))
        assert len(asked) == 9 * passes
        assert list(ranked.order[: 10 * passes]) == right[: 10 * passes]
        assert chosen.reliable_depth(100) == 10 * passes


def test_self_consistency_averages_a_pull_to_the_front_away() -> None:
    """A teacher that swaps only what is far apart, and otherwise leaves the order shown, is pulled by position."""
    n = 20
    truth = list(range(n - 1, -1, -1))

    def lazy(window: Window) -> list[int]:
        places = list(range(len(window)))
        best = min(places, key=lambda k: truth[window[k]])
        return [best, *(k for k in places if k != best)]

    plain, _ = run(strategy("full"), n, lazy)
    many, asked = run(strategy("full", samples=60), n, lazy)
    assert len(asked) == 60
    assert plain.order[1:4] == (0, 1, 2)  # where they stood
    assert many.order[0] == plain.order[0] == n - 1
    assert many.order[1:4] != (0, 1, 2)
    assert many.disagreement is not None
    assert many.disagreement > 0.5
    assert many.scores is not None
    assert many.scores[n - 1] == 1.0
    sure, _ = run(strategy("full", samples=3), n, by_truth(truth))
    assert sure.disagreement == 0
    assert sure.order == tuple(range(n - 1, -1, -1))


def test_merging_by_hand() -> None:
    ranked = merged([[0, 1, 2], [1, 0, 2], [1, 2, 0]])
    assert ranked.order == (1, 0, 2)
    assert ranked.scores == pytest.approx((0.5, 5 / 6, 1 / 6))
    assert ranked.disagreement == pytest.approx(1 - (1 / 3 - 1 / 3 + 1 / 3) / 3)
    assert merged([[2, 0, 1]]).disagreement is None
    reciprocal = merged([[0, 1, 2], [1, 2, 0]], "reciprocal")
    assert reciprocal.order == (1, 0, 2)
    assert reciprocal.scores == pytest.approx((1 / 61 + 1 / 63, 1 / 62 + 1 / 61, 1 / 63 + 1 / 62))


def test_shuffles_are_those_of_the_seed() -> None:
    def asked(seed: int) -> list[Window]:
        return run(strategy("single", samples=2, seed=seed, window=9), 9, lambda w: range(len(w)))[1]

    assert asked(1) == asked(1)
    assert asked(1) != asked(2)


def test_parameters_follow_the_window() -> None:
    assert strategy("sliding", window=10).parameters == {"window": 10, "stride": 5, "passes": 1}
    assert strategy("top-down", window=10).parameters == {"window": 10, "pivot": 5}
    assert strategy("tournament", window=8).parameters == {"window": 8, "keep": 2}
    assert strategy("sliding", window=None, stride=4).parameters["stride"] == 4
    elsewhere = {"pointwise", "setwise", "pairwise"}  # test_pointwise and test_sorting
    assert {s.name for s in ALL} == set(STRATEGIES) - elsewhere


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("slide", {}, "no strategy"),
        ("sliding", {"window": 1}, "below 2"),
        ("sliding", {"window": 10, "stride": 10}, "carries nothing"),
        ("sliding", {"stride": 0}, "below 1"),
        ("full", {"window": 10}, "takes no window"),
        ("top-down", {"window": 10, "pivot": 6}, "beyond the middle"),
        ("tournament", {"window": 10, "keep": 6}, "at least half"),
        ("single", {"samples": 2, "merge": "median"}, "no merge"),
    ],
)
def test_wrong_parameters_name_the_option(name: str, parameters: dict[str, object], message: str) -> None:
    with pytest.raises(TeacherError, match=message) as caught:
        strategy(name, **parameters)  # type: ignore[arg-type]
    assert caught.value.exit_code == 2


def test_a_reply_that_is_no_permutation_of_its_window_is_refused() -> None:
    for order in ([0, 0, 1], [0, 1], [0, 1, 3]):
        with pytest.raises(TeacherError, match="not a permutation"):
            apply((4, 5, 6), order)
