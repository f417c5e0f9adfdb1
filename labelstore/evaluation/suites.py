"""Suites: several datasets under one name, with the macro mean of each system over them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from labelstore.datasets import catalog
from labelstore.errors import BadInput, DataMissing

Row = dict[str, Any]


def datasets(suite: str) -> list[str]:
    """List the datasets of a suite: a name of the catalogue, or a file with one dataset a line (``#`` begins a comment).

    Raises:
        DataMissing: the suite is neither.
        BadInput: the file names a dataset twice, or no dataset.
    """
    if suite in catalog.SUITES:
        return list(catalog.SUITES[suite])
    path = Path(suite)
    if not path.is_file():
        raise DataMissing(
            f"no suite named {suite!r}, and no file of that name",
            hint=f"--suite {' | '.join(catalog.SUITES)} | FILE with one dataset per line",
        )
    names: list[str] = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        name = line.partition("#")[0].strip()
        if not name:
            continue
        if name in names:
            raise BadInput(f"{path}:{number}: {name} stands there twice")
        names.append(name)
    if not names:
        raise BadInput(f"{path}: names no dataset", hint="write one dataset per line")
    return names


def macro_means(suite: str, rows: Sequence[Row], expected: Sequence[str]) -> list[Row]:
    """Make a row for each system and measure that every dataset has, with the mean of the datasets' values.

    A system is the same across datasets by its name, kind and first stage. One that lacks a dataset has no mean: a
    mean over other datasets would not compare.

    Args:
        rows: :func:`labelstore.evaluation.scores.evaluate`'s over all datasets.
        expected: the datasets that a mean must cover.
    """
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["system"], row["kind"], row["first_stage"], row["measure"]), []).append(row)
    means = []
    for (system, kind, first_stage, measure), members in groups.items():
        if {m["dataset"] for m in members} != set(expected):
            continue
        mean = {
            "dataset": f"mean({suite})",
            "system": system,
            "kind": kind,
            "first_stage": first_stage,
            "measure": measure,
            "value": sum(m["value"] for m in members) / len(members),
            "n_queries": sum(m["n_queries"] for m in members),
            "p_value": None,
        }
        means.append(
            {
                **dict.fromkeys(members[0]),
                **mean,
                "regime": members[0].get("regime"),
                "judge": members[0].get("judge"),
            }
        )
    return means
