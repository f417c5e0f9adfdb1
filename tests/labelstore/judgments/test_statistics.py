"""The calibrated interval covers what it should, is never worse than people alone, and kappa holds at its edges."""

import math

import numpy as np
import pytest

from labelstore.judgments.statistics import calibrated, confusion, kappa, mean

SIMULATIONS = 500


def simulated(rng: np.random.Generator, n: int, noise: float, bias: float) -> tuple[np.ndarray, np.ndarray]:
    """Query values in 0 to 1 under people, as nDCG has them, and under a judge that over-rates with noise."""
    human = rng.beta(2.0, 1.5, n)
    return human, np.clip(human + bias + rng.normal(0, noise, n), 0, 1)


@pytest.mark.parametrize(
    ("few", "many", "noise", "bias"),
    [(50, 1000, 0.1, 0.15), (30, 300, 0.25, 0.0), (100, 150, 0.05, 0.3), (40, 2000, 5.0, 0.0)],
)
def test_coverage_of_the_calibrated_interval(few: int, many: int, noise: float, bias: float) -> None:
    truth = 2.0 / 3.5
    covered, widths, plain = 0, [], []
    for k in range(SIMULATIONS):
        human, judge = simulated(np.random.default_rng([k, few, many]), few + many, noise, bias)
        found = calibrated(human[:few], judge[:few], judge[few:])
        covered += found.low <= truth <= found.high
        widths.append(found.high - found.low)
        alone = mean(human[:few].tolist())
        plain.append(alone.high - alone.low)
    assert 0.92 <= covered / SIMULATIONS <= 0.98
    assert np.mean(widths) <= 1.03 * np.mean(plain)
    if noise <= 0.1:
        assert np.mean(widths) < 0.8 * np.mean(plain), "a good judge shortens the interval"


def test_without_more_queries_the_interval_is_that_of_people() -> None:
    human = np.array([0.2, 0.4, 0.9, 0.5])
    assert calibrated(human, human / 2, np.array([])) == mean(human.tolist())
    constant = calibrated(human, np.full(4, 0.7), np.full(50, 0.7))
    assert constant.value == pytest.approx(human.mean())


def test_too_few_values_have_no_interval() -> None:
    assert math.isnan(mean([]).value)
    assert mean([0.5]).value == 0.5
    assert math.isnan(mean([0.5]).low)
    assert math.isnan(calibrated(np.array([0.5]), np.array([0.5]), np.array([0.1, 0.2])).low)


def test_kappa_of_one_grade_alone_is_unknown_and_of_opposites_negative() -> None:
    assert math.isnan(kappa(confusion([1, 1], [1, 1], range(4))).value)
    assert kappa(confusion([0, 3, 0, 3], [3, 0, 3, 0], range(4))).value == pytest.approx(-1)
    assert kappa(confusion([0, 3, 1], [0, 3, 1], range(4)), "quadratic").value == pytest.approx(1)
