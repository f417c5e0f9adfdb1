"""Train from the store: build and export views, close the store, train the stages, and store the student.

The same command again continues an interrupted training from its last checkpoint. If the training was completed, it
returns the existing student. `note` receives diagnostics in plain words.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labelstore.errors import UsageError
from labelstore.provenance import record as provenance
from labelstore.store import keys, lookup
from labelstore.store.foreign import check_name
from labelstore.store.job_lock import student_alone
from labelstore.store.keys import file_hash
from labelstore.store.label_store import LabelStore
from labelstore.views import build as views
from labelstore.views.parameters import USUAL_FRACTION
from msft.host import extras
from students.jobs.card import write_card
from students.jobs.plan import (
    Sources,
    SpeedWatch,
    check_sources,
    kinds,
    named_sources,
    plan_training,
    recipe_of,
)
from students.jobs.register import base_licence, base_revision, card_facts, clear, inherited, insert_student
from students.jobs.rerank import Note, Tick, student_folder
from students.recipes.auto import AUTO, Plan
from students.recipes.recipe import KINDS, Recipe

if TYPE_CHECKING:
    import duckdb

_STAGE_COLUMNS = (
    "stage", "objective", "loss", "view_hash", "parent_hash", "weights_hash", "hyperparameters", "steps", "pairs",
    "lists_skipped", "truncated_pairs", "seconds", "weights_moved", "best_step", "best_value", "stopped_by",
)  # fmt: skip
_LOG_COLUMNS = ("stage", "step", "pairs", "seconds", "measure", "value")


def train_student(
    store: LabelStore,
    *,
    regime: str | None = None,
    base: str | None = None,
    sources: Sources = Sources(),
    name: str | None = None,
    recipe: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    minutes: float | None = None,
    progress: Tick | None = None,
    note: Note | None = None,
) -> lookup.Student:
    """Train a student in a regime and store it with its stages and log.

    Args:
        regime: ``cl``, ``kd``, ``cl,kd``, ``kd,cl``, longer ones, ``cl+kd``; by default the recipe's.
        base: Hugging Face id, folder, alias, or ``student:NAME`` to continue from a student.
        name: by default BASE-REGIME-KEY, with a key of recipe and views.
        recipe: a TOML file, the name of a shipped recipe, or ``auto``, which chooses what is left open; None has each
            setting's default. `settings` replace its top-level settings.
        minutes: what ``auto`` plans for.
        progress: called with (pairs, total pairs or None) and figures such as loss.

    Raises:
        StudentError: the regime, a recipe setting or the base model is unknown, or a loss does not fit its view.
        StudentError: another process trains a student of that name (exit code 3).
        UsageError: another training has the name, or the regime does not use a source.
        DataMissing: negatives, labels or a dataset are not found.
    """
    given = dict(settings or {}) | {k: v for k, v in (("regime", regime), ("base", base)) if v is not None}
    if recipe == AUTO or minutes is not None:
        plan, sources = plan_training(store, sources=sources, recipe=recipe, settings=given, minutes=minutes)
        chosen, progress = plan.recipe, _say_plan(plan, progress, note)
    else:
        chosen = recipe_of(recipe, given)
    if chosen.lora.r:
        extras.require("lora")
    check_sources(store, chosen.regime, sources)
    folder_of_base = _base_folder(store, chosen.base)
    revision = _revision(folder_of_base or chosen.base, chosen)
    clock = provenance.Clock()
    built = build_views(store, chosen, sources, note)
    identity = {
        "recipe": {k: v for k, v in chosen.flat().items() if k not in ("name", "description")},
        "views": {kind: view.view_hash for kind, view in sorted(built.items())},
        "base": revision,
    }
    key = keys.content_key("training", identity)
    name = check_name(name or _default_name(chosen, key))
    students = store.folder("students")
    with student_alone(store, name):
        known = _known(store, name, identity)
        if known is not None:
            if note is not None:
                note(f"student {name} is trained already, with this recipe and these views")
            return known
        work = students / f".{name}.{key[:12]}"
        _reuse_stages(store, work, chosen, folder_of_base, identity, built, note)
        stages, log = _train(chosen, folder_of_base, built, store, work, progress, note)
        student = _store_student(
            store, name, chosen, identity, built, stages, log, work, students / name, clock
        )
        shutil.rmtree(work, ignore_errors=True)
        return student


def _say_plan(plan: Plan, progress: Tick | None, note: Note | None) -> Tick | None:
    """Print a plan; returns the progress that also looks at the speed."""
    if note is None:
        return progress
    note("\n".join(["plan:", *plan.lines]))
    if plan.few_pairs is not None:
        note(plan.few_pairs)
    return SpeedWatch(plan, note, progress)


def build_views(
    store: LabelStore, recipe: Recipe, sources: Sources, note: Note | None
) -> dict[str, lookup.View]:
    """Build the views that a recipe's regime learns from, by kind. Existing views are reused.

    All views hold out the same share of queries, so that no stage trains on what another one validates with.
    """
    made: dict[str, lookup.View] = {}
    wanted = kinds(recipe.regime)
    if len(wanted) > 1 and (sources.view_parameters or {}).get("valid_fraction") is None:
        shares = []
        for kind in wanted:
            named, parameters = named_sources(store, kind, sources, None)
            shares.append(views.held_out(store, kind, seed=recipe.seed, **named, **parameters))  # type: ignore[arg-type]
        share = max(shares)
        if note is not None and share > USUAL_FRACTION:
            note(
                f"validation: {share:.1%} of the queries are held out in every view; --valid-fraction sets another share"
            )
        sources = replace(
            sources, view_parameters={**(sources.view_parameters or {}), "valid_fraction": share}
        )
    for kind in wanted:
        named, parameters = named_sources(store, kind, sources, note)
        made[kind] = views.build(store, kind, seed=recipe.seed, note=note, **named, **parameters)  # type: ignore[arg-type]
    return made


def _base_folder(store: LabelStore, base: str) -> Path | None:
    """Return the folder of ``student:NAME``; None for any other base."""
    if not base.startswith("student:"):
        return None
    with store.read() as con:
        return student_folder(store, lookup.student(con, base.removeprefix("student:")))


def _revision(base: str | Path, recipe: Recipe) -> str | None:
    """Load the base, so that a missing model fails first; returns its commit or its weights' hash.

    Raises:
        StudentError: the model is not found (exit code 4), or its text frame or LoRA's targets do not fit (exit code 2).
    """
    from students.model.encoder import CrossEncoder
    from students.model.lora import find_targets

    encoder = CrossEncoder.load(base, precision="fp32", device="cpu", framing=recipe.framing)
    if recipe.lora.r:
        find_targets(encoder.model, recipe.lora.targets)
    return base_revision(str(base), encoder)


def _default_name(recipe: Recipe, key: str) -> str:
    stem = Path(recipe.base.removeprefix("student:").rstrip("/")).name.lower()
    return f"{stem}-{recipe.regime.replace(',', '-')}-{key[:6]}"


def _known(store: LabelStore, name: str, identity: dict[str, Any]) -> lookup.Student | None:
    """Return the student of that name if the same training made it, or None if the name is free.

    Raises:
        UsageError: another training made the student, or it was added.
    """
    with store.read() as con:
        found = con.execute("SELECT recipe FROM students WHERE name = ?", [name]).fetchall()
        if not found:
            return None
        if found[0][0] is not None and json.loads(found[0][0]) == json.loads(json.dumps(identity)):
            return lookup.student(con, name)
    raise UsageError(
        f"student {name!r} exists with another recipe or other views", hint="choose another name with --name"
    )


def _reuse_stages(
    store: LabelStore,
    work: Path,
    recipe: Recipe,
    base: Path | None,
    identity: dict[str, Any],
    built: Mapping[str, lookup.View],
    note: Note | None,
) -> None:
    """Begin after the stages that this training shares with another student of the store, and report it."""
    from students.jobs.reuse_stages import begin_where_another_ended

    begun = begin_where_another_ended(store, work, _over(recipe, base), identity, built)
    if begun is not None and note is not None:
        name, n = begun
        names = ",".join(stage.objective for stage in recipe.stages[:n])
        note(f"stage{'s 1 to ' + str(n) if n > 1 else ' 1'} ({names}): reused from student {name}")


def _over(recipe: Recipe, base: Path | None) -> Recipe:
    """Replace ``student:NAME`` in the recipe by its folder."""
    return recipe if base is None else replace(recipe, base=str(base))


def _train(
    recipe: Recipe,
    base: Path | None,
    built: Mapping[str, lookup.View],
    store: LabelStore,
    work: Path,
    progress: Tick | None,
    note: Note | None,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Run the stages in `work`; returns rows of stages and training_log."""
    from students.train.run import train

    folders = {kind: views.folder_of(store, view) for kind, view in built.items()}
    train(
        _over(recipe, base),
        {objective: folders[kind] for objective, kind in KINDS.items() if kind in folders},
        work,
        tokens=store.folder("tokens"),
        progress=progress,
        note=note,
    )
    stages = json.loads((work / "stages.json").read_text("utf-8"))
    log = [json.loads(line) for line in (work / "training_log.jsonl").read_text("utf-8").splitlines()]
    return stages, log


