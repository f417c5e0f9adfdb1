"""Print a table for people within 80 columns, with what its columns mean.

A column with one text or whole number in all rows is printed once, above; a measured value stays in the table. Texts
and settings that are too long for a cell are printed below. What is still too wide goes on in further tables, which
begin with the same key columns. A list of things is one table: what does not fit stands under its row. Commands are never
wrapped, so that they can be pasted. Other formats have every row whole.
"""

import json
import math
import textwrap
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from cli.output import diagnostics, render
from cli.output.render import Format, Row

WIDTH = 80
_GAP = 2
_LONG = 34  # columns of the terminal that a cell may take beside the key columns
_INDENT = "  "  # of what stands under a row, and of further lines of a value
_COMMANDS = ("hint", "command")  # columns whose values hold commands


def rows(data: Sequence[Row], format: Format, *, keys: Sequence[str], about: Mapping[str, str]) -> None:
    """Print rows; as a table they fit 80 columns, unless a name or a command is longer.

    Args:
        keys: columns that name a row; each part of a wide table begins with them.
        about: what columns mean, for the note below a table or a Markdown table.
    """
    if format is not Format.table or not data:
        render.rows(data, format)
        if data and format is Format.md:
            _tell(list(data[0]), about)
        return
    names = list(data[0])
    once = _shared(data, names, keys)
    long = [n for n in names if n not in keys and n not in once and any(_is_long(row.get(n)) for row in data)]
    short = [n for n in names if n not in once and n not in long]
    _print_shared(data[0], once)
    for k, part in enumerate(_parts(data, short, [n for n in keys if n in short])):
        if k:
            render.write("")
        render.rows(data, format, part)
    for row in data:
        head = " ".join(_text(row.get(key)) for key in keys)
        for n in (n for n in long if row.get(n) is not None):
            render.write("\n" + "\n".join(_lines(n, f"{head} {n}: {_text(row[n])}")))
    _tell(names, about)


def _tell(names: Sequence[str], about: Mapping[str, str]) -> None:
    told = [f"{n}: {about[n]}" for n in names if n in about]
    if told:
        diagnostics.note("\n".join(_wrapped(told)))


def listed(
    data: Sequence[Row],
    format: Format,
    *,
    keys: Sequence[str] | None = None,
    columns: Sequence[str] | None = None,
    empty: str | None = None,
) -> None:
    """Print a list of things; as a table it fits 80 columns, unless a name or a command is longer.

    A table that is too wide has the columns that fit, and the other values of a row on lines under it.

    Args:
        keys: columns that name a row; they are in the table. By default the first column.
        columns: the columns in order, of all formats; by default those of the first row.
        empty: as in :func:`cli.output.render.rows`.
    """
    if format is not Format.table or not data:
        render.rows(data, format, columns, empty)
        return
    names = list(columns or data[0])
    keys = names[:1] if keys is None else keys
    data = [{n: _minute(row.get(n)) for n in names} for row in data]
    if _width(data, names) <= WIDTH:
        render.rows(data, format, names)
        return
    once = _shared(data, names, keys)
    beside = list(keys)
    for n in (n for n in names if n not in keys and n not in once):
        if not any(_is_long(row[n]) for row in data) and _width(data, [*beside, n]) <= WIDTH:
            beside.append(n)
    _print_shared(data[0], once)
    below = [n for n in names if n not in once and n not in beside]
    for k, line in enumerate(render.table_lines(data, [n for n in names if n in beside])):
        render.write(line)
        if k > 1:
            for text in _below(data[k - 2], below):
                render.write(textwrap.indent(text, _INDENT))


def _below(row: Row, names: Sequence[str]) -> list[str]:
    """Write the values that a row has in these columns: short ones together, each long one on lines of its own."""
    told = {n: f"{n}: {_text(row[n])}" for n in names if row[n] is not None}
    alone = [n for n in told if n in _COMMANDS or _is_long(row[n])]
    wide = WIDTH - len(_INDENT)
    together = _wrapped([text for n, text in told.items() if n not in alone], wide)
    return together + [line for n in alone for line in _lines(n, told[n], wide)]


