"""Write LaTeX tables (booktabs): any list of rows, or systems with the usual superscripts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from string import ascii_lowercase
from typing import Any

ALPHA = 0.05
_SPECIAL = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    **{c: f"\\{c}" for c in "&%$#_{}"},
}  # fmt: skip


def escape(text: str) -> str:
    """Escape a text so that LaTeX finds no commands in it."""
    return "".join(_SPECIAL.get(c, c) for c in text)


def tabular(names: Sequence[str], cells: Sequence[Sequence[str]], numeric: Sequence[bool]) -> str:
    """Write a plain tabular with columns of numbers aligned right and other columns aligned left."""
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
    """Write a table of systems: values, superscripts for beaten systems, subscripts for equivalent systems.

    Args:
        rows: rows of :func:`labelstore.evaluation.comparison.compare`; only the pairs in these rows are marked.
        p_column: the column of the corrected p-value that decides the marks.
        correction: the name of the correction, for the caption.
    """
    systems = list(dict.fromkeys(name for row in rows for name in (row["baseline"], row["system"])))
    marks = dict(zip(systems, _marks(len(systems)), strict=True))
    columns = _columns(rows, p_column)
    several = len({dataset for dataset, _ in columns}) > 1
    lines = [["", "System", *(escape(f"{d} {m}" if several else m) for d, m in columns)]]
    lines += [
        [marks[name], escape(name), *(column.cell(name, marks) for column in columns.values())]
        for name in systems
    ]
    return _float("ll" + "l" * len(columns), lines, _caption(rows, correction))


def scores(rows: Sequence[Mapping[str, Any]]) -> str:
    """Write a table of evaluated systems: a column for each dataset and measure, the best value bold, with a caption.

    Args:
        rows: rows of `msft eval`. A dagger marks a value that differs from the first stage's.
    """
    columns = list(dict.fromkeys((row["dataset"], row["measure"]) for row in rows))
    several = len({dataset for dataset, _ in columns}) > 1
    cells = {(row["system"], row["first_stage"], row["dataset"], row["measure"]): row for row in rows}
    best = {
        (d, m): max(row["value"] for row in rows if (row["dataset"], row["measure"]) == (d, m))
        for d, m in columns
    }
    lines = [["System", "Candidates", *(escape(f"{d} {m}" if several else m) for d, m in columns)]]
    for system, stage in dict.fromkeys((row["system"], row["first_stage"]) for row in rows):
        line = [escape(system), escape(stage) if stage and stage != system else "--"]
        for d, m in columns:
            row = cells.get((system, stage, d, m))
            line.append("--" if row is None else _score(row, row["value"] == best[d, m]))
        lines.append(line)
    queries = ", ".join(
        f"{d}: {n} queries" for d, n in {row["dataset"]: row["n_queries"] for row in rows}.items()
    )
    depths = sorted({row["depth"] for row in rows if row.get("depth") is not None})
    caption = (
        rf"$\dagger$: differs from the candidates' own ranking (two-sided paired $t$-test, $p<{ALPHA:g}$, not corrected)."
        f" Best values are bold. {escape(queries)}"
        + (f"; lists of {' or '.join(map(str, depths))}" if depths else "")
    )
    return _float("ll" + "r" * len(columns), lines, caption)


def _score(row: Mapping[str, Any], best: bool) -> str:
    number = f"{row['value']:.3f}"
    p = row.get("p_value")
    sign = r"^{\dagger}" if p is not None and p < ALPHA else ""
    return "$" + (rf"\mathbf{{{number}}}" if best else number) + sign + "$"


def captioned(rows: Sequence[Mapping[str, Any]], caption: str, best: Sequence[str] = ()) -> str:
    """Write any rows as a table with a caption: numbers with three decimals, right-aligned.

    Args:
        best: columns whose greatest value is bold.
    """
    names = list(rows[0])
    numeric = [all(isinstance(row[n], int | float | None) for row in rows) for n in names]
    top = {n: max((row[n] for row in rows if row[n] is not None), default=None) for n in best}
    lines = [[escape(head(name)) for name in names]]
    lines += [
        [_plain(row[name], row[name] is not None and row[name] == top.get(name)) for name in names]
        for row in rows
    ]
    return _float("".join("r" if right else "l" for right in numeric), lines, escape(caption))


def head(name: str) -> str:
    """A column's name in words: ``p_holm`` as ``P holm``; names of measures and of data stay as they are."""
    return name.replace("_", " ").capitalize() if name.replace("_", "").isalnum() and name.islower() else name


