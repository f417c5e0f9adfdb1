"""Make small SVG: elements, scales and ticks.

Positions are per cent of the plot, never pixels, so a plot fits a phone and paper while its text keeps its size. Ticks and
labels are drawn into the margins that the style sheet leaves.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup, escape

Attribute = str | int | float | None
_UNITS = ((1e9, " G"), (1e6, " M"), (1e3, " k"))


def element(name: str, *children: Markup | str, **attributes: Attribute) -> Markup:
    """Make an element; every value and every child that is not Markup is escaped.

    ``_`` in attribute names stands for ``-`` and a trailing one is dropped (``class_``); None leaves one out.
    """
    parts = [Markup(f"<{name}")]
    for key, value in attributes.items():
        if value is not None:
            parts.append(Markup(' {}="{}"').format(Markup(key.rstrip("_").replace("_", "-")), text(value)))
    if not children:
        return Markup("").join([*parts, Markup("/>")])
    return Markup("").join([*parts, Markup(">"), *map(escape, children), Markup(f"</{name}>")])


def text(value: str | int | float) -> str:
    """Write a value for an attribute; floats keep only the digits that distinguish them."""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def percent(value: float) -> str:
    """Write a position in the plot."""
    return f"{value:.3f}".rstrip("0").rstrip(".") + "%"


@dataclass(frozen=True)
class Scale:
    """Maps values to per cent of the plot's side.

    Attributes:
        low, high: what 0 % and 100 % stand for.
        ticks: values to mark.
        logarithmic: whether equal steps are equal factors.
    """

    low: float
    high: float
    ticks: tuple[float, ...]
    logarithmic: bool = False

    def at(self, value: float) -> float:
        """Return the place of a value, 0 to 100."""
        low, high, position = self.low, self.high, value
        if self.logarithmic:
            low, high, position = math.log10(low), math.log10(high), math.log10(value)
        return 100.0 * (position - low) / (high - low)

    def label(self, tick: float) -> str:
        """Write a tick's label, with as many decimals as its neighbours need and their unit."""
        if self.logarithmic:
            return short(tick)
        largest = max((abs(t) for t in self.ticks), default=0.0)
        size, unit = next((pair for pair in _UNITS if largest >= 10 * pair[0]), (1.0, ""))
        step = min((b - a for a, b in pairwise(self.ticks)), default=abs(tick) or 1.0) / size
        places = next(n for n in range(16) if abs(round(step, n) - step) < step * 1e-6)
        return "0" if unit and not tick else f"{tick / size:,.{places}f}{unit}"


def scale(
    values: Iterable[float],
    *,
    zero: bool = False,
    padding: float = 0.06,
    count: int = 5,
    floor: float | None = None,
) -> Scale:
    """Make a linear scale around finite values, with round ticks.

    Args:
        zero: whether the scale includes 0.
        padding: share of the span that is left free on both sides.
        count: about how many ticks.
        floor: the lowest value that the scale may show.
    """
    known = [v for v in values if math.isfinite(v)] + ([0.0] if zero else [])
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    if high - low <= 1e-12:
        reach = abs(high) * 0.1 or 0.5
        low, high = low - reach, high + reach
    span = high - low
    bottom = low if zero and low == 0.0 else low - padding * span
    if floor is not None:
        bottom = max(bottom, floor)
    top = high + padding * span
    step = _step((top - bottom) / count)
    first = math.ceil(bottom / step - 1e-9)
    last = math.floor(top / step + 1e-9)
    return Scale(bottom, top, tuple(round(k * step, 12) for k in range(first, last + 1)))


def log_scale(values: Sequence[float]) -> Scale:
    """Make a logarithmic scale around positive values; its ticks are powers of ten, or 1, 2, 5 if those are few."""
    low, high = min(values) / 1.3, max(values) * 1.3
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [10.0**p for p in powers if low <= 10.0**p <= high]
    if len(ticks) < 3:
        ticks = [m * 10.0**p for p in powers for m in (1, 2, 5) if low <= m * 10.0**p <= high]
    return Scale(low, high, tuple(ticks), logarithmic=True)


def fitting_scale(values: Sequence[float]) -> Scale:
    """Choose a logarithmic scale for positive values that span more than a factor of 30, otherwise a linear one from 0."""
    positive = [v for v in values if v > 0]
    if positive and len(positive) == len(values) and max(positive) / min(positive) > 30:
        return log_scale(positive)
    return scale(values, zero=True)


def short(value: float) -> str:
    """Write a count in few characters: 950, 12 k, 3.4 M."""
    for size, unit in _UNITS:
        if abs(value) >= (size if size > 1e3 else 1e4):
            return f"{value / size:.3g}{unit}"
    return f"{value:,.0f}" if abs(value) >= 100 or float(value).is_integer() else f"{value:.3g}"


def _step(raw: float) -> float:
    """Choose the round step (1, 2 or 5 times a power of ten) that is nearest by its factor."""
    power = 10.0 ** _power(raw)
    return min((m * power for m in (1.0, 2.0, 5.0, 10.0)), key=lambda step: abs(math.log(step / raw)))


def _power(value: float) -> int:
    return math.floor(math.log10(value) + 1e-9)
