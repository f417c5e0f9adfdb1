"""Advise which system to use: students, alone and fused, against their first stage, in one sentence.

A system is *better* or *worse* than its first stage if the paired t-test says so after Holm's correction over the
systems in the sentence. docs/explanation/statistics.md describes the tests; `msft compare` runs more of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import duckdb
import numpy as np

from labelstore.evaluation import scores as evaluation
from labelstore.evaluation import significance, systems
from labelstore.evaluation.measures import mean
from labelstore.store import lookup

Row = dict[str, Any]


@dataclass(frozen=True)
class Standing:
    """A student, alone or fused, against its first stage."""

    name: str
    kind: str  # "student" or "fused"
    value: float
    p_value: float  # after Holm's correction
    difference: float

    @property
    def verdict(self) -> str:
        """Return better, worse or inconclusive."""
        if not self.p_value < significance.ALPHA:
            return "inconclusive"
        return "better" if self.difference > 0 else "worse"


@dataclass(frozen=True)
class Advice:
    """How the systems over one first stage stand on one dataset."""

    dataset: str
    first_stage: str
    measure: str
    base: float
    n_queries: int
    systems: tuple[Standing, ...]

    @property
    def best(self) -> Standing | None:
        """Return the system with the highest value among those that are better than the first stage."""
        better = [s for s in self.systems if s.verdict == "better"]
        return max(better, key=lambda s: s.value, default=None)

    @property
    def worse(self) -> list[Standing]:
        """List the students that are worse alone than the first stage."""
        return [s for s in self.systems if s.kind == "student" and s.verdict == "worse"]

    def sentence(self) -> str:
        """Write the advice, for example: use ranker+bm25s; ranker alone is worse than bm25s, p < .001."""
        parts = [self._use()]
        if self.worse:
            names = ", ".join(s.name for s in self.worse)
            verb = "is" if len(self.worse) == 1 else "are"
            parts.append(
                f"{names} alone {verb} worse than {self.first_stage}, {_p(max(s.p_value for s in self.worse))}"
            )
        unclear = [s for s in self.systems if s.kind == "student" and s.verdict == "inconclusive"]
        if unclear:
            names = ", ".join(s.name for s in unclear)
            parts.append(f"these queries do not tell {names} alone from {self.first_stage}")
        return f"{self.dataset}: {'; '.join(parts)}"

    def warning(self) -> str | None:
        """Write a warning for users of a student that is worse; None if it is not worse."""
        if not self.worse:
            return None
        worst = min(self.worse, key=lambda s: s.value)
        return (
            f"{worst.name} alone is worse than {self.first_stage} on {self.dataset}: {self.measure} {worst.value:.3f}"
            f" against {self.base:.3f}, {_p(worst.p_value)} on {self.n_queries:,} queries; {self._use()}"
        )

    def _use(self) -> str:
        if self.best is None:
            return f"use {self.first_stage}: no student is better on these {self.n_queries:,} queries"
        best = self.best
        return f"use {best.name} ({self.measure} {best.value:.3f}, {self.first_stage} {self.base:.3f}, {_p(best.p_value)})"


def from_rows(rows: Sequence[Row]) -> list[Advice]:
    """Make an advice for each dataset and first stage of an evaluation's rows, by the dataset's first measure."""
    made = []
    for dataset in dict.fromkeys(row["dataset"] for row in rows):
        own = [row for row in rows if row["dataset"] == dataset]
        own = [row for row in own if row["measure"] == own[0]["measure"]]
        for base in (row for row in own if row["kind"] == "first_stage"):
            found = [
                (row["system"], row["kind"], row["value"], row["p_value"])
                for row in own
                if row["kind"] in ("student", "fused")
                and row["first_stage"] == base["system"]
                and row["p_value"] is not None
            ]
            if found:
                made.append(
                    _advice(dataset, base["system"], base["measure"], base["value"], base["n_queries"], found)
                )
    return made


def of_student(con: duckdb.DuckDBPyConnection, name: str) -> list[Advice]:
    """Make advices for a student, alone and fused, from the stored evaluations. Training data do not count."""
    made = []
    for (dataset,) in con.execute(
        "SELECT DISTINCT dataset FROM results WHERE student = ? ORDER BY dataset", [name]
    ).fetchall():
        of = lookup.dataset(con, dataset)
        known = systems.systems(con, of) if of.role != "train" else []
        for base in (s for s in known if s.kind == "first_stage"):
            own = [s for s in known if s.student == name and s.source_run == base.run]
            advice = _stored(con, of, base, own)
            if advice is not None:
                made.append(advice)
    return made


def _stored(
    con: duckdb.DuckDBPyConnection, of: lookup.Dataset, base: systems.System, own: list[systems.System]
) -> Advice | None:
    """Use the dataset's headline measure, or otherwise the first measure by name that both systems have."""
    if not own:
        return None
    measured = {
        m
        for (m,) in con.execute(
            "SELECT DISTINCT measure FROM evaluations WHERE dataset = ?", [of.dataset]
        ).fetchall()
    }
    order = [m for m in evaluation.default_measures(of) if m in measured]
    order += sorted(measured - {*order} - {"Judged@10"})
    for measure in order:
        before = evaluation.stored(con, of, base, [measure]).get(measure)
        found = []
        for system in own:
            values = evaluation.stored(con, of, system, [measure]).get(measure)
            if before and values and values.keys() == before.keys():
                queries = sorted(values)
                test = significance.paired_t(
                    np.array([values[q] for q in queries]), np.array([before[q] for q in queries])
                )
                found.append((system.name, system.kind, mean(values), test.p_value))
        if before and found:
            return _advice(of.name, base.name, measure, mean(before), len(before), found)
    return None


def _advice(
    dataset: str, first_stage: str, measure: str, base: float, n_queries: int,
    found: Sequence[tuple[str, str, float, float]],
) -> Advice:  # fmt: skip
    corrected = significance.holm([p for *_, p in found])
    standings = tuple(
        Standing(name, kind, value, p, value - base)
        for (name, kind, value, _), p in zip(found, corrected, strict=True)
    )
    return Advice(dataset, first_stage, measure, base, n_queries, standings)


def _p(value: float) -> str:
    """Write a p-value as papers do: p < .001, p = .023."""
    return "p < .001" if value < 0.001 else f"p = {value:.3f}".replace("0.", ".", 1)
