"""Find the systems of a comparison by name, and group students that differ only in their seed.

A student that re-ranked several first stages is named STUDENT@FIRST_STAGE; shell patterns (``'electra-cl-s*'``) name
several systems at once.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import duckdb

from labelstore.errors import UsageError
from labelstore.evaluation.systems import System, systems
from labelstore.store import keys, lookup

_SEED_ENDING = re.compile(r"(?:[-_.](?:seed|s))?[-_.]?\d*$")


@dataclass(frozen=True)
class SeedGroup:
    """One system, or several trainings of one recipe over one first stage."""

    name: str
    systems: tuple[System, ...]  # one per seed

    @property
    def trained(self) -> bool:
        """Tell whether another seed would give another ranking."""
        return any(system.student is not None for system in self.systems)

    @property
    def seeds(self) -> int | None:
        """Count the trainings; None for a system that was not trained here."""
        return len(self.systems) if self.trained else None


def find(
    con: duckdb.DuckDBPyConnection,
    of: lookup.Dataset,
    names: Sequence[str] | None,
    *,
    each_seed: bool = False,
) -> list[SeedGroup]:
    """Find the groups of systems of `names` over a dataset, each once, in the order of the names.

    Args:
        names: as `eval` shows them, STUDENT@FIRST_STAGE, or patterns. None: every system that is not fused.
        each_seed: keep students that differ only in their seed as separate systems.

    Raises:
        DataMissing: no system over this dataset has the name.
        UsageError: several systems have the name.
    """
    known = systems(con, of)
    shown = _shown_names(known)
    if names is None:
        chosen = [s for s in known if s.kind != "fused"]
    else:
        chosen = list(dict.fromkeys(s for name in names for s in _named(of, name, known, shown)))
    alike = _same_recipe(con, chosen) if not each_seed else {}
    groups: dict[Any, list[System]] = {}
    for system in chosen:
        groups.setdefault(alike.get(system, system), []).append(system)
    made: list[SeedGroup] = []
    for members in groups.values():
        name = shown[members[0]]
        if len(members) > 1:
            stem = _stem(members, shown)
            taken = {c.name for c in made} | set(shown.values())
            name = next(n for n in (f"{s} ({len(members)} seeds)" for s in (stem, name)) if n not in taken)
        made.append(SeedGroup(name, tuple(members)))
    return made


def _shown_names(known: Sequence[System]) -> dict[System, str]:
    """Name each system; STUDENT@FIRST_STAGE if a student ranked over several first stages."""
    names = [s.name for s in known]
    return {s: s.name if names.count(s.name) == 1 else f"{s.name}@{s.first_stage}" for s in known}


def _named(of: lookup.Dataset, name: str, known: Sequence[System], shown: dict[System, str]) -> list[System]:
    if exact := [s for s in known if s.name == name]:
        if len(exact) > 1:
            raise UsageError(
                f"{name} ranked {of.name} over several first stages",
                hint=" | ".join(shown[s] for s in exact),
            )
        return exact
    if qualified := [s for s in known if name in (shown[s], f"{s.student}@{s.first_stage}")]:
        if len(qualified) > 1:
            raise UsageError(
                f"{name} ranked {of.name} more than once", hint=" | ".join(s.name for s in qualified)
            )
        return qualified
    if any(sign in name for sign in "*?[") and (
        several := [s for s in known if fnmatchcase(s.name, name) or fnmatchcase(shown[s], name)]
    ):
        return several
    raise lookup.missing(
        f"system over {of.name}",
        name,
        list(shown.values()),
        f"msft runs list --dataset {of.name}",
        f"msft eval --dataset {of.name}",
    )


def _same_recipe(con: duckdb.DuckDBPyConnection, chosen: Sequence[System]) -> dict[System, str]:
    """Make a key for each student's system, shared by those that differ only in their seed.

    It covers recipe, base, the parameters and sources of the views, first stage, depth and kind; students that were
    not trained here, and two of one seed, stay separate.
    """
    views: dict[str, list[Any]] = {}
    for student, stage, view_hash, kind, parameters in con.execute(
        """SELECT s.name, g.stage, g.view_hash, v.kind, v.parameters FROM stages g JOIN students s USING (student)
           LEFT JOIN views v USING (view) ORDER BY s.name, g.stage"""
    ).fetchall():
        views.setdefault(student, []).append(
            [stage, kind, json.loads(parameters) if parameters else view_hash]
        )
    recipes = {
        name: (seed, json.loads(recipe))
        for name, seed, recipe in con.execute(
            "SELECT name, seed, recipe FROM students WHERE recipe IS NOT NULL"
        ).fetchall()
    }
    found: dict[System, str] = {}
    seen: set[tuple[str, int]] = set()
    for system in chosen:
        if system.student is None or system.student not in recipes:
            continue
        seed, identity = recipes[system.student]
        recipe = {k: v for k, v in identity.get("recipe", {}).items() if k != "seed"}
        key = keys.content_key(
            "seeds",
            [
                recipe,
                identity.get("base"),
                views.get(system.student),
                system.first_stage,
                system.depth,
                system.kind,
            ],
        )
        if (key, seed) not in seen:
            seen.add((key, seed))
            found[system] = key
    return found


def _stem(members: Sequence[System], shown: dict[System, str]) -> str:
    """Return the common part of the students' names, without the seed's mark: ``cl-s41``, ``cl-s42`` -> ``cl``."""
    names = [s.student or s.name for s in members]
    first, last = min(names), max(names)
    n_common = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    stem = _SEED_ENDING.sub("", first[:n_common], count=1) or str(members[0].student)
    if members[0].kind == "fused":
        return f"{stem}+{members[0].first_stage}"
    alone = all(shown[s] == s.student for s in members)
    return stem if alone else f"{stem}@{members[0].first_stage}"
