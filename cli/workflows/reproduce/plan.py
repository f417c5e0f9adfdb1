"""Plan the steps of a reproduction: done, ready to run, or blocked, with the fix.

Every step is a command of msft. The store shows which steps are done, so a reproduction continues where it stopped.
"""

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.output import diagnostics
from cli.workflows.reproduce.sources import Teacher
from cli.workflows.reproduce.spec import THREE_VALUED, FirstStage, Spec, Training

if TYPE_CHECKING:
    import duckdb

    from cli.workflows.steps import Steps
    from labelstore.store.label_store import LabelStore

Missing = tuple[str, str]  # (missing item, how to get it)

_ENDS_ALL = (
    3,
    130,
)  # a locked store or an interruption ends the reproduction; another failure ends the dependent steps


@dataclass(frozen=True)
class PlannedCommand:
    """A command of the plan.

    Attributes:
        key: the result of the command: ("data", dataset), ("run", dataset, run), ("negatives", name),
            ("labels", name), ("student", name) or ("eval", dataset).
        needs: keys of the steps that must be done before. An evaluation uses those of them that are done.
        missing: why the command cannot run here, as (missing item, how to get it); empty if it can.
    """

    key: tuple[str, ...]
    command: tuple[str, ...]
    needs: tuple[tuple[str, ...], ...] = ()
    done: bool = False
    missing: tuple[Missing, ...] = ()

    def __str__(self) -> str:
        return shlex.join(["msft", *self.command])


@dataclass(frozen=True)
class Plan:
    """All steps, in an order in which they can run."""

    steps: tuple[PlannedCommand, ...]

    @property
    def by_key(self) -> dict[tuple[str, ...], PlannedCommand]:
        return {step.key: step for step in self.steps}

    def reachable(self) -> set[tuple[str, ...]]:
        """Collect the keys of the steps that are done or can be done here."""
        found: set[tuple[str, ...]] = set()
        for step in self.steps:
            if step.done or (not step.missing and all(need in found for need in step.needs)):
                found.add(step.key)
        return found

    def missing(self) -> dict[Missing, list[tuple[str, ...]]]:
        """Collect the missing items as (missing item, how to get it), with the keys of the steps that need them."""
        found: dict[Missing, list[tuple[str, ...]]] = {}
        for step in self.steps:
            for what in step.missing:
                found.setdefault(what, []).append(step.key)
        return found

    def why(self, key: tuple[str, ...]) -> str | None:
        """Name the first missing item of a step or of the steps that it needs."""
        steps = self.by_key
        step = steps.get(key)
        if step is None or step.done:
            return None
        if step.missing:
            return step.missing[0][0]
        return next((why for need in step.needs if (why := self.why(need))), None)


def make(store: "LabelStore", spec: Spec, *, prepared: bool) -> Plan:
    """Make the plan from the store's present content.

    Args:
        prepared: whether this command makes the data and labels, so that none is missing.
    """
    held = StoreContents.read(store)
    return Plan(
        (
            *_data(spec, held, prepared),
            *_runs(spec, held, prepared),
            *_sources(spec, held, prepared),
            *_students(spec, held),
        )
    )


@dataclass(frozen=True)
class StoreContents:
    """The content of the store before the reproduction."""

    datasets: dict[str, bool]  # name -> whether the dataset has judgments
    runs: set[tuple[str, str]]
    minings: set[str]
    labelings: set[str]
    students: dict[str, Any]  # name -> stored recipe, or None
    views: dict[str, list[dict[str, Any]]] = field(default_factory=dict)  # student -> parameters of its views

    def has_views(self, student: str, wanted: Mapping[str, Any]) -> bool:
        """Return True if the student's views have these parameters, as far as their kinds take them."""
        return all(
            held.get(key, value) == value
            for held in self.views.get(student, [])
            for key, value in wanted.items()
        )

    @classmethod
    def read(cls, store: "LabelStore") -> "StoreContents":
        if not store.exists:
            return cls({}, set(), set(), set(), {})
        with store.read() as con:
            return cls(
                dict(_all(con, "SELECT name, qrels_hash IS NOT NULL FROM datasets")),
                set(_all(con, "SELECT d.name, r.name FROM runs r JOIN datasets d USING (dataset)")),
                {name for (name,) in _all(con, "SELECT name FROM minings")},
                {name for (name,) in _all(con, "SELECT name FROM labelings")},
                {
                    name: json.loads(recipe)["recipe"] if recipe else None
                    for name, recipe in _all(con, "SELECT name, recipe FROM students")
                },
                _views(con),
            )


