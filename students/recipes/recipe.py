"""Regimes and recipes as typed values.

A regime is an ordered list of stages: ``cl``, ``kd``, ``cl,kd``, ``kd,cl`` or longer; ``cl+kd`` is one stage with both
objectives. A recipe is a flat TOML file. Settings for every stage stand at the top. Tables follow: ``[cl]``, ``[kd]``
and ``["cl+kd"]`` for the stages of an objective, ``[stage-2]`` for one stage, and ``["stage-2:kd"]`` for a stage with
that objective (a grid has several regimes). Unknown keys fail, and all errors are reported together.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

from students.errors import ExitCode, StudentError
from students.losses import REDUCTIONS
from students.text.frames import Framing

OBJECTIVES = ("cl", "kd")
KINDS = {"cl": "contrastive", "kd": "distillation"}  # the kind of view for each objective
DEFAULT_LOSS = {"cl": "lce", "kd": "ranknet"}
RECIPES = Path(__file__).parent

Schedule = Literal["linear", "cosine", "constant"]
Measure = Literal["loss", "nDCG@10", "tau"]
Long = Literal["first", "max", "mean"]  # as students.text.windows.Long, which imports torch


@dataclass(frozen=True)
class Objective:
    """One objective of a stage: its loss and its lists."""

    name: str  # cl or kd
    loss: str = ""
    """Name of the loss. By default `lce` for `cl` and `ranknet` for `kd`."""
    reduction: Literal["list", "pair", "batch"] = "list"
    """What the loss averages: the means of the lists (`list`), all terms (`pair`), or the sums of the lists
    (`batch`)."""
    weight: float = 1.0
    """Weight of the objective in a joint stage."""
    lists: int = 16
    """Lists (queries) per optimiser step, over all processes (`--batch`)."""
    group_size: int = 0
    """Passages sampled per list, anew each epoch. 0 takes 8 for `cl` (one of them positive) and all for `kd`."""
    in_batch: int = 0
    """Only `cl`: passages of the step's other lists that each list also has as negatives, drawn at random. A passage
    of a list on the same query, or of the list itself, is never one."""
    depth: int = 100
    """Only `kd`: how many of the teacher's top passages are used."""
    temperature: float | None = None
    """Of `lce` and `kl`: temperature of the student's scores."""
    teacher_temperature: float | None = None
    """Of `kl`: temperature of the teacher's scores."""
    alpha: float | None = None
    """Of `adr_mse`: steepness of its soft ranks."""
    mu: float | None = None
    """Of `lambda`: weight of the distance term."""
    margin: float | None = None
    """Of `hinge`: the margin."""
    positive_weight: float | None = None
    """Of `bce`: weight of a positive."""
    scale: float | None = None
    """Of `cmnrl`: factor on the student's sigmoid."""

    @property
    def parameters(self) -> dict[str, float]:
        """The parameters of the loss that are set."""
        values = {name: getattr(self, name) for name in _PARAMETERS}
        return {name: value for name, value in values.items() if value is not None}


_PARAMETERS = ("temperature", "teacher_temperature", "alpha", "mu", "margin", "positive_weight", "scale")


