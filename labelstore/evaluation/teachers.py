"""Compare teachers' labelings on judged queries: quality with verdicts, agreement, position bias, cost.

The verdicts are those of :mod:`labelstore.evaluation.comparison`, against one baseline and corrected together. Costs are those
of ``@label_costs``, over the judged queries alone, so that labelings of more queries compare.
"""

from collections.abc import Callable, Sequence
from typing import Any

import duckdb
import numpy as np

from labelstore.analyses import ask
from labelstore.errors import DataMissing, UsageError
from labelstore.evaluation import comparison, significance, systems
from labelstore.evaluation.comparison import Board
from labelstore.store import lookup
from labelstore.store.label_store import LabelStore
from labelstore.store.rows import Row, fetch

Note = Callable[[str], None]

COMBINED = "combined"  # strategy of labelings that `teachers combine` made


def compare(
    store: LabelStore,
    names: Sequence[str] | None = None,
    *,
    dataset: str | None = None,
    measure: str | None = None,
    baseline: str | None = None,
    margin: float = comparison.MARGIN,
    note: Note | None = None,
) -> list[Row]:
    """Compare labelings of one dataset: a row each, best first.

    Args:
        names: labelings. None: all of the dataset.
        dataset: by default the labelings' own, or the only one.
        measure: an ir-measures name; by default the dataset's first one.
        baseline: the labeling that the verdicts are against; by default the best one that is not combined.
        margin: see :func:`labelstore.evaluation.comparison.compare`.

    Raises:
        DataMissing: a name, judgments or labels are not found.
        UsageError: the labelings are over different datasets, or an option has a wrong value.
    """
    with store.read() as con:
        of, chosen = _chosen(con, names, dataset)
        known = {s.name: s for s in systems.systems(con, of) if s.kind == "teacher"}
        if baseline is not None and baseline not in chosen:
            chosen[lookup.labeling(con, baseline).name] = lookup.labeling(con, baseline)
        if empty := [name for name in chosen if name not in known]:
            raise DataMissing(
                f"{', '.join(empty)}: no list that can be used", hint=f"msft teachers show {empty[0]}"
            )
        stages = {name: _first_stage(con, known[name]) for name in chosen}
    ranked = list(dict.fromkeys([*chosen, *(stage for stage in stages.values() if stage is not None)]))
    board = comparison.measure_systems(store, of.name, ranked, [measure] if measure else None, note=note)
    (used,) = board.measures
    own = baseline or _best(board, used, chosen)
    pairs = [(name, own) for name in chosen if name != own]
    judged = {row["system"]: row for row in comparison.compare_pairs(board, pairs, margin=margin)}
    with store.read() as con:
        quality = _by_name(con, "SELECT * FROM labeling_quality WHERE dataset = ?", [of.name])
        costs = _analysis(con, "label_costs", of.name, judged="yes")
        agreement = _tau(_analysis_rows(con, "agreement", of.name, labels=own), own)
    rows = [
        _row(
            board, used, of, name, stages[name], own, judged.get(name), quality[name], costs[name], agreement
        )
        for name in chosen
    ]
    return sorted(rows, key=lambda row: -row["value"])


def _chosen(
    con: duckdb.DuckDBPyConnection, names: Sequence[str] | None, dataset: str | None
) -> tuple[lookup.Dataset, dict[str, lookup.Labeling]]:
    if names:
        chosen = {name: lookup.labeling(con, name) for name in names}
        keys = list(dict.fromkeys(labels.dataset for labels in chosen.values()))
        datasets = fetch(con, "SELECT dataset, name FROM datasets WHERE list_contains(?, dataset)", [keys])
        if dataset is not None:
            of = lookup.dataset(con, dataset)
        elif len(keys) == 1:
            of = lookup.dataset(con, datasets[0]["name"])
        else:
            raise UsageError(
                f"the labelings are over different datasets: {', '.join(sorted(d['name'] for d in datasets))}",
                hint="compare labelings of one dataset; `msft teachers list` shows it",
            )
        if other := next((one for one in chosen.values() if one.dataset != of.dataset), None):
            raise UsageError(
                f"{other.name} is not over {of.name}", hint=f"msft teachers list --dataset {of.name}"
            )
        return of, chosen
    of = lookup.pick_dataset(con, dataset)
    found = [s.name for s in systems.systems(con, of) if s.kind == "teacher"]
    if not found:
        raise DataMissing(
            f"{of.name} has no labels", hint="msft teachers generate, or msft teachers import FILE"
        )
    return of, {name: lookup.labeling(con, name) for name in found}


def _first_stage(con: duckdb.DuckDBPyConnection, of: systems.System) -> str | None:
    """Name the run that a labeling orders, if the store holds it."""
    return None if of.source_run is None else lookup.run_by_id(con, of.source_run).name


def _best(board: Board, measure: str, chosen: dict[str, lookup.Labeling]) -> str:
    single = [name for name, labels in chosen.items() if labels.strategy != COMBINED] or list(chosen)
    return max(single, key=lambda name: board.mean(name, measure))


def _by_name(con: duckdb.DuckDBPyConnection, sql: str, parameters: Sequence[Any]) -> dict[str, Row]:
    return {row["labeling"]: row for row in fetch(con, sql, parameters)}


def _analysis_rows(con: duckdb.DuckDBPyConnection, name: str, dataset: str, **more: str) -> list[Row]:
    for key, value in {"dataset": dataset, "labels": None, "p": None, "judged": None, **more}.items():
        con.execute(f"SET VARIABLE {key} = ?", [value])
    return fetch(con, ask.text_of(f"@{name}"))


def _analysis(con: duckdb.DuckDBPyConnection, name: str, dataset: str, **more: str) -> dict[str, Row]:
    return {row["labeling"]: row for row in _analysis_rows(con, name, dataset, **more)}


def _tau(pairs: Sequence[Row], baseline: str) -> dict[str, float]:
    return {
        row["other"] if row["labeling"] == baseline else row["labeling"]: row["tau"]
        for row in pairs
        if row["tau"] is not None
    }


def _row(
    board: Board,
    measure: str,
    of: lookup.Dataset,
    name: str,
    stage: str | None,
    baseline: str,
    pair: Row | None,
    quality: Row,
    cost: Row,
    tau: dict[str, float],
) -> Row:
    values: np.ndarray = board.values[name][measure].mean(axis=0)
    ci95 = significance.interval(values, 0.95)
    gain = None if stage is None else board.mean(name, measure) - board.mean(stage, measure)
    pair = pair or {}
    return {
        "dataset": of.name,
        "labeling": name,
        "teacher": quality["teacher"],
        "strategy": quality["strategy"],
        "first_stage": quality["first_stage"],
        "measure": measure,
        "value": float(values.mean()),
        "ci95_low": ci95.low,
        "ci95_high": ci95.high,
        "gain": gain,
        "baseline": baseline,
        **{key: pair.get(key) for key in ("difference", "ci90_low", "ci90_high", "p_holm", "tost_p")},
        "verdict": pair.get("verdict", "baseline"),
        "tau": 1.0 if name == baseline else tau.get(name),
        "position_bias": quality["position_bias"],
        "disagreement": quality["disagreement"],
        "n_queries": len(values),
        "n_missing": board.n_missing[name],
        **{
            key: cost[key]
            for key in ("calls", "tokens_in", "tokens_out", "cost", "currency", "seconds_per_query")
        },
        "cost_per_point": cost["cost"] / (100 * gain)
        if cost["cost"] is not None and gain and gain > 0
        else None,
    }
