"""Look up the datasets and sources of a view; a choice that the caller did not make is noted."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import duckdb

from labelstore.errors import DataMissing, UsageError
from labelstore.store import lookup
from labelstore.views import leakage


@dataclass(frozen=True)
class ViewSource:
    """One thing that a view is made from; `number` orders negatives' sources (the first named wins)."""

    kind: str
    key: int
    name: str
    hash: str | None
    number: int = 0


def resolve(
    con: duckdb.DuckDBPyConnection,
    kind: str,
    options: Any,
    *,
    datasets: Sequence[str],
    runs: Sequence[str],
    negatives: Sequence[str],
    labels: Sequence[str],
    note: Callable[[str], None],
) -> tuple[list[lookup.Dataset], list[ViewSource]]:
    """Look up datasets and sources by name; note a choice that the caller did not make.

    Raises:
        UsageError, DataMissing: as :func:`build`.
    """
    for given, option, takers in (
        (runs, "run", ("contrastive", "rerank")),
        (negatives, "negatives", ("contrastive",)),
        (labels, "labels", ("distillation",)),
    ):
        if given and kind not in takers:
            raise UsageError(
                f"a {kind} view is not made from --{option}", hint=f"--kind {' | '.join(takers)}"
            )
    named = [lookup.dataset(con, name) for name in dict.fromkeys(datasets)]
    sources: list[ViewSource] = []
    if kind == "distillation":
        own = [lookup.labeling(con, name) for name in dict.fromkeys(labels)]
        if not own:
            own = _only_labelings(con, named)
            note(f"labels: {', '.join(item.name for item in own)} (the only ones)")
        named = _datasets_of(con, named, [(item.name, item.dataset) for item in own])
        sources = [
            ViewSource("labeling", item.labeling, item.name, _labeling_hash(con, item.labeling))
            for item in own
        ]
    elif negatives:
        mined = [lookup.mining(con, name) for name in dict.fromkeys(negatives)]
        _check_scores(con, mined, options)
        named = _datasets_of(con, named, [(item.name, item.dataset) for item in mined])
        sources = [ViewSource("mining", m.mining, m.name, m.content_hash, n) for n, m in enumerate(mined, 1)]
    if not named:
        named = [lookup.pick_dataset(con, None)]
        note(f"dataset: {named[0].name} (the only one)")
    if kind in ("contrastive", "rerank") and (runs or not negatives):
        sources += _run_sources(con, named, runs, note, len(sources))
    if getattr(options, "judging", None) is not None:
        _check_judging(con, options.judging, named)
    if kind != "rerank":
        leakage.refuse_test_sets(named, allow_overlap=options.allow_overlap)
    return named, [*(ViewSource("dataset", d.dataset, d.name, d.qrels_hash) for d in named), *sources]


def _check_judging(con: duckdb.DuckDBPyConnection, name: str, datasets: list[lookup.Dataset]) -> None:
    """Refuse a judging as training labels for a test set that it judges, whatever else is allowed.

    Raises:
        UsageError: the judging is over a test set, or over none of the datasets.
    """
    judging = lookup.judging(con, name)
    ((of, role),) = con.execute(
        "SELECT name, role FROM datasets WHERE dataset = ?", [judging.dataset]
    ).fetchall()
    if role == "test":
        raise UsageError(
            f"the judging {name} judges the test set {of}: training on it would teach the answers of the test",
            hint="judge a training set: msft teachers judge --dataset TRAIN --run RUN",
        )
    if judging.dataset not in {dataset.dataset for dataset in datasets}:
        raise UsageError(
            f"the judging {name} is over {of}, which is not among the datasets", hint=f"--dataset {of}"
        )


def _check_scores(con: duckdb.DuckDBPyConnection, mined: Sequence[lookup.Mining], options: Any) -> None:
    """Refuse scores for minings with random passages, which have none."""
    if not getattr(options, "scores", False):
        return
    for mining in mined:
        (n,) = con.execute(
            "SELECT count(*) FROM negatives WHERE mining = ? AND source_run IS NULL", [mining.mining]
        ).fetchall()[0]
        if n:
            raise UsageError(
                f"negatives {mining.name} hold {n:,} random passages, which have no scores",
                hint="leave out --scores, or mine again without --random",
            )


def _datasets_of(
    con: duckdb.DuckDBPyConnection, named: list[lookup.Dataset], own: list[tuple[str, int]]
) -> list[lookup.Dataset]:
    """Find the datasets of minings or labelings; given names must be among them."""
    keys = {key for _, key in own}
    found = [
        lookup.dataset(con, name)
        for (name,) in con.execute(
            "SELECT name FROM datasets WHERE list_contains(?, dataset) ORDER BY name", [sorted(keys)]
        ).fetchall()
    ]
    if not named:
        return found
    for dataset in named:
        if dataset.dataset not in keys:
            raise UsageError(
                f"none of {', '.join(name for name, _ in own)} is over {dataset.name}",
                hint=f"leave out --dataset, or name {', '.join(d.name for d in found)}",
            )
    return named


def _only_labelings(con: duckdb.DuckDBPyConnection, named: list[lookup.Dataset]) -> list[lookup.Labeling]:
    found = con.execute(
        "SELECT name FROM labelings WHERE len(?) = 0 OR list_contains(?, dataset) ORDER BY name",
        [keys := [d.dataset for d in named], keys],
    ).fetchall()
    if len(found) == 1:
        return [lookup.labeling(con, found[0][0])]
    if not found:
        raise DataMissing("no labels to distil", hint="msft teachers generate, or msft teachers import FILE")
    names = [name for (name,) in found]
    raise UsageError("several labelings fit", hint=f"--labels {' | '.join(names[:8])}")


def _run_sources(
    con: duckdb.DuckDBPyConnection,
    datasets: list[lookup.Dataset],
    runs: Sequence[str],
    note: Callable[[str], None],
    before: int,
) -> list[ViewSource]:
    found: list[ViewSource] = []
    if not runs:
        for dataset in datasets:
            picked = lookup.pick_run(con, dataset, None)
            note(f"run: {picked.name} (the only first stage of {dataset.name})")
            found.append(
                ViewSource(
                    "run", picked.run, f"{dataset.name}/{picked.name}", picked.content_hash, before + 1
                )
            )
        return found
    for number, name in enumerate(dict.fromkeys(runs), before + 1):
        having = [d for d in datasets if any(r.name == name for r in lookup.runs(con, d))]
        for dataset in having or datasets[:1]:  # the lookup's own error where no dataset has it
            picked = lookup.run(con, dataset, name)
            found.append(ViewSource("run", picked.run, f"{dataset.name}/{name}", picked.content_hash, number))
    covered = {
        row
        for (row,) in con.execute(
            "SELECT dataset FROM runs WHERE list_contains(?, run)", [[s.key for s in found]]
        ).fetchall()
    }
    for dataset in datasets:
        if dataset.dataset not in covered:
            known = [r.name for r in lookup.runs(con, dataset)]
            raise lookup.missing(
                f"run over {dataset.name}", runs[0], known, f"msft runs list --dataset {dataset.name}"
            )
    return found


def _labeling_hash(con: duckdb.DuckDBPyConnection, labeling: int) -> str:
    return con.execute(
        "SELECT md5(coalesce(string_agg(content_hash || status, ',' ORDER BY content_hash, status), '')) FROM permutations WHERE labeling = ?",
        [labeling],
    ).fetchall()[0][0]
