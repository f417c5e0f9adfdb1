"""Make leaderboards: each system's measures with 95 % intervals, and its difference to the first stage that it re-ranked."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import duckdb
import numpy as np

from labelstore.evaluation import comparison, significance
from labelstore.evaluation import measures as measuring
from labelstore.evaluation import scores as evaluation
from labelstore.evaluation import systems as evaluated
from labelstore.evaluation.systems import System
from labelstore.store import lookup

LEVEL = 0.95
MAX_MEASURES = 6


@dataclass(frozen=True)
class Difference:
    """A system minus the first stage that it re-ranked, over the judged queries."""

    mean: float
    low: float
    high: float
    p_value: float  # two-sided paired t-test
    p_holm: float  # corrected over all re-rankings of the dataset under this measure
    verdict: str  # better, worse, equivalent, inconclusive: `msft compare`'s rule with its default margin


@dataclass(frozen=True)
class Value:
    """A mean over queries with its 95 % t interval."""

    mean: float
    low: float
    high: float
    difference: Difference | None = None


@dataclass(frozen=True)
class Row:
    """A row of the leaderboard."""

    number: int  # its place by the first measure, from 1; plots mark it by this
    system: System
    values: dict[str, Value]
    recall: float | None  # of the candidates that were ordered: the ceiling of a re-ranking
    judged: float | None  # Judged@10

    @property
    def name(self) -> str:
        return self.system.name

    @property
    def short(self) -> str:
        """Return the name without the first stage, since the group has it."""
        return self.name.removesuffix(f"@{self.system.first_stage}")


@dataclass(frozen=True)
class Group:
    """The systems over one first stage; the first stage leads if it was measured."""

    first_stage: str | None
    rows: tuple[Row, ...]


@dataclass
class Board:
    """One dataset's systems.

    Attributes:
        measures: the first is the headline; every system of `rows` has it.
        rows: in the order of their numbers.
        queries: keys of the judged queries.
        texts: (query_id, text) of each, in the same order.
        scores: (system, measure) -> a value per query, in the order of `queries`.
        notes: what was left out, or has no value.
    """

    of: lookup.Dataset
    measures: list[str]
    queries: list[int] = field(default_factory=list)
    texts: list[tuple[str, str]] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    scores: dict[tuple[System, str], np.ndarray] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def headline(self) -> str:
        return self.measures[0]

    @property
    def groups(self) -> list[Group]:
        """Group by first stage, the best one first; systems over a missing first stage come last."""
        by_stage: dict[str | None, list[Row]] = {}
        for row in self.rows:
            by_stage.setdefault(row.system.first_stage, []).append(row)
        own = {row.system.first_stage: row.number for row in self.rows if row.system.kind == "first_stage"}
        order = sorted(by_stage, key=lambda s: (s not in own, own.get(s, 0), s or ""))
        return [
            Group(
                stage,
                tuple(sorted(by_stage[stage], key=lambda r: (r.system.kind != "first_stage", r.number))),
            )
            for stage in order
        ]

    def scores_of(self, systems: Sequence[System], measure: str) -> np.ndarray:
        """Stack the systems' values, (systems, queries)."""
        return np.stack([self.scores[system, measure] for system in systems])

    def row(self, system: System) -> Row | None:
        return next((row for row in self.rows if row.system == system), None)

    def of_kind(self, *kinds: str) -> list[Row]:
        return [row for row in self.rows if row.system.kind in kinds]


def board(con: duckdb.DuckDBPyConnection, of: lookup.Dataset, wanted: Sequence[str] = ()) -> Board:
    """Make a dataset's board from stored evaluations, without measuring.

    Args:
        wanted: canonical measures. Empty: those of the literature first, then all others that were measured.
    """
    systems = evaluated.systems(con, of)
    found, n_stale = _evaluations(con, of, systems)
    measured = {measure for _, measure in found}
    companions = {name for s in systems for name in _companions(s, measured)}
    measures = _order(of, measured, companions, wanted)
    made = Board(of, measures)
    if con.execute("SELECT count(*) FROM query_origins WHERE dataset = ?", [of.dataset]).fetchall()[0][0]:
        made.notes.append("a model wrote the queries; people did not ask them")
    if n_stale:
        made.notes.append(
            f"{n_stale} evaluations of rankings or judgments that were replaced since are left out: "
            f"msft eval --dataset {of.name} measures again"
        )
    if of.qrels_hash is None or not measured:
        return made
    judged = con.execute(
        """SELECT query, query_id, text FROM queries
           WHERE query IN (SELECT query FROM qrels WHERE dataset = ?) ORDER BY query""",
        [of.dataset],
    ).fetchall()
    made.queries = [query for query, _, _ in judged]
    made.texts = [(query_id, text) for _, query_id, text in judged]
    wanted_keys = {key: pair for pair, key in found.items() if pair[1] in {*measures, *companions}}
    scores = _scores(con, wanted_keys, made.queries)
    made.scores = {pair: values for pair, values in scores.items() if pair[1] in measures}
    made.rows = _rows(systems, measures, scores, measured)
    lacking = [s.name for s in systems if s not in {row.system for row in made.rows}]
    if lacking:
        made.notes.append(f"without {made.headline}: {', '.join(lacking)}")
    return made