def _views(con: "duckdb.DuckDBPyConnection") -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for name, parameters in _all(
        con,
        """SELECT DISTINCT s.name, v.parameters FROM students s JOIN stages USING (student)
           JOIN views v ON v.view = stages.view""",
    ):
        found.setdefault(name, []).append(json.loads(parameters))
    return found


def _all(con: "duckdb.DuckDBPyConnection", sql: str) -> list[Any]:
    return con.execute(sql).fetchall()


def _data(spec: Spec, held: StoreContents, prepared: bool) -> list[PlannedCommand]:
    names = [*spec.training_sets, *(t.dataset for t in spec.test_sets)]
    steps = []
    for name in dict.fromkeys(names):
        done = held.datasets.get(name, False)
        what = f"dataset {name}" + (" has no judgments" if name in held.datasets and not done else "")
        how = f"msft data add {name}, or with --from FOLDER from files"
        steps.append(
            PlannedCommand(
                ("data", name), ("data", "add", name), (), done, () if done or prepared else ((what, how),)
            )
        )
    return steps


def _runs(spec: Spec, held: StoreContents, prepared: bool) -> list[PlannedCommand]:
    wanted = [(t.dataset, stage) for t in spec.test_sets for stage in spec.first_stages]
    stages = {stage.name: stage for stage in spec.first_stages}
    learnt = [(t.dataset, t.how["run"]) for t in spec.teachers if t.asked and "kd" in spec.objectives]
    if spec.contrastive and "cl" in spec.objectives:
        learnt.append((spec.contrastive["dataset"], spec.contrastive["run"]))
    wanted += [(dataset, stages[run]) for dataset, run in dict.fromkeys(learnt) if run in stages]
    steps = []
    for dataset, stage in wanted:
        done = (dataset, stage.run) in held.runs
        command = ("retrieve", "--dataset", dataset, *stage.arguments)
        missing = () if done or prepared else _lacks_retriever(dataset, stage)
        steps.append(
            PlannedCommand(("run", dataset, stage.run), command, (("data", dataset),), done, missing)
        )
    return steps


def _lacks_retriever(dataset: str, stage: FirstStage) -> tuple[Missing, ...]:
    """List what this machine lacks for the retrieval. Importing a published run always works."""
    from labelstore.errors import MsftError

    way_out = (
        f"msft runs import FILE --dataset {dataset} --name {stage.run} takes a TREC run that others published"
    )
    try:
        if stage.retriever == "bm25":
            from labelstore.retrieval import anserini

            anserini.find_jar()
            anserini.find_java()
        elif stage.retriever == "colbert":
            from labelstore.retrieval import colbert

            colbert.find_python()
            if not _has_gpu():
                return ((f"run {stage.run} over {dataset}: ColBERT encodes a corpus on a GPU", way_out),)
    except MsftError as error:
        return ((f"run {stage.run} over {dataset}: {error.message}", f"{error.hint}; or {way_out}"),)
    return ()


def _sources(spec: Spec, held: StoreContents, prepared: bool) -> list[PlannedCommand]:
    steps = []
    contrastive = spec.contrastive
    if contrastive and "cl" in spec.objectives:
        run = run_of(spec, contrastive["run"])
        command = (
            "negatives", "mine", "--dataset", contrastive["dataset"], "--run", run,
            "--depth", str(contrastive.get("depth", 200)), "--per-query", str(contrastive.get("per_query", 99)),
            "--name", contrastive["negatives"],
        )  # fmt: skip
        needs = (("data", contrastive["dataset"]), ("run", contrastive["dataset"], run))
        done = contrastive["negatives"] in held.minings
        steps.append(PlannedCommand(("negatives", contrastive["negatives"]), command, needs, done))
    if "kd" in spec.objectives:
        # Labelings that are combined come after their parts.
        steps += [
            _labels(spec, teacher, held, prepared)
            for teacher in sorted(spec.teachers, key=lambda t: bool(t.parts))
        ]
    return steps


def run_of(spec: Spec, name: str) -> str:
    """Return the store's run for a first stage of the recipe; any other name is a run's own."""
    return next((s.run for s in spec.first_stages if s.name == name), name)


