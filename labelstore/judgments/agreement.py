"""Tell how far an LLM judge can be believed: its grades against people's, and the systems' order under both."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import duckdb
import numpy as np

from labelstore.errors import DataMissing
from labelstore.evaluation import measures as measuring
from labelstore.evaluation import systems as evaluated
from labelstore.evaluation.measures import Scores
from labelstore.evaluation.scores import default_measures
from labelstore.judgments import statistics
from labelstore.judgments.statistics import Estimate
from labelstore.store import lookup
from msft.rankings import kendall_tau

GRADES = range(4)
Row = dict[str, Any]
Pairs = list[tuple[int, int, int, int]]  # query, document, human grade, the judge's


@dataclass(frozen=True)
class Agreement:
    """The comparison, as flat rows of what, of, value, low, high, n; and what has to be said about it."""

    judging: lookup.Judging
    dataset: str
    rows: list[Row]
    warnings: list[str]


def agreement(
    con: duckdb.DuckDBPyConnection, name: str, *, human: str | None = None, measure: str | None = None
) -> Agreement:
    """Compare a judging with human judgments of the same pairs.

    Args:
        human: the dataset with the human judgments, over the same collection; by default the judging's.
        measure: by which systems are ordered; by default the dataset's first.

    Raises:
        DataMissing: no pair was judged by both.
    """
    judging = lookup.judging(con, name)
    of = _dataset(con, judging.dataset)
    by_people = lookup.dataset(con, human) if human is not None else of
    pairs = _pairs(con, judging, by_people)
    if not pairs:
        raise DataMissing(
            f"no pair of the judging {name} has a human judgment in {by_people.name}",
            hint=f"msft teachers judge without --unjudged, or judge a sample by hand: msft data sheet {of.name} --judged",
        )
    chosen = measuring.canonical(measure) if measure is not None else default_measures(of)[0]
    rows = [*_grades(pairs), *_by_system(con, of, judging, pairs)]
    ordered, warnings = _systems(con, of, judging, by_people, chosen)
    rows += ordered
    bias = statistics.mean([judge - person for *_, person, judge in pairs])
    if bias.low > 0:
        warnings.insert(
            0,
            f"the judge over-rates: {bias.value:+.2f} grades on average [{bias.low:+.2f}, {bias.high:+.2f}]",
        )
    return Agreement(judging, of.name, rows, warnings)


def calibrated(
    con: duckdb.DuckDBPyConnection, name: str, human: str, measures: Sequence[str] = ()
) -> list[Row]:
    """Estimate what people would find on all queries that a judge saw, from those that people judged (flat rows).

    Args:
        human: the dataset with the human judgments, over the same collection.
        measures: by default the dataset's.

    Raises:
        DataMissing: fewer than two queries were judged by both.
    """
    judging = lookup.judging(con, name)
    of, by_people = _dataset(con, judging.dataset), lookup.dataset(con, human)
    people, judge = evaluated.qrels(con, by_people), evaluated.qrels(con, of, name)
    both, only = _shared(people, judge)
    if len(both) < 2:
        raise DataMissing(
            f"{len(both)} queries of {human} are judged by {name} too: expected at least 2",
            hint=f"judge more of them by hand: msft data sheet {of.name}",
        )
    chosen = [measuring.canonical(measure) for measure in measures] or default_measures(of)
    rows = []
    for system in evaluated.systems(con, of):
        ranked = evaluated.ranking(con, system)
        by_hand, by_machine = (
            measuring.per_query(ranked, people, chosen),
            measuring.per_query(ranked, judge, chosen),
        )
        for measure in chosen:
            found = _calibrated(by_hand[measure], by_machine[measure], both, only)
            rows.append(
                {
                    "dataset": of.name,
                    "system": system.name,
                    "kind": system.kind,
                    "first_stage": system.first_stage,
                    "measure": measure,
                    "value": found.value,
                    "low": None if found.low != found.low else found.low,
                    "high": None if found.high != found.high else found.high,
                    "n_queries": found.n,
                    "n_human": len(both),
                    "judge": f"{name} calibrated on {human}",
                }
            )
    return rows


def _shared(people: evaluated.Qrels, judge: evaluated.Qrels) -> tuple[list[int], list[int]]:
    """Return the queries that both judged, and those of the judge alone."""
    return sorted(people.judged.keys() & judge.judged.keys()), sorted(
        judge.judged.keys() - people.judged.keys()
    )


def _calibrated(people: Scores, judge: Scores, both: Sequence[int], only: Sequence[int]) -> Estimate:
    return statistics.calibrated(_array(people, both), _array(judge, both), _array(judge, only))


def _dataset(con: duckdb.DuckDBPyConnection, key: int) -> lookup.Dataset:
    ((name,),) = con.execute("SELECT name FROM datasets WHERE dataset = ?", [key]).fetchall()
    return lookup.dataset(con, name)


def _pairs(con: duckdb.DuckDBPyConnection, judging: lookup.Judging, human: lookup.Dataset) -> Pairs:
    """Read what both judged; human grades outside the judge's scale count as its nearest grade."""
    return con.execute(
        """SELECT g.query, g.document, greatest(0, least(3, r.relevance)), g.grade FROM llm_judgments g
           JOIN qrels r ON r.dataset = ? AND r.query = g.query AND r.document = g.document
           WHERE g.judging = ? AND g.grade IS NOT NULL ORDER BY g.query, g.document""",
        [human.dataset, judging.judging],
    ).fetchall()


