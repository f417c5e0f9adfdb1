"""Detect training that did nothing or went wrong, and name the setting to look at."""

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn

from students.errors import StudentError
from students.recipes.auto import USUAL_PAIRS
from students.recipes.recipe import Stage
from students.train.checkpoints import StageState
from students.train.validation import HIGHER_IS_BETTER

MOVED_LITTLE = 1e-5  # relative L2 distance; one AdamW step at 1e-6 moves a base model about this far
MAX_GROWTH = 10.0  # ratio of the weights' new length to the old; training that learns stays far below
COLLAPSED = 1e-3  # spread of the scores within a list, in logits
RANDOM_ORDER_LOSS = math.log(2)  # RankNet's loss per pair for a model that orders at random
PLATEAU = 0.02  # a loss closer to RANDOM_ORDER_LOSS than this still orders at random
FEW_LISTS = 20  # validation lists below which one list decides which step is best
USUAL_CUT = 0.2  # share of pairs cut at max_length


def weights_moved(model: nn.Module, start: Path) -> float:
    """Compute the relative L2 distance ‖w − w₀‖ / ‖w₀‖ of all weights from those in the safetensors file ``start``."""
    distance = norm = 0.0
    with safe_open(start, framework="pt") as before:
        written = set(before.keys())  # a tensor that two names share is stored under one of them
        for name, value in model.state_dict().items():
            if name not in written or not value.is_floating_point():
                continue
            old = before.get_tensor(name)
            distance += _square(value.detach().cpu() - old)
            norm += _square(old)
    return (distance / norm) ** 0.5 if norm else 0.0


def _square(tensor: torch.Tensor) -> float:
    """Compute ‖x‖², summed in float64 without a copy."""
    return float(torch.linalg.vector_norm(tensor, dtype=torch.float64)) ** 2


def of_stage(stage: Stage, state: StageState, moved: float, n_lists: int, max_length: int) -> list[str]:
    """List what a user should know about a finished stage, one sentence each, with the likely cause."""
    told = []
    if moved < MOVED_LITTLE:
        told.append(
            f"stage {stage.number} ({stage.objective}) hardly trained: its weights moved by {moved:.1e} of their length in "
            f"{state.step:,} steps at learning rate {stage.lr:g}; set lr to about 1e-5"
        )
    if state.best_value is not None and state.first_value is not None:
        gain = state.best_value - state.first_value
        if (gain if HIGHER_IS_BETTER[stage.stop_on] else -gain) <= 0:
            told.append(
                f"stage {stage.number} ({stage.objective}): validation {stage.stop_on} never got better than before the stage "
                f"({state.first_value:.4f}, at best {state.best_value:.4f}); {_more(stage, state)}"
            )
    if (
        stage.loss == "ranknet"
        and state.last_loss is not None
        and abs(state.last_loss - RANDOM_ORDER_LOSS) < PLATEAU
    ):
        told.append(
            f"stage {stage.number} ({stage.objective}): its loss ended at {state.last_loss:.3f}, and a model that orders at"
            f" random has {RANDOM_ORDER_LOSS:.3f}; {_more(stage, state)}"
        )
    if state.lists_skipped:
        why = " or ".join(
            {"cl": "without a positive or a negative", "kd": "without two passages in order"}[o.name]
            for o in stage.objectives
        )
        told.append(
            f"stage {stage.number} ({stage.objective}) skipped lists {state.lists_skipped:,} times (it has {n_lists:,}), {why}"
        )
    if state.pairs and state.truncated_pairs > USUAL_CUT * state.pairs:
        told.append(
            f"stage {stage.number} ({stage.objective}) cut {state.truncated_pairs / state.pairs:.0%} of its pairs at max_length"
            f" {max_length}, and up to {USUAL_CUT:.0%} are usual; a larger --max-length would read more of the passages"
        )
    return told


def of_validation(stage: Stage, n_lists: int) -> str | None:
    """Say that the validation lists are too few to tell which step is best."""
    if not 0 < n_lists < FEW_LISTS:
        return None
    return (
        f"stage {stage.number} ({stage.objective}): validation has {n_lists} lists, fewer than {FEW_LISTS}: no curve is drawn"
        " from them, no step is chosen by them, and the last weights are kept; label more queries, or hold out more with a"
        " larger --valid-fraction"
    )


