"""Read a reproduction from a recipe: its grid, its ``[evaluate]`` table and its ``[[published]]`` rows, typed."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from cli.workflows.reproduce import sources
from cli.workflows.reproduce.sources import Teacher

if TYPE_CHECKING:
    from students.recipes.recipe import Recipe

# Options of `msft students train` that make its views.
VIEW_OPTIONS = {
    "valid_fraction", "per_query", "graded", "retrieved", "judged_first", "stratified", "easy", "max_lists", "allow_overlap",
}  # fmt: skip
THREE_VALUED = {"retrieved"}  # switches whose default is neither on nor off
RETRIEVER_OPTIONS = ("k1", "b", "language", "index", "model")
_KEYS = {
    "depth", "margin", "needs_gpu", "pairs_per_second", "verdicts", "first_stages", "datasets", "like", "views", "cl", "kd",
}  # fmt: skip
_VERDICTS = ("two-stages", "all")


@dataclass(frozen=True)
class TestSet:
    """A test set: its name in the recipe, its dataset in the store, and its measures, the headline measure first."""

    name: str
    dataset: str
    measures: tuple[str, ...]


@dataclass(frozen=True)
class FirstStage:
    """A first stage: its name in the recipe, its run in the store, and how `msft retrieve` makes the run."""

    name: str
    run: str
    retriever: str
    depth: int
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def arguments(self) -> list[str]:
        given = [a for key, value in self.options.items() for a in (f"--{key}", str(value))]
        return ["--retriever", self.retriever, "--depth", str(self.depth), "--name", self.run, *given]


@dataclass(frozen=True)
class Training:
    """A training of the grid.

    Attributes:
        base: name of the base model in the recipe; at tiny scale `folder` stands in for it.
        choice: the settings that select this training from the recipe's grid.
        variant: what is varied, as text (``stage-2.lr=1e-08``); empty if the recipe varies nothing.
        labels: the labeling that its distilling stages learn from; None without such a stage.
    """

    name: str
    base: str
    choice: dict[str, Any]
    recipe: "Recipe"
    variant: str
    folder: str | None = None
    labels: str | None = None


@dataclass(frozen=True)
class Spec:
    """A reproduction: everything that the plan and the table need.

    Attributes:
        contrastive: the source of the contrastive stages' lists, as in the recipe; empty without such a stage.
        teachers: the labelings that distilling stages learn from.
        verdicts: which regimes are compared with the single contrastive stage: ``two-stages``, or ``all`` others.
        views: parameters of the views, as options of `msft students train`.
        published: (base, regime, first stage, test set, measure) -> the study's value; base and regime are "" for a
            first stage alone.
        settings: settings that override those of every training at tiny scale.
        note: a list of the stand-ins, shown with every row; empty at full scale.
    """

    recipe: str
    trainings: tuple[Training, ...]
    test_sets: tuple[TestSet, ...]
    first_stages: tuple[FirstStage, ...]
    contrastive: dict[str, Any] = field(default_factory=dict)
    teachers: tuple[Teacher, ...] = ()
    verdicts: str = "two-stages"
    depth: int = 100
    margin: float = 0.01
    needs_gpu: bool = False
    pairs_per_second: float = 1000.0
    views: dict[str, Any] = field(default_factory=dict)
    published: dict[tuple[str, str, str, str, str], float] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    note: str = ""

    @property
    def objectives(self) -> list[str]:
        return list(
            dict.fromkeys(o.name for t in self.trainings for s in t.recipe.stages for o in s.objectives)
        )

    @property
    def training_sets(self) -> list[str]:
        """The datasets that the trainings learn from."""
        given = [self.contrastive["dataset"]] if self.contrastive else []
        return list(dict.fromkeys([*given, *(teacher.dataset for teacher in self.teachers)]))

    def teacher(self, labels: str | None) -> Teacher | None:
        return next((teacher for teacher in self.teachers if teacher.labels == labels), None)


def read(recipe: str) -> Spec:
    """Read the spec from a recipe file or a shipped recipe.

    Raises:
        StudentError: the recipe is not found or has invalid settings.
        UsageError: the ``[evaluate]`` table or the ``[[published]]`` rows are invalid; it lists all faults at once.
    """
    from students.recipes.read import load_grid

    grid = load_grid(recipe)
    evaluate, published = dict(grid.evaluate), list(grid.published)
    if "like" in evaluate:
        other = load_grid(str(evaluate["like"]))
        evaluate = {**other.evaluate, **evaluate}
        published = [*other.published, *published]
    errors: list[str] = []
    contrastive, teachers = sources.contrastive(evaluate, errors), sources.teachers(evaluate, errors)
    trainings = tuple(
        training
        for recipe, choice in zip(grid.recipes, grid.choices, strict=True)
        for training in _trainings(recipe, choice, len(grid.recipes) > 1, teachers)
    )
    spec = Spec(
        recipe=recipe,
        trainings=trainings,
        test_sets=_test_sets(evaluate, errors),
        first_stages=_first_stages(evaluate, errors),
        contrastive=contrastive,
        teachers=teachers,
        views=_views(evaluate, errors),
        published=_published(published, {t.base for t in trainings}, errors),
        **_settings(evaluate, errors),
    )
    errors += [
        f"[evaluate.{o}] is missing: where {o} learns from" for o in spec.objectives if o not in evaluate
    ]
    if errors:
        from labelstore.errors import UsageError

        raise UsageError(
            f"{recipe}: {len(errors)} error{'s' if len(errors) > 1 else ''}\n"
            + "\n".join(f"  {e}" for e in errors),
            hint="students/recipes/pezzuti2025.toml has every table that reproduce reads",
        )
    return spec


def _trainings(
    recipe: "Recipe", choice: dict[str, Any], several: bool, teachers: tuple[Teacher, ...]
) -> list[Training]:
    """Make a training for each labeling that its distilling stages can learn from; one without such a stage."""
    losses = {o.loss for stage in recipe.stages for o in stage.objectives if o.name == "kd"}
    fitting = [teacher for teacher in teachers if teacher.losses is None or losses <= set(teacher.losses)]
    if not losses or not teachers:
        return [_training(recipe, choice, several, None, "")]
    named = len(teachers) > 1
    return [
        _training(recipe, choice, several, teacher.labels, teacher.name if named else "")
        for teacher in fitting
    ]


def _training(
    recipe: "Recipe", choice: dict[str, Any], several: bool, labels: str | None, teacher: str
) -> Training:
    varied = [teacher] if teacher else []
    varied += [
        f"{key}={value:g}" if isinstance(value, float) else f"{key}={value}"
        for key, value in choice.items()
        if key not in ("base", "regime", "seed")
    ]
    parts = [recipe.name]
    if several:
        parts += [recipe.base.rstrip("/").rpartition("/")[2], recipe.regime.replace(",", "-"), *varied]
    if "seed" in choice:
        parts.append(f"s{recipe.seed}")
    return Training("-".join(parts), recipe.base, choice, recipe, " ".join(varied), labels=labels)


def _settings(evaluate: Mapping[str, Any], errors: list[str]) -> dict[str, Any]:
    kinds: dict[str, Any] = {"depth": int, "margin": float, "needs_gpu": bool, "pairs_per_second": float}
    found: dict[str, Any] = {}
    errors += [f"[evaluate] unknown setting {key!r}" for key in evaluate if key not in _KEYS]
    if "verdicts" in evaluate:
        found["verdicts"] = evaluate["verdicts"]
        if found["verdicts"] not in _VERDICTS:
            errors.append(f"[evaluate] verdicts must be one of {', '.join(_VERDICTS)}")
    for key, kind in kinds.items():
        value = evaluate.get(key)
        if value is None:
            continue
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            errors.append(f"[evaluate] {key} must be {'true or false' if kind is bool else 'a number'}")
        elif kind is not bool and value <= 0:
            errors.append(f"[evaluate] {key} must be above 0")
        else:
            found[key] = value
    return found


def _tables(
    evaluate: Mapping[str, Any], key: str, wanted: set[str], errors: list[str]
) -> list[dict[str, Any]]:
    """Return the ``[[evaluate.KEY]]`` tables that have a name and no unknown setting."""
    found = evaluate.get(key, [])
    if (
        not isinstance(found, list)
        or not found
        or not all(isinstance(t, dict) and t.get("name") for t in found)
    ):
        errors.append(f"[[evaluate.{key}]] must be one table or more, each with a name")
        return []
    errors += [
        f"[[evaluate.{key}]] {table['name']}: unknown setting {k!r}"
        for table in found
        for k in table.keys() - wanted
    ]
    return [dict(table) for table in found]


def _test_sets(evaluate: Mapping[str, Any], errors: list[str]) -> tuple[TestSet, ...]:
    from labelstore.datasets import catalog
    from labelstore.errors import UsageError
    from labelstore.evaluation import measures as measuring

    made = []
    for table in _tables(evaluate, "datasets", {"name", "dataset", "measures"}, errors):
        name = str(table["name"])
        try:
            measures = [measuring.canonical(str(m)) for m in table.get("measures") or catalog.measures(name)]
        except UsageError as error:
            errors.append(f"[[evaluate.datasets]] {name}: {error}")
            continue
        made.append(TestSet(name, str(table.get("dataset", name)), tuple(measures)))
    return tuple(made)


def _first_stages(evaluate: Mapping[str, Any], errors: list[str]) -> tuple[FirstStage, ...]:
    from labelstore.retrieval.by_name import RETRIEVERS

    made = []
    for table in _tables(
        evaluate, "first_stages", {"name", "run", "retriever", "depth", *RETRIEVER_OPTIONS}, errors
    ):
        name, retriever = str(table["name"]), table.get("retriever")
        if retriever not in RETRIEVERS:
            errors.append(
                f"[[evaluate.first_stages]] {name}: retriever must be one of {', '.join(RETRIEVERS)}"
            )
            continue
        options = {k: table[k] for k in RETRIEVER_OPTIONS if k in table}
        made.append(
            FirstStage(name, str(table.get("run", name)), retriever, int(table.get("depth", 100)), options)
        )
    return tuple(made)


def _views(evaluate: Mapping[str, Any], errors: list[str]) -> dict[str, Any]:
    """Read ``[evaluate.views]``: options of `students train` that make the views."""
    from labelstore.errors import UsageError
    from labelstore.views.parameters import KINDS, make_parameters

    table = evaluate.get("views", {})
    if not isinstance(table, dict):
        errors.append("[evaluate.views] must be a table")
        return {}
    for key, value in table.items():
        takers = [kind for kind in KINDS if key in {f.name for f in fields(KINDS[kind])} & VIEW_OPTIONS]
        if not takers:
            errors.append(
                f"[evaluate.views] unknown setting {key!r}: one of {', '.join(sorted(VIEW_OPTIONS))}"
            )
            continue
        try:
            make_parameters(takers[0], {key: value})
        except (UsageError, TypeError) as error:
            errors.append(f"[evaluate.views] {key}: {error}")
    return dict(table)


def _published(
    rows: list[dict[str, Any]], bases: set[str], errors: list[str]
) -> dict[tuple[str, str, str, str, str], float]:
    """Read the ``[[published]]`` rows.

    Each row has first_stage, dataset and measure, optionally `alone`, and a table of regimes for each base.
    """
    from labelstore.errors import UsageError
    from labelstore.evaluation import measures as measuring

    found: dict[tuple[str, str, str, str, str], float] = {}
    for number, row in enumerate(rows, 1):
        where = f"[[published]] {number}"
        lacking = [key for key in ("first_stage", "dataset", "measure") if not isinstance(row.get(key), str)]
        if lacking:
            errors.append(f"{where}: lacks {', '.join(lacking)}")
            continue
        try:
            measure = measuring.canonical(row["measure"])
        except UsageError as error:
            errors.append(f"{where}: {error}")
            continue
        place = (row["first_stage"], row["dataset"], measure)
        for key, values in row.items():
            if key in ("first_stage", "dataset", "measure"):
                continue
            by_regime = {"": values} if key == "alone" else values
            if not isinstance(by_regime, dict) or not all(
                isinstance(v, int | float) for v in by_regime.values()
            ):
                errors.append(f"{where}: {key} must be a number for `alone`, a table of regimes for a base")
                continue
            base = "" if key == "alone" else key
            found |= {(base, regime, *place): float(value) for regime, value in by_regime.items()}
    return {key: value for key, value in found.items() if not key[0] or key[0] in bases}
