"""Choose a recipe from the device, the data and the minutes: stages, lists, pairs and rates, each with its reason.

`choose` is a pure function. `students.jobs.plan` collects the facts from the store and the machine. The choices follow
the trials in `benchmarks/results/students.md` and the recipes `demo`, `small` and `rank-distillm`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from students.errors import ExitCode, StudentError
from students.losses import LOSSES
from students.recipes.choices import Choice, as_table
from students.recipes.read import make_recipe
from students.recipes.recipe import DEFAULT_LOSS, Objective, Recipe, Stage, parse_regime

AUTO = "auto"
GROUP = 8  # passages of a list
EASY = 3  # of them drawn at random
DEEP = 10  # passages of a labelled list from which bands of the teacher's order are drawn
MOST_EPOCHS = 5  # more pairs would only repeat the same lists
USUAL_PAIRS = (
    7_000  # the fewest pairs after which a small model began to rank: benchmarks/results/students.md
)
MANY_PAIRS = 200_000  # from here on a stage takes the step of rank-distillm
SMALL = 50  # millions of parameters
LENGTHS = (64, 96, 128, 192, 256)
_SHORT = 96  # tokens; below that, a pair costs about as much, since most texts do not fill their length
_MOST_SPEED = 4.0  # a model smaller than the measured one is not faster than this
_TRIALS = "results/students.md"
_BOUNDS = ("epochs", "max_steps", "max_pairs", "max_minutes")
_WEIGHT = {"cl": 1, "kd": 2, "cl+kd": 3}  # distillation has the larger share, as in the demo


@dataclass(frozen=True)
class Device:
    """A kind of device, and its measured speed of training.

    Attributes:
        minutes: of a training, by default.
        pairs_per_second: measured for a model of `millions` parameters and `tokens` tokens per pair; `measured` names
            the page.
        longest: the most tokens per pair that `auto` takes.
    """

    name: str
    minutes: float
    pairs_per_second: float
    millions: float
    tokens: int
    longest: int
    measured: str

    def speed(self, millions: float, max_length: int) -> float:
        """Estimate the pairs per second of a model; the same number on every machine."""
        by_size = min(_MOST_SPEED, self.millions / millions)
        return self.pairs_per_second * by_size * self.tokens / max(max_length, _SHORT)


CPU = Device("cpu", 10, 24, 23, 128, 128, "results/guide.md: two cores, some of them busy")
CUDA = Device("cuda", 30, 1_000, 109, 256, 256, "results/gpu.md: less than a third")


@dataclass(frozen=True)
class Lists:
    """The lists that an objective can learn from, before a view is built.

    Attributes:
        names: of the labelings, minings or runs. depth: median number of passages.
        scored: whether the teacher scored all passages. judged: whether a passage is judged relevant.
        spread: mean standard deviation of the teacher's scores within a list.
        grades: of the positives. positives: how many of them are retrieved, in words. retrieved: whether only those are
            used.
    """

    names: str
    n: int
    depth: int
    scored: bool = False
    judged: bool = False
    spread: float = 0.0
    grades: tuple[int, ...] = ()
    positives: str = ""
    retrieved: bool = False


@dataclass(frozen=True)
class Base:
    """The base model: its millions of parameters, whether its head is new, why it was chosen, and whether it has a part
    that is called embeddings (decoders have none)."""

    name: str
    millions: float
    new_head: bool
    why: str
    embeddings: bool = True


@dataclass(frozen=True)
class Facts:
    """What a plan is made from.

    Attributes:
        lists: by objective. tokens: of a pair whose passage is longer than 90 % of them.
        minutes: None takes the device's.
        given: settings of the recipe that the user gave. given_views: the same for the parameters of views.
    """

    device: Device
    base: Base
    regime: str
    regime_why: str
    lists: Mapping[str, Lists]
    tokens: int
    minutes: float | None = None
    given: Mapping[str, Any] = field(default_factory=dict)
    given_views: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """A training that is planned: its recipe, the parameters of its views, and the reasons."""

    recipe: Recipe
    view_parameters: Mapping[str, Any]
    choices: tuple[Choice, ...]
    lists: Mapping[str, Lists]
    pairs_per_second: float
    pairs: int

    @property
    def minutes(self) -> float:
        return self.pairs / self.pairs_per_second / 60

    @property
    def lines(self) -> list[str]:
        """The plan as the lines of a table."""
        return as_table(self.choices)

    @property
    def few_pairs(self) -> str | None:
        """Say that the pairs are fewer than a small model usually needs."""
        if not 0 < self.pairs < USUAL_PAIRS:
            return None
        return (
            f"{self.pairs:,} pairs are few: a small model began to rank after {USUAL_PAIRS:,}; give more --minutes, or label"
            " more queries (msft queries generate --model sentences)"
        )


def choose(facts: Facts) -> Plan:
    """Choose what the user left open, and make the plan.

    Raises:
        StudentError: a given setting is unknown or impossible, or the minutes are not above 0 (exit code 2).
    """
    views, view_reasons = _views(facts)
    settings, reasons = _settings(facts)
    overrides = dict(facts.given)
    for table, chosen in settings.items():
        if isinstance(chosen, dict) and isinstance(overrides.get(table), Mapping):
            overrides[table] = {**chosen, **overrides[table]}
    recipe = make_recipe({"name": AUTO, **settings}, overrides, where="options")
    reasons |= view_reasons
    return describe(recipe, facts, views, reasons)


def describe(
    recipe: Recipe, facts: Facts, views: Mapping[str, Any], reasons: Mapping[str, str] | None = None
) -> Plan:
    """Make the plan of a recipe that is complete.

    Args:
        views: parameters of the views.
        reasons: what a setting was taken from, by its name or ``kd.lr``; by default the recipe's name.
    """
    told = _Reasons(facts, reasons or {}, "given" if recipe.name == "default" else f"recipe {recipe.name}")
    speed = facts.device.speed(facts.base.millions, recipe.max_length)
    choices = [
        Choice(None, "device", facts.device.name, "this machine"),
        Choice(None, "base", recipe.base, told("base")),
        Choice(None, "regime", recipe.regime, told("regime")),
        Choice(None, "max_length", recipe.max_length, told("max_length")),
        Choice(None, "pairs_per_second", round(speed), facts.device.measured),
        *_asked_for(recipe, facts, told),
        *(Choice(None, f"view: {name}", value, told(name)) for name, value in views.items()),
    ]
    planned = [stage_pairs(stage, facts.lists, speed) for stage in recipe.stages]
    for stage, pairs in zip(recipe.stages, planned, strict=True):
        choices += _of_stage(stage, facts, pairs, speed, told)
    plan = Plan(recipe, views, (), facts.lists, speed, sum(pairs or 0 for pairs in planned))
    choices += _planned(plan, bounded=None not in planned)
    if recipe.name == AUTO:
        choices.append(Choice(None, "re-rank top", "10 alone, 20 fused", _TRIALS))
    return replace(plan, choices=tuple(choices))


@dataclass(frozen=True)
class _Reasons:
    facts: Facts
    found: Mapping[str, str]
    otherwise: str

    def __call__(self, name: str, table: str = "") -> str:
        inner = self.facts.given.get(table)
        if name in self.facts.given or name in self.facts.given_views or name in (inner or ()):
            return "given"
        return self.found.get(f"{table}.{name}") or self.found.get(name) or self.otherwise


def _asked_for(recipe: Recipe, facts: Facts, told: _Reasons) -> list[Choice]:
    """Name the minutes that the pairs were chosen for, unless other bounds replace them."""
    if recipe.name != AUTO:
        return []
    minutes = facts.minutes or facts.device.minutes
    bound = next((b for b in _BOUNDS if b in facts.given), None)
    return [
        Choice(
            None, "minutes asked for", minutes, told("minutes") + (f", but {bound} bounds" if bound else "")
        )
    ]


def _planned(plan: Plan, *, bounded: bool) -> list[Choice]:
    """Add up the stages."""
    if not bounded:
        return [Choice(None, "pairs planned", None, "a stage has no bound on its pairs")]
    return [
        Choice(None, "pairs planned", plan.pairs, "sum of the stages; bounds the training"),
        Choice(None, "minutes planned", round(plan.minutes, 1), "pairs and pairs_per_second"),
    ]


def _of_stage(stage: Stage, facts: Facts, pairs: int | None, speed: float, told: _Reasons) -> list[Choice]:
    """List the choices of a stage."""
    name = f"{stage.number} {stage.objective}"
    made = []
    for objective in stage.objectives:
        lists = facts.lists.get(objective.name)
        if lists is not None:
            made.append(Choice(name, "learns from", f"{lists.n:,} lists of {lists.depth}", lists.names))
        made.append(Choice(name, "loss", objective.loss, told("loss", objective.name)))
        if objective.teacher_temperature is not None:
            why = told("teacher_temperature", objective.name)
            made.append(Choice(name, "teacher_temperature", objective.teacher_temperature, why))
        made.append(Choice(name, "lists per step", objective.lists, told("lists", objective.name)))
        made.append(
            Choice(
                name, "passages per list", objective.group_size or "all", told("group_size", objective.name)
            )
        )
    made.append(Choice(name, "lr", stage.lr, told("lr", stage.objective)))
    bound = next((b for b in _BOUNDS if b in facts.given), "max_pairs")
    by_steps = bound == "max_steps"
    made.append(Choice(name, "pairs", pairs, "steps" if by_steps else told(bound, stage.objective)))
    per_step = sum(o.lists * _width(o, facts.lists) for o in stage.objectives)
    if pairs is not None and per_step:
        made.append(Choice(name, "steps", math.ceil(pairs / per_step), told(bound) if by_steps else "pairs"))
        made.append(Choice(name, "minutes", round(pairs / speed / 60, 1), "pairs and pairs_per_second"))
    return made


def _width(objective: Objective, lists: Mapping[str, Lists]) -> int:
    found = lists.get(objective.name)
    return objective.group_size or min(objective.depth, found.depth if found else objective.depth)


def stage_pairs(stage: Stage, lists: Mapping[str, Lists], speed: float) -> int | None:
    """Compute the pairs at which a stage ends, by its nearest bound; None if no bound tells."""
    per_step = sum(o.lists * _width(o, lists) for o in stage.objectives)
    bounds = [
        float(stage.max_pairs),
        float(stage.max_steps * per_step),
        stage.max_minutes * 60 * speed,
        stage.epochs
        * max(lists[o.name].n * _width(o, lists) if o.name in lists else 0 for o in stage.objectives),
    ]
    found = [bound for bound in bounds if bound > 0]
    return round(min(found)) if found else None


# -------------------------------------------------------------------------------------------------------- the choices
def _views(facts: Facts) -> tuple[dict[str, Any], dict[str, str]]:
    """Choose the parameters of views that the user left open."""
    positives, why = choose_positives(facts)
    chosen = {**facts.given_views, **positives}
    labelled = facts.lists.get("kd")
    scored = labelled is not None and uses_scores(facts.given, labelled)
    if "easy" not in chosen and not scored:
        chosen["easy"], why["easy"] = EASY, f"{_TRIALS}: they end the plateau"
    if labelled is None or labelled.depth < DEEP:
        return chosen, why
    if "stratified" not in chosen:
        chosen["stratified"] = max(GROUP - int(chosen.get("easy", 0)), 2)
        why["stratified"] = f"labels are {labelled.depth} deep; {_TRIALS}"
    if "judged_first" not in chosen and labelled.judged and not scored:
        chosen["judged_first"], why["judged_first"] = True, f"labels hold judged passages; {_TRIALS}"
    return chosen, why


def choose_positives(facts: Facts) -> tuple[dict[str, Any], dict[str, str]]:
    """Name what the view decides about positives that are not retrieved, unless the user did."""
    contrasted = facts.lists.get("cl")
    if contrasted is None or not contrasted.positives or "retrieved" in facts.given_views:
        return {}, {}
    return {"retrieved": contrasted.retrieved}, {"retrieved": contrasted.positives}


def uses_scores(given: Mapping[str, Any], labelled: Lists) -> bool:
    """Return True if the loss of `kd` reads the teacher's scores, which random passages do not have."""
    loss = _loss_of(given)
    return loss in LOSSES and (LOSSES[loss].needs == "scores" or (loss == "kl" and labelled.scored))


