"""Measure the optimiser steps of a training, way by way: seconds, share of the machine's peak, and where the time goes.

    python -m benchmarks.train --utilisation [--device cuda] [--shape electra-base|qwen3-0.6b] [--lora r=32]

Each way is one training by `students.train.train`, of 10 steps of warm-up and 50 timed ones, over lists that no two steps
share. A way has the settings of the ways before it and one more. Seconds come from the training's own log.
"""

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks import train_lists
from benchmarks.train_lists import Work

TIMED = int(os.environ.get("STEPS", "50"))  # fewer for a trial of the script on a CPU
WARM_UP, PROFILED = min(10, TIMED), min(4, TIMED)
OLD_PIECES = 32_768  # tokens of a piece before pieces were even and larger

# Kinds of work by parts of the names of kernels (GPU) or operations (CPU); the first kind that matches counts.
KINDS = {
    "attention": ("flash", "fmha", "varlen", "scaled_dot_product", "attention"),
    "products": (
        "gemm",
        "cutlass",
        "nvjet",
        "cublas",
        "::mm",
        "addmm",
        "::bmm",
        "matmul",
        "linear",
        "mkldnn",
    ),
    "copies": ("memcpy", "memset", "::copy_", "::to", "_to_copy"),
}


def ways(device: str, precision: str) -> dict[str, dict[str, Any]]:
    """List the ways, each with the settings of a recipe."""
    plain: dict[str, Any] = {"compile": False, "batch_tokens": OLD_PIECES}
    even = {"compile": False, "batch_tokens": 0}
    found = {"pieces of 32k": plain, "even pieces": even}
    if device == "cuda":
        found["compiled"] = even | {"compile": True}
    if precision == "bf16":
        found["bf16 weights"] = found[list(found)[-1]] | {"weights": "bf16"}
    return found


@dataclass
class Profile:
    """A progress callback that profiles some steps after the warm-up: the seconds of each kind of work."""

    device: str
    first: int
    steps: int
    seconds: dict[str, float] = field(default_factory=dict)
    _done: int = 0
    _profiler: Any = None
    _began: float = 0.0

    def __call__(self, done: int, total: int | None = None, **_: object) -> None:
        self._done += 1
        if self._done == self.first:
            kinds = [torch.profiler.ProfilerActivity.CPU]
            kinds += [torch.profiler.ProfilerActivity.CUDA] if self.device == "cuda" else []
            self._profiler = torch.profiler.profile(activities=kinds)
            self._profiler.__enter__()
            self._began = time.perf_counter()
        elif self._done == self.first + self.steps:
            wall = time.perf_counter() - self._began
            self._profiler.__exit__(None, None, None)
            self.seconds = self._by_kind(wall)

    def _by_kind(self, wall: float) -> dict[str, float]:
        found = dict.fromkeys([*KINDS, "elementwise"], 0.0)
        for event in self._profiler.key_averages():
            on_gpu = self.device == "cuda"
            if on_gpu and "cuda" not in str(event.device_type).lower():
                continue
            micro = event.self_device_time_total if on_gpu else event.self_cpu_time_total
            if not on_gpu and not event.key.startswith("aten::"):
                continue
            found[kind_of(event.key)] += micro / 1e6
        busy = sum(found.values())
        return found | {"waits": max(wall - busy, 0.0)}


def kind_of(name: str) -> str:
    """Name the kind of work of a kernel or operation."""
    small = name.lower()
    return next((kind for kind, parts in KINDS.items() if any(p in small for p in parts)), "elementwise")


def recipe_of(work: Work, precision: str, settings: dict[str, Any], more: dict[str, Any]) -> Any:
    """Make the recipe of one way."""
    from students.recipes.read import make_recipe

    steps = WARM_UP + TIMED
    return make_recipe(
        {
            "base": str(work.base), "regime": "kd", "seed": train_lists.SEED, "max_length": work.max_length,
            "precision": precision, "loss": "ranknet", "reduction": "pair", "lists": work.per_step, "lr": work.lr,
            "schedule": "constant", "warmup": 0, "weight_decay": 0.0, "clip": 1.0, "epochs": 0, "max_steps": steps,
            "keep": "last", "patience": 0, "hidden_dropout": work.dropout, "attention_dropout": work.dropout,
            "checkpoint_every": 1_000_000, "log_every": 1, **settings, **more,
        }
    )  # fmt: skip


def timed(
    work: Work, recipe: Any, progress: Callable[..., None] | None, folder: Path
) -> tuple[float, dict[str, Any]]:
    """Train once; returns the seconds of the timed steps, and the stage's settings."""
    from students.train.run import train

    made = train(
        recipe, [work.view], folder, progress=progress, device="cpu" if work.device == "cpu" else None
    )
    at = {row["step"]: row["seconds"] for row in made.log if row["measure"] == "loss"}
    return at[WARM_UP + TIMED] - at[WARM_UP], made.stages[0]["hyperparameters"]


def measure(
    work: Work, precision: str, peak: float, more: dict[str, Any], repeats: int
) -> list[dict[str, Any]]:
    """Measure every way; the last one also has the seconds a step of each kind of work.

    Args:
        more: settings of the recipe in all ways (lora, frame).
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(work.base)
    per_list = len(work.lists[0].passages)
    lengths = train_lists.pair_lengths(work).reshape(-1, per_list)[WARM_UP * work.per_step :].ravel()
    flops = train_lists.training_flops(config, lengths, adapters="lora" in more)
    rows = []
    chosen = ways(work.device, precision)
    for number, (name, settings) in enumerate(chosen.items()):
        recipe = recipe_of(work, precision, settings, more)
        seconds, held = [], {}
        for turn in range(repeats):
            folder = work.scratch / f"steps-{number}-{turn}"
            one, held = timed(work, recipe, None, folder)
            seconds.append(one)
        found = statistics.median(seconds)
        row = {
            "way": name, "ms_per_step": round(1000 * found / TIMED, 2), "us_per_pair": round(1e6 * found / len(lengths), 2),
            "pairs_per_second": round(len(lengths) / found, 1), "share_of_peak": round(flops / (found * peak), 4),
            "batch_tokens": held["batch_tokens"], "layout": held["layout"],
        }  # fmt: skip
        rows.append(row)
        print(json.dumps(row), file=sys.stderr, flush=True)
    profile = Profile(work.device, WARM_UP, PROFILED)
    timed(work, recipe, profile, work.scratch / "profiled")
    rows[-1] |= {f"{kind}_ms": round(1000 * s / PROFILED, 3) for kind, s in profile.seconds.items()}
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Lay rows out for people; a column is as wide as its longest value."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [columns, *([str(row.get(column, "")) for column in columns] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    )
