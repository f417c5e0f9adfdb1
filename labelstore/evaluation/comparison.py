"""Compare systems: paired tests, equivalence, effect sizes, corrections, and a verdict for each pair.

The verdict is *equivalent* if the 90 % interval of the mean difference lies within ± margin; otherwise *better* or *worse*
if the corrected p-value is below .05; otherwise *inconclusive*. docs/explanation/statistics.md explains every column.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import duckdb
import numpy as np

from labelstore.errors import DataMissing, UsageError
from labelstore.evaluation import measures as measuring
from labelstore.evaluation import scores as evaluation
from labelstore.evaluation import seed_groups, significance, systems
from labelstore.evaluation.seed_groups import SeedGroup
from labelstore.store import lookup
from labelstore.store.label_store import LabelStore

Row = dict[str, Any]
Note = Callable[[str], None]
Pair = tuple[str, str]  # (system, baseline), by name

MARGIN = 0.01
CORRECTIONS = {"holm": "p_holm", "bh": "p_bh"}
FAMILIES = ("dataset", "all")
ENOUGH_SEEDS = 5  # fewer say little about the next seed


@dataclass(frozen=True)
class Selection:
    """How rankings are selected.

    Attributes:
        each_seed: treat students that differ only in their seed as separate systems.
        exclude_self: see :func:`labelstore.evaluation.scores.scores`.
    """

    each_seed: bool = False
    exclude_self: bool = False


@dataclass(frozen=True)
class Board:
    """The scores over one dataset, or over several that are pooled.

    Attributes:
        name: the dataset's, or ``dl19+dl20``.
        values: group -> measure -> (seeds, queries), every group over the same queries in one order.
        n_missing: group -> judged queries that it did not rank; they score 0.
    """

    name: str
    groups: tuple[SeedGroup, ...]
    measures: tuple[str, ...]
    values: dict[str, dict[str, np.ndarray]]
    n_missing: dict[str, int]

    def mean(self, name: str, measure: str) -> float:
        return float(self.values[name][measure].mean())


def compare(
    store: LabelStore,
    names: Sequence[str] | None = None,
    datasets: Sequence[str] = (),
    *,
    measures: Sequence[str] | None = None,
    baseline: str | None = None,
    all_pairs: bool = False,
    pooled: bool = False,
    margin: float = MARGIN,
    correction: str = "holm",
    family: str = "dataset",
    selection: Selection = Selection(),
    note: Note | None = None,
) -> list[Row]:
    """Compare systems over datasets: a row for each pair, measure and dataset.

    Args:
        names: systems, see :func:`labelstore.evaluation.seed_groups.find`. None: every one.
        datasets: names; by default the only one.
        measures: ir-measures names. None: each dataset's headline measure.
        baseline: the system that the others are compared with. None: the first name; without names the only first stage.
        all_pairs: compare every two systems.
        pooled: pool the datasets' queries into one set; a shared topic counts once, in the first dataset.
        margin: of equivalence, in the measure's units; declare it before you see the results.
        correction: holm or bh; the p-value that decides *better* and *worse*.
        family: the pairs that are corrected together: the pairs of one dataset and measure, or ``all`` of them.

    Raises:
        DataMissing: a name, judgments or a ranking is not found.
        UsageError: an option has a wrong value, or there are fewer than two systems.
    """
    _check(margin, correction, family)
    if all_pairs and baseline is not None:
        raise UsageError(
            "--all compares every two systems",
            hint="leave --all out, or leave --baseline out",
        )
    if not datasets:
        with store.read() as con:
            datasets = [lookup.pick_dataset(con, None).name]
        if note is not None:
            note(f"dataset {datasets[0]}, the only one")
    wanted = None if names is None else list(dict.fromkeys([*([baseline] if baseline else []), *names]))
    boards = [
        measure_systems(store, name, wanted, measures, selection=selection, note=note) for name in datasets
    ]
    if pooled:
        boards = [pool(store, boards, note)]
    rows: list[Row] = []
    for board in boards:
        pairs = _pairs(board, names, baseline, all_pairs)
        rows += [_row(board, measure, pair, margin) for measure in board.measures for pair in pairs]
        _say_seeds(board, note)
    return judge(rows, correction, family)


def compare_pairs(board: Board, pairs: Sequence[Pair], *, margin: float = MARGIN) -> list[Row]:
    """Compare chosen pairs over one board, corrected together for each measure by Holm's method."""
    _check(margin, "holm", "dataset")
    rows = [_row(board, measure, pair, margin) for measure in board.measures for pair in pairs]
    return judge(rows, "holm", "dataset")


