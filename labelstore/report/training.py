"""Training: learning curves by objective and loss, and quality against labels and time."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

import duckdb

from labelstore.report import plots
from labelstore.report.boards import Board, Row
from labelstore.report.plots import Figure, Line, Point
from labelstore.report.svg import short

MAX_LINES = plots.COLOURS  # lines in one plot
MAX_POINTS = 300  # of a line; more are thinned evenly, the first and the last stay


@dataclass(frozen=True)
class Cost:
    """What a student took to make.

    Attributes:
        lists: labelled lists that it learnt from; tokens, calls and price are theirs: the labeling's mean per list.
        seconds: of training, all stages.
    """

    lists: int
    calls: float
    tokens: float
    price: float | None  # None: a labeling of unknown price
    seconds: float


# ------------------------------------------------------------------------------------------------- learning curves
def curves(con: duckdb.DuckDBPyConnection, students: Sequence[str]) -> tuple[list[Figure], list[str]]:
    """A plot for each objective's loss and each validation measure; and what was left out.

    Args:
        students: names, the most interesting first: a plot holds eight lines.
    """
    stages = _stages(con)
    logs = _logs(con)
    figures: list[Figure] = []
    notes: list[str] = []
    for (objective, loss), members in sorted(_by_objective(stages).items()):
        for measure in ("loss", *_validation(logs, members)):
            lines, left = _lines(logs, members, measure, students)
            if not lines:
                continue
            title = (
                f"{objective} by {loss}: {'training' if measure == 'loss' else 'validation'} {_name(measure)}"
            )
            if left:
                notes.append(f"{title}: {left} more trainings are left out")
            figures.append(
                plots.lines(f"curve-{len(figures)}", title, "", lines, "pairs seen", _name(measure))
            )
    return figures, notes


def _name(measure: str) -> str:
    return measure.removeprefix("valid_").replace("_", " ").replace("tau", "Kendall's τ")


def _stages(con: duckdb.DuckDBPyConnection) -> list[tuple[str, int, int, str, str, str]]:
    """(student, its key, stage, objective, loss, hash of the weights it ended with)."""
    return con.execute(
        """SELECT s.name, s.student, g.stage, g.objective, g.loss, g.weights_hash
           FROM stages g JOIN students s USING (student) ORDER BY s.student, g.stage"""
    ).fetchall()


def _logs(con: duckdb.DuckDBPyConnection) -> dict[tuple[int, int, str], list[tuple[float, float]]]:
    logs: dict[tuple[int, int, str], list[tuple[float, float]]] = {}
    for student, stage, measure, pairs, value in con.execute(
        """SELECT student, stage, measure, pairs, value FROM training_log
           WHERE isfinite(value) AND (measure = 'loss' OR measure LIKE 'valid%') ORDER BY student, stage, measure, step"""
    ).fetchall():
        logs.setdefault((student, stage, measure), []).append((float(pairs), value))
    return logs


def _by_objective(
    stages: Sequence[tuple[str, int, int, str, str, str]],
) -> dict[tuple[str, str], list[tuple[str, int, int, str]]]:
    found: dict[tuple[str, str], list[tuple[str, int, int, str]]] = {}
    for name, key, stage, objective, loss, weights_hash in stages:
        found.setdefault((objective, loss), []).append((name, key, stage, weights_hash))
    return found


def _validation(
    logs: dict[tuple[int, int, str], list[tuple[float, float]]], members: Sequence[tuple[str, int, int, str]]
) -> list[str]:
    places = {(key, stage) for _, key, stage, _ in members}
    found = {m for student, stage, m in logs if (student, stage) in places and m.startswith("valid")}
    return sorted(found - {"valid_spread"}, key=lambda m: (m != "valid_loss", m))


def _lines(
    logs: dict[tuple[int, int, str], list[tuple[float, float]]],
    members: Sequence[tuple[str, int, int, str]],
    measure: str,
    students: Sequence[str],
) -> tuple[list[Line], int]:
    """One line per training; a stage that several students share is one line under all their names."""
    place = {name: n for n, name in enumerate(students)}
    shared: dict[str, list[tuple[str, int, int]]] = {}
    for name, key, stage, weights_hash in sorted(members, key=lambda m: (place.get(m[0], len(place)), m[0])):
        if (key, stage, measure) in logs:
            shared.setdefault(weights_hash, []).append((name, key, stage))
    lines = []
    for n, group in enumerate(list(shared.values())[:MAX_LINES]):
        _, key, stage = group[0]
        name = ", ".join(f"{student}{f' (stage {s})' if s > 1 else ''}" for student, _, s in group)
        lines.append(Line(name, f"s{n}", thinned(logs[key, stage, measure]), unit="pairs"))
    return lines, max(0, len(shared) - MAX_LINES)


def thinned(points: Sequence[tuple[float, float]], most: int = MAX_POINTS) -> tuple[tuple[float, float], ...]:
    """At most so many of the points, evenly, the first and the last among them."""
    if len(points) <= most:
        return tuple(points)
    step = (len(points) - 1) / (most - 1)
    return tuple(points[round(k * step)] for k in range(most))


# ------------------------------------------------------------------------------------------------- quality and cost
def costs(con: duckdb.DuckDBPyConnection) -> dict[str, Cost]:
    """Each student's cost. Lists that two of its stages share are paid for once."""
    seconds = dict(
        con.execute(
            "SELECT s.name, sum(g.seconds) FROM stages g JOIN students s USING (student) GROUP BY 1"
        ).fetchall()
    )
    made = {name: Cost(0, 0.0, 0.0, 0.0, total) for name, total in seconds.items()}
    for name, lists, held, calls, tokens, price, n_labelings, n_priced in con.execute(
        """WITH used AS (
               SELECT DISTINCT s.name AS student, g.view, list_sort(list(DISTINCT vs.source)) AS labelings
               FROM stages g JOIN students s USING (student) JOIN view_sources vs ON vs.view = g.view AND vs.kind = 'labeling'
               GROUP BY s.name, g.stage, g.view
           ), sources AS (
               SELECT u.student, u.labelings, max(v.n_lists) AS n_lists FROM used u JOIN views v USING (view) GROUP BY ALL
           ), paid AS (
               SELECT l.labeling, q.lists, q.calls, coalesce(q.tokens_in, 0) + coalesce(q.tokens_out, 0) AS tokens, q.cost
               FROM labelings l JOIN labeling_quality q ON q.labeling = l.name
           )
           SELECT s.student, any_value(s.n_lists), sum(p.lists), sum(p.calls), sum(p.tokens), sum(p.cost), count(*), count(p.cost)
           FROM sources s JOIN paid p ON list_contains(s.labelings, p.labeling) GROUP BY s.student, s.labelings"""
    ).fetchall():
        before = made.get(name)
        if before is None or not held:
            continue
        share = min(1.0, lists / held)
        known = before.price is not None and n_priced == n_labelings
        made[name] = Cost(
            before.lists + lists,
            before.calls + share * calls,
            before.tokens + share * tokens,
            (before.price or 0.0) + share * price if known else None,
            before.seconds,
        )
    return made


