"""How far two orders agree: Kendall's tau and rank-biased overlap."""

from collections.abc import Hashable, Sequence


def kendall_tau(first: Sequence[float], second: Sequence[float]) -> float:
    """Kendall's tau-b between two rank (or score) vectors over the same items, by merge counting in O(n log n).

    Equals ``scipy.stats.kendalltau``; 1 for fewer than two items (nothing can disagree) and 0 where one side is all
    ties.
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
    """Pairs of equals in a sorted sequence."""
    total = run = 0
    for k in range(1, len(values)):
        run = run + 1 if values[k] == values[k - 1] else 0
        total += run
    return total


def _sort_counting(values: list[float]) -> tuple[list[float], int]:
    """Merge sort with the number of exchanges of neighbours it stands for."""
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


def rank_biased_overlap(first: Sequence[Hashable], second: Sequence[Hashable], p: float = 0.9) -> float:
    """Rank-biased overlap, extrapolated (RBO_ext of Webber, Moffat and Zobel 2010) for lists of equal or unequal length.

    Args:
        p: persistence; 0.9 puts about 86 % of the weight on the first ten ranks.
    """
    short, long = sorted((list(first), list(second)), key=len)
    if not long:
        return 1.0
    if not short:
        return 0.0
    s, n = len(short), len(long)
    seen_short: set[Hashable] = set()
    seen_long: set[Hashable] = set()
    overlap = 0
    overlap_at_s = 0
    total = 0.0
    for d in range(1, n + 1):
        item = long[d - 1]
        if item in seen_short:
            overlap += 1
        seen_long.add(item)
        if d <= s:
            other = short[d - 1]
            if other in seen_long:
                overlap += 1
            seen_short.add(other)
        if d == s:
            overlap_at_s = overlap
        total += overlap / d * p**d
        if d > s:
            total += overlap_at_s * (d - s) / (s * d) * p**d
    tail = ((overlap - overlap_at_s) / n + overlap_at_s / s) * p**n
    return (1 - p) / p * total + tail
