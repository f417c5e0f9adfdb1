"""Scores on one scale."""

import pytest

from labelstore.evaluation.scaling import scaled


@pytest.mark.parametrize(
    ("values", "wanted"),
    [([1, 3, 2], [0, 1, 0.5]), ([-4.0, -2.0], [0, 1]), ([7.0, 7.0], [0.5, 0.5]), ([2.0], [0.5])],
)
def test_the_least_is_0_and_the_greatest_1(values: list[float], wanted: list[float]) -> None:
    assert scaled(values) == wanted
