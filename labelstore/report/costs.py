"""Plot effectiveness against cost: the teacher's tokens and price, and the training time."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

import duckdb
import numpy as np

from labelstore.labels.currency import CURRENCY
from labelstore.report import plots
from labelstore.report.boards import Board, Row
from labelstore.report.plots import Figure, Line, Point
from labelstore.report.svg import short

MAX_MARKS = 40  # of one plot; those of the best places are drawn
LEAST_SPREAD = 0.02  # costs that differ by less are equal in a plot


@dataclass(frozen=True)
class Cost:
    """The cost of a student.

    Attributes:
        lists: labelled lists that it learnt from.
        calls, tokens, price: of those lists: their labelings' mean per list. None if unknown: labels
            without calls, a teacher without a price, a view that the store lacks.
        seconds: of training, all stages.
    """

    lists: int
    calls: float | None
    tokens: float | None
    price: float | None
    seconds: float


def of_students(con: duckdb.DuckDBPyConnection) -> dict[str, Cost]:
    """Compute each student's cost; lists that two of its stages share count once."""
    made = {
        name: Cost(0, 0.0, 0.0, 0.0, seconds)
        if n_sourced == n_distilling
        else Cost(0, None, None, None, seconds)
        for name, seconds, n_distilling, n_sourced in con.execute(
            """SELECT s.name, sum(g.seconds), count(*) FILTER (WHERE contains(g.objective, 'kd')),
                      count(*) FILTER (WHERE contains(g.objective, 'kd')
                                         AND g.view IN (SELECT view FROM view_sources WHERE kind = 'labeling'))
               FROM stages g JOIN students s USING (student) GROUP BY s.name"""
        ).fetchall()
    }
    for name, lists, held, *totals in con.execute(
        """WITH used AS (
               SELECT s.name AS student, g.stage, g.view, list(DISTINCT vs.source ORDER BY vs.source) AS labelings
               FROM stages g JOIN students s USING (student) JOIN view_sources vs ON vs.view = g.view AND vs.kind = 'labeling'
               GROUP BY ALL
           ), sources AS (
               SELECT u.student, u.labelings, max(v.n_lists) AS n_lists FROM used u JOIN views v USING (view) GROUP BY ALL
           ), paid AS (
               SELECT l.labeling, q.lists, q.cost, nullif(q.calls, 0) AS calls,
                      CASE WHEN q.calls > 0 THEN coalesce(q.tokens_in, 0) + coalesce(q.tokens_out, 0) END AS tokens
               FROM labelings l JOIN labeling_quality q ON q.labeling = l.name
           )
           SELECT s.student, s.n_lists, sum(p.lists),
                  CASE WHEN count(p.calls) = count(*) THEN sum(p.calls) END,
                  CASE WHEN count(p.tokens) = count(*) THEN sum(p.tokens) END,
                  CASE WHEN count(p.cost) = count(*) AND count(p.calls) = count(*) THEN sum(p.cost) END
           FROM sources s JOIN paid p ON list_contains(s.labelings, p.labeling) GROUP BY s.student, s.labelings, s.n_lists"""
    ).fetchall():
        before = made[name]
        share = min(1.0, lists / held) if held else 0.0
        calls, tokens, price = (
            None if have is None or more is None else have + share * more
            for have, more in zip((before.calls, before.tokens, before.price), totals, strict=True)
        )
        made[name] = Cost(before.lists + lists, calls, tokens, price, before.seconds)
    return made


def recipes(con: duckdb.DuckDBPyConnection) -> dict[str, str]:
    """Make a key per student that students share if they differ only in labels and seed: base, regime, losses, teachers."""
    return {
        name: f"{base}, {regime}, {', '.join(json.loads(losses))} from {', '.join(json.loads(teachers))}"
        for name, base, regime, losses, teachers in con.execute(
            """SELECT s.name, any_value(s.base), any_value(s.regime), to_json(list(g.loss ORDER BY g.stage)),
                      to_json(coalesce(any_value(t.names), []))
               FROM students s JOIN stages g USING (student)
               LEFT JOIN (SELECT student, list(DISTINCT teacher ORDER BY teacher) AS names FROM student_sources
                          WHERE teacher IS NOT NULL GROUP BY student) t ON t.student = s.name
               GROUP BY s.name"""
        ).fetchall()
    }


