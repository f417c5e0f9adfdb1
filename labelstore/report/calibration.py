"""Plot how reliable calibrated probabilities are: predicted probability against the observed share of relevant passages."""

from dataclasses import dataclass

import duckdb

from labelstore.evaluation import calibration
from labelstore.report import plots
from labelstore.report.plots import Figure, Line
from labelstore.store import keys

MAX_STUDENTS = 8


@dataclass(frozen=True)
class Calibrated:
    """A student's calibration with its plot."""

    name: str
    method: str
    dataset: str
    run: str
    n_queries: int
    n_pairs: int
    ece_before: float
    ece: float
    none_below: float | None
    none_precision: float
    figure: Figure


def of_students(con: duckdb.DuckDBPyConnection) -> tuple[list[Calibrated], int]:
    """Collect the calibrations, by student, and count those left out."""
    found = calibration.of_all(con)
    chosen = list(found.items())[:MAX_STUDENTS]
    return [
        Calibrated(
            name, own.map.method, own.dataset, own.run, own.n_queries, own.n_pairs, own.ece_before, own.ece,
            own.none_below, own.none_precision, _figure(name, own),
        )
        for name, own in chosen
    ], len(found) - len(chosen)  # fmt: skip


def _figure(name: str, own: calibration.Stored) -> Figure:
    points = {
        what: tuple((float(predicted), float(observed)) for predicted, observed, _ in bins)
        for what, bins in own.bins.items()
    }
    highest = max((max(pair) for pairs in points.values() for pair in pairs), default=1.0)
    series = [
        Line("perfect", "s6", ((0.0, 0.0), (highest, highest)), marks=True),
        Line(f"calibrated ({own.map.method})", "s0", points.get("after", ()), marks=True),
        Line("sigmoid of the logit", "s1", points.get("before", ()), marks=True),
    ]
    return plots.lines(
        f"calibration-{keys.content_key('figure', name)[:8]}",
        f"Reliability of {name}",
        "Each mark is a tenth of the pairs of queries that the map was not fitted on.",
        [line for line in series if line.points],
        "predicted probability",
        "share that is relevant",
        bounds=(0.0, highest),
    )
