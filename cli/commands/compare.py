"""`msft compare`: compare systems, with a verdict for each pair."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from cli.command import Context, command
from cli.output import diagnostics, fitted, latex, render
from cli.output.origins import with_origins
from cli.output.render import Format

Row = dict[str, Any]

COLUMNS = (
    "dataset", "measure", "system", "baseline", "difference", "ci90_low", "ci90_high", "p_value", "p_holm", "tost_p",
    "margin", "verdict", "value", "baseline_value", "ci95_low", "ci95_high", "test", "p_randomisation", "p_bh",
    "family_size", "effect_size", "hedges_g", "wins", "ties", "losses", "n_queries", "n_missing", "baseline_missing",
    "seeds", "baseline_seeds", "margin_shown", "margin_showable", "smallest_difference",
)  # fmt: skip
# The columns of the formats for people; json and csv have all columns.
SHOWN = (
    "dataset", "measure", "system", "baseline", "verdict", "value", "difference", "p_holm", "ci90_low", "ci90_high", "tost_p",
    "wins", "ties", "losses", "margin_shown", "margin_showable",
)  # fmt: skip
_PAIR = SHOWN[:4]  # these columns name a row
_ABOUT = {
    "difference": "value of the system less that of the baseline; ci90_low to ci90_high is its 90 % interval",
    "p_holm": "p of the difference, corrected by Holm over the rows of its family",
    "p_bh": "p of the difference, corrected by Benjamini and Hochberg over the rows of its family",
    "tost_p": "p of equivalence within the margin",
    "margin_shown": "the smallest margin within which the result would be equivalent",
    "margin_showable": "the margin that these queries can show with 80 % power",
}


@dataclass(frozen=True)
class Comparison:
    """Which systems are paired, and when a difference counts."""

    margin: Annotated[
        float, "The largest difference that counts as equal; declare it before you see the results."
    ] = 0.01
    baseline: Annotated[
        str | None, "The system that the others are compared with; by default the first one."
    ] = None
    correction: Annotated[str, "The correction that decides better and worse: holm or bh."] = "holm"
    family: Annotated[
        str, "Which pairs are corrected together: dataset (those of one dataset and measure) or all."
    ] = "dataset"
    all_pairs: Annotated[bool, typer.Option("--all", help="Compare every two systems.")] = False
    pooled: Annotated[bool, "Pool the datasets' queries into one set; a shared topic counts once."] = False


def add_to(app: typer.Typer) -> None:
    """Add this module's commands."""
    command(
        app,
        "compare",
        example="msft compare student-cl student-cl-kd --dataset dl19 --margin 0.01",
        lists=True,
    )(compare)


def compare(
    context: Context,
    systems: Annotated[
        list[str] | None,
        typer.Argument(
            help="Names as `msft eval` prints them, STUDENT@FIRST_STAGE, or patterns like 'cl-s*'; by default all systems.",
            show_default=False,
        ),
    ] = None,
    dataset: Annotated[list[str] | None, "A dataset; repeatable; by default the only one."] = None,
    measure: Annotated[
        list[str] | None, "A measure in ir-measures' names; repeatable; by default the dataset's first one."
    ] = None,
    by: Comparison = Comparison(),
    each_seed: Annotated[bool, "Treat students that differ only in their seed as separate systems."] = False,
    exclude_self: Annotated[
        bool,
        "Leave a passage with its query's id out of the ranking, as ArguAna and Quora always do; such values are not kept.",
    ] = False,
) -> None:
    """Compare systems: better, worse, equivalent within a margin, or inconclusive.

    Paired t and randomisation tests, TOST equivalence, 90 % and 95 % intervals, effect sizes, Holm and BH, and what
    these queries could have shown. Students that differ only in their seed are one system. From 5 seeds on, intervals
    and p-values come from resampling seeds and queries.
    """
    from labelstore.evaluation import comparison

    rows = comparison.compare(
        context.store,
        systems or None,
        list(dict.fromkeys(dataset or [])),
        measures=measure,
        **vars(by),
        selection=comparison.Selection(each_seed, exclude_self),
        note=diagnostics.note,
    )
    rows = with_origins(context.store, rows)
    if context.format is Format.latex:
        name = {"holm": "Holm", "bh": "Benjamini-Hochberg"}[by.correction]
        render.text(latex.comparison(rows, comparison.CORRECTIONS[by.correction], name))
    else:
        told = ["queries_by"] if rows and "queries_by" in rows[0] else []
        names = [*columns(context.format, by.correction), *told]
        keys = [n for n in _PAIR if n == "system" or len({row[n] for row in rows}) > 1]
        shown = [{n: row.get(n) for n in names} for row in rows]
        fitted.rows(shown, context.format, keys=keys, about=_ABOUT)
    for line in summary(rows):
        diagnostics.note(line)


def columns(format: Format, correction: str = "holm") -> list[str]:
    """Name the columns: all for machine formats; for people, those that fit."""
    if format in (Format.json, Format.csv):
        return list(COLUMNS)
    return [f"p_{correction}" if name == "p_holm" else name for name in SHOWN]


def summary(rows: Sequence[Row]) -> list[str]:
    """Summarise the verdicts, and say whether these queries could have shown equivalence."""
    lines = []
    for name in dict.fromkeys(row["dataset"] for row in rows):
        own = [row for row in rows if row["dataset"] == name]
        counts = {
            v: sum(row["verdict"] == v for row in own)
            for v in ("better", "worse", "equivalent", "inconclusive")
        }
        verdicts = ", ".join(f"{n} {v}" for v, n in counts.items() if n)
        lines.append(f"{name}, {own[0]['n_queries']} queries, margin {own[0]['margin']:g}: {verdicts}")
        showable = sorted(row["margin_showable"] for row in own if row["margin_showable"] > row["margin"])
        if showable and counts["equivalent"] < len(own):
            lines.append(
                f"  a margin of {own[0]['margin']:g} is out of reach for {len(showable)} of {len(own)}: with 80 % power"
                f" these queries show equivalence within {_span(showable)}, more queries within less"
            )
    return lines


def _span(values: Sequence[float]) -> str:
    low, high = f"{values[0]:.3f}", f"{values[-1]:.3f}"
    return low if low == high else f"{low} to {high}"
