"""Save and read checkpoints, which hold everything that an interrupted stage needs to continue.

A checkpoint is a folder ``checkpoint-STAGE-STEP`` with ``weights.safetensors``, ``state.pt`` (read back as plain tensors
and values only) and one ``random-RANK.pt`` per process. It is written under a temporary name, flushed to disk and
renamed. The previous checkpoint is removed only after that.
"""

import re
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, load_model, save_file, save_model

from msft.host.durable import flush
from students.model import lora

_NAME = re.compile(r"checkpoint-(\d+)-(\d+)$")


@dataclass
class StageState:
    """The progress of a stage."""

    stage: int  # from 1
    step: int = 0  # optimiser steps taken
    pairs: int = 0
    seconds: float = 0.0
    lists_skipped: int = 0
    truncated_pairs: int = 0
    first_value: float | None = None  # validation before the first step
    best_value: float | None = None
    best_step: int | None = None
    worse: int = 0  # validations since the best validation
    warm: float = 0.0  # progress when a warm-up counted in steps ended
    half: float | None = None  # progress when half of a time guard was over
    looked: float = 0.0  # seconds at the last validation
    saved: float = 0.0  # seconds at the last checkpoint
    stopped_by: str | None = None  # set when the stage has ended
    log_bytes: int = 0  # length of training_log.jsonl
    sums: dict[str, float] = field(default_factory=dict)  # sums of the current log interval
    first_spread: float | None = None  # spread of the scores within a validation list, before the first step
    last_loss: float | None = None  # mean training loss of the newest log interval
    warned: list[str] = field(default_factory=list)  # diagnostics that were already reported


def save(
    folder: Path,
    state: StageState,
    model: torch.nn.Module,
    optimiser: Any,
    *,
    rank: int,
    wait: Any,
) -> Path:
    """Write a checkpoint into ``folder`` and remove the earlier ones; every process calls this.

    Args:
        wait: a barrier between processes.
    """
    name = f"checkpoint-{state.stage}-{state.step}"
    beside = folder / f".{name}"
    if rank == 0:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        save_weights(model, beside / "weights.safetensors")
        torch.save({"state": asdict(state), "optimiser": optimiser.state_dict()}, beside / "state.pt")
    wait()
    torch.save(random_state(), beside / f"random-{rank}.pt")
    wait()
    if rank == 0:
        for path in beside.iterdir():
            flush(path)
        shutil.rmtree(folder / name, ignore_errors=True)
        beside.rename(folder / name)
        flush(folder)
        for path in _all(folder):
            if path.name != name:
                shutil.rmtree(path)
        for path in folder.glob("best-*.safetensors"):  # no remaining checkpoint uses these
            if path != best_path(folder, state):
                path.unlink()
    wait()
    return folder / name


def newest(folder: Path) -> Path | None:
    """Find the newest checkpoint, from which training continues."""
    found = _all(folder)
    return found[-1] if found else None


def stage_of(checkpoint: Path) -> int:
    """Return the number of a checkpoint's stage."""
    return int(checkpoint.name.split("-")[1])


def read_state(checkpoint: Path) -> tuple[StageState, dict[str, Any]]:
    """Read the stage's state and the optimiser's state."""
    held = torch.load(checkpoint / "state.pt", weights_only=True)
    return StageState(**held["state"]), held["optimiser"]


def restore_random(checkpoint: Path, rank: int) -> bool:
    """Restore the random generators; returns False if the checkpoint has no state for this process."""
    path = checkpoint / f"random-{rank}.pt"
    if not path.exists():
        return False
    states = torch.load(path, weights_only=True)
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
    return True


def random_state() -> dict[str, torch.Tensor]:
    """Collect the state of torch's random generators in this process."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def save_weights(model: torch.nn.Module, path: Path) -> None:
    """Write a model's weights atomically, with the same bytes as transformers' ``save_pretrained``.

    Of a model with adapters only these and the head are written, because the other weights stay those of the base.
    """
    beside = path.with_name(f".{path.name}")
    if lora.is_adapted(model):
        save_file(lora.adapter_state(model), beside, metadata={"format": "pt"})
    else:
        save_model(model, str(beside), metadata={"format": "pt"})  # a tensor of two names is written once
    flush(beside)
    beside.rename(path)


def load_weights(model: torch.nn.Module, path: Path) -> None:
    """Read weights back into a model."""
    if lora.is_adapted(model):
        lora.load_adapter_state(model, load_file(path))
    else:
        load_model(model, path)


def best_path(folder: Path, state: StageState) -> Path:
    """Return the path of the best validation's weights. Its name has the step, so a resumed stage finds the right file."""
    return folder / f"best-{state.stage}-{state.best_step}.safetensors"


def clear(folder: Path) -> None:
    """Remove all checkpoints, incomplete ones too."""
    for path in (*_all(folder), *folder.glob(".checkpoint-*")):
        shutil.rmtree(path)


def clear_weights(folder: Path) -> None:
    """Remove the stages' starting weights and best weights, incomplete files too."""
    for kind in ("start", "best"):
        for path in (*folder.glob(f"{kind}-*.safetensors"), *folder.glob(f".{kind}-*.safetensors")):
            path.unlink()


def _all(folder: Path) -> list[Path]:
    found = [path for path in folder.glob("checkpoint-*") if _NAME.match(path.name)]
    return sorted(found, key=lambda path: [int(x) for x in _NAME.match(path.name).groups()])  # type: ignore[union-attr]
