"""Paired statistics: equal to scipy and statsmodels where those have them, to simulation and enumeration elsewhere."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.power import TTestPower
from statsmodels.stats.weightstats import ttost_paired

from labelstore.evaluation import significance


def pair(n: int, seed: int = 0, shift: float = 0.02) -> tuple[np.ndarray, np.ndarray]:
    """Scores of two systems over n queries: correlated, within 0..1."""
    generator = np.random.default_rng(seed)
    base = generator.uniform(0.1, 0.8, n)
    return base + generator.normal(shift, 0.05, n), base + generator.normal(0, 0.05, n)


@pytest.mark.parametrize("n", [3, 43, 200])
def test_tests_and_intervals_are_scipys_and_statsmodels(n: int) -> None:
    a, b = pair(n, seed=n)
    ours, theirs = significance.paired_t(a, b), stats.ttest_rel(a, b)
    assert (ours.statistic, ours.p_value) == pytest.approx((theirs.statistic, theirs.pvalue), abs=1e-12)
    for level in (0.90, 0.95):
        ends = theirs.confidence_interval(level)
        ours_ends = significance.interval(a - b, level)
        assert (ours_ends.low, ours_ends.high) == pytest.approx((ends.low, ends.high), abs=1e-12)
    for margin in (0.01, 0.05):
        assert significance.equivalence(a, b, margin) == pytest.approx(
            ttost_paired(a, b, -margin, margin)[0], abs=1e-12
        )


def test_the_randomisation_test_is_exact_where_it_can_be() -> None:
    a, b = pair(10, seed=4)
    difference = a - b
    flips = np.array(list(itertools.product([1, -1], repeat=10))) @ difference
    extreme = np.mean(np.abs(flips) >= abs(difference.sum()) - 1e-12)
    assert significance.randomisation(a, b).p_value == pytest.approx(extreme, abs=1e-12)


@pytest.mark.parametrize("n", [43, 323])
def test_drawn_flips_agree_with_scipys(n: int) -> None:
    a, b = pair(n, seed=n, shift=0.008)
    theirs = stats.permutation_test(
        (a - b,), np.mean, permutation_type="samples", n_resamples=9999, rng=np.random.default_rng(1)
    ).pvalue
    ours = significance.randomisation(a, b).p_value
    assert 0.01 < theirs < 0.9
    assert ours == pytest.approx(theirs, abs=5 * math.sqrt(theirs * (1 - theirs) / 9999))
    assert significance.randomisation(a, b).p_value == ours, "the same seed draws the same"


def test_degenerate_samples_say_what_they_can() -> None:
    one, nothing, same = np.array([0.4]), np.zeros(1), np.full(9, 0.5)
    for test in (significance.paired_t, significance.randomisation):
        assert math.isnan(test(one, nothing).p_value)
        assert test(same, same).p_value == 1.0
    assert significance.paired_t(same + 0.1, same).p_value == 0.0
    assert significance.equivalence(same, same, 0.01) == 0.0
    assert significance.equivalence(same + 0.1, same, 0.01) == 1.0
    assert significance.effect_size(np.zeros(5)) == 0.0
    assert math.isinf(significance.effect_size(np.full(5, 0.1)))
    assert significance.smallest_margin(np.zeros(5)) == 0.0
    assert math.isnan(significance.smallest_margin(one))
    assert significance.interval(np.zeros(5), 0.9).reach == 0.0


def test_effect_sizes() -> None:
    a, b = pair(12, seed=3)
    d = significance.effect_size(a - b)
    assert d == pytest.approx(stats.ttest_rel(a, b).statistic / math.sqrt(12), abs=1e-12)
    exact = math.gamma(11 / 2) / math.sqrt(11 / 2) / math.gamma(10 / 2)
    assert significance.hedges_g(a - b) == pytest.approx(d * exact, abs=1e-12)
    assert significance.wins_ties_losses(np.array([0.1, 0.0, 1e-12, -0.2, -0.1])) == (1, 2, 2)


@pytest.mark.test_all
@settings(max_examples=15, deadline=None, database=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_corrections_by_their_definitions(p_values: list[float]) -> None:
    n, order = len(p_values), np.argsort(p_values, kind="stable")
    holm, running = np.empty(n), 0.0
    for place, k in enumerate(order):
        running = max(running, min(1.0, (n - place) * p_values[k]))
        holm[k] = running
    hochberg, running = np.empty(n), 1.0
    for place in range(n - 1, -1, -1):
        running = min(running, p_values[order[place]] * n / (place + 1))
        hochberg[order[place]] = running
    assert significance.holm(p_values) == pytest.approx(holm, abs=1e-12)
    assert significance.benjamini_hochberg(p_values) == pytest.approx(hochberg, abs=1e-12)


def test_a_p_value_that_is_not_known_does_not_count_in_its_family() -> None:
    assert significance.holm([0.01, math.nan, 0.04])[::2] == pytest.approx([0.02, 0.04])
    assert math.isnan(significance.holm([0.01, math.nan])[1])


def test_the_smallest_difference_has_the_power_that_it_promises() -> None:
    a, b = pair(43, seed=1)
    deviation = float(np.std(a - b, ddof=1))
    found = significance.smallest_difference(a - b)
    power = TTestPower().power(found / deviation, nobs=43, alpha=0.05, alternative="two-sided")
    assert power == pytest.approx(0.8, abs=1e-6)


@pytest.mark.parametrize("n", [5, 43])
def test_the_smallest_margin_has_the_power_that_it_promises(n: int) -> None:
    """Simulated: two equal systems, TOST at that margin, rejected in four of five samples."""
    generator = np.random.default_rng(7)
    spread = generator.normal(0, 1, n)
    margin = significance.smallest_margin(spread) / float(np.std(spread, ddof=1))
    samples = generator.normal(0, 1, (40_000, n))
    half = stats.t.ppf(0.95, n - 1) * samples.std(axis=1, ddof=1) / math.sqrt(n)
    shown = np.mean(np.abs(samples.mean(axis=1)) + half < margin)
    assert shown == pytest.approx(0.8, abs=0.01)
    unit = margin * math.sqrt(n)
    assert significance.equivalence_power(unit, n) == pytest.approx(0.8, abs=1e-6)


def test_the_bootstrap_draws_seeds_and_queries() -> None:
    generator = np.random.default_rng(3)
    a = (
        0.5
        + generator.normal(0, 0.1, (1, 60))
        + generator.normal(0, 0.03, (6, 1))
        + generator.normal(0, 0.05, (6, 60))
    )
    b = 0.5 + generator.normal(0, 0.1, (1, 60)) + generator.normal(0, 0.05, (6, 60))
    drawn = significance.bootstrap(a, b, resamples=4000)
    plain = np.empty(4000)
    for k in range(4000):
        queries = generator.integers(0, 60, 60)
        plain[k] = (
            a[generator.integers(0, 6, 6)][:, queries].mean()
            - b[generator.integers(0, 6, 6)][:, queries].mean()
        )
    assert drawn.error == pytest.approx(plain.std(ddof=1), rel=0.06)
    assert drawn.interval(0.9).low == pytest.approx(np.quantile(plain, 0.05), abs=0.15 * drawn.error)
    assert drawn.interval(0.9).high == pytest.approx(np.quantile(plain, 0.95), abs=0.15 * drawn.error)
    # wider than over queries alone: the next training may differ too
    alone = significance.bootstrap(
        a.mean(axis=0, keepdims=True), b.mean(axis=0, keepdims=True), resamples=4000
    )
    assert drawn.error > alone.error


def test_the_bootstraps_p_values_go_with_its_intervals() -> None:
    a, b = pair(60, seed=2, shift=0.012)
    drawn = significance.bootstrap(a[None], b[None])
    assert drawn.p_value == pytest.approx(significance.paired_t(a, b).p_value, abs=0.02)
    low, high = drawn.interval(0.90).low, drawn.interval(0.90).high
    assert drawn.equivalence(high + 1e-4) < 0.05 < drawn.equivalence(high - 1e-3)
    assert low < 0.012 < high
    assert drawn.smallest_margin == pytest.approx(significance.smallest_margin(a - b), rel=0.08)
    assert drawn.smallest_difference == pytest.approx(significance.smallest_difference(a - b), rel=0.08)