def _check(margin: float, correction: str, family: str) -> None:
    if not (math.isfinite(margin) and margin > 0):
        raise UsageError(
            f"--margin {margin}: a positive difference, in the measure's units", hint="--margin 0.01"
        )
    if correction not in CORRECTIONS:
        raise UsageError(f"--correction {correction}", hint=f"--correction {' | '.join(CORRECTIONS)}")
    if family not in FAMILIES:
        raise UsageError(f"--family {family}", hint=f"--family {' | '.join(FAMILIES)}")


# ------------------------------------------------------------------------------------------------------- measuring
def measure_systems(
    store: LabelStore,
    dataset: str,
    names: Sequence[str] | None,
    measures: Sequence[str] | None = None,
    *,
    selection: Selection = Selection(),
    note: Note | None = None,
) -> Board:
    """Collect per-query scores of systems over a dataset; missing scores are measured and stored."""
    with store.read() as con:
        of = lookup.dataset(con, dataset)
        judged = sorted(systems.qrels(con, of).judged)
        found = seed_groups.find(con, of, names, each_seed=selection.each_seed)
        chosen = (
            [measuring.canonical(m) for m in dict.fromkeys(measures)]
            if measures
            else evaluation.default_measures(of)[:1]
        )
        n_missing = {c.name: max(evaluation.n_missing(con, of, s) for s in c.systems) for c in found}
    if not found:
        raise DataMissing(f"nothing has ranked {of.name} yet", hint=f"msft eval --dataset {of.name}")
    scored = evaluation.scores(
        store,
        of,
        [s for c in found for s in c.systems],
        chosen,
        systems.Basis(exclude_self=selection.exclude_self),
    )
    values = {
        c.name: {m: np.array([[scored[s, m][q] for q in judged] for s in c.systems]) for m in chosen}
        for c in found
    }
    for name, n in n_missing.items():
        if n and note:
            note(f"{of.name}: {name} lacks {n} of {len(judged)} judged queries; they score 0")
    return Board(of.name, tuple(found), tuple(chosen), values, n_missing)


def pool(store: LabelStore, boards: Sequence[Board], note: Note | None = None) -> Board:
    """Pool several boards; a query whose normalised text an earlier board has is left out.

    Raises:
        UsageError: there are fewer than two datasets, or their measures differ.
        DataMissing: a dataset lacks a system.
    """
    if len(boards) < 2:
        raise UsageError(
            "--pooled needs at least two datasets", hint="--dataset dl19 --dataset dl20 --pooled"
        )
    first = boards[0]
    if any(board.measures != first.measures for board in boards):
        raise UsageError("the datasets' headline measures differ", hint=f"--measure {first.measures[0]}")
    names = [c.name for c in first.groups]
    for board in boards[1:]:
        if lacking := sorted(set(names) ^ board.values.keys()):
            raise DataMissing(
                f"{', '.join(lacking)}: not over both {first.name} and {board.name}",
                hint=f"msft eval --dataset {first.name} --dataset {board.name}, or name the systems that both have",
            )
    keep = _first_of_each_topic(store, [board.name for board in boards], note)
    values = {
        name: {
            m: np.concatenate([s.values[name][m][:, k] for s, k in zip(boards, keep, strict=True)], axis=1)
            for m in first.measures
        }
        for name in names
    }
    missing = {name: sum(board.n_missing[name] for board in boards) for name in names}
    return Board("+".join(s.name for s in boards), first.groups, first.measures, values, missing)