def _labels(spec: Spec, teacher: Teacher, held: StoreContents, prepared: bool) -> PlannedCommand:
    if teacher.asked:
        teacher = replace(teacher, how={**teacher.how, "run": run_of(spec, teacher.how["run"])})
    command, done = teacher.command(), teacher.labels in held.labelings
    needs: tuple[tuple[str, ...], ...] = (("data", teacher.dataset),)
    if teacher.parts:
        needs = tuple(("labels", part) for part in teacher.parts)
    elif teacher.asked:
        needs = (*needs, ("run", teacher.dataset, teacher.how["run"]))
    missing = () if done or prepared else _lacks_labels(spec, teacher, command)
    return PlannedCommand(("labels", teacher.labels), command, needs, done, missing)


def _lacks_labels(spec: Spec, teacher: Teacher, command: tuple[str, ...]) -> tuple[Missing, ...]:
    """List what the command that makes a labeling lacks on this machine."""
    if teacher.parts:
        return ()
    if teacher.asked:
        way_out = f"{shlex.join(['msft', *command])} on a machine with one"
        return ((f"a GPU for {teacher.how['model']}", way_out),) if spec.needs_gpu and not _has_gpu() else ()
    files = teacher.files
    if files and all(Path(f).is_file() for f in files):
        return ()
    where = f"where {' and '.join(files)} lie" if files else "with permutations for its queries"
    how = (
        f"{shlex.join(['msft', *command])}, {where};"
        f" or msft teachers generate --dataset {teacher.dataset} --name {teacher.labels} …"
    )
    return ((f"labels {teacher.labels}", how),)


def _students(spec: Spec, held: StoreContents) -> list[PlannedCommand]:
    steps = []
    for training in spec.trainings:
        known = held.students.get(training.name)
        done = known is not None and known == expected_recipe(spec, training)
        done = done and held.has_views(training.name, spec.views)
        missing = () if done else _lacks_for_training(spec, training, training.name in held.students)
        command, needs = ["students", "train", "--recipe", spec.recipe], []
        command += training_options(spec, training)
        objectives = {o.name for s in training.recipe.stages for o in s.objectives}
        if "cl" in objectives:
            source = spec.contrastive
            command += ["--dataset", source["dataset"], "--negatives", source["negatives"]]
            if "per_query" in source and "per_query" not in spec.views:
                command += ["--per-query", str(source["per_query"])]
            needs.append(("negatives", str(source["negatives"])))
        if "kd" in objectives:
            command += ["--labels", str(training.labels)]
            needs.append(("labels", str(training.labels)))
        command += _view_options(spec.views)
        command += ["--name", training.name]
        steps.append(PlannedCommand(("student", training.name), tuple(command), tuple(needs), done, missing))
    return steps


def _view_options(views: Mapping[str, Any]) -> list[str]:
    """Make the options of `students train` for ``[evaluate.views]``."""
    found: list[str] = []
    for key, value in views.items():
        option = key.replace("_", "-")
        if value is False:
            found += [f"--no-{option}"] if key in THREE_VALUED else []
        else:
            found += [f"--{option}"] if value is True else [f"--{option}", str(value)]
    return found


def training_options(spec: Spec, training: Training) -> list[str]:
    """Make ``--base``, ``--regime``, ``--seed`` and ``--set``, which select a training of the recipe."""
    settings = {**training.choice, **spec.settings}
    base = training.folder or settings.pop("base", None)
    settings.pop("base", None)
    found = ["--base", str(base)] if base is not None else []
    for key in ("regime", "seed"):
        value = settings.pop(key, None)
        found += [f"--{key}", str(value)] if value is not None else []
    for key, value in settings.items():
        found += ["--set", f"{key}={_toml(value)}"]
    return found


