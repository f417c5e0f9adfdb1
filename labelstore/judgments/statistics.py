"""Compare an LLM judge's grades with people's: kappa, confusion, bias, and means that a few human judgments correct."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from statsmodels.stats.inter_rater import cohens_kappa

CONFIDENCE = 0.95
Table = NDArray[np.int64]
Values = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval; the bounds are NaN where there are too few values."""

    value: float
    low: float
    high: float
    n: int


def confusion(human: Sequence[int], judge: Sequence[int], grades: Sequence[int]) -> Table:
    """Count pairs: a row for each human grade, a column for each of the judge's."""
    place = {grade: k for k, grade in enumerate(grades)}
    table = np.zeros((len(grades), len(grades)), dtype=np.int64)
    for one, other in zip(human, judge, strict=True):
        table[place[one], place[other]] += 1
    return table


def kappa(table: Table, weights: str | None = None) -> Estimate:
    """Compute Cohen's kappa with its asymptotic interval (Fleiss, Cohen and Everitt, 1969).

    Args:
        weights: None (every disagreement counts alike), ``linear`` or ``quadratic``.

    Returns:
        NaN if both graded every pair alike, with one grade: then nothing can be told from chance.
    """
    n = int(table.sum())
    used = table[np.ix_(seen := np.flatnonzero(table.sum(0) + table.sum(1)), seen)]
    if n == 0 or len(seen) < 2:
        return Estimate(math.nan, math.nan, math.nan, n)
    # The weights depend on the scale's steps, so grades that nobody gave stay in a weighted table.
    found: Any = cohens_kappa(used if weights is None else table, wt=weights)
    return Estimate(float(found.kappa), float(found.kappa_low), float(found.kappa_upp), n)


def mean(values: Sequence[float]) -> Estimate:
    """Compute a mean with its t interval."""
    sample = np.asarray(values, dtype=np.float64)
    n = len(sample)
    if n == 0:
        return Estimate(math.nan, math.nan, math.nan, 0)
    value = float(sample.mean())
    if n < 2:
        return Estimate(value, math.nan, math.nan, n)
    half = float(stats.t.ppf(0.5 + CONFIDENCE / 2, n - 1) * sample.std(ddof=1) / math.sqrt(n))
    return Estimate(value, value - half, value + half, n)


def calibrated(human: Values, judge: Values, judge_only: Values) -> Estimate:
    """Estimate the mean under human judgments over all queries, from few of those and many of the judge.

    This is prediction-powered inference with power tuning (Angelopoulos et al., Science 2023; PPI++, 2023): the judge's mean
    over the queries without human judgments, times the weight lambda that makes the interval shortest, corrected by the mean
    difference on the queries with both. A judge that says nothing about people's values gets lambda 0, and the interval is
    the t interval of the human values.

    Args:
        human, judge: values of the queries with human judgments, in one order.
        judge_only: the judge's values of all other queries.
    """
    n, more = len(human), len(judge_only)
    if n < 2 or more < 2:
        return mean(human.tolist())
    spread = float(np.concatenate([judge, judge_only]).var(ddof=1))
    shared = float(np.cov(human, judge, ddof=1)[0, 1])
    weight = min(max(shared / ((1 + n / more) * spread), 0.0), 1.0) if spread > 0 else 0.0
    corrected = human - weight * judge
    value = weight * float(judge_only.mean()) + float(corrected.mean())
    of_correction, of_judge = float(corrected.var(ddof=1)) / n, weight**2 * spread / more
    half = _quantile(of_correction, n, of_judge, more) * math.sqrt(of_correction + of_judge)
    return Estimate(value, value - half, value + half, n + more)


def _quantile(first: float, n: int, second: float, more: int) -> float:
    """Return the t quantile by Welch's degrees of freedom, since both parts are estimated."""
    total = first + second
    if total == 0:
        return 0.0
    freedom = total**2 / (first**2 / (n - 1) + second**2 / (more - 1))
    return float(stats.t.ppf(0.5 + CONFIDENCE / 2, freedom))