def _first_of_each_topic(store: LabelStore, datasets: Sequence[str], note: Note | None) -> list[np.ndarray]:
    """Mark, for each dataset, the judged queries (in key order) whose text no earlier dataset has."""
    seen: set[int] = set()
    keep = []
    for name in datasets:
        with store.read() as con:
            hashes = _topic_hashes(con, lookup.dataset(con, name))
        mask = np.array([h not in seen for h in hashes])
        shared = int((~mask).sum())
        if shared and note:
            note(
                f"{name}: {shared} of {len(hashes)} topics stand in an earlier dataset and count there alone"
            )
        seen.update(hashes)
        keep.append(mask)
    return keep


def _topic_hashes(con: duckdb.DuckDBPyConnection, of: lookup.Dataset) -> list[int]:
    found = con.execute(
        """SELECT normal_hash FROM queries WHERE query IN (SELECT query FROM qrels WHERE dataset = ?)
           ORDER BY query""",
        [of.dataset],
    ).fetchall()
    return [h for (h,) in found]


# ----------------------------------------------------------------------------------------------------------- pairs
def _pairs(board: Board, names: Sequence[str] | None, baseline: str | None, all_pairs: bool) -> list[Pair]:
    """List the pairs (system, baseline); the baseline is the earlier name, or without names the weaker system."""
    order = [c.name for c in board.groups]
    if names is None:
        order.sort(key=lambda name: (board.mean(name, board.measures[0]), name))
    if len(order) < 2:
        raise UsageError(
            f"a comparison needs two systems over {board.name}: there is {', '.join(order)}",
            hint="name two: msft compare A B; with --each-seed, trainings that differ only in their seed are separate systems",
        )
    if all_pairs:
        return [(order[j], order[i]) for i in range(len(order)) for j in range(i + 1, len(order))]
    chosen = _baseline(board, names, baseline)
    return [(name, chosen) for name in order if name != chosen]


def _baseline(board: Board, names: Sequence[str] | None, baseline: str | None) -> str:
    """Find the baseline."""
    if names is not None:
        return board.groups[0].name  # a baseline that was named stands first
    if baseline is not None:
        names_of = {c.name: {c.name, *(s.name for s in c.systems)} for c in board.groups}
        found = [c for c, own in names_of.items() if any(fnmatchcase(name, baseline) for name in own)]
        exact = [c for c, own in names_of.items() if baseline in own]
        if len(exact or found) != 1:
            raise lookup.missing(
                f"single system over {board.name}",
                baseline,
                list(board.values),
                f"msft runs list --dataset {board.name}",
            )
        return (exact or found)[0]
    first_stages = [c.name for c in board.groups if c.systems[0].kind == "first_stage"]
    if len(first_stages) == 1:
        return first_stages[0]
    raise UsageError(
        f"no baseline among {len(board.groups)} systems over {board.name}",
        hint=f"--baseline {' | '.join(first_stages[:8]) or 'NAME'}, or --all for every pair",
    )


def _row(board: Board, measure: str, pair: Pair, margin: float) -> Row:
    """Compute the statistics of a pair, except corrected p-values and the verdict, which depend on the family."""
    system, baseline = pair
    a, b = (board.values[name][measure] for name in pair)
    seeds = {c.name: c.seeds for c in board.groups}
    mean_a, mean_b = a.mean(axis=0), b.mean(axis=0)
    difference = mean_a - mean_b
    wins, ties, losses = significance.wins_ties_losses(difference)
    return {
        "dataset": board.name,
        "measure": measure,
        "system": system,
        "baseline": baseline,
        "value": float(mean_a.mean()),
        "baseline_value": float(mean_b.mean()),
        "difference": float(difference.mean()),
        **_inference(a, b, margin, _resampled(seeds[system], seeds[baseline])),
        "p_randomisation": significance.randomisation(mean_a, mean_b).p_value,
        "effect_size": significance.effect_size(difference),
        "hedges_g": significance.hedges_g(difference),
        "wins": wins,
        "ties": ties,
        "losses": losses,
        "n_queries": len(difference),
        "n_missing": board.n_missing[system],
        "baseline_missing": board.n_missing[baseline],
        "seeds": seeds[system],
        "baseline_seeds": seeds[baseline],
    }


