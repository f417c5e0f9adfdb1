"""LaTeX tables (booktabs): any list of rows, and systems with the usual superscripts."""

from collections.abc import Mapping, Sequence
from string import ascii_lowercase
from typing import Any

ALPHA = 0.05
_SPECIAL = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    **{c: f"\\{c}" for c in "&%$#_{}"},
}  # fmt: skip


def escape(text: str) -> str:
    """Text in which LaTeX sees no commands."""
    return "".join(_SPECIAL.get(c, c) for c in text)


def tabular(names: Sequence[str], cells: Sequence[Sequence[str]], numeric: Sequence[bool]) -> str:
    """A plain tabular: columns of numbers to the right, the others to the left."""
    return _tabular("".join("r" if right else "l" for right in numeric), [names, *cells])


def _tabular(spec: str, lines: Sequence[Sequence[str]], escaped: bool = False) -> str:
    head, *body = [" & ".join(line if escaped else map(escape, line)) + r" \\" for line in lines]
    rules = [
        rf"\begin{{tabular}}{{{spec}}}",
        r"\toprule",
        head,
        r"\midrule",
        *body,
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(rules)


def comparison(rows: Sequence[Mapping[str, Any]], p_column: str, correction: str) -> str:
    """A table of systems: their values, superscripts for what they beat, subscripts for what they are equivalent to.

    Args:
        rows: those of :func:`labelstore.evaluation.comparison.compare`; only pairs that they hold are marked.
        p_column: the corrected p-value that marks go by.
        correction: its name, for the caption.
    """
    systems = list(dict.fromkeys(name for row in rows for name in (row["baseline"], row["system"])))
    columns = list(dict.fromkeys((row["dataset"], row["measure"]) for row in rows))
    values: dict[tuple[str, str], dict[str, float]] = {column: {} for column in columns}
    beaten: dict[tuple[str, str], dict[str, set[str]]] = {column: {} for column in columns}
    equal: dict[tuple[str, str], dict[str, set[str]]] = {column: {} for column in columns}
    for row in rows:
        column, one, other = (row["dataset"], row["measure"]), row["system"], row["baseline"]
        values[column] |= {one: row["value"], other: row["baseline_value"]}
        if row["verdict"] == "equivalent":
            equal[column].setdefault(one, set()).add(other)
            equal[column].setdefault(other, set()).add(one)
        if row[p_column] < ALPHA and row["difference"]:
            winner, loser = (one, other) if row["difference"] > 0 else (other, one)
            beaten[column].setdefault(winner, set()).add(loser)
    marks = dict(zip(systems, _marks(len(systems)), strict=True))
    several = len({dataset for dataset, _ in columns}) > 1
    lines = [["", "System", *(escape(f"{d} {m}" if several else m) for d, m in columns)]]
    for name in systems:
        line = [marks[name], escape(name)]
        for column in columns:
            if name not in values[column]:
                line.append("--")
                continue
            best = values[column][name] == max(values[column].values())
            number = f"{values[column][name]:.3f}"
            above = _joined(marks, beaten[column].get(name, set()))
            below = _joined(marks, equal[column].get(name, set()))
            line.append(
                "$"
                + (rf"\mathbf{{{number}}}" if best else number)
                + (rf"^{{{above}}}" if above else "")
                + (rf"_{{\equiv {below}}}" if below else "")
                + "$"
            )
        lines.append(line)
    sizes = sorted({row["family_size"] for row in rows})
    margin = rows[0]["margin"]
    caption = (
        f"Superscripts: significantly better than that system (two-sided paired test, {correction}-corrected over"
        f" {' or '.join(map(str, sizes))} comparison{'s' if sizes[-1] > 1 else ''}, $p<{ALPHA:g}$)."
        rf" Subscripts: equivalent within $\pm{margin:g}$ (TOST, $p<{ALPHA:g}$)."
    )
    where = ", ".join(
        f"{d}: {n} queries" for d, n in {row["dataset"]: row["n_queries"] for row in rows}.items()
    )
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{caption} {escape(where)}.}}",
            _tabular("ll" + "l" * len(columns), lines, escaped=True),
            r"\end{table}",
        ]
    )


def _marks(n: int) -> list[str]:
    """a, b, c …; numbers where letters do not suffice."""
    return list(ascii_lowercase[:n]) if n <= len(ascii_lowercase) else [str(k) for k in range(1, n + 1)]


def _joined(marks: Mapping[str, str], names: set[str]) -> str:
    chosen = [mark for name, mark in marks.items() if name in names]
    return ("" if all(mark.isalpha() for mark in chosen) else ",").join(chosen)
