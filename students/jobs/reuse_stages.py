"""Reuse the stages of another student: equal base, settings, seed and views give equal weights.

A grid of regimes trains ``cl`` for ``cl`` and again for ``cl,kd``. A stage depends only on the weights before it, its
settings, its view and the seed. So the second training begins where the first one ended.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labelstore.store import foreign, lookup
from labelstore.store.keys import file_hash
from labelstore.store.label_store import LabelStore
from labelstore.store.rows import fetch
from students.recipes.recipe import KINDS, Recipe
from students.train.records import begin_after

if TYPE_CHECKING:
    import duckdb

_WHOLE = ("name", "description", "regime", "stages")  # settings that do not affect a single stage


def begin_where_another_ended(
    store: LabelStore, work: Path, recipe: Recipe, identity: dict[str, Any], views: Mapping[str, lookup.View]
) -> tuple[str, int] | None:
    """Fill the working folder with the stages of the student that shares the most first stages with this training.

    A folder that is not empty stays as it is: its training continues. A training of LoRA adapters begins anew, because a
    student's weights hold the merged ones.

    Args:
        identity: recipe, views and base of this training, in the format of `students.recipe`.

    Returns:
        The student's name and the number of its stages; None if no student fits or the folder is not empty.
    """
    if len(recipe.stages) < 2 or recipe.lora.r or (work / "training.json").exists():
        return None
    wanted = json.loads(json.dumps(identity))
    with store.read() as con:
        held = con.execute("SELECT name, recipe FROM students WHERE recipe IS NOT NULL").fetchall()
        fitting = [(_shared(wanted, json.loads(text)), name) for name, text in held]
        n_stages, name = max(fitting, default=(0, ""))
        if not n_stages:
            return None
        student = lookup.student(con, name)
        stages, log = _stages(con, student), _log(con, student.student)
    weights = foreign.own_folder(store.files, "student", name, student.folder) / "model.safetensors"
    if not weights.is_file() or file_hash(weights) != student.weights_hash:
        return None
    hashes = [{o.name: views[KINDS[o.name]].view_hash for o in stage.objectives} for stage in recipe.stages]
    begin_after(work, recipe, hashes, stages, log, weights)
    return name, n_stages


def _shared(wanted: dict[str, Any], other: dict[str, Any]) -> int:
    """Count a finished training's stages if they equal the first stages of the wanted training; otherwise 0."""
    mine, theirs = wanted["recipe"], other["recipe"]
    n = len(theirs["stages"])
    same = (
        wanted["base"] == other["base"]
        and {k: v for k, v in mine.items() if k not in _WHOLE} == {k: v for k, v in theirs.items() if k not in _WHOLE}
        and n < len(mine["stages"])
        and mine["stages"][:n] == theirs["stages"]
    )  # fmt: skip
    kinds = {KINDS[o["name"]] for stage in theirs["stages"] for o in stage["objectives"]}
    return n if same and all(wanted["views"].get(k) == other["views"].get(k) for k in kinds) else 0


def _stages(con: "duckdb.DuckDBPyConnection", student: lookup.Student) -> list[dict[str, Any]]:
    rows = fetch(
        con,
        "SELECT * EXCLUDE (student, view) FROM stages WHERE student = ? ORDER BY stage",
        [student.student],
    )
    for row in rows:
        row["hyperparameters"] = {**json.loads(row["hyperparameters"]), "reused_from": student.name}
    return rows


def _log(con: "duckdb.DuckDBPyConnection", student: int) -> list[dict[str, Any]]:
    return fetch(
        con, "SELECT * EXCLUDE (student) FROM training_log WHERE student = ? ORDER BY rowid", [student]
    )