def effectiveness(board: Board, cost: dict[str, Cost], key: str) -> list[Figure]:
    """Plot the headline measure against the cost of the students' labels, and against their training time."""
    axes = (
        ("tokens", "teacher tokens behind its labels"),
        ("calls", "teacher calls behind its labels"),
        ("price", f"price of its labels, {CURRENCY}"),
        ("seconds", "seconds of training"),
    )
    figures = []
    drawn: list[list[float]] = []
    for what, label in axes:
        known = [
            (row, float(x)) for row, own in _with_cost(board, cost) if (x := getattr(own, what)) is not None
        ]
        across = [x for _, x in known]
        if _says_something(across) and not any(_proportional(across, other) for other in drawn):
            drawn.append(across)
            unit = CURRENCY if what == "price" else what
            figures.append(
                _scatter(board, f"{key}-{what}", f"{board.headline} against {label}", known, label, unit)
            )
    return figures


def _says_something(across: Sequence[float]) -> bool:
    """Tell whether costs differ: a plot over one cost is a column of marks that the leaderboard has already."""
    return bool(across) and max(across) - min(across) > LEAST_SPREAD * max(across)


def _proportional(one: Sequence[float], other: Sequence[float]) -> bool:
    """Tell whether two plots would be the same but for the axis's unit, as tokens and calls often are."""
    if len(one) != len(other):
        return False
    a, b = np.array(one) / max(one), np.array(other) / max(other)
    return bool(np.allclose(a, b, atol=LEAST_SPREAD))


def of_teachers(con: duckdb.DuckDBPyConnection, board: Board, key: str) -> list[Figure]:
    """Plot the headline measure of teachers against their tokens per query."""
    tokens = dict(
        con.execute(
            """SELECT labeling, (coalesce(tokens_in, 0) + coalesce(tokens_out, 0)) / lists FROM labeling_quality
               WHERE dataset = ? AND lists > 0 AND calls > 0""",
            [board.of.name],
        ).fetchall()
    )
    known = [(row, float(tokens[row.name])) for row in board.of_kind("teacher") if row.name in tokens]
    if not _says_something([x for _, x in known]):
        return []
    title = f"{board.headline} of the teachers themselves"
    return [_scatter(board, f"{key}-teachers", title, known, "tokens per query", "tokens a query")]


def by_labels(board: Board, cost: dict[str, Cost], recipes: dict[str, str], key: str) -> list[Figure]:
    """Plot quality against the number and cost of labels, if students of one recipe learnt from several sizes.

    Students of one size (seeds) are one point, their mean.
    """
    figures = []
    for what, label in (("lists", "labelled lists"), ("tokens", "teacher tokens")):
        families: dict[str, dict[float, list[float]]] = {}
        for row, own in _with_cost(board, cost, kinds=("student",)):
            x = getattr(own, what)
            if own.lists and x and row.system.student in recipes:
                family = f"{recipes[row.system.student]}, over {row.system.first_stage}"
                families.setdefault(family, {}).setdefault(float(x), []).append(
                    row.values[board.headline].mean
                )
        series = [
            Line(
                family, f"s{n}", tuple((x, float(np.mean(by_size[x]))) for x in sorted(by_size)), marks=True, unit=label
            )
            for n, (family, by_size) in enumerate(
                [(f, sizes) for f, sizes in sorted(families.items()) if len(sizes) > 1][: plots.COLOURS]
            )
        ]  # fmt: skip
        if series:
            title = f"{board.headline} by {label}"
            about = "Students of one recipe that learnt from more and from fewer labels; those that differ by seed as their mean."
            figures.append(
                plots.lines(f"{key}-by-{what}", title, about, series, label, board.headline, linear=False)
            )
    return figures


def _with_cost(
    board: Board, cost: dict[str, Cost], kinds: tuple[str, ...] = ("student", "fused")
) -> list[tuple[Row, Cost]]:
    return [
        (row, cost[row.system.student])
        for row in board.of_kind(*kinds)
        if row.system.student in cost and board.headline in row.values
    ]


def _scatter(
    board: Board, key: str, title: str, known: Sequence[tuple[Row, float]], label: str, unit: str
) -> Figure:
    points = []
    for row, x in known[:MAX_MARKS]:
        value = row.values[board.headline]
        says = (
            f"{row.name} over {row.system.first_stage}: {board.headline} {value.mean:.3f}"
            f" [{value.low:.3f}, {value.high:.3f}], {short(x)} {unit}"
        )
        points.append(
            Point(str(row.number), row.name, row.system.kind, x, value.mean, value.low, value.high, says)
        )
    over = {row.system.first_stage for row, _ in known}
    bases = [
        Point(str(row.number), row.name, "first_stage", 0.0, v.mean, v.mean, v.mean, "")
        for row in board.of_kind("first_stage")
        if row.name in over and (v := row.values[board.headline])
    ]
    about = f"The best {MAX_MARKS} of {len(known)} systems." if len(known) > MAX_MARKS else ""
    return plots.scatter(key, title, about, points, label, board.headline, bases)