def _loss_of(given: Mapping[str, Any]) -> str:
    """Return the loss that is given for `kd`; empty if none is."""
    inner = given.get("kd")
    return (inner.get("loss") if isinstance(inner, Mapping) else None) or given.get("loss") or ""


def _settings(facts: Facts) -> tuple[dict[str, Any], dict[str, str]]:
    """Choose the recipe's settings."""
    minutes = facts.device.minutes if facts.minutes is None else facts.minutes
    if not 0 < minutes < math.inf:
        raise StudentError(
            f"minutes is {minutes}: it must be above 0", hint="give --minutes 10", exit_code=ExitCode.USAGE
        )
    why = {
        "base": facts.base.why,
        "regime": facts.regime_why,
        "minutes": f"the default for {facts.device.name}" if facts.minutes is None else "given",
        "group_size": _TRIALS,
        "teacher_temperature": "the spread of the teacher's scores in a list",
        "max_pairs": f"{minutes:g} minutes, at most {MOST_EPOCHS} epochs",
    }
    settings: dict[str, Any] = {
        "base": facts.base.name,
        "regime": facts.regime,
        "max_length": _length(facts),
        "epochs": 0,
        "keep": "last",  # the schedule ends at 0, and few validation lists choose by chance
        "patience": 0,
    }
    why["max_length"] = (
        "90 % of the passages fit" if facts.tokens <= settings["max_length"] else "the most for this device"
    )
    if facts.base.new_head:
        settings |= {"head_scale": 5.0, "head_identity": True}
    if facts.device is CPU:
        settings |= {"attention_dropout": 0.0, "hidden_dropout": 0.0}
        settings |= {"freeze": ["embeddings"]} if facts.base.embeddings else {}
    max_length = facts.given.get("max_length", settings["max_length"])
    speed = facts.device.speed(facts.base.millions, max_length if isinstance(max_length, int) else 96)
    bounded = any(bound in facts.given for bound in _BOUNDS)
    stages = parse_regime(facts.regime)
    names = ["+".join(names) for names in stages]
    for name in dict.fromkeys(names):
        share = _WEIGHT[name] / sum(_WEIGHT[other] for other in names)
        pairs = _pairs(share * minutes * 60 * speed, name, facts.lists)
        many = pairs >= MANY_PAIRS
        settings[name] = {"lr": _rate(facts.base, name, many)}
        settings[name] |= {} if bounded else {"max_pairs": pairs}
        why[f"{name}.lr"] = _rate_why(facts.base, many)
        for objective in name.split("+"):
            table = settings.setdefault(objective, {})
            table |= {"lists": 32 if many else {"cl": 8, "kd": 4}[objective], "group_size": GROUP}
            why[f"{objective}.lists"] = "recipe rank-distillm" if many else _TRIALS
    labelled = facts.lists.get("kd")
    if labelled is not None and labelled.spread > 0 and labelled.scored and _loss_of(facts.given) == "kl":
        settings.setdefault("kd", {})["teacher_temperature"] = float(f"{labelled.spread:.2g}")
    return settings, why | {f"{name}.loss": _loss_why(name, facts) for name in DEFAULT_LOSS}