def _store_student(
    store: LabelStore,
    name: str,
    recipe: Recipe,
    identity: dict[str, Any],
    built: Mapping[str, lookup.View],
    stages: list[dict[str, Any]],
    log: list[dict[str, Any]],
    work: Path,
    folder: Path,
    clock: provenance.Clock,
) -> lookup.Student:
    """Move the trained folder into place, and store the student with its stages and log in one transaction."""
    from students.model.encoder import CrossEncoder

    trained = work / "model"
    encoder = CrossEncoder.load(trained, max_length=recipe.max_length, precision="fp32", device="cpu")
    hash_ = file_hash(trained / "model.safetensors")
    terms = sorted({view.licence for view in built.values() if view.licence})
    by_hash = {view.view_hash: view.view for view in built.values()}
    with store.write() as con, provenance.recorded_in(con, "students.train", clock) as job:
        student = insert_student(
            con,
            job.job,
            name=name,
            base=recipe.base,
            base_revision=identity["base"],
            encoder=encoder,
            regime=recipe.regime,
            weights_hash=hash_,
            seed=recipe.seed,
            recipe=identity,
            licence=inherited(terms, base_licence(con, recipe.base)),
        )
        _insert_stages(con, student.student, stages, by_hash)
        _insert_log(con, student.student, log)
        clear(folder, hash_)
        shutil.copytree(trained, folder)
        write_card(folder, card_facts(con, student))
    return student


def _insert_stages(
    con: "duckdb.DuckDBPyConnection", student: int, stages: list[dict[str, Any]], by_hash: Mapping[str, int]
) -> None:
    for row in stages:
        values = {column: row.get(column) for column in _STAGE_COLUMNS}
        values["hyperparameters"] = json.dumps(values["hyperparameters"])
        names = ["student", "view", *values]
        con.execute(
            f"INSERT INTO stages ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})",
            [student, by_hash.get(str(row["view_hash"])), *values.values()],
        )


def _insert_log(con: "duckdb.DuckDBPyConnection", student: int, log: list[dict[str, Any]]) -> None:
    import polars as pl

    if not log:
        return
    rows = pl.DataFrame({column: [row[column] for row in log] for column in _LOG_COLUMNS})
    con.register("log_rows", rows.to_arrow())
    con.execute(
        f"INSERT INTO training_log (student, {', '.join(_LOG_COLUMNS)}) SELECT ?, {', '.join(_LOG_COLUMNS)} FROM log_rows",
        [student],
    )
    con.unregister("log_rows")