@dataclass(frozen=True)
class Stage:
    """One stage: its objectives, and the settings of its optimisation."""

    number: int  # place in the regime, from 1
    objectives: tuple[Objective, ...]
    lr: float = 1e-5
    """Peak learning rate."""
    schedule: Schedule = "linear"
    """Course of the learning rate after the warm-up: `linear` or `cosine` to 0, or `constant`."""
    warmup: float = 0.1
    """Length of the warm-up: a share of the stage if below 1, otherwise a number of steps. The schedule
    covers the rest."""
    weight_decay: float = 0.01
    """Weight decay of AdamW. Biases and norms have none."""
    clip: float = 1.0
    """Largest norm of the gradient. 0 turns clipping off."""
    epochs: float = 1.0
    """Passes over the training lists (of the larger view in a joint stage). 0 sets no bound."""
    max_steps: int = 0
    """Bound in optimiser steps. 0 sets no bound."""
    max_pairs: int = 0
    """Bound in pairs, which is the same work on every machine. 0 sets no bound."""
    max_minutes: float = 0.0
    """Bound in minutes. 0 sets no bound. The bound that is reached first ends the stage. Beside other bounds,
    the minutes count for the learning rate from their half on, so that the schedule ends with the stage."""
    freeze: tuple[str, ...] = ()
    """Parts that do not learn: `position_embeddings`, `embeddings`, `layers:0-5`, or a part of a parameter's
    name."""
    batch_tokens: int = 0
    """Tokens of one forward pass. 0 chooses by the device. Changes the speed, not what is learnt."""
    memory_tokens: int = 0
    """Tokens whose activations are held at once. Larger steps cache their gradients. 0 chooses by the device."""
    gradient_cache: Literal["auto", "always", "never"] = "auto"
    """`always` or `never`. `auto` caches gradients if a step does not fit into `memory_tokens`."""
    valid_every: int = 0
    """Steps between validations. 0 validates ten times a stage by its nearest bound, and every ten minutes at the
    latest. With `max_pairs`, `keep` last and no `patience` it does so less often, at least twice, if ten times would take
    more than a tenth of the stage's time."""
    valid_lists: int = 500
    """Largest number of validation lists."""
    stop_on: Measure = "loss"
    """Measure for early stopping and for the best checkpoint: `loss`, `nDCG@10` (needs judgments) or `tau`
    (Kendall's τ against the teacher)."""
    patience: int = 10
    """Validations without a better value before the stage ends. 0 turns early stopping off."""
    keep: Literal["best", "last"] = "best"
    """Weights that the stage ends with: `best` or `last`."""
    checkpoint_every: int = 0
    """Steps between checkpoints. 0 writes one with each validation, and every ten minutes at the latest."""
    log_every: int = 10
    """Steps whose mean loss is one row of the log."""

    @property
    def objective(self) -> str:
        """cl, kd or cl+kd."""
        return "+".join(o.name for o in self.objectives)

    @property
    def loss(self) -> str:
        """The names of the losses."""
        return "+".join(o.loss for o in self.objectives)


@dataclass(frozen=True)
class Lora:
    """Adapters that learn in place of the weights beside them."""

    r: int = 0
    """Rank of the adapters, such as 32. 0 trains all weights instead."""
    alpha: float = 0.0
    """The adapters' products are multiplied by alpha / r. 0 takes twice the rank."""
    dropout: float = 0.0
    """Dropout before each adapter."""
    targets: tuple[str, ...] = ()
    """Names of the linear maps that have adapters, such as `q_proj`, or a longer end of a name. By default all
    maps of the layers."""