def _minute(value: Any) -> Any:
    """A moment to the minute; any other value unchanged."""
    return f"{value.astimezone(UTC):%Y-%m-%d %H:%M} UTC" if isinstance(value, datetime) else value


def _shared(data: Sequence[Row], names: Sequence[str], keys: Sequence[str]) -> list[str]:
    """Find the columns that have one text or whole number in several rows."""
    return [
        n
        for n in names
        if n not in keys
        and len(data) > 1
        and len({_text(row.get(n)) for row in data}) == 1
        and not isinstance(data[0].get(n), float)
    ]


def _print_shared(row: Row, names: Sequence[str]) -> None:
    told = {n: f"{n}: {_text(row.get(n))}" for n in names}
    for line in _wrapped([text for n, text in told.items() if n not in _COMMANDS]):
        render.write(line)
    for n in (n for n in names if n in _COMMANDS):
        render.write(told[n])
    if names:
        render.write("")


def _width(data: Sequence[Row], names: Sequence[str]) -> int:
    widths = (
        max(render.width(text) for text in [n, *(render.cell(row.get(n)) for row in data)]) for n in names
    )
    return sum(wide + _GAP for wide in widths) - _GAP


def _parts(data: Sequence[Row], names: Sequence[str], keys: Sequence[str]) -> list[list[str]]:
    """Divide columns into tables that fit."""
    parts = [list(keys)]
    for n in (n for n in names if n not in keys):
        if len(parts[-1]) > len(keys) and _width(data, [*parts[-1], n]) > WIDTH:
            parts.append(list(keys))
        parts[-1].append(n)
    return parts


def _is_long(value: Any) -> bool:
    return isinstance(value, dict | list) or (
        isinstance(value, str) and (value[:1] == "{" or render.width(value) > _LONG)
    )


def _text(value: Any) -> str:
    """A value in words: settings as ``lr 0.0002, epochs 1``, anything else as in a table's cell."""
    if isinstance(value, str) and value[:1] == "{":
        try:
            value = json.loads(value)
        except json.JSONDecodeError:
            return render.cell(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_setting(inner)}" for name, inner in value.items() if inner is not None)
    if isinstance(value, list):
        return " ".join(map(_setting, value))
    return render.cell(value)


def _setting(value: Any) -> str:
    """A value within settings: a number as it was given, not rounded for a column."""
    return f"{value:g}" if isinstance(value, float) and math.isfinite(value) else _text(value)


def _lines(name: str, text: str, wide: int = WIDTH) -> list[str]:
    """Wrap the text of a column, unless it holds commands."""
    return [text] if name in _COMMANDS else _wrapped([text], wide)


def _wrapped(pieces: Sequence[str], wide: int = WIDTH) -> list[str]:
    """Write pieces on lines of a width. A word is broken only where :func:`_atoms` divides it."""
    lines: list[str] = []
    line, used = "", 0
    for word in "; ".join(pieces).split():
        gap = " " if line else ""
        for atom in _atoms(word, wide):
            if line.strip() and used + len(gap) + render.width(atom) > wide:
                lines.append(line)
                line, used, gap = _INDENT, len(_INDENT), ""
            line += gap + atom
            used += len(gap) + render.width(atom)
            gap = ""
    return [*lines, line] if line else lines


def _atoms(word: str, wide: int) -> list[str]:
    """Divide a word that is too wide for a line into its characters, each with its combining marks.

    A word of ASCII is an id, a hash or an address, and stays whole, as a path does.
    """
    if word.isascii() or word.startswith(("/", "./", "~/")) or render.width(word) <= wide - len(_INDENT):
        return [word]
    atoms: list[str] = []
    for c in word:
        if atoms and (not render.width(c) or atoms[-1].endswith("\u200d")):
            atoms[-1] += c
        else:
            atoms.append(c)
    return atoms
