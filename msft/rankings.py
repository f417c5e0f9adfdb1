"""Compare and join two systems' rankings of the same items: Kendall's tau, and scores on one scale.

Teachers, students and benchmarks use them. Two of the shipped analyses compute tau in SQL, over many labelings at once.
"""

from collections.abc import Sequence


def kendall_tau(first: Sequence[float], second: Sequence[float]) -> float:
    """Compute Kendall's tau-b of two rank (or score) vectors over the same items, by merge counting in O(n log n).

    It equals ``scipy.stats.kendalltau``, except that it is 1 for fewer than two items (nothing can disagree) and 0 if
    one vector is all ties.
    """
    n = len(first)
    if n < 2:
        return 1.0
    pairs = n * (n - 1) // 2
    order = sorted(range(n), key=lambda i: (first[i], second[i]))
    first_ties = _tied(sorted(first))
    second_ties = _tied(sorted(second))
    both_ties = _tied([(first[i], second[i]) for i in order])
    _, swaps = _sort_counting([second[i] for i in order])
    numerator = pairs - first_ties - second_ties + both_ties - 2 * swaps
    denominator = ((pairs - first_ties) * (pairs - second_ties)) ** 0.5
    return numerator / denominator if denominator else 0.0


def _tied(values: Sequence[object]) -> int:
    """Count the pairs of equal values in a sorted sequence."""
    total = run = 0
    for k in range(1, len(values)):
        run = run + 1 if values[k] == values[k - 1] else 0
        total += run
    return total


def _sort_counting(values: list[float]) -> tuple[list[float], int]:
    """Sort by merging, and count the exchanges of neighbours that the sort replaces."""
    if len(values) < 2:
        return values, 0
    middle = len(values) // 2
    left, a = _sort_counting(values[:middle])
    right, b = _sort_counting(values[middle:])
    result: list[float] = []
    swaps, i = a + b, 0
    for value in right:
        while i < len(left) and left[i] <= value:
            result.append(left[i])
            i += 1
        swaps += len(left) - i
        result.append(value)
    return result + left[i:], swaps


def scaled(values: Sequence[float]) -> list[float]:
    """Scale one query's scores to 0..1, by the least and the greatest; values that are all equal become 0.5."""
    low, high = min(values), max(values)
    return [(float(value) - low) / (high - low) if high > low else 0.5 for value in values]
