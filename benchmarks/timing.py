"""Time several ways to do the same work in turns, so that other load on the machine affects all of them alike."""

import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass
class Timed:
    """Median seconds, and the result of the last run."""

    seconds: float
    result: Any


def in_turns(ways: Mapping[str, Callable[[Any], Any]], work: Any, repeats: int) -> dict[str, Timed]:
    """Do the work in every way, ``repeats`` times. Each round begins with another way. The caller warms up before."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    results: dict[str, Any] = {}
    names = list(ways)
    for turn in range(repeats):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            began = time.perf_counter()
            results[name] = ways[name](work)
            seconds[name].append(time.perf_counter() - began)
            print(f"{name}: {seconds[name][-1]:.2f} s", file=sys.stderr, flush=True)
    return {name: Timed(statistics.median(seconds[name]), results[name]) for name in names}


def matmul_peak(device: str, precision: str) -> float:
    """Measure the FLOP/s of a large square matrix product: the best of six."""
    import torch

    n = 8192 if device == "cuda" else 1024
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(6):
        began = time.perf_counter()
        c = a @ b
        float(c[0, 0])  # waits for the device
        best = min(best, time.perf_counter() - began)
    return 2 * n**3 / best