def collapsed(spread: float) -> bool:
    """Return True if a model gives all passages of a list the same score."""
    return spread < COLLAPSED


def of_collapse(stage: Stage, state: StageState, spread: float) -> str:
    """Report that a model gives all passages of a list the same score, and name the likely cause.

    If the scores differed before the stage, its steps are too large. If they never differed, the steps are too few or
    too small.
    """
    told = (
        f"stage {stage.number} ({stage.objective}): scores within a list differ by {spread:.1e} at step {state.step:,}, "
        "the model ranks nothing"
    )
    if state.first_spread is not None and not collapsed(state.first_spread):
        return f"{told}; they differed before the stage, so its steps are too large: lower lr ({stage.lr:g})"
    return f"{told} yet; {_more(stage, state)}"


def _more(stage: Stage, state: StageState) -> str:
    """Suggest what to change if a stage has not begun to rank."""
    if state.pairs < USUAL_PAIRS:
        return f"{state.pairs:,} pairs are few, {USUAL_PAIRS:,} and more are usual: raise max_pairs or epochs"
    if stage.lr < 1e-6:
        return f"lr ({stage.lr:g}) is small: set it to about 1e-5"
    return "give it easier lists (--easy 3), or look at the labels: msft teachers show"


def length(model: nn.Module) -> float:
    """Compute ‖w‖ over all weights; not finite if a weight is not finite or the sum overflows."""
    weights = [p.detach() for p in model.parameters()]
    return float(torch.nn.utils.get_total_norm(weights))


def check_base(before: float, base: str) -> None:
    """Stop at a base model whose weights are not finite: no setting of the training can mend it.

    Args:
        before: the weights' length when the stage begins.

    Raises:
        StudentError: the length is not finite.
    """
    if not math.isfinite(before):
        raise StudentError(
            f"the weights of {base} have length {before}: one of them is not finite",
            hint="name another base model with --base, or download it again",
        )


def check_step(loss: float, norm: float, stage: Stage, step: int) -> None:
    """Stop at a loss or a gradient that is not finite, before it reaches the weights.

    Raises:
        StudentError: the loss or the gradient is not finite; the message names the stage and the step.
    """
    for what, value in (("loss", loss), ("gradient's norm", norm)):
        if not math.isfinite(value):
            raise _went_wrong(stage, f"the {what} of", f"is {value} at step {step:,}")


def check_weights(
    model: nn.Module, optimiser: torch.optim.Optimizer, before: float, stage: Stage, step: int
) -> None:
    """Stop at weights that are too large to result from training, before they are saved.

    The state of Adam can overflow while the weights stay finite. They no longer move then.

    Args:
        before: the weights' length when the stage began.

    Raises:
        StudentError: the weights are too large or not finite, or the optimiser's state is not finite; the message names
            the stage and the step.
    """
    now = length(model)
    if not now <= MAX_GROWTH * before:  # true for nan too
        raise _went_wrong(
            stage, "the weights of", f"have length {now:.3g} at step {step:,}, and had {before:.3g} before it"
        )
    held = [v for of in optimiser.state.values() for v in of.values() if torch.is_tensor(v)]
    if not all(map(_is_finite, held)):
        raise _went_wrong(stage, "the optimiser's state of", f"is not finite at step {step:,}")


def _is_finite(tensor: torch.Tensor) -> bool:
    """Whether all values are finite. Their sum says so in a twentieth of the time; if it overflows, each is looked at."""
    return bool(torch.isfinite(tensor.sum())) or bool(torch.isfinite(tensor).all())


def check_validation(values: Mapping[str, float], stage: Stage, step: int) -> None:
    """Stop at a validation value that is not finite.

    Raises:
        StudentError: a value is not finite; the message names the measure, the stage and the step.
    """
    for name, value in values.items():
        if not math.isfinite(value):
            raise _went_wrong(stage, f"{name} of", f"is {value} at step {step:,}")


def _went_wrong(stage: Stage, what: str, how: str) -> StudentError:
    return StudentError(
        f"{what} stage {stage.number} ({stage.objective}, {stage.loss}) {how}",
        hint=f"lower lr ({stage.lr:g}) or clip ({stage.clip:g}), or set precision = 'fp32'; the last checkpoint is kept",
    )
