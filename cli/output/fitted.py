"""Print a table for people within 80 columns, with what its columns mean.

A column with one text or whole number in all rows is printed once, above; a measured value stays in the table. Texts
and settings that are too long for a cell are printed below. What is still too wide goes on in further tables, which
begin with the same key columns. Other formats have every row whole.
"""

import json
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from cli.output import diagnostics, render
from cli.output.render import Format, Row

WIDTH = 80
_GAP = 2
_LONG = 34  # characters that a cell may have beside the key columns


def rows(data: Sequence[Row], format: Format, *, keys: Sequence[str], about: Mapping[str, str]) -> None:
    """Print rows; as a table they fit 80 columns, unless a single name is longer.

    Args:
        keys: columns that name a row; each part of a wide table begins with them.
        about: what columns mean, for the note below.
    """
    if format is not Format.table or not data:
        render.rows(data, format)
        return
    names = list(data[0])
    once = [
        n
        for n in names
        if n not in keys
        and len(data) > 1
        and len({_text(row.get(n)) for row in data}) == 1
        and not isinstance(data[0].get(n), float)
    ]
    long = [n for n in names if n not in keys and n not in once and any(_is_long(row.get(n)) for row in data)]
    short = [n for n in names if n not in once and n not in long]
    for line in _wrapped([f"{n}: {_text(data[0].get(n))}" for n in once]):
        render.write(line)
    if once:
        render.write("")
    for k, part in enumerate(_parts(data, short, [n for n in keys if n in short])):
        if k:
            render.write("")
        render.rows(data, format, part)
    for row in data:
        for n in long:
            if row.get(n) is not None:
                head = " ".join(_text(row.get(key)) for key in keys)
                render.write("\n" + "\n".join(_wrapped([f"{head} {n}: {_text(row.get(n))}"])))
    told = [f"{n}: {about[n]}" for n in names if n in about]
    if told:
        diagnostics.note("\n".join(_wrapped(told)))


def _parts(data: Sequence[Row], names: Sequence[str], keys: Sequence[str]) -> list[list[str]]:
    """Divide columns into tables that fit."""
    width = {n: max(len(n), *(len(render.cell(row.get(n))) for row in data)) for n in names}
    parts = [list(keys)]
    for n in (n for n in names if n not in keys):
        if len(parts[-1]) > len(keys) and sum(width[c] + _GAP for c in [*parts[-1], n]) - _GAP > WIDTH:
            parts.append(list(keys))
        parts[-1].append(n)
    return parts


def _is_long(value: Any) -> bool:
    return isinstance(value, dict | list) or (
        isinstance(value, str) and (value[:1] == "{" or len(value) > _LONG)
    )


def _text(value: Any) -> str:
    """A value in words: settings as ``lr .0002, epochs 1``."""
    if isinstance(value, str) and value[:1] == "{":
        try:
            value = json.loads(value)
        except json.JSONDecodeError:
            return render.cell(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_text(inner)}" for name, inner in value.items() if inner is not None)
    if isinstance(value, list):
        return " ".join(_text(inner) for inner in value)
    if isinstance(value, float):
        return f"{value:g}"
    return render.cell(value)


def _wrapped(pieces: Sequence[str]) -> list[str]:
    return textwrap.wrap(
        "; ".join(pieces), WIDTH, break_long_words=False, break_on_hyphens=False, subsequent_indent="  "
    )
