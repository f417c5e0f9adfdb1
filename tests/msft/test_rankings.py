"""Kendall's tau against scipy's."""

import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.stats import kendalltau

from msft.rankings import kendall_tau, scaled


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a busy machine is no failure
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=2, max_size=40))
def test_tau_is_scipys(pairs: list[tuple[int, int]]) -> None:
    first, second = zip(*pairs, strict=True)
    expected = kendalltau(first, second).statistic
    found = kendall_tau(first, second)
    assert found == 0 if math.isnan(expected) else found == pytest.approx(expected)


def test_tau_at_its_ends() -> None:
    assert kendall_tau([1, 2, 3], [1, 2, 3]) == 1
    assert kendall_tau([1, 2, 3], [3, 2, 1]) == -1
    assert kendall_tau([], []) == 1
    assert kendall_tau([1], [5]) == 1


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e6])
def test_tau_of_scores_is_that_of_their_order(scale: float) -> None:
    scores = [0.1, 0.7, 0.7, -2.0, 3.5]
    labels = [1.0, 3.0, 2.0, 1.0, 5.0]
    assert kendall_tau([score * scale for score in scores], labels) == pytest.approx(
        kendalltau(scores, labels).statistic
    )


@pytest.mark.parametrize(
    ("values", "wanted"),
    [([1, 3, 2], [0, 1, 0.5]), ([-4.0, -2.0], [0, 1]), ([7.0, 7.0], [0.5, 0.5]), ([2.0], [0.5])],
)
def test_the_least_is_0_and_the_greatest_1(values, wanted) -> None:
    assert scaled(values) == wanted
