"""What a stage optimises and how fast: parameter groups, frozen parts, and the learning rate as a function of progress."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from students.errors import ExitCode, StudentError
from students.recipes.recipe import Stage

_LAYER = re.compile(r"\.(?:layers?|h|blocks?)\.(\d+)\.")


def freeze(model: nn.Module, parts: Sequence[str]) -> list[str]:
    """Let only what no part names learn; returns the frozen parameters' names.

    A part is ``position_embeddings``, ``embeddings``, ``layers:0-5``, or any piece of parameters' names. A model with
    rotary positions has no position embeddings, and nothing to freeze there: one recipe serves several bases.

    Raises:
        StudentError: a part that names no parameter, or parts that leave none to learn (exit code 2).
    """
    frozen = set()
    names = [name for name, _ in model.named_parameters()]
    for part in parts:
        matched = [name for name in names if _names(part, name)]
        rotary = part == "position_embeddings" and any("rotary" in name for name, _ in model.named_modules())
        if not matched and not rotary:
            raise StudentError(
                f"freeze: no parameter of this model is called {part!r}",
                hint="position_embeddings, embeddings, layers:0-5, or a piece of a name such as "
                + ", ".join(names[:2]),
                exit_code=ExitCode.USAGE,
            )
        frozen.update(matched)
    if len(frozen) == len(names):
        raise StudentError("freeze leaves nothing to learn", hint="freeze less", exit_code=ExitCode.USAGE)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)
    return sorted(frozen)


def _names(part: str, name: str) -> bool:
    if part.startswith("layers:"):
        low, _, high = part.removeprefix("layers:").partition("-")
        layer = _LAYER.search(name)
        try:
            return layer is not None and int(low) <= int(layer[1]) <= int(high or low)
        except ValueError as error:
            raise StudentError(
                f"freeze: {part!r} is not a range of layers", hint="layers:0-5", exit_code=ExitCode.USAGE
            ) from error
    return part in name


def make(model: nn.Module, stage: Stage) -> torch.optim.AdamW:
    """AdamW over what learns; no weight decay on biases and norms."""
    learning = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in learning if p.ndim > 1], "weight_decay": stage.weight_decay},
        {"params": [p for p in learning if p.ndim <= 1], "weight_decay": 0.0},
    ]
    fused = (
        all(p.device.type in ("cpu", "cuda") for p in learning) or None
    )  # on a CPU in a seventh of the time
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=stage.lr, fused=fused)


@dataclass(frozen=True)
class Bounds:
    """When a stage ends: whichever comes first. 0 is no bound."""

    steps: int
    pairs: int
    seconds: float

    @classmethod
    def of(cls, stage: Stage, steps_per_epoch: int) -> "Bounds":
        """The stage's bounds with epochs counted in steps."""
        by_epochs = math.ceil(stage.epochs * steps_per_epoch) if stage.epochs else 0
        steps = [s for s in (by_epochs, stage.max_steps) if s]
        return cls(min(steps, default=0), stage.max_pairs, 60 * stage.max_minutes)

    def progress(self, steps: int, pairs: int, seconds: float, half: float | None = None) -> float:
        """How much of the stage is done, 0 to 1, by the nearest bound.

        A time guard beside other bounds counts from its half on: a learning rate must not follow the machine's moods,
        and must be at its end where the guard ends the stage.

        Args:
            half: progress when half of the guard was over (`half_over`), None before.
        """
        parts: list[tuple[float, float]] = [(steps, self.steps), (pairs, self.pairs)]
        if not self.steps and not self.pairs:
            parts = [(seconds, self.seconds)]
        done = max((done / bound for done, bound in parts if bound), default=0.0)
        if half is not None:
            done = max(done, half + (1 - half) * (2 * seconds / self.seconds - 1))
        return min(1.0, done)

    def half_over(self, seconds: float) -> bool:
        """Whether half of a time guard beside other bounds is over."""
        return bool(self.seconds and (self.steps or self.pairs)) and 2 * seconds >= self.seconds

    def reached(self, steps: int, pairs: int, seconds: float, stage: Stage) -> str | None:
        """What ended the stage, in the words of the `stages` table, or None."""
        if self.seconds and seconds >= self.seconds:
            return "max_minutes"
        if self.pairs and pairs >= self.pairs:
            return "max_pairs"
        if self.steps and steps >= self.steps:
            return "max_steps" if self.steps == stage.max_steps else "end"
        return None


def learning_rate(stage: Stage, progress: float, step: int, warm_until: float = 0.0) -> float:
    """The rate of step ``step`` (from 0) when ``progress`` of the stage is done: linear warm-up, then the schedule.

    Args:
        warm_until: the progress at which a warm-up counted in steps ended; the schedule runs over the rest.
    """
    if stage.warmup >= 1:
        warm = (step + 1) / stage.warmup
        begin = warm_until
    else:
        warm = progress / stage.warmup if stage.warmup else 1.0
        warm = max(warm, 0.01)  # the first step is not for nothing
        begin = stage.warmup
    rest = min(max((progress - begin) / (1 - begin), 0.0), 1.0) if begin < 1 else 1.0
    shape = {"linear": 1 - rest, "cosine": 0.5 * (1 + math.cos(math.pi * rest)), "constant": 1.0}[
        stage.schedule
    ]
    return stage.lr * (min(warm, 1.0) if warm < 1 else shape)


def set_rate(optimiser: Any, rate: float) -> None:
    """Give all parameter groups a learning rate."""
    for group in optimiser.param_groups:
        group["lr"] = rate