def row(
    what: str,
    of: str | None,
    value: float | None,
    low: float | None = None,
    high: float | None = None,
    n: int | None = None,
) -> Row:
    """Make a flat row; NaN becomes None."""

    def known(number: float | None) -> float | None:
        return None if number is None or number != number else number

    return {"what": what, "of": of, "value": known(value), "low": known(low), "high": known(high), "n": n}


def _estimate(what: str, of: str | None, found: Estimate) -> Row:
    return row(what, of, found.value, found.low, found.high, found.n)


def _grades(pairs: Pairs) -> list[Row]:
    """Compare grade by grade: agreement, kappas, confusion matrix, bias."""
    human, judge = [pair[2] for pair in pairs], [pair[3] for pair in pairs]
    table = statistics.confusion(human, judge, GRADES)
    n = len(pairs)
    rows = [
        row("same grade", None, float(table.trace()) / n, n=n),
        _estimate("kappa", None, statistics.kappa(table)),
        _estimate("kappa", "linear weights", statistics.kappa(table, "linear")),
        _estimate("kappa", "quadratic weights", statistics.kappa(table, "quadratic")),
    ]
    rows += [
        row(
            "confusion",
            f"human {person}, judge {other}",
            int(table[person, other]),
            n=int(table[person].sum()),
        )
        for person in GRADES
        for other in GRADES
    ]
    rows.append(_estimate("bias", "all", statistics.mean([b - a for a, b in zip(human, judge, strict=True)])))
    for grade in GRADES:
        differences = [b - a for a, b in zip(human, judge, strict=True) if a == grade]
        if differences:
            rows.append(_estimate("bias", f"human grade {grade}", statistics.mean(differences)))
    return rows


def _by_system(
    con: duckdb.DuckDBPyConnection, of: lookup.Dataset, judging: lookup.Judging, pairs: Pairs
) -> list[Row]:
    """Compare per pooled run: a judge may favour one kind of system."""
    depth = judging.parameters.get("depth", 10)
    differences = {(query, document): judge - person for query, document, person, judge in pairs}
    rows = []
    for run in lookup.runs(con, of):
        shown = con.execute(
            "SELECT query, document FROM candidates WHERE run = ? AND rank <= ?", [run.run, depth]
        ).fetchall()
        found = [differences[pair] for pair in shown if pair in differences]
        if found:
            rows.append(_estimate("bias of system", run.name, statistics.mean(found)))
    return rows


def _systems(
    con: duckdb.DuckDBPyConnection,
    of: lookup.Dataset,
    judging: lookup.Judging,
    human: lookup.Dataset,
    measure: str,
) -> tuple[list[Row], list[str]]:
    """Order the systems under people and under the judge, and estimate the human values over all judged queries."""
    by_people, by_judge = evaluated.qrels(con, human), evaluated.qrels(con, of, judging.name)
    both, only = _shared(by_people, by_judge)
    rows, values, warnings = [], [], []
    for system in evaluated.systems(con, of):
        ranked = evaluated.ranking(con, system)
        people = measuring.per_query(ranked, by_people, [measure])[measure]
        judge = measuring.per_query(ranked, by_judge, [measure])[measure]
        one, other = _mean(people, both), _mean(judge, both)
        values.append((one, other))
        rows += [
            row(f"{measure} by people", system.name, one, n=len(both)),
            row(f"{measure} by the judge", system.name, other, n=len(both)),
            _estimate(
                f"{measure} calibrated",
                system.name,
                _calibrated(people, judge, both, only),
            ),
        ]
        if system.kind == "teacher" and _same_teacher(con, judging, system):
            warnings.append(
                f"the judge's own ranking {system.name} is among the systems: judges favour themselves"
            )
    if len(values) > 1:
        tau = kendall_tau([one for one, _ in values], [other for _, other in values])
        rows.append(row("tau of systems", measure, tau, n=len(values)))
    return rows, warnings


def _mean(values: Scores, queries: Sequence[int]) -> float:
    return float(_array(values, queries).mean()) if queries else float("nan")


def _array(values: Scores, queries: Sequence[int]) -> statistics.Values:
    return np.array([values[query] for query in queries], dtype=np.float64)


def _same_teacher(con: duckdb.DuckDBPyConnection, judging: lookup.Judging, system: evaluated.System) -> bool:
    """Tell whether a labeling was made by the judge's model."""
    found = con.execute(
        """SELECT 1 FROM labelings l JOIN teachers t USING (teacher), teachers j
           WHERE l.labeling = ? AND j.teacher = ? AND t.model IS NOT DISTINCT FROM j.model""",
        [system.labeling, judging.teacher],
    ).fetchall()
    return bool(found)