def _loss_why(objective: str, facts: Facts) -> str:
    """Say why an objective has its default loss, and what another one would learn."""
    lists = facts.lists.get(objective)
    if objective == "kd" and lists is not None:
        if not lists.scored:
            return "learns the order; not all passages have a score"
        return f"learns the order (.382); kl on the scores was no better (.380, {_TRIALS})"
    if lists is not None and len(lists.grades) > 1:
        found = ", ".join(map(str, lists.grades))
        used = "" if facts.given_views.get("graded") else "--graded with "
        return (
            f"grades {found} count alike; {used}--set cl.loss=lambda learns them (no trial compares the two)"
        )
    return "the default of its objective"


def _length(facts: Facts) -> int:
    fitting = [length for length in LENGTHS if facts.tokens <= length <= facts.device.longest]
    return fitting[0] if fitting else facts.device.longest


def _pairs(wanted: float, name: str, lists: Mapping[str, Lists]) -> int:
    """Bound the pairs of a stage by the epochs over its lists; in hundreds, and at least one step."""
    repeated = [lists[o].n * GROUP * MOST_EPOCHS for o in name.split("+") if o in lists]
    pairs = round(min([wanted, *([max(repeated)] if repeated else [])]))
    return max(pairs // 100 * 100, GROUP * GROUP)


def _rate(base: Base, name: str, many: bool) -> float:
    """Choose the learning rate of a stage."""
    if base.millions > SMALL and many:
        return 1e-5
    rate = 1e-4 if name == "cl" else 2e-4
    return rate / 10 if base.millions > SMALL or not base.new_head else rate


def _rate_why(base: Base, many: bool) -> str:
    if base.millions > SMALL:
        return "recipe rank-distillm" if many else f"a tenth of a small model's ({_TRIALS})"
    return _TRIALS if base.new_head else f"a tenth of a new head's ({_TRIALS})"
