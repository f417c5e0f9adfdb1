"""The bases that students began from: what a training started with, and the runs that measure it before any training.

A base whose head was trained already (a published re-ranker) has runs of kind ``base``. A base that is only an encoder has
runs of kind ``untrained``: its head is drawn from the seed. If the base is itself a student of the store, its own runs
are those of the base.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import duckdb

from labelstore.store import lookup
from labelstore.store.keys import canonical_json

BASE, UNTRAINED = "base", "untrained"
KINDS = (UNTRAINED, BASE)


@dataclass(frozen=True)
class Start:
    """What a training started with. `settings` tells two starts apart."""

    base: str  # as --base named it
    revision: str | None  # a commit of the Hub, or the hash of the weights
    max_length: int
    seed: int
    layers: int = 0  # 0: all
    long: str = "first"
    frame: str = ""
    instruction: str = ""
    answers: tuple[str, ...] = ()
    instructions: tuple[tuple[str, str], ...] = ()
    head_scale: float = 1.0
    head_identity: bool = False

    def settings(self, kind: str) -> dict[str, Any]:
        """Return what the scores of a base of this kind depend on. A trained head does not depend on the seed."""
        made: dict[str, Any] = {
            "base": self.revision or self.base,
            "max_length": self.max_length,
            "layers": self.layers,
            "long": self.long,
            "frame": self.frame,
            "instruction": self.instruction,
            "answers": list(self.answers),
            "instructions": [list(pair) for pair in self.instructions],
        }
        if kind == UNTRAINED:
            made |= {"seed": self.seed, "head_scale": self.head_scale, "head_identity": self.head_identity}
        return made

    def key(self, kind: str) -> str:
        """Return the settings as one text."""
        return canonical_json(self.settings(kind))

    def made(self, run: lookup.Run) -> bool:
        """Tell whether a run of one of :data:`KINDS` is this start's."""
        settings = self.settings(run.kind)
        return {name: run.parameters.get(name) for name in settings} == settings


def starts(con: duckdb.DuckDBPyConnection, students: Sequence[str] | None = None) -> dict[str, Start]:
    """Return what each student (None: all) started with. Students that were not trained here are left out."""
    chosen = list(students) if students is not None else None
    found = con.execute(
        """SELECT name, base, base_revision, max_length, seed, recipe FROM students s
           WHERE (? IS NULL OR list_contains(?, name)) AND EXISTS (FROM stages g WHERE g.student = s.student)
           ORDER BY student""",
        [chosen, chosen],
    ).fetchall()
    return {
        name: _start(base, revision, max_length, seed, json.loads(recipe or "{}").get("recipe") or {})
        for name, base, revision, max_length, seed, recipe in found
    }


def _start(base: str, revision: str | None, max_length: int, seed: int, recipe: Mapping[str, Any]) -> Start:
    """Read a recipe as the store holds it; it lacks settings that are at their default."""
    return Start(
        base,
        revision,
        max_length,
        seed,
        layers=recipe.get("layers") or 0,
        long=recipe.get("long", "first"),
        frame=recipe.get("frame", ""),
        instruction=recipe.get("instruction", ""),
        answers=tuple(recipe.get("answers", ())),
        instructions=tuple((dataset, text) for dataset, text in recipe.get("instructions", ())),
        head_scale=recipe.get("head_scale", 1.0),
        head_identity=recipe.get("head_identity", False),
    )


def registered(con: duckdb.DuckDBPyConnection, student: str, start: Start) -> str | None:
    """Name the other student of the store that a student began from; None if the store has no such student.

    That is the student of ``--base student:NAME``, or the same model with the same settings after `msft students add`.
    """
    plain = start == Start(start.base, start.revision, start.max_length, start.seed)
    found = con.execute(
        """SELECT name FROM students s
           WHERE name <> $student
             AND (weights_hash = $revision
                  OR ($plain AND base_revision = $revision AND max_length = $max_length AND seed = $seed
                      AND NOT EXISTS (FROM stages g WHERE g.student = s.student)))
           ORDER BY weights_hash = $revision DESC, student LIMIT 1""",
        {
            "student": student, "revision": start.revision, "plain": plain, "max_length": start.max_length,
            "seed": start.seed,
        },
    ).fetchall()  # fmt: skip
    return found[0][0] if found else None


def kinds(con: duckdb.DuckDBPyConnection) -> dict[str, str]:
    """Return the kind of each base that has a run in the store, by the key of its start."""
    found = con.execute(
        "SELECT DISTINCT kind, parameters FROM runs WHERE list_contains(?, kind)", [list(KINDS)]
    ).fetchall()
    names = Start("", None, 0, 0)
    made = {}
    for kind, parameters in found:
        held = json.loads(parameters)
        made[canonical_json({name: held.get(name) for name in names.settings(kind)})] = kind
    return made


def runs(con: duckdb.DuckDBPyConnection, of: lookup.Dataset, students: Sequence[str]) -> dict[str, list[int]]:
    """List the runs over a dataset that measure the base of each student, which the student began from."""
    held = lookup.runs(con, of, KINDS)
    by_student: dict[int | None, list[int]] = {}
    for run in lookup.runs(con, of, ("student",)):
        by_student.setdefault(run.student, []).append(run.run)
    made: dict[str, list[int]] = {}
    for name, start in starts(con, students).items():
        own = registered(con, name, start)
        if own is not None:
            made[name] = by_student.get(lookup.student(con, own).student, [])
        else:
            made[name] = [run.run for run in held if start.made(run)]
    return made
