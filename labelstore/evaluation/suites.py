"""Suites: several datasets under one name, with the macro mean of each system over them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from labelstore.datasets import catalog
from labelstore.errors import BadInput, DataMissing
from labelstore.evaluation import protocols

Row = dict[str, Any]
_NAMES = {"nano-beir": "NanoBEIR"}  # what others call a suite
_SENTENCE_TRANSFORMERS = {"nDCG": "ndcg", "RR": "mrr", "AP": "map", "P": "precision", "R": "recall"}


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
            "dataset": f"mean({_NAMES.get(suite, suite)})",
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
                **({"protocol": members[0]["protocol"]} if "protocol" in members[0] else {}),
            }
        )
    return means


def with_names(suite: str, rows: Sequence[Row], protocol: str, depth: int) -> list[Row]:
    """Add the protocol to the rows of nano-beir, and the key under which other programs report the value.

    By the standard protocol that is mteb's task and measure (``NanoNQRetrieval/ndcg_at_10``), otherwise
    sentence-transformers' key (``NanoNQ_R100_ndcg@10``, ``NanoBEIR_R100_mean_ndcg@10``). It is None for other measures.
    """
    if suite not in _NAMES:
        return list(rows)
    return [{**row, "protocol": protocol, "key": _key(suite, row, protocol, depth)} for row in rows]


def _key(suite: str, row: Row, protocol: str, depth: int) -> str | None:
    name, _, cut = row["measure"].partition("@")
    short = _SENTENCE_TRANSFORMERS.get(name)
    if short is None:
        return None
    mean = row["dataset"].startswith("mean(")
    if protocol == protocols.STANDARD:
        task = _NAMES[suite] if mean else catalog.mteb_task(row["dataset"])
        return f"{task}/{short}_at_{cut}" if cut else None
    base = "base_" if row["kind"] == "first_stage" else ""
    own = f"{_NAMES[suite]}_R{depth}_mean" if mean else f"{row['dataset']}_R{depth}"
    return f"{own}_{base}{short}{'@' * bool(cut)}{cut}"
