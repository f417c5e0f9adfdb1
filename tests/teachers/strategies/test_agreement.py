"""Kendall's tau against scipy, rank-biased overlap against its definition."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kendalltau

from teachers.strategies.agreement import kendall_tau, rank_biased_overlap


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


def by_definition(first: list[int], second: list[int], p: float) -> float:
    """RBO_ext for lists of equal length: X_k / k p^k + (1 - p) / p sum X_d / d p^d."""
    k = len(first)
    overlap = [len(set(first[:d]) & set(second[:d])) for d in range(1, k + 1)]
    total = sum(x / d * p**d for d, x in enumerate(overlap, 1))
    return overlap[-1] / k * p**k + (1 - p) / p * total


@given(st.permutations(range(12)), st.permutations(range(12)), st.sampled_from([0.5, 0.9, 0.98]))
def test_rbo_of_equal_lengths(first: list[int], second: list[int], p: float) -> None:
    assert rank_biased_overlap(first, second, p) == pytest.approx(by_definition(first, second, p))
    shorter = [x for x in second if x < 6]
    assert 0 <= rank_biased_overlap(first, shorter, p) <= 1


def test_rbo_at_its_ends() -> None:
    assert rank_biased_overlap("abc", "abc") == pytest.approx(1)
    assert rank_biased_overlap("abc", "xyz") == 0
    assert rank_biased_overlap([], []) == 1
    assert rank_biased_overlap("abc", []) == 0
    assert rank_biased_overlap("abcdef", "abc") == pytest.approx(1)
