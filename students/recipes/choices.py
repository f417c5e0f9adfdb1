"""The choices of a plan: as flat rows, and as a table of 80 columns."""

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

WIDTH = 80
_GAP = "  "
_MOST_VALUE = 26  # columns of a value; a longer one has the rest of its line
_LEAST_REASON = 24
_HEAD = ("choice", "value", "taken from")


@dataclass(frozen=True)
class Choice:
    """A line of a plan: what was chosen (for a stage or for all) and what it was taken from."""

    stage: str | None
    choice: str
    value: Any
    taken_from: str

    def row(self) -> dict[str, Any]:
        """Make the flat row that `--dry-run` prints."""
        return {
            "stage": self.stage,
            "choice": self.choice,
            "value": self.value,
            "taken_from": self.taken_from,
        }


def as_table(choices: Sequence[Choice]) -> list[str]:
    """Write choices as the lines of a table; a stage has a heading, and its choices are indented.

    The last column is wrapped. A name or path that is too long for a line stays whole.
    """
    names = [_name(choice) for choice in choices]
    values = [_value(choice.value) for choice in choices]
    name_width = max(len(text) for text in [_HEAD[0], *names])
    value_width = max(len(text) for text in [_HEAD[1], *values] if len(text) <= _MOST_VALUE)
    before = name_width + value_width + 2 * len(_GAP)
    reason_width = max(WIDTH - before, _LEAST_REASON)
    lines = [_line(_HEAD, name_width, value_width)]
    lines.append(_line(("-" * name_width, "-" * value_width, "-" * reason_width), name_width, value_width))
    stage = None
    for choice, name, value in zip(choices, names, values, strict=True):
        if choice.stage != stage:
            stage = choice.stage
            lines.append(f"stage {stage}" if stage else "all stages")
        reasons = _wrapped(choice.taken_from, reason_width)
        if len(value) > value_width:
            first, *rest = _wrapped(value, WIDTH - name_width - len(_GAP))
            lines += [f"{name:<{name_width}}{_GAP}{first}"]
            lines += [" " * (name_width + len(_GAP)) + text for text in rest]
        else:
            lines.append(_line((name, value, next(reasons, "")), name_width, value_width))
        lines += [" " * before + text for text in reasons]
    return lines


def _name(choice: Choice) -> str:
    return f"{_GAP}{choice.choice}" if choice.stage else choice.choice


def _value(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _line(cells: tuple[str, str, str], name_width: int, value_width: int) -> str:
    name, value, reason = cells
    return f"{name:<{name_width}}{_GAP}{value:<{value_width}}{_GAP}{reason}".rstrip()


def _wrapped(text: str, width: int) -> Iterator[str]:
    return iter(textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False))
