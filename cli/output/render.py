"""The only writer of stdout: rows as table, JSON, CSV, Markdown or LaTeX; the same bytes on a terminal and in a pipe."""

import csv
import io
import json
import math
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, datetime
from decimal import Decimal
from enum import StrEnum
from typing import IO, Any

from cli.output import latex

Row = Mapping[str, Any]

# what a terminal obeys, or shows in another order
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


class Format(StrEnum):
    """What lists print: a table for people, one JSON list of flat objects, CSV, a Markdown or a LaTeX table."""

    table = "table"
    json = "json"
    csv = "csv"
    md = "md"
    latex = "latex"


def rows(data: Iterable[Row], format: Format = Format.table, columns: Sequence[str] | None = None) -> None:
    """Print a list of flat rows.

    Args:
        columns: their order, and the header where there is no row; default: the first row's keys.
    """
    items = [dict(row) for row in data]
    names = list(columns) if columns else list(items[0]) if items else []
    if format is Format.json:
        text = json.dumps(
            [{n: plain(item.get(n)) for n in names} for item in items], ensure_ascii=False, indent=1
        )
        write(text)
    elif format is Format.csv:
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(names)
        writer.writerows(
            [["" if item.get(n) is None else plain(item.get(n)) for n in names] for item in items]
        )
        write(buffer.getvalue().rstrip("\n"))
    elif format is Format.md:
        cells = [[_cell(item.get(n)).replace("|", "\\|") for n in names] for item in items]
        write("\n".join([_md(names), _md(["---"] * len(names)), *(_md(line) for line in cells)]))
    elif format is Format.latex:
        cells = [[_cell(item.get(n)) for n in names] for item in items]
        write(latex.tabular(names, cells, _numeric(names, items)))
    elif names:
        write(_table(names, items))


def text(value: str) -> None:
    """Print data that is text already: a TREC run, a lineage tree."""
    write(value.rstrip("\n"))


def stream() -> IO[str]:
    """stdout itself, for text data too long to hold: a TREC run."""
    return sys.stdout


def write(value: str) -> None:
    sys.stdout.write((escaped(value) if sys.stdout.isatty() else value) + "\n")
    sys.stdout.flush()


def escaped(value: str) -> str:
    """Control characters but tab and line end as ``\\u001b``: a terminal would obey them."""
    return _CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", value)


def plain(value: Any) -> Any:
    """A value as JSON has it: no NaN, times as ISO text."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, datetime | date):
        return value.isoformat()
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if value is None or isinstance(value, str | int | bool):
        return value
    return str(value)


def _cell(value: Any) -> str:
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


def _numeric(names: Sequence[str], items: Sequence[Row]) -> list[bool]:
    """Which columns hold numbers alone."""
    return [
        all(isinstance(i.get(n), int | float | Decimal | None) for i in items) and bool(items) for n in names
    ]


def _table(names: Sequence[str], items: Sequence[Row]) -> str:
    cells = [[_cell(item.get(n)) for n in names] for item in items]
    numeric = _numeric(names, items)
    widths = [
        max(len(n), *(len(line[k]) for line in cells)) if cells else len(n) for k, n in enumerate(names)
    ]

    def pad(line: Sequence[str]) -> str:
        parts = [
            c.rjust(w) if right else c.ljust(w) for c, w, right in zip(line, widths, numeric, strict=True)
        ]
        return "  ".join(parts).rstrip()

    return "\n".join([pad(names), pad(["-" * w for w in widths]), *(pad(line) for line in cells)])