def _inference(a: np.ndarray, b: np.ndarray, margin: float, resampled: bool) -> Row:
    """Compute intervals, p-values and power: over queries by t, or over seeds and queries by resampling both."""
    mean_a, mean_b = a.mean(axis=0), b.mean(axis=0)
    difference = mean_a - mean_b
    if resampled:
        drawn = significance.bootstrap(a, b)
        ci90, ci95 = drawn.interval(0.90), drawn.interval(0.95)
        p_value, tost_p = drawn.p_value, drawn.equivalence(margin)
        showable, detectable = drawn.smallest_margin, drawn.smallest_difference
    else:
        ci90, ci95 = (significance.interval(difference, level) for level in (0.90, 0.95))
        p_value = significance.paired_t(mean_a, mean_b).p_value
        tost_p = significance.equivalence(mean_a, mean_b, margin)
        showable = significance.smallest_margin(difference)
        detectable = significance.smallest_difference(difference)
    return {
        "ci90_low": ci90.low,
        "ci90_high": ci90.high,
        "ci95_low": ci95.low,
        "ci95_high": ci95.high,
        "test": "bootstrap" if resampled else "t",
        "p_value": p_value,
        "tost_p": tost_p,
        "margin": margin,
        "margin_shown": ci90.reach,
        "margin_showable": showable,
        "smallest_difference": detectable,
    }


def _resampled(seeds: int | None, baseline_seeds: int | None) -> bool:
    """Tell whether both sides allow a claim about seeds: enough trainings, or a system without training."""
    trained = [n for n in (seeds, baseline_seeds) if n is not None]
    return bool(trained) and all(n >= ENOUGH_SEEDS for n in trained)


def _say_seeds(board: Board, note: Note | None) -> None:
    few = [c.name for c in board.groups if c.seeds is not None and 1 < c.seeds < ENOUGH_SEEDS]
    if few and note:
        note(
            f"{board.name}: {', '.join(few)}: fewer than {ENOUGH_SEEDS} seeds say little about the next one;"
            " intervals and p-values are over queries, of the seeds' mean"
        )


# --------------------------------------------------------------------------------------------------------- verdicts
def judge(rows: Sequence[Row], correction: str, family: str) -> list[Row]:
    """Add p_holm and p_bh, corrected within each family, and the verdicts."""
    families: dict[Any, list[int]] = {}
    for number, row in enumerate(rows):
        key = "all" if family == "all" else (row["dataset"], row["measure"])
        families.setdefault(key, []).append(number)
    judged = [dict(row) for row in rows]
    for members in families.values():
        p_values = [rows[k]["p_value"] for k in members]
        corrected = zip(
            members, significance.holm(p_values), significance.benjamini_hochberg(p_values), strict=True
        )
        for k, p_holm, p_bh in corrected:
            judged[k] |= {"p_holm": p_holm, "p_bh": p_bh, "family_size": len(members)}
            judged[k]["verdict"] = verdict(judged[k], CORRECTIONS[correction])
    return judged


def verdict(row: Row, p_column: str = "p_holm") -> str:
    """Decide equivalent, better, worse or inconclusive by the rule at the top of this module."""
    if -row["margin"] < row["ci90_low"] and row["ci90_high"] < row["margin"]:
        return "equivalent"
    if row[p_column] < significance.ALPHA:
        return "better" if row["difference"] > 0 else "worse"
    return "inconclusive"