def _evaluations(
    con: duckdb.DuckDBPyConnection, of: lookup.Dataset, systems: Sequence[System]
) -> tuple[dict[tuple[System, str], int], int]:
    """Read (system, measure) -> evaluation for current rankings and judgments, and count stale ones."""
    by_key = {s.key: s for s in systems}
    found, stale = {}, 0
    for key, run, labeling, run_hash, qrels_hash, measure in con.execute(
        "SELECT evaluation, run, labeling, run_hash, qrels_hash, measure FROM evaluations WHERE dataset = ? ORDER BY 1",
        [of.dataset],
    ).fetchall():
        system = by_key.get((run, labeling))
        if system is not None and (system.ranking_hash, of.qrels_hash) == (run_hash, qrels_hash):
            found[system, measure] = key
        else:
            stale += 1
    return found, stale


def _companions(system: System, measured: set[str]) -> list[str]:
    """Find Judged@10 and the recall at this system's depth, by the relevance level that was measured."""
    names = [
        n for n in measured if n.startswith("R") and n.endswith(f"@{system.depth}") and not n.startswith("RR")
    ]
    return ["Judged@10", *names]


def _order(of: lookup.Dataset, measured: set[str], companions: set[str], wanted: Sequence[str]) -> list[str]:
    if wanted:
        return list(wanted)
    usual = evaluation.default_measures(of)
    first = [m for m in usual if m in measured]
    others = sorted(measured - set(usual) - companions)
    return (first + others)[:MAX_MEASURES] or usual


def _scores(
    con: duckdb.DuckDBPyConnection, pairs: dict[int, tuple[System, str]], queries: Sequence[int]
) -> dict[tuple[System, str], np.ndarray]:
    columns = con.execute(
        """SELECT evaluation, query, value FROM query_scores
           WHERE evaluation IN (SELECT unnest(?::INTEGER[])) ORDER BY evaluation, query""",
        [list(pairs)],
    ).fetchnumpy()
    evaluations, found, values = (np.asarray(columns[name]) for name in ("evaluation", "query", "value"))
    order = np.asarray(queries)
    scores = {}
    for key in np.unique(evaluations):
        part = slice(*np.searchsorted(evaluations, [key, key + 1]))
        array = np.zeros(len(order))
        array[np.searchsorted(order, found[part])] = values[part]
        scores[pairs[int(key)]] = array
    return scores


def _rows(
    systems: Sequence[System],
    measures: Sequence[str],
    scores: dict[tuple[System, str], np.ndarray],
    measured: set[str],
) -> list[Row]:
    headline = measures[0]
    shown = [s for s in systems if (s, headline) in scores]
    shown.sort(key=lambda s: (-float(scores[s, headline].mean()), s.name))
    by_run = {s.run: s for s in systems if s.run is not None}
    values: dict[System, dict[str, Value]] = {s: {} for s in shown}
    for measure in measures:
        differences = _differences(shown, by_run, measure, scores)
        for system in shown:
            if (system, measure) in scores:
                own = scores[system, measure]
                bounds = significance.interval(own, LEVEL)
                values[system][measure] = Value(
                    float(own.mean()), bounds.low, bounds.high, differences.get(system)
                )
    return [
        Row(
            number,
            s,
            values[s],
            _mean(scores, s, _recall(s, measures, measured)),
            _mean(scores, s, "Judged@10"),
        )
        for number, s in enumerate(shown, 1)
    ]


def _differences(
    systems: Sequence[System],
    by_run: dict[int, System],
    measure: str,
    scores: dict[tuple[System, str], np.ndarray],
) -> dict[System, Difference]:
    pairs = {
        s: base
        for s in systems
        if s.source_run is not None
        and (base := by_run.get(s.source_run)) is not None
        and (s, measure) in scores
        and (base, measure) in scores
    }
    tests = {
        s: significance.paired_t(scores[s, measure], scores[b, measure]).p_value for s, b in pairs.items()
    }
    corrected = dict(zip(tests, significance.holm(list(tests.values())), strict=True)) if tests else {}
    return {
        system: _difference(scores[system, measure] - scores[base, measure], tests[system], corrected[system])
        for system, base in pairs.items()
    }


def _difference(values: np.ndarray, p_value: float, p_holm: float) -> Difference:
    mean = float(values.mean())
    bounds, narrow = significance.interval(values, LEVEL), significance.interval(values, 0.9)
    judged = {
        "margin": comparison.MARGIN,
        "ci90_low": narrow.low,
        "ci90_high": narrow.high,
        "p_holm": p_holm,
        "difference": mean,
    }
    return Difference(mean, bounds.low, bounds.high, p_value, p_holm, comparison.verdict(judged))


def _recall(system: System, measures: Sequence[str], measured: set[str]) -> str:
    """Find the recall that `eval` measured for this system, at its depth and the measures' relevance level."""
    level = measuring.relevance_level(measures)
    names = [evaluation.companions(system, level)[1], *sorted(_companions(system, measured)[1:])]
    return next((name for name in names if name in measured), names[0])


def _mean(scores: dict[tuple[System, str], np.ndarray], system: System, measure: str) -> float | None:
    found = scores.get((system, measure))
    value = float(found.mean()) if found is not None else math.nan
    return value if math.isfinite(value) else None
