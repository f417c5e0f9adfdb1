"""Scale one query's scores to 0..1, so that those of two systems can be added."""

from collections.abc import Sequence


def scaled(values: Sequence[float]) -> list[float]:
    """Scale to 0..1 by the least and the greatest value; values that are all equal become 0.5."""
    low, high = min(values), max(values)
    return [(float(value) - low) / (high - low) if high > low else 0.5 for value in values]