def _toml(value: Any) -> str:
    """Write a value as inline TOML."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key} = {_toml(v)}" for key, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return repr(value) if isinstance(value, float) else json.dumps(value, ensure_ascii=False)


def expected_recipe(spec: Spec, training: Training) -> dict[str, Any]:
    """Make the recipe that the store holds after this training."""
    from students.recipes.read import load_recipe

    overrides = {**training.choice, **spec.settings}
    if training.folder is not None:
        overrides["base"] = training.folder
    flat = load_recipe(spec.recipe, overrides).flat()
    return json.loads(json.dumps({k: v for k, v in flat.items() if k not in ("name", "description")}))  # type: ignore[no-any-return]


def _lacks_for_training(spec: Spec, training: Training, name_taken: bool) -> tuple[Missing, ...]:
    found: list[Missing] = []
    if name_taken:
        found.append(
            (
                f"student {training.name} is there with other settings",
                "another --store or --folder, or a copy of the recipe under another name",
            )
        )
    if spec.needs_gpu and not _has_gpu():
        how = "one GPU of 24 GB or more; --scale tiny runs the whole grid on a CPU"
        found.append(("a GPU to train on", how))
    if training.folder is None and (what := _lacks_base(training.base)):
        how = (
            "fetch it once with HF_HUB_OFFLINE=0, or name its folder among the bases of a copy of the recipe"
        )
        found.append((what, how))
    return tuple(found)


def _lacks_base(base: str) -> str | None:
    """Name the base model if it is neither a folder nor cached and the hub may not be asked; otherwise None."""
    import huggingface_hub
    from huggingface_hub import constants

    from students.model.encoder import resolve_base

    where = resolve_base(base)
    if base.startswith("student:") or Path(where).is_dir() or not constants.HF_HUB_OFFLINE:
        return None
    cached = huggingface_hub.try_to_load_from_cache(where, "config.json")
    return None if isinstance(cached, str) else f"base model {where}"


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


# ------------------------------------------------------------------------------------------------------------ costs
def training_pairs(spec: Spec) -> tuple[float, int]:
    """Count the pairs that the grid trains on at most, and its stages. A shared first stage counts once."""
    stages: dict[str, float] = {}
    for training in spec.trainings:
        recipe, path = training.recipe, ""
        for stage in recipe.stages:
            taught = training.labels if any(o.name == "kd" for o in stage.objectives) else None
            path += json.dumps([recipe.base, recipe.seed, str(stage), taught])
            teacher = spec.teacher(taught)
            queries = {
                "cl": spec.contrastive.get("n_queries"),
                "kd": None if teacher is None else teacher.n_queries,
            }
            stages[path] = min(
                (n for o in stage.objectives for n in _bounds(stage, o, queries[o.name])),
                default=float("nan"),
            )
    return sum(stages.values()), len(stages)


def _bounds(stage: Any, objective: Any, n_queries: int | None) -> list[float]:
    group = objective.group_size or objective.depth
    found = []
    if stage.max_pairs:
        found.append(stage.max_pairs)
    if stage.max_steps:
        found.append(stage.max_steps * objective.lists * group)
    if stage.epochs and n_queries is not None:
        found.append(stage.epochs * n_queries * group)
    return found


def describe_cost(spec: Spec) -> str:
    """Describe the GPU hours of all trainings in words."""
    pairs, n_stages = training_pairs(spec)
    hours = pairs / spec.pairs_per_second / 3600
    return (
        f"{len(spec.trainings)} trainings of {n_stages} different stages: at most {pairs / 1e6:,.0f} M pairs,"
        f" {hours:,.0f} GPU hours at {spec.pairs_per_second:,.0f} pairs/s (assumed); early stopping ends them sooner"
    )


# ---------------------------------------------------------------------------------------------------------- running
def carry_out(plan: Plan, steps: "Steps") -> Plan:
    """Run the steps that are not done and can run, in order. Return the plan with the results.

    A failed command is reported, and the steps that depend on it are skipped. A locked store or an interruption ends
    the reproduction.
    """
    done = list(plan.steps)
    for number, step in enumerate(done):
        if step.done or step.missing:
            continue
        there = {s.key for s in done if s.done}
        if not all(need in there for need in step.needs):
            continue
        try:
            steps(*step.command)
        except SystemExit as stopped:
            if stopped.code in _ENDS_ALL:
                raise
            failed = (f"`{step}` failed, exit {stopped.code}", "its error stands above")
            done[number] = replace(step, missing=(failed,))
            diagnostics.note("  left out; the other steps go on")
        else:
            done[number] = replace(step, done=True)
    return Plan(tuple(done))


def evaluations(spec: Spec, there: set[tuple[str, ...]]) -> list[PlannedCommand]:
    """Make one `msft eval` for each test set that has a first stage, over the available students and first stages."""
    students = [t.name for t in spec.trainings if ("student", t.name) in there]
    found = []
    for test_set in spec.test_sets:
        runs = [s.run for s in spec.first_stages if ("run", test_set.dataset, s.run) in there]
        if not runs:
            continue
        command = ["eval", "--dataset", test_set.dataset, "--depth", str(spec.depth), "--no-untrained"]
        command += [a for run in runs for a in ("--run", run)]
        command += [a for measure in test_set.measures for a in ("--measure", measure)]
        command += [a for name in students for a in ("--student", name)] or ["--no-rerank"]
        found.append(PlannedCommand(("eval", test_set.dataset), tuple(command)))
    return found


def with_evaluations(spec: Spec, plan: Plan) -> Plan:
    """Add the evaluations of the finished steps to the plan."""
    return Plan((*plan.steps, *evaluations(spec, {step.key for step in plan.steps if step.done})))
