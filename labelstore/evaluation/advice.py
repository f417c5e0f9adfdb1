"""Advise which system to use: students, alone and fused, against their first stage and their base, in one sentence.

A system is *better* or *worse* than its first stage if the paired t-test says so after Holm's correction over the
systems in the sentence. The tests of students against the bases that they began from are corrected among themselves.
docs/explanation/statistics.md describes the tests; `msft compare` runs more of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import duckdb

from labelstore.evaluation import bases, significance, systems
from labelstore.evaluation import scores as evaluation
from labelstore.evaluation.measures import mean
from labelstore.store import lookup

Row = dict[str, Any]


@dataclass(frozen=True)
class Standing:
    """A system against its first stage, or a student against its base."""

    name: str
    kind: str  # of the system: "student", "fused" or "base"
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
class Began:
    """A student against the base that it began from."""

    student: Standing
    base: str  # the base's system
    kind: str  # of that system: "base", "untrained", or "student" for a student of the store
    base_value: float

    @property
    def name(self) -> str:
        """Return the base's name without the kind."""
        return self.base if self.kind == "student" else _name_of_base(self.base, self.kind)


@dataclass(frozen=True)
class Advice:
    """How the systems over one first stage stand on one dataset."""

    dataset: str
    first_stage: str
    measure: str
    base: float
    n_queries: int
    systems: tuple[Standing, ...]
    began: tuple[Began, ...] = ()

    @property
    def best(self) -> Standing | None:
        """Return the system with the highest value among those that are better than the first stage.

        A base counts only if it is a re-ranker as it is and better than a student that began from it, or if no student
        is better than the first stage.
        """
        better = [s for s in self.systems if s.verdict == "better"]
        own = [s for s in better if s.kind != bases.BASE]
        beat = {b.base for b in self.began if b.student.verdict == "worse"}
        highest = {b.base for b in self.began} - {
            b.base for b in self.began if b.student.value >= b.base_value
        }
        shipped = [
            s for s in better if s.kind == bases.BASE and (s.name in beat or (not own and s.name in highest))
        ]
        return max([*own, *shipped], key=lambda s: s.value, default=None)

    @property
    def worse(self) -> list[Standing]:
        """List the students that are worse alone than the first stage."""
        return [s for s in self.systems if s.kind == "student" and s.verdict == "worse"]

    @property
    def unclear(self) -> list[Standing]:
        """List the students that these queries do not tell from the first stage."""
        return [s for s in self.systems if s.kind == "student" and s.verdict == "inconclusive"]

    def sentence(self, fused: bool = True) -> str:
        """Write the advice, for example: use ranker+bm25s; ranker alone is worse than bm25s, p < .001.

        Args:
            fused: whether fused systems were measured. Otherwise the sentence names the option that does it, if a
                student is not better alone.
        """
        parts = [self._use(), *self._against_bases("worse")]
        if self.worse:
            verb = "is" if len(self.worse) == 1 else "are"
            parts.append(
                f"{_names(self.worse)} alone {verb} worse than {self.first_stage},"
                f" {_p(max(s.p_value for s in self.worse))}"
            )
        if self.unclear:
            parts.append(f"these queries do not tell {_names(self.unclear)} alone from {self.first_stage}")
        parts += self._against_bases("better", "inconclusive")
        if not fused and (self.worse or self.unclear):
            parts.append(f"--fuse shows whether a student and {self.first_stage} together are better")
        return f"{self.dataset}: {'; '.join(parts)}"

    def warning(self) -> str | None:
        """Write a warning for users of a student that is worse than its first stage or its base; None if it is neither."""
        if self.worse:
            worst = min(self.worse, key=lambda s: s.value)
            return (
                f"{worst.name} alone is worse than {self.first_stage} on {self.dataset}: {self.measure}"
                f" {worst.value:.3f} against {self.base:.3f}, {_p(worst.p_value)} on {self.n_queries:,} queries;"
                f" {self._use()}"
            )
        beaten = [b for b in self.began if b.student.verdict == "worse"]
        if not beaten:
            return None
        lost = min(beaten, key=lambda b: b.student.value)
        return (
            f"{lost.student.name} is worse than the base {lost.name}, which it began from, on {self.dataset}:"
            f" {self.measure} {lost.student.value:.3f} against {lost.base_value:.3f}, {_p(lost.student.p_value)} on"
            f" {self.n_queries:,} queries; {self._use()}"
        )

    def _use(self) -> str:
        best = self.best
        if best is None:
            return f"use {self.first_stage}: no student is better on these {self.n_queries:,} queries"
        name = best.name
        if best.kind == bases.BASE:
            name = f"the base {_name_of_base(name, best.kind)} as it is"
        return f"use {name} ({self.measure} {best.value:.3f}, {self.first_stage} {self.base:.3f}, {_p(best.p_value)})"

    def _against_bases(self, *verdicts: str) -> list[str]:
        """Say for each base which students have these verdicts against it."""
        parts = []
        for base, kind in dict.fromkeys((b.base, b.kind) for b in self.began):
            own = [b for b in self.began if b.base == base]
            what = f"the {'untrained ' if kind == bases.UNTRAINED else ''}base {own[0].name}"
            for verdict in verdicts:
                found = [b.student for b in own if b.student.verdict == verdict]
                if not found:
                    continue
                names, p = _names(found), _p(max(s.p_value for s in found))
                several = len(found) > 1
                said = {
                    "worse": f"{what} is better than your student{'s' if several else ''} {names}, {p}",
                    "better": f"{names} {'are' if several else 'is'} better than {what}, {p}",
                    "inconclusive": f"these queries do not tell {names} from {what}",
                }
                parts.append(said[verdict])
        return parts


