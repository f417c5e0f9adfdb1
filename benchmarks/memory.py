"""Measure the memory of training on lists of 100 passages beside 10, and the difference of the gradients.

    python -m benchmarks.memory [--steps 3] [--repeats 3]

Each figure is a median over separate processes. Each process trains MiniLM on the CPU by `students.train.train`, with
passages of 256 tokens, one list per step, RankNet and fp32. A piece has at most three passages, so each of two workers
has two pieces of a list of 10. From its second piece on a worker holds the sum of its gradients, however many pieces
follow. Both lengths train on the same number of pairs, because the allocator's heap grows a little with all that was
ever computed. glibc is set to return freed blocks of 128 KB and more at once, so that the figure is the memory that
training holds. By default glibc's bound rises with the freed blocks, and the kept memory differed by 80 MB between
processes.

memory_10_mb, memory_100_mb   peak resident memory above that of a process that trains on two passages of a few words
memory_ratio                  memory_100_mb / memory_10_mb
gradient_error                |cached - direct| / |direct| over all parameters, one list of 100 × 256 tokens in fp32
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

MAX_LENGTH, HELD = 256, 3
SETTLED = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(128 * 1024)}
WORDS = (
    "water river stone light paper green window music engine garden winter summer bridge letter market silver"
)


def _view(folder: Path, n: int, words: int, lists: int) -> Path:
    from benchmarks.real_lists import Ranked, write_view

    vocabulary = WORDS.split()
    made = [
        Ranked(
            f"{vocabulary[k % 16]} {vocabulary[k % 7]}",
            [
                " ".join(vocabulary[(k + i * 3 + j * j) % 16] for j in range(words)) + f" {i}"
                for i in range(n)
            ],
        )
        for k in range(lists)
    ]
    return write_view(folder, made)


def peak(folder: Path, n: int, words: int, steps: int) -> dict[str, float]:
    """Measure the peak memory of training in MB."""
    from students.recipes.read import make_recipe
    from students.train.run import train

    recipe = make_recipe(
        {
            "base": "minilm", "regime": "kd", "precision": "fp32", "lists": 1, "max_length": MAX_LENGTH, "epochs": 0,
            "max_steps": steps, "batch_tokens": HELD * MAX_LENGTH, "memory_tokens": HELD * MAX_LENGTH, "keep": "last", "patience": 0,
        }
    )  # fmt: skip
    result = train(recipe, [_view(folder / "view", n, words, steps)], folder / "out", device="cpu")
    status = Path("/proc/self/status").read_text()
    return {
        "mb": int(status.partition("VmHWM:")[2].split()[0]) / 1024,
        "pairs": float(result.stages[0]["pairs"]),
    }


def gradient(folder: Path, n: int, words: int, steps: int) -> dict[str, float]:
    """Measure the relative difference of cached and direct gradients."""
    import torch

    from students.model.encoder import CrossEncoder
    from students.recipes.read import make_recipe
    from students.train import gradient_cache as gradcache
    from students.train.steps import Task, plan
    from students.train.view_folder import read_view

    encoder = CrossEncoder.load(
        "minilm", precision="fp32", device="cpu", max_length=MAX_LENGTH, seed=1,
        hidden_dropout=0.0, attention_dropout=0.0,
    )  # fmt: skip
    view = read_view(_view(folder / "view", n, words, 1))
    (stage,) = make_recipe({"regime": "kd", "lists": 1}).stages
    texts = (encoder.tokenise(view.queries.to_pylist()), encoder.tokenise(view.passages.to_pylist()))
    task = Task.of(stage.objectives[0], view, *texts)
    step = plan([task], encoder, stage, 1, 0, batch_tokens=2048, memory_tokens=1 << 30)
    (micro,) = step.micro_batches
    found = []
    for cached in (False, True):
        encoder.zero_grad()
        gradcache.backward(
            encoder, micro.pieces, lambda scores: micro.loss(scores, step.denominators),
            cached=cached, device=torch.device("cpu"),
        )  # fmt: skip
        found.append(torch.cat([p.grad.flatten() for p in encoder.parameters() if p.grad is not None]))
    direct, again = found
    return {"error": float((again - direct).norm() / direct.norm()), "norm": float(direct.norm())}


# (function, passages in a list, words in a passage, steps for one step of the longest list)
PARTS: dict[str, tuple[Any, int, int, int]] = {
    "base": (peak, 2, 3, 1),
    "10": (peak, 10, 300, 10),
    "100": (peak, 100, 300, 1),
    "gradient": (gradient, 100, 300, 1),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--part", choices=list(PARTS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        measure, n, words, times = PARTS[arguments.part]
        with tempfile.TemporaryDirectory(prefix="msft-memory-") as folder:
            print(json.dumps(measure(Path(folder), n, words, arguments.steps * times)))
        return
    got: dict[str, Any] = {}
    for part in PARTS:
        command = [sys.executable, "-m", "benchmarks.memory", "--steps", str(arguments.steps), "--part", part]
        found = []
        for _ in range(1 if part == "gradient" else arguments.repeats):
            said = subprocess.run(command, env=SETTLED, check=True, stdout=subprocess.PIPE, text=True).stdout
            found.append(json.loads(said.strip().splitlines()[-1]))
            print(f"{part}: {found[-1]}", file=sys.stderr, flush=True)
        got[part] = {key: statistics.median(one[key] for one in found) for key in found[0]}
    above = {part: got[part]["mb"] - got["base"]["mb"] for part in ("10", "100")}
    row = {
        "benchmark": "memory",
        "steps": arguments.steps,
        "base_mb": round(got["base"]["mb"], 1),
        "memory_10_mb": round(above["10"], 1),
        "memory_100_mb": round(above["100"], 1),
        "memory_ratio": round(above["100"] / above["10"], 3),
        "gradient_error": got["gradient"]["error"],
    }
    print(json.dumps(row))


if __name__ == "__main__":
    main()
