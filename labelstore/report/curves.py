"""Plot learning curves by objective and loss."""

from collections.abc import Sequence

import duckdb

from labelstore.report import plots
from labelstore.report.plots import Figure, Line

MAX_LINES = plots.COLOURS  # lines in one plot
MAX_POINTS = 300  # of a line; more are thinned evenly, the first and the last stay


def curves(con: duckdb.DuckDBPyConnection, students: Sequence[str]) -> tuple[list[Figure], list[str]]:
    """Make a plot for each objective's loss and each validation measure, and note what was left out.

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
    """List (student, its key, stage, objective, loss, hash of the final weights)."""
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
    """Make a line per training; a stage that several students share is one line under all their names."""
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
    """Thin the points evenly to a maximum, with the first and the last."""
    if len(points) <= most:
        return tuple(points)
    step = (len(points) - 1) / (most - 1)
    return tuple(points[round(k * step)] for k in range(most))
