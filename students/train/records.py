"""Record a training's stages and figures, with the columns of the ``stages`` and ``training_log`` tables."""

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from students.errors import ExitCode, StudentError
from students.model.encoder import CrossEncoder
from students.recipes.recipe import Recipe, Stage
from students.train.checkpoints import StageState, clear
from students.train.view_folder import file_hash

_IDENTITY = "training.json"


@dataclass
class Records:
    """The records in the output folder: ``training.json`` (recipe and views), ``stages.json``, ``training_log.jsonl``."""

    out: Path
    identity: dict[str, Any]

    @classmethod
    def open(cls, out: Path, recipe: Recipe, view_hashes: list[dict[str, str]], *, main: bool) -> "Records":
        """Begin a training in ``out``, or find the existing one.

        Raises:
            StudentError: ``out`` holds another training.
        """
        settings = {k: v for k, v in recipe.flat().items() if k not in ("name", "description")}
        identity = json.loads(json.dumps({"recipe": settings, "views": view_hashes}))
        path = out / _IDENTITY
        if path.exists():
            there = json.loads(path.read_text(encoding="utf-8"))
            if {k: there.get(k) for k in identity} != identity:
                raise StudentError(
                    f"{out} holds another training: {_difference(there, identity)}",
                    hint="choose another folder with --out, or remove this one",
                    exit_code=ExitCode.USAGE,
                )
        elif main:
            out.mkdir(parents=True, exist_ok=True)
            clear(out)
            (out / "training_log.jsonl").write_text("")
            _write(path, identity)
        return cls(out, identity)

    @property
    def complete(self) -> bool:
        """Return True if all stages are done and the model is written."""
        path = self.out / _IDENTITY
        return path.exists() and bool(json.loads(path.read_text(encoding="utf-8")).get("complete"))

    def finish(self) -> None:
        """Mark the training as complete."""
        _write(self.out / _IDENTITY, {**self.identity, "complete": True})

    def stages(self) -> list[dict[str, Any]]:
        """Read the stages that are done so far."""
        path = self.out / "stages.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []

    def add_stage(self, row: dict[str, Any]) -> None:
        """Record a finished stage."""
        _write(self.out / "stages.json", [*self.stages(), row])

    def log(self) -> list[dict[str, Any]]:
        """Read the figures so far."""
        path = self.out / "training_log.jsonl"
        return (
            [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            if path.exists()
            else []
        )


def begin_after(
    out: Path,
    recipe: Recipe,
    view_hashes: list[dict[str, str]],
    stages: list[dict[str, Any]],
    log: list[dict[str, Any]],
    weights: Path,
) -> None:
    """Begin a training in ``out`` whose first stages were done elsewhere, with their rows and final weights."""
    Records.open(out, recipe, view_hashes, main=True)
    (out / "training_log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in log))
    shutil.copyfile(weights, out / f"start-{len(stages) + 1}.safetensors")
    _write(out / "stages.json", stages)


class Log:
    """Appends rows to ``training_log.jsonl``. On resume the file is cut back to its length at the checkpoint."""

    def __init__(self, out: Path, state: StageState, *, main: bool) -> None:
        self.last: dict[str, float] = {}
        self._file = None
        path = out / "training_log.jsonl"
        if main:
            if state.step == 0:
                state.log_bytes = _end_of_earlier_stages(path, state.stage)
            with path.open("ab") as file:
                file.truncate(state.log_bytes)
            self._file = path.open("a", encoding="utf-8")

    def write(self, state: StageState, values: dict[str, float]) -> None:
        """Write a row for each value, at the state's step."""
        if self._file is None:
            return
        for measure, value in values.items():
            row = {
                "stage": state.stage,
                "step": state.step,
                "pairs": state.pairs,
                "seconds": round(state.seconds, 3),
                "measure": measure,
                "value": value,
            }
            self._file.write(json.dumps(row) + "\n")
            if measure in ("loss", "valid_nDCG@10", "valid_tau"):
                self.last[measure.replace("@", "_at_")] = value
        self._file.flush()
        state.log_bytes = self._file.tell()

    def flush(self, state: StageState) -> None:
        """Flush all rows to disk; call it before a checkpoint that records the file's length."""
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


def _end_of_earlier_stages(path: Path, stage: int) -> int:
    """Count the bytes of earlier stages' rows, to drop the rows of a stage that died before its first checkpoint."""
    end = 0
    if path.exists():
        with path.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n") or json.loads(line)["stage"] >= stage:
                    break
                end += len(line)
    return end


def stage_record(
    recipe: Recipe,
    stage: Stage,
    state: StageState,
    view_hashes: dict[str, str],
    encoder: CrossEncoder,
    settings: dict[str, Any],
    moved: float,
    start: Path,
    end: Path,
) -> dict[str, Any]:
    """Make a row of the ``stages`` table; in a joint stage, ``view_hash`` holds both views' hashes, joined with ``+``."""
    hyperparameters = asdict(stage)
    for name in ("number", "batch_tokens", "memory_tokens"):
        hyperparameters.pop(name)
    hyperparameters |= {
        "seed": recipe.seed,
        "max_length": encoder.max_length,
        "attention_dropout": _dropout(encoder, "attention"),
        "hidden_dropout": _dropout(encoder, "hidden"),
        **settings,
    }
    return {
        "stage": stage.number,
        "objective": stage.objective,
        "loss": stage.loss,
        "view_hash": "+".join(view_hashes.values()),
        "view_hashes": view_hashes,
        "parent_hash": file_hash(start),
        "weights_hash": file_hash(end),
        "hyperparameters": hyperparameters,
        "steps": state.step,
        "pairs": state.pairs,
        "lists_skipped": state.lists_skipped,
        "truncated_pairs": state.truncated_pairs,
        "seconds": round(state.seconds, 3),
        "weights_moved": moved,
        "best_step": state.best_step,
        "best_value": state.best_value,
        "stopped_by": state.stopped_by,
    }


def _dropout(encoder: CrossEncoder, which: str) -> float | None:
    config = encoder.model.config
    names = {
        "attention": ("attention_probs_dropout_prob", "attention_dropout"),
        "hidden": ("hidden_dropout_prob", "mlp_dropout"),
    }[which]
    return next((float(getattr(config, name)) for name in names if hasattr(config, name)), None)


def _difference(there: dict[str, Any], here: dict[str, Any]) -> str:
    if there.get("views") != here["views"]:
        return "its views differ"
    old, new = there.get("recipe", {}), here["recipe"]
    return "its " + ", ".join(sorted(k for k in {*old, *new} if old.get(k) != new.get(k))) + " differ"


def _write(path: Path, value: Any) -> None:
    beside = path.with_name(f".{path.name}")
    beside.write_text(json.dumps(value, indent=1), encoding="utf-8")
    beside.rename(path)
