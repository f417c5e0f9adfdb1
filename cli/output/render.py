"""Write rows to stdout as table, JSON, CSV, Markdown or LaTeX, with the same bytes on a terminal and in a pipe."""

import csv
import io
import itertools
import json
import math
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from enum import StrEnum
from typing import IO, Any

from rich.cells import cell_len

from cli.output import diagnostics, latex
from labelstore.analyses.plain_values import csv_cell, plain

Row = Mapping[str, Any]

# characters that a terminal would obey or show in another order
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


class Format(StrEnum):
    """Output formats of lists: a table for people, one JSON list of flat objects, CSV, Markdown or LaTeX."""

    table = "table"
    json = "json"
    csv = "csv"
    md = "md"
    latex = "latex"


def rows(
    data: Iterable[Row],
    format: Format = Format.table,
    columns: Sequence[str] | None = None,
    empty: str | None = None,
) -> None:
    """Print a list of flat rows.

    Args:
        columns: the columns in order; also the header of an empty list. By default the keys of the first row, so that
            only JSON has something of an empty list.
        empty: what stderr says of an empty list; a table of it then has no header.
    """
    items = [dict(row) for row in data]
    if not items and empty:
        diagnostics.note(empty)
        if format is Format.table:
            return
    names = list(columns) if columns else list(items[0]) if items else []
    streamed([[[item.get(n) for n in names] for item in items]], format, names)


_WRITTEN = 500  # lines per write


def streamed(blocks: Iterable[Sequence[Sequence[Any]]], format: Format, names: Sequence[str]) -> None:
    """Print blocks of rows as they arrive, with one block in memory (LaTeX: all blocks).

    A table's columns are as wide as the widest cell so far, so a later block can widen them.
    """
    if not names and format is not Format.json:
        return
    lines = _LINES[format](blocks, names)
    while some := list(itertools.islice(lines, _WRITTEN)):
        write("\n".join(some))


def table_lines(data: Sequence[Row], names: Sequence[str]) -> list[str]:
    """Write rows as the lines of a table: two of its header, then one for each row."""
    return list(_table_lines([[[row.get(n) for n in names] for row in data]], names))


def _md_lines(blocks: Iterable[Sequence[Sequence[Any]]], names: Sequence[str]) -> Iterator[str]:
    yield _md(names)
    yield _md(["---"] * len(names))
    for block in blocks:
        for row in block:
            yield _md([cell(value).replace("|", "\\|") for value in row])


def _latex_lines(blocks: Iterable[Sequence[Sequence[Any]]], names: Sequence[str]) -> Iterator[str]:
    held = [row for block in blocks for row in block]
    yield latex.tabular(names, [[cell(value) for value in row] for row in held], _numeric(names, held))


def _table_lines(blocks: Iterable[Sequence[Sequence[Any]]], names: Sequence[str]) -> Iterator[str]:
    widths = [width(name) for name in names]
    numeric: list[bool] | None = None
    for block in itertools.chain(blocks, [()]):
        if numeric is not None and not block:
            return
        cells = [[cell(value) for value in row] for row in block]
        widths = [max([widths[k], *(width(line[k]) for line in cells)]) for k in range(len(names))]
        if numeric is None:
            numeric = _numeric(names, block)
            yield _padded(names, widths, numeric)
            yield _padded(["-" * n for n in widths], widths, numeric)
        yield from (_padded(line, widths, numeric) for line in cells)


def _padded(line: Sequence[str], widths: Sequence[int], numeric: Sequence[bool]) -> str:
    parts = []
    for one, wide, right in zip(line, widths, numeric, strict=True):
        space = " " * (wide - width(one))
        parts.append(space + one if right else one + space)
    return "  ".join(parts).rstrip()


def _csv_lines(blocks: Iterable[Sequence[Sequence[Any]]], names: Sequence[str]) -> Iterator[str]:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    for row in itertools.chain(
        [names], ([csv_cell(value) for value in row] for block in blocks for row in block)
    ):
        writer.writerow(row)
        yield buffer.getvalue().removesuffix("\n")
        buffer.seek(0)
        buffer.truncate()


def _json_lines(blocks: Iterable[Sequence[Sequence[Any]]], names: Sequence[str]) -> Iterator[str]:
    before = None
    for row in itertools.chain.from_iterable(blocks):
        item = {n: plain(value) for n, value in zip(names, row, strict=True)}
        text = json.dumps(item, ensure_ascii=False, indent=1).replace("\n", "\n ")
        yield f"{before}," if before else "["
        before = f" {text}"
    yield f"{before}\n]" if before else "[]"


_LINES = {
    Format.table: _table_lines,
    Format.json: _json_lines,
    Format.csv: _csv_lines,
    Format.md: _md_lines,
    Format.latex: _latex_lines,
}


def text(value: str) -> None:
    """Print data that is already text: a TREC run, a lineage tree."""
    write(value.rstrip("\n"))


def stream() -> IO[str]:
    """Return stdout, for text that is too long to hold in memory, such as a TREC run."""
    return sys.stdout


def write(value: str) -> None:
    sys.stdout.write((escaped(value) if sys.stdout.isatty() else value) + "\n")
    sys.stdout.flush()


def escaped(value: str) -> str:
    """Escape control characters except tab and line end, as ``\\u001b``, because a terminal would obey them."""
    return _CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", value)


def width(value: str) -> int:
    """Count the columns of a terminal that a text takes: two for a wide character, none for a combining mark."""
    return len(value) if value.isascii() else cell_len(value)


def cell(value: Any) -> str:
    """Write a value as tables show it."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        if not math.isfinite(value):
            return "-"
        if value and (abs(value) < 1e-3 or abs(value) >= 1e6):
            return f"{value:.2e}"
        return f"{value:.4f}"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, dict | list):
        value = json.dumps(plain(value), ensure_ascii=False)
    return escaped(" ".join(str(plain(value)).split()))


def _md(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _numeric(names: Sequence[str], block: Sequence[Sequence[Any]]) -> list[bool]:
    """Find the columns that hold only numbers."""
    return [
        bool(block) and all(isinstance(row[k], int | float | Decimal | None) for row in block)
        for k in range(len(names))
    ]