@dataclass(frozen=True)
class Recipe:
    """A whole training."""

    name: str = "default"
    """Name of the recipe; by default the file's name without its ending."""
    description: str = ""
    """A description for readers."""
    base: str = "electra"
    """The model that training starts from: a Hugging Face id, a folder, an alias (`minilm`, `electra`,
    `roberta` …) or `student:NAME`."""
    regime: str = "cl"
    """The stages in their order: `cl`, `kd`, `cl,kd`, `kd,cl` or longer; `cl+kd` is one stage with both
    objectives."""
    seed: int = 42
    """Seed of data order, samples, a new head and dropout."""
    max_length: int = 256
    """Tokens per pair. Longer passages are cut (see `long`)."""
    layers: int = 0
    """Keep only the first layers of the base. 0 keeps all."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """`fp32` or `bf16`. `auto` is bf16 if the hardware supports it, otherwise fp32."""
    layout: Literal["auto", "padded", "packed"] = "auto"
    """`padded`, or `packed` (without any padding). `auto` packs on a GPU in bf16 if the architecture allows
    it and a kernel is installed (torch 2.11 or flash-attn)."""
    attention_dropout: float | None = None
    """Replaces the value of the base. Packed training on a GPU uses 0 unless flash-attn is installed."""
    hidden_dropout: float | None = None
    """Replaces the value of the base."""
    head_scale: float = 1.0
    """Factor on the output weights of a new head. Its first scores are so close together that a short training
    spends many steps on spreading them; 5 or more spares those."""
    head_identity: bool = False
    """Begin the square layers of a new head, and a pooler that was never trained, as the identity, so that the new
    output reads the encoder's states as they are."""
    compile: bool | None = None
    """Let `torch.compile` fuse the operations of each layer. The first steps wait for the compiler. By default on a GPU
    where Triton and a C compiler are installed. On a CPU it replaces the forward of `students/cpu/`, which is faster."""
    weights: Literal["fp32", "bf16"] = "fp32"
    """`bf16` computes with bf16 weights and states, and the optimiser keeps the weights in fp32. It needs `precision`
    bf16. On a CPU it leaves out `students/cpu/`."""
    long: Long = "first"
    """Passages beyond `max_length`: `first` cuts them. `max` scores overlapping windows and takes the best one, `mean`
    the mean of the best three, in training and in re-ranking."""
    frame: str = ""
    """Only decoders: the text around query and passage: `qwen3-reranker`, `mxbai-rerank-v2`, `bge-gemma`, `plain`,
    or a text with `{query}` and `{passage}`. By default the frame that the name of the base says."""
    instruction: str = ""
    """Only decoders: replaces the instruction of the frame."""
    answers: tuple[str, ...] = ()
    """Only decoders: the two words, one token each, whose logits a causal model compares: `["yes", "no"]`. By
    default those of the frame. Their weights are the first weights of the head."""
    instructions: tuple[
        tuple[str, str], ...
    ] = ()  # (dataset, instruction) pairs; the table [instructions] of a file
    gradient_checkpointing: bool = False
    """Compute each layer's activations again in the backward pass instead of holding them: less memory, a third more
    time. Beside the gradient cache it helps with lists of long pairs. On a CPU it leaves out `students/cpu/`."""
    lora: Lora = Lora()
    stages: tuple[Stage, ...] = ()

    @property
    def framing(self) -> Framing:
        """The settings of a decoder's text frame."""
        return Framing(self.frame, self.instruction, self.answers, self.instructions)

    def flat(self) -> dict[str, Any]:
        """Return plain values for JSON, without later settings at their default: older trainings are recognised."""
        values = asdict(self)
        for later in _LATER:
            if getattr(self, later) == getattr(Recipe, later):
                del values[later]
        return values


_LATER = (
    "compile",
    "weights",
    "head_scale",
    "head_identity",
    "long",
    "frame",
    "instruction",
    "answers",
    "instructions",
    "gradient_checkpointing",
    "lora",
)


@dataclass(frozen=True)
class Grid:
    """A recipe file with several bases, regimes or seeds, and the settings of its evaluation.

    Its ``[vary]`` table varies any setting: ``"stage-2.lr" = [1e-8, 1e-5]``, ``"kd.loss" = ["ranknet", "kl"]``. A regime
    without that stage or objective is trained once.

    Attributes:
        recipes: every combination, in the file's order.
        choices: for each recipe, the overrides that select it: base, regime, seed and varied settings.
        evaluate: the file's ``[evaluate]`` table for `msft reproduce`: first_stages, datasets, measures, depth.
        published: the file's ``[[published]]`` rows: base, regime, first_stage, dataset, measure, value.
    """

    recipes: tuple[Recipe, ...]
    choices: tuple[dict[str, Any], ...] = ()
    evaluate: dict[str, Any] = field(default_factory=dict)
    published: tuple[dict[str, Any], ...] = ()


def parse_regime(text: str) -> tuple[tuple[str, ...], ...]:
    """Parse a regime: ``"cl,kd"`` -> (("cl",), ("kd",)); ``"cl+kd"`` -> (("cl", "kd"),).

    Raises:
        StudentError: an objective is unknown or repeated (exit code 2).
    """
    stages = []
    for part in text.replace("->", ",").replace("→", ",").split(","):
        names = tuple(name.strip().lower() for name in part.split("+"))
        wrong = [name for name in names if name not in OBJECTIVES]
        if wrong or len(set(names)) < len(names):
            what = f"{wrong[0]!r} is not an objective" if wrong else f"{part.strip()!r} repeats an objective"
            raise StudentError(
                f"regime {text!r}: {what}",
                hint="give cl, kd, cl,kd, kd,cl or longer, or cl+kd for both in one stage",
                exit_code=ExitCode.USAGE,
            )
        stages.append(tuple(sorted(names, key=OBJECTIVES.index)))
    return tuple(stages)


if set(REDUCTIONS) != set(get_args(get_type_hints(Objective)["reduction"])):
    raise ImportError("Objective.reduction and students.losses.REDUCTIONS differ")