def from_rows(rows: Sequence[Row]) -> list[Advice]:
    """Make an advice for each dataset and first stage of an evaluation's rows, by the dataset's first measure."""
    made = []
    for dataset in dict.fromkeys(row["dataset"] for row in rows):
        own = [row for row in rows if row["dataset"] == dataset]
        own = [row for row in own if row["measure"] == own[0]["measure"]]
        for first in (row for row in own if row["kind"] == "first_stage"):
            over = [
                row for row in own if row["first_stage"] == first["system"] and row["p_value"] is not None
            ]
            found = [_standing(row, row["p_value"], first["value"]) for row in over if row["kind"] in _TESTED]
            by_name = {row["system"]: row for row in over}
            began = [
                _began(row, by_name[row["base"]]["kind"], by_name[row["base"]]["value"])
                for row in over
                if row.get("base") in by_name and row["base_p_value"] is not None
            ]
            if any(s.kind != bases.BASE for s in found):
                made.append(
                    _advice(
                        dataset,
                        first["system"],
                        first["measure"],
                        first["value"],
                        first["n_queries"],
                        found,
                        began,
                    )
                )
    return made


_TESTED = ("student", "fused", bases.BASE)


def _standing(row: Row, p_value: float, against: float) -> Standing:
    return Standing(row["system"], row["kind"], row["value"], p_value, row["value"] - against)


def _began(row: Row, kind: str, value: float) -> Began:
    return Began(_standing(row, row["base_p_value"], value), row["base"], kind, value)


def of_student(con: duckdb.DuckDBPyConnection, name: str) -> list[Advice]:
    """Make advices for a student, alone and fused, from the stored evaluations. Training data do not count."""
    made = []
    for (dataset,) in con.execute(
        "SELECT DISTINCT dataset FROM results WHERE student = ? ORDER BY dataset", [name]
    ).fetchall():
        of = lookup.dataset(con, dataset)
        known = systems.systems(con, of) if of.role != "train" else []
        began = bases.runs(con, of, [name])
        for first in (s for s in known if s.kind == "first_stage"):
            own = [s for s in known if s.student == name and s.source_run == first.run]
            found = [evaluation.base_of(s, known, began) for s in own]
            advice = _stored(con, of, first, own, next((base for base in found if base is not None), None))
            if advice is not None:
                made.append(advice)
    return made


def _stored(
    con: duckdb.DuckDBPyConnection,
    of: lookup.Dataset,
    first: systems.System,
    own: list[systems.System],
    base: systems.System | None,
) -> Advice | None:
    """Use the dataset's headline measure, or otherwise the first measure by name that both systems have.

    Args:
        base: the system that shows the student's base.
    """
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
        values = {
            s: evaluation.stored(con, of, s, [measure]).get(measure)
            for s in (first, *own, *([base] if base is not None else []))
        }
        before = values[first]
        if not before:
            continue
        whole = {s: held for s, held in values.items() if held and held.keys() == before.keys()}
        rows = {
            s: {"system": s.name, "kind": s.kind, "value": mean(held), "base": base.name if base else None}
            for s, held in whole.items()
        }
        tested = [s for s in (*own, *([base] if base is not None and base not in own else [])) if s in whole]
        found = [
            _standing(rows[s], evaluation.p_value(whole[s], before), mean(before))
            for s in tested
            if s.kind in _TESTED and (s in own or s.kind == bases.BASE)
        ]
        began = [
            _began(
                rows[s] | {"base_p_value": evaluation.p_value(whole[s], whole[base])},
                base.kind,
                mean(whole[base]),
            )
            for s in own
            if base is not None and base in whole and s in whole and s.kind == "student"
        ]
        if any(s.kind != bases.BASE for s in found):
            return _advice(of.name, first.name, measure, mean(before), len(before), found, began)
    return None


def _advice(
    dataset: str, first_stage: str, measure: str, base: float, n_queries: int,
    found: Sequence[Standing], began: Sequence[Began],
) -> Advice:  # fmt: skip
    """Correct the p-values: those against the first stage, and those against bases."""
    against_first = significance.holm([s.p_value for s in found])
    against_base = significance.holm([b.student.p_value for b in began])
    return Advice(
        dataset,
        first_stage,
        measure,
        base,
        n_queries,
        tuple(replace(s, p_value=p) for s, p in zip(found, against_first, strict=True)),
        tuple(
            replace(b, student=replace(b.student, p_value=p))
            for b, p in zip(began, against_base, strict=True)
        ),
    )


def _name_of_base(system: str, kind: str) -> str:
    """Return a base's name without the kind before it and the first stage behind it."""
    return system.removeprefix(f"{kind}-").partition("@")[0]


def _names(of: Sequence[Standing]) -> str:
    return ", ".join(s.name for s in of)


def _p(value: float) -> str:
    """Write a p-value as papers do: p < .001, p = .023."""
    return "p < .001" if value < 0.001 else f"p = {value:.3f}".replace("0.", ".", 1)
