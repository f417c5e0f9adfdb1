"""Regimes and recipes: what a training consists of, as typed values.

A regime is an ordered list of stages, ``cl``, ``kd``, ``cl,kd``, ``kd,cl`` or longer; ``cl+kd`` is one stage with both
objectives. A recipe is a flat TOML file: settings for every stage at the top, then tables ``[cl]``, ``[kd]``,
``["cl+kd"]`` for an objective's stages, ``[stage-2]`` for one stage and ``["stage-2:kd"]`` for it where its objective is
that (a grid has several regimes). Unknown keys fail, and all errors come at once.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

from students.errors import StudentError
from students.losses import REDUCTIONS

OBJECTIVES = ("cl", "kd")
KINDS = {"cl": "contrastive", "kd": "distillation"}  # the kind of view that an objective learns from
DEFAULT_LOSS = {"cl": "lce", "kd": "ranknet"}
RECIPES = Path(__file__).parent

Schedule = Literal["linear", "cosine", "constant"]
Measure = Literal["loss", "nDCG@10", "tau"]


@dataclass(frozen=True)
class Objective:
    """One objective of a stage: what it learns from which lists."""

    name: str  # cl or kd
    loss: str = ""  # see students.losses; "" is lce for cl, ranknet for kd
    reduction: Literal["list", "pair", "batch"] = "list"  # what the loss is the mean of
    weight: float = 1.0  # of this objective in a joint stage
    lists: int = 16  # lists (queries) per optimiser step, over all processes
    group_size: int = (
        0  # passages sampled per list and epoch; cl: one of them positive. 0: 8 for cl, all for kd
    )
    depth: int = 100  # kd: the teacher's top passages used
    temperature: float | None = None  # lce, kl: of the student's scores
    teacher_temperature: float | None = None  # kl
    alpha: float | None = None  # adr_mse: steepness
    mu: float | None = None  # lambda: weight of the distance term
    margin: float | None = None  # hinge
    positive_weight: float | None = None  # bce

    @property
    def parameters(self) -> dict[str, float]:
        """The loss's parameters that are set."""
        values = {name: getattr(self, name) for name in _PARAMETERS}
        return {name: value for name, value in values.items() if value is not None}


_PARAMETERS = ("temperature", "teacher_temperature", "alpha", "mu", "margin", "positive_weight")


@dataclass(frozen=True)
class Stage:
    """One stage: its objectives, and how it optimises."""

    number: int  # place in the regime, from 1
    objectives: tuple[Objective, ...]
    lr: float = 1e-5  # peak learning rate
    schedule: Schedule = "linear"  # after the warm-up: to 0 (linear, cosine) or constant
    warmup: float = 0.1  # of the stage if below 1, else in steps
    weight_decay: float = 0.01  # AdamW; not on biases and norms
    clip: float = 1.0  # gradient norm; 0: none
    epochs: float = 1.0  # over the training lists (of the larger view in a joint stage); 0: no bound
    max_steps: int = 0  # 0: no bound
    max_pairs: int = 0  # 0: no bound
    max_minutes: float = 0.0  # 0: no bound
    freeze: tuple[
        str, ...
    ] = ()  # position_embeddings, embeddings, layers:0-5, or a part of a parameter's name
    batch_tokens: int = 0  # tokens per forward; 0: by the device
    memory_tokens: int = (
        0  # tokens whose activations are held at once; beyond, gradients are cached. 0: by the device
    )
    gradient_cache: Literal["auto", "always", "never"] = "auto"
    valid_every: int = 0  # steps between validations; 0: ten times a stage, and every ten minutes
    valid_lists: int = 500  # at most that many validation lists
    stop_on: Measure = "loss"  # what early stopping and the best checkpoint go by
    patience: int = 10  # validations without a better value before the stage ends; 0: never
    keep: Literal["best", "last"] = "best"  # which weights the stage ends with
    checkpoint_every: int = 0  # steps between checkpoints; 0: with each validation
    log_every: int = 10  # steps whose mean loss is one row of the log

    @property
    def objective(self) -> str:
        """cl, kd or cl+kd."""
        return "+".join(o.name for o in self.objectives)

    @property
    def loss(self) -> str:
        """The losses' names."""
        return "+".join(o.loss for o in self.objectives)


@dataclass(frozen=True)
class Recipe:
    """A whole training."""

    name: str = "default"
    description: str = ""
    base: str = "electra"  # Hugging Face id, folder or alias
    regime: str = "cl"
    seed: int = 42  # of data order, samples, a new head and dropout
    max_length: int = 256  # tokens per pair
    layers: int = 0  # keep only the base's first layers; 0: all
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    layout: Literal["auto", "padded", "packed"] = "auto"
    attention_dropout: float | None = None  # instead of the base's; packed on a GPU needs 0, or flash-attn
    hidden_dropout: float | None = None  # instead of the base's
    compile: bool = False  # torch.compile the layers
    stages: tuple[Stage, ...] = ()

    def flat(self) -> dict[str, Any]:
        """Plain values, for JSON; ``compile``, which came later, only where it is set: older trainings stay known."""
        values = asdict(self)
        if not self.compile:
            del values["compile"]
        return values


@dataclass(frozen=True)
class Grid:
    """A recipe file that may name several bases, regimes and seeds, and how its students are to be evaluated.

    Its ``[vary]`` table adds axes of any setting: ``"stage-2.lr" = [1e-8, 1e-5]``; a regime without that stage is
    trained once.

    Attributes:
        recipes: every combination, in the file's order.
        choices: for each of them the overrides that take it out of the file: base, regime, seed, what is varied.
        evaluate: the file's ``[evaluate]`` table: first_stages, datasets, measures, depth; what `msft reproduce` runs.
        published: the file's ``[[published]]`` rows: base, regime, first_stage, dataset, measure, value.
    """

    recipes: tuple[Recipe, ...]
    choices: tuple[dict[str, Any], ...] = ()
    evaluate: dict[str, Any] = field(default_factory=dict)
    published: tuple[dict[str, Any], ...] = ()


def parse_regime(text: str) -> tuple[tuple[str, ...], ...]:
    """``"cl,kd"`` -> (("cl",), ("kd",)); ``"cl+kd"`` -> (("cl", "kd"),).

    Raises:
        StudentError: an unknown or repeated objective (exit code 2).
    """
    stages = []
    for part in text.replace("->", ",").replace("→", ",").split(","):
        names = tuple(name.strip().lower() for name in part.split("+"))
        wrong = [name for name in names if name not in OBJECTIVES]
        if wrong or len(set(names)) < len(names):
            what = f"{wrong[0]!r} is no objective" if wrong else f"{part.strip()!r} repeats an objective"
            raise StudentError(
                f"regime {text!r}: {what}",
                hint="cl, kd, cl,kd, kd,cl, longer ones, or cl+kd for both in one stage",
                exit_code=2,
            )
        stages.append(tuple(sorted(names, key=OBJECTIVES.index)))
    return tuple(stages)


if set(REDUCTIONS) != set(get_args(get_type_hints(Objective)["reduction"])):
    raise ImportError("Objective.reduction and students.losses.REDUCTIONS differ")
