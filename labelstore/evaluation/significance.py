"""Compute paired statistics on per-query scores: tests, intervals, effect sizes, power, corrections.

All functions are pure. `a` and `b` are arrays of one length in one query order; a difference is ``a - b``. scipy and
statsmodels do the tests. This module adds the edge cases (no variance, one query) and the power of the equivalence
test.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import integrate, optimize, stats

ALPHA = 0.05
POWER = 0.8
TIE = 1e-9  # differences below this are ties: float noise of a measure
_CELLS = 2_000_000  # resampled values held at once


@dataclass(frozen=True)
class Test:
    """A two-sided test: its statistic and p-value; NaN if the sample is too small."""

    statistic: float
    p_value: float


@dataclass(frozen=True)
class Interval:
    low: float
    high: float

    @property
    def reach(self) -> float:
        """The end farther from 0: the smallest margin that the interval lies within."""
        return max(abs(self.low), abs(self.high))


def paired_t(a: np.ndarray, b: np.ndarray) -> Test:
    """Run a two-sided paired t-test (scipy's ttest_rel).

    If all differences are 0, p is 1. If they are equal but not 0, p is 0 (the limit of no variance).
    """
    difference = np.asarray(a, float) - np.asarray(b, float)
    if len(difference) < 2:
        return Test(math.nan, math.nan)
    if _constant(difference):
        mean = float(difference.mean())
        return Test(0.0, 1.0) if abs(mean) <= TIE else Test(math.copysign(math.inf, mean), 0.0)
    result = stats.ttest_rel(a, b)
    return Test(float(result.statistic), float(result.pvalue))


def randomisation(a: np.ndarray, b: np.ndarray, resamples: int = 9999, seed: int = 42) -> Test:
    """Run a two-sided randomisation test of the mean difference: the signs of the differences are flipped at random.

    With at most `resamples` possible flips (2^n), scipy's permutation_test takes each of them once: the exact test.
    Otherwise the flips are drawn here, a hundred times faster than in scipy, with scipy's rule for p-values.
    """
    difference = np.asarray(a, float) - np.asarray(b, float)
    n = len(difference)
    if n < 2:
        return Test(math.nan, math.nan)
    observed = float(difference.mean())
    if np.all(np.abs(difference) <= TIE):
        return Test(0.0, 1.0)
    if 2**n <= resamples:
        exact = stats.permutation_test((difference,), np.mean, permutation_type="samples", n_resamples=np.inf)
        return Test(observed, float(exact.pvalue))
    generator, slack = np.random.default_rng(seed), 1e-12
    n_less = n_greater = 0
    for start in range(0, resamples, size := max(1, _CELLS // n)):
        draws = generator.integers(0, 256, (min(size, resamples - start), (n + 7) // 8), dtype=np.uint8)
        flipped = np.unpackbits(draws, axis=1, count=n).astype(float) @ difference
        means = observed - 2 * flipped / n
        n_less += int(np.sum(means <= observed + slack))
        n_greater += int(np.sum(means >= observed - slack))
    return Test(observed, min(1.0, 2 * (min(n_less, n_greater) + 1) / (resamples + 1)))


def equivalence(a: np.ndarray, b: np.ndarray, margin: float) -> float:
    """Compute the p-value of the paired equivalence test (TOST, statsmodels' ttost_paired) within ± margin."""
    from statsmodels.stats.weightstats import ttost_paired

    difference = np.asarray(a, float) - np.asarray(b, float)
    if len(difference) < 2:
        return math.nan
    if _constant(difference):
        return 0.0 if abs(float(difference.mean())) < margin else 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        p_value, _, _ = ttost_paired(np.asarray(a, float), np.asarray(b, float), -margin, margin)
    return float(p_value)


def interval(difference: np.ndarray, level: float) -> Interval:
    """Compute the t interval of the mean difference."""
    n = len(difference)
    mean = float(np.mean(difference))
    if n < 2:
        return Interval(math.nan, math.nan)
    half = float(stats.t.ppf(0.5 + level / 2, n - 1)) * _deviation(difference) / math.sqrt(n)
    return Interval(mean - half, mean + half)


def effect_size(difference: np.ndarray) -> float:
    """Compute Cohen's d for paired samples (d_z): mean difference over the differences' standard deviation.

    It is 0 if all differences are 0, and infinite if they are equal but not 0.
    """
    if len(difference) < 2:
        return math.nan
    mean, deviation = float(np.mean(difference)), _deviation(difference)
    if deviation == 0.0:
        return 0.0 if abs(mean) <= TIE else math.copysign(math.inf, mean)
    return mean / deviation


def hedges_g(difference: np.ndarray) -> float:
    """Correct :func:`effect_size` for its bias in small samples (Hedges' exact correction, n - 1 degrees of freedom)."""
    freedom = len(difference) - 1
    if freedom < 2:
        return math.nan
    correction = math.exp(math.lgamma(freedom / 2) - math.lgamma((freedom - 1) / 2)) / math.sqrt(freedom / 2)
    return effect_size(difference) * correction


def wins_ties_losses(difference: np.ndarray) -> tuple[int, int, int]:
    """Count the queries on which the first is better, equal (within 1e-9) and worse."""
    wins, losses = int(np.sum(difference > TIE)), int(np.sum(difference < -TIE))
    return wins, len(difference) - wins - losses, losses


def holm(p_values: Sequence[float]) -> list[float]:
    """Apply Holm's step-down correction over one family. NaN stays NaN and does not count."""

    def correct(values: np.ndarray) -> np.ndarray:
        # statsmodels' multipletests collects garbage at each call: .15 s in a process that has torch
        order = np.argsort(values)
        corrected = np.empty_like(values)
        corrected[order] = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
        return np.minimum(corrected, 1.0)

    return _corrected(p_values, correct)


def benjamini_hochberg(p_values: Sequence[float]) -> list[float]:
    """Apply Benjamini and Hochberg's false-discovery-rate correction over one family. NaN stays NaN and does not count."""
    return _corrected(p_values, stats.false_discovery_control)


def _corrected(p_values: Sequence[float], correct: Callable[[np.ndarray], np.ndarray]) -> list[float]:
    values = np.asarray(p_values, float)
    known = ~np.isnan(values)
    corrected = np.full(len(values), math.nan)
    if known.any():
        corrected[known] = correct(values[known])
    return [float(p) for p in corrected]


# ---------------------------------------------------------------------------------------------------------- power
def smallest_difference(difference: np.ndarray) -> float:
    """Compute the true mean difference that a two-sided paired t-test on such queries finds with 80 % power."""
    n = len(difference)
    return math.nan if n < 3 else _deviation(difference) * _detectable_effect(n)


def smallest_margin(difference: np.ndarray) -> float:
    """Compute the margin within which TOST on such queries shows two equal systems with 80 % power."""
    n = len(difference)
    return math.nan if n < 3 else _deviation(difference) / math.sqrt(n) * _showable_margin(n)


@lru_cache(maxsize=256)
def _detectable_effect(n: int) -> float:
    """Compute the paired t-test's detectable effect, in standard deviations of the differences."""
    from statsmodels.stats.power import TTestPower

    effect = TTestPower().solve_power(
        effect_size=None, nobs=n, alpha=ALPHA, power=POWER, alternative="two-sided"
    )
    return float(np.squeeze(effect))


@lru_cache(maxsize=256)
def _showable_margin(n: int) -> float:
    """Compute the TOST's margin, in standard errors of the mean difference."""
    return float(optimize.brentq(lambda m: equivalence_power(m, n) - POWER, 1e-6, 1000.0, xtol=1e-10))


def equivalence_power(margin: float, n: int, alpha: float = ALPHA) -> float:
    """Compute the power of the paired TOST if the true difference is 0, exact under normal differences.

    TOST rejects if |mean| < margin - t·s/√n. In units of the standard error, mean ~ N(0, 1) and independently
    s²(n-1)/σ² ~ χ²(n-1). The inner probability is 2Φ(margin - t·u) - 1, and u = s/σ is integrated out.

    Args:
        margin: in standard errors of the mean difference.
        n: number of queries.
    """
    freedom = n - 1
    critical = float(stats.t.ppf(1 - alpha, freedom))
    chi = stats.chi(freedom)
    root = math.sqrt(freedom)

    def integrand(u: float) -> float:
        return float((2 * stats.norm.cdf(margin - critical * u) - 1) * chi.pdf(u * root) * root)

    low, high = float(chi.ppf(1e-12)) / root, min(margin / critical, float(chi.ppf(1 - 1e-12)) / root)
    if high <= low:
        return 0.0
    value, _ = integrate.quad(integrand, low, high, limit=200)
    return float(min(max(value, 0.0), 1.0))


# ------------------------------------------------------------------------------------------------------ bootstrap
@dataclass(frozen=True)
class Bootstrap:
    """Resampled mean differences, sorted, with their statistics."""

    means: np.ndarray

    def interval(self, level: float) -> Interval:
        """Compute the percentile interval."""
        low, high = np.quantile(self.means, [0.5 - level / 2, 0.5 + level / 2])
        return Interval(float(low), float(high))

    @property
    def p_value(self) -> float:
        """Compute the two-sided p-value of no difference: twice the smaller share of resamples beyond 0."""
        return min(1.0, 2 * min(self._share_below(0.0), self._share_above(0.0)))

    def equivalence(self, margin: float) -> float:
        """Compute the p-value of a difference of at least `margin`, as TOST does: the larger of the two sides' shares."""
        return max(self._share_below(-margin), self._share_above(margin))

    @property
    def error(self) -> float:
        """Compute the standard error of the mean difference."""
        return float(np.std(self.means, ddof=1))

    @property
    def smallest_difference(self) -> float:
        """Compute the difference that is found with 80 % power at this standard error, in the normal limit."""
        return self.error * float(stats.norm.ppf(1 - ALPHA / 2) + stats.norm.ppf(POWER))

    @property
    def smallest_margin(self) -> float:
        """Compute the margin shown with 80 % power if both are equal, at this standard error, in the normal limit."""
        return self.error * float(stats.norm.ppf(1 - ALPHA) + stats.norm.ppf((1 + POWER) / 2))

    def _share_below(self, bound: float) -> float:
        return float(np.sum(self.means <= bound) + 1) / (len(self.means) + 1)

    def _share_above(self, bound: float) -> float:
        return float(np.sum(self.means >= bound) + 1) / (len(self.means) + 1)


def bootstrap(a: np.ndarray, b: np.ndarray, resamples: int = 10_000, seed: int = 42) -> Bootstrap:
    """Resample seeds within each system and queries in both, as if training and queries were drawn again.

    Args:
        a: (seeds of a, queries) scores; one row is one training, a system without training is one row.
        b: (seeds of b, queries).
    """
    generator = np.random.default_rng(seed)
    n = a.shape[1]
    means = np.empty(resamples)
    for start in range(0, resamples, size := max(1, _CELLS // n)):
        count = min(size, resamples - start)
        # a resampled mean over seeds and queries is a bilinear form: seed weights × scores × query weights
        of_queries = generator.multinomial(n, np.full(n, 1 / n), count) / n
        of_a = generator.multinomial(len(a), np.full(len(a), 1 / len(a)), count) / len(a)
        of_b = generator.multinomial(len(b), np.full(len(b), 1 / len(b)), count) / len(b)
        means[start : start + count] = np.einsum("rq,rq->r", of_a @ a - of_b @ b, of_queries)
    return Bootstrap(np.sort(means))


def _deviation(difference: np.ndarray) -> float:
    if _constant(difference):
        return 0.0
    return float(np.std(difference, ddof=1))


def _constant(difference: np.ndarray) -> bool:
    return bool(np.ptp(difference) <= TIE)
