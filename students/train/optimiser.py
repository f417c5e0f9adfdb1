"""Set up a stage's optimiser: parameter groups, frozen parts, bounds, and the learning rate."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from students.errors import ExitCode, StudentError
from students.model.lora import learning_names
from students.recipes.recipe import Stage

_LAYER = re.compile(r"\.(?:layers?|h|blocks?)\.(\d+)\.")


def freeze(model: nn.Module, parts: Sequence[str]) -> list[str]:
    """Freeze the parameters that the parts name; returns the frozen parameters' names.

    Of a model with LoRA adapters, all but these and the head is frozen already.

    A part is ``position_embeddings``, ``embeddings``, ``layers:0-5``, or any piece of parameters' names. A model with
    rotary positions has no position embeddings. Freezing them there does nothing, so one recipe serves several bases.

    Raises:
        StudentError: a part names no parameter, or no parameter is left to learn (exit code 2).
    """
    frozen = set()
    names = [name for name, _ in model.named_parameters()]
    for part in parts:
        matched = [name for name in names if _names(part, name)]
        rotary = part == "position_embeddings" and any("rotary" in name for name, _ in model.named_modules())
        if not matched and not rotary:
            raise StudentError(
                f"freeze: no parameter of this model is called {part!r}",
                hint="give position_embeddings, embeddings, layers:0-5, or a piece of a name such as "
                + ", ".join(names[:2]),
                exit_code=ExitCode.USAGE,
            )
        frozen.update(matched)
    learning = learning_names(model) - frozen
    if not learning:
        raise StudentError(
            "freeze leaves nothing to learn", hint="freeze fewer parts", exit_code=ExitCode.USAGE
        )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in learning)
    return sorted(set(names) - learning)


def _names(part: str, name: str) -> bool:
    if part.startswith("layers:"):
        low, _, high = part.removeprefix("layers:").partition("-")
        layer = _LAYER.search(name)
        try:
            return layer is not None and int(low) <= int(layer[1]) <= int(high or low)
        except ValueError as error:
            raise StudentError(
                f"freeze: {part!r} is not a range of layers",
                hint="write a range such as layers:0-5",
                exit_code=ExitCode.USAGE,
            ) from error
    return part in name


def make(model: nn.Module, stage: Stage) -> torch.optim.AdamW:
    """Make an AdamW optimiser of the parameters that learn, without weight decay on biases and norms."""
    learning = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in learning if p.ndim > 1], "weight_decay": stage.weight_decay},
        {"params": [p for p in learning if p.ndim <= 1], "weight_decay": 0.0},
    ]
    fused = (
        all(p.device.type in ("cpu", "cuda") for p in learning) or None
    )  # takes a seventh of the time on a CPU
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=stage.lr, fused=fused)


@dataclass(frozen=True)
class Bounds:
    """The bounds of a stage. The bound that is reached first ends it; 0 sets no bound."""

    steps: int
    pairs: int
    seconds: float

    @classmethod
    def of(cls, stage: Stage, steps_per_epoch: int) -> "Bounds":
        """Make the stage's bounds, with epochs counted in steps."""
        by_epochs = math.ceil(stage.epochs * steps_per_epoch) if stage.epochs else 0
        steps = [s for s in (by_epochs, stage.max_steps) if s]
        return cls(min(steps, default=0), stage.max_pairs, 60 * stage.max_minutes)

    def progress(self, steps: int, pairs: int, seconds: float, half: float | None = None) -> float:
        """Compute how much of the stage is done, 0 to 1, by the nearest bound.

        A time guard (a bound in minutes beside other bounds) counts only after half of its time. The learning rate
        should not depend on the machine's speed, but it must reach its end if the guard ends the stage.

        Args:
            half: progress when half of the guard's time was over (`half_over`); None before that.
        """
        parts: list[tuple[float, float]] = [(steps, self.steps), (pairs, self.pairs)]
        if not self.steps and not self.pairs:
            parts = [(seconds, self.seconds)]
        done = max((done / bound for done, bound in parts if bound), default=0.0)
        if half is not None:
            done = max(done, half + (1 - half) * (2 * seconds / self.seconds - 1))
        return min(1.0, done)

    def expected_pairs(self, pairs: int, done: float) -> int | None:
        """Return the pairs at the stage's end: the bound in pairs if it is the nearest, or an estimate of two digits.

        An exact estimate would change with every step; this one seldom does. None if nothing is done.

        Args:
            done: the progress of these pairs, 0 to 1.
        """
        if not done:
            return None
        if done >= 1:
            return pairs
        if self.pairs and done <= pairs / self.pairs:
            return max(pairs, self.pairs)
        return max(pairs, round(float(f"{pairs / done:.2g}")))

    def half_over(self, seconds: float) -> bool:
        """Return True if the stage has a time guard and half of its time is over."""
        return bool(self.seconds and (self.steps or self.pairs)) and 2 * seconds >= self.seconds

    def reached(self, steps: int, pairs: int, seconds: float, stage: Stage) -> str | None:
        """Return the bound that ended the stage, as the `stages` table names it, or None."""
        if self.seconds and seconds >= self.seconds:
            return "max_minutes"
        if self.pairs and pairs >= self.pairs:
            return "max_pairs"
        if self.steps and steps >= self.steps:
            return "max_steps" if self.steps == stage.max_steps else "end"
        return None


def learning_rate(stage: Stage, progress: float, step: int, warm_until: float = 0.0) -> float:
    """Compute the learning rate of step ``step`` (from 0) when ``progress`` of the stage is done.

    A linear warm-up comes first, then the schedule.

    Args:
        warm_until: the progress at which a warm-up counted in steps ended; the schedule runs over the rest.
    """
    if stage.warmup >= 1:
        warm = (step + 1) / stage.warmup
        begin = warm_until
    else:
        warm = progress / stage.warmup if stage.warmup else 1.0
        warm = max(warm, 0.01)  # the first step needs a rate above 0
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


def clipped(optimiser: Any, parameters: Sequence[nn.Parameter], clip: float) -> torch.Tensor:
    """Clip the gradients' norm to ``clip`` (0: not at all); returns the norm before, without waiting for the device.

    On a GPU the optimiser's kernel divides the gradients itself, and leaves the weights alone if the norm is not finite.
    So a step can be queued before its norm is known, and the gradients are not read and written once more.
    """
    if not _divides_itself(optimiser, parameters):
        return torch.nn.utils.clip_grad_norm_(parameters, clip or float("inf"))
    return set_divisor(optimiser, parameters, clip)


def set_divisor(optimiser: Any, parameters: Sequence[nn.Parameter], clip: float) -> torch.Tensor:
    """Let the next step of a fused AdamW divide the gradients so that their norm is at most ``clip``."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    optimiser.grad_scale = (norm / clip).clamp(min=1.0) if clip else None
    optimiser.found_inf = (~torch.isfinite(norm)).to(torch.float32)
    return norm


def _divides_itself(optimiser: Any, parameters: Sequence[nn.Parameter]) -> bool:
    """Return True for a fused optimiser on one GPU; elsewhere rounding stays as it was."""
    return bool(optimiser.defaults.get("fused")) and all(p.device.type == "cuda" for p in parameters)