def _plain(value: Any, best: bool = False) -> str:
    if value is None:
        return "--"
    if not isinstance(value, float):
        return escape(str(value))
    if abs(value) >= 0.001 or not value:
        return rf"$\mathbf{{{value:.3f}}}$" if best else f"${value:.3f}$"
    digits, exponent = f"{value:.1e}".split("e")
    return rf"${digits}\times10^{{{int(exponent)}}}$"


def _float(spec: str, lines: Sequence[Sequence[str]], caption: str) -> str:
    """Write a tabular of escaped cells as a float with a caption."""
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{caption}.}}",
            _tabular(spec, lines, escaped=True),
            r"\end{table}",
        ]
    )


@dataclass
class _Column:
    """One measure on one dataset: each system's value, and the systems it beats or is equivalent to."""

    values: dict[str, float] = field(default_factory=dict)
    beaten: dict[str, set[str]] = field(default_factory=dict)
    equal: dict[str, set[str]] = field(default_factory=dict)

    def cell(self, name: str, marks: Mapping[str, str]) -> str:
        """Write a system's value with its marks; the best value is bold."""
        if name not in self.values:
            return "--"
        best = self.values[name] == max(self.values.values())
        number = f"{self.values[name]:.3f}"
        above = _joined(marks, self.beaten.get(name, set()))
        below = _joined(marks, self.equal.get(name, set()))
        return (
            "$"
            + (rf"\mathbf{{{number}}}" if best else number)
            + (rf"^{{{above}}}" if above else "")
            + (rf"_{{\equiv {below}}}" if below else "")
            + "$"
        )


def _columns(rows: Sequence[Mapping[str, Any]], p_column: str) -> dict[tuple[str, str], _Column]:
    """Group rows into columns: (dataset, measure) -> column."""
    columns: dict[tuple[str, str], _Column] = {}
    for row in rows:
        column = columns.setdefault((row["dataset"], row["measure"]), _Column())
        one, other = row["system"], row["baseline"]
        column.values |= {one: row["value"], other: row["baseline_value"]}
        if row["verdict"] == "equivalent":
            column.equal.setdefault(one, set()).add(other)
            column.equal.setdefault(other, set()).add(one)
        if row[p_column] < ALPHA and row["difference"]:
            winner, loser = (one, other) if row["difference"] > 0 else (other, one)
            column.beaten.setdefault(winner, set()).add(loser)
    return columns


def _caption(rows: Sequence[Mapping[str, Any]], correction: str) -> str:
    sizes = sorted({row["family_size"] for row in rows})
    where = ", ".join(
        f"{d}: {n} queries" for d, n in {row["dataset"]: row["n_queries"] for row in rows}.items()
    )
    return (
        f"Superscripts: significantly better than that system (two-sided paired test, {correction}-corrected over"
        f" {' or '.join(map(str, sizes))} comparison{'s' if sizes[-1] > 1 else ''}, $p<{ALPHA:g}$)."
        rf" Subscripts: equivalent within $\pm{rows[0]['margin']:g}$ (TOST, $p<{ALPHA:g}$). {escape(where)}"
    )


def _marks(n: int) -> list[str]:
    """Make n marks: a, b, c …; numbers if there are more marks than letters."""
    return list(ascii_lowercase[:n]) if n <= len(ascii_lowercase) else [str(k) for k in range(1, n + 1)]


def _joined(marks: Mapping[str, str], names: set[str]) -> str:
    chosen = [mark for name, mark in marks.items() if name in names]
    return ("" if all(mark.isalpha() for mark in chosen) else ",").join(chosen)