def effectiveness(board: Board, cost: dict[str, Cost], key: str) -> list[Figure]:
    """The headline measure against what the students' labels cost, and against their training time."""
    axes = (
        ("tokens", "teacher tokens behind its labels", [(r, c.tokens) for r, c in _with_cost(board, cost)]),
        ("calls", "teacher calls behind its labels", [(r, c.calls) for r, c in _with_cost(board, cost)]),
        ("price", "price of its labels", [(r, c.price) for r, c in _with_cost(board, cost)]),
        ("seconds", "seconds of training", [(r, c.seconds) for r, c in _with_cost(board, cost)]),
    )  # fmt: skip
    figures = []
    for what, label, pairs in axes:
        known = [(row, x) for row, x in pairs if x is not None]
        if known and any(x > 0 for _, x in known):
            figures.append(
                _scatter(board, f"{key}-{what}", f"{board.headline} against {label}", known, label, what)
            )
    return figures


def teachers_on(con: duckdb.DuckDBPyConnection, board: Board, key: str) -> list[Figure]:
    """The headline measure of teachers against the tokens that ranking one of these queries takes them."""
    tokens = dict(
        con.execute(
            """SELECT labeling, (coalesce(tokens_in, 0) + coalesce(tokens_out, 0)) / lists FROM labeling_quality
               WHERE dataset = ? AND lists > 0 AND calls > 0""",
            [board.of.name],
        ).fetchall()
    )
    known = [(row, tokens[row.name]) for row in board.of_kind("teacher") if row.name in tokens]
    if not any(x > 0 for _, x in known):
        return []
    label = "tokens per query"
    return [
        _scatter(
            board,
            f"{key}-teachers",
            f"{board.headline} of the teachers themselves",
            known,
            label,
            "tokens a query",
        )
    ]


def by_labels(board: Board, cost: dict[str, Cost], recipes: dict[str, str], key: str) -> list[Figure]:
    """Quality against the number and the cost of labels, where students of one recipe learnt from several sizes."""
    families: dict[tuple[str, str | None], list[tuple[Cost, Row]]] = {}
    for row, own in _with_cost(board, cost, kinds=("student",)):
        if own.lists and row.system.student in recipes:
            families.setdefault((recipes[row.system.student], row.system.first_stage), []).append((own, row))
    grown = {
        f: sorted(m, key=lambda pair: pair[0].lists)
        for f, m in families.items()
        if len({c.lists for c, _ in m}) > 1
    }
    if not grown:
        return []
    figures = []
    for what, label in (("lists", "labelled lists"), ("tokens", "teacher tokens")):
        series = [
            Line(
                f"{recipe} over {stage}", f"s{n % plots.COLOURS}",
                tuple((float(getattr(c, what)), row.values[board.headline].mean) for c, row in members), marks=True, unit=label,
            )
            for n, ((recipe, stage), members) in enumerate(sorted(grown.items(), key=str)[:MAX_LINES])
        ]  # fmt: skip
        if any(x > 0 for line in series for x, _ in line.points):
            about = "Students of one recipe that learnt from more and from fewer labels."
            figures.append(
                plots.lines(
                    f"{key}-by-{what}",
                    f"{board.headline} by {label}",
                    about,
                    series,
                    label,
                    board.headline,
                    linear=False,
                )
            )
    return figures


def recipes(con: duckdb.DuckDBPyConnection) -> dict[str, str]:
    """student -> what it has in common with students that differ only in labels and seed: base, regime, losses, teachers."""
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
    for row, x in known:
        value = row.values[board.headline]
        says = (
            f"{row.name} over {row.system.first_stage}: {board.headline} {value.mean:.3f}"
            f" [{value.low:.3f}, {value.high:.3f}], {short(x)} {unit}"
        )
        points.append(
            Point(
                str(row.number), row.name, row.system.kind, float(x), value.mean, value.low, value.high, says
            )
        )
    over = {row.system.first_stage for row, _ in known}
    bases = [
        Point(str(row.number), row.name, "first_stage", 0.0, v.mean, v.mean, v.mean, "")
        for row in board.of_kind("first_stage")
        if row.name in over and (v := row.values[board.headline])
    ]
    return plots.scatter(key, title, points, label, board.headline, bases)
