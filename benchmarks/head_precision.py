"""Compare a student's scores under bf16 autocast with fp32: with its head in fp32, as in `students`, and in bf16.

    python -m benchmarks.head_precision [--student FOLDER] [--data ../shared/data] [--queries 43] [--pairs 16000]

A GPU computes under autocast; this benchmark runs autocast on a CPU, over BM25's top 100 of TREC DL 2019. For each way
and list it measures tau (Kendall's τ-b against fp32), ties (the share of the list's scores that another passage has
too, without equal passages) and ndcg10. It prints means over the lists with 95 % intervals (mean ± t · standard error).
Without --student it first trains one on `pairs` pairs, because an untrained head's scores are all alike and any
difference changes their order.
"""

import argparse
import json
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from scipy import stats

from benchmarks.real_lists import DATA, Candidates, candidates, trained_student
from students.model.encoder import CrossEncoder

MAX_LENGTH = 256
BLOCK = 25  # passages in one batch


def load(student: Path, precision: str, *, head_in_fp32: bool = True) -> CrossEncoder:
    """Load the student under autocast. Without `head_in_fp32` the head computes in bf16 too, as autocast's default."""
    if head_in_fp32:
        return CrossEncoder.load(student, precision=precision, device="cpu", max_length=MAX_LENGTH)
    with patch("students.model.encoder.keep_fp32", lambda model: None):
        return CrossEncoder.load(student, precision=precision, device="cpu", max_length=MAX_LENGTH)


def scores(encoder: CrossEncoder, on: Candidates) -> list[np.ndarray]:
    """Score the candidates of each list."""
    return [
        np.concatenate([encoder.score(query, texts[k : k + BLOCK]) for k in range(0, len(texts), BLOCK)])
        for query, texts in on.lists
    ]


def tied(found: np.ndarray, texts: list[str]) -> float:
    """Measure the share of scores that occur more than once in the list. Of equal texts only the first counts."""
    first = [texts.index(text) == k for k, text in enumerate(texts)]
    _, place, count = np.unique(found[first], return_inverse=True, return_counts=True)
    return float((count[place] > 1).mean())


def interval(values: list[float]) -> tuple[float, float, float]:
    """Compute the mean and the bounds of its 95 % interval."""
    mean = float(np.mean(values))
    half = float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)) if len(values) > 1 else 0.0
    return mean, mean - half, mean + half


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--student", type=Path, help="a student's folder")
    parser.add_argument("--queries", type=int, default=43)
    parser.add_argument("--pairs", type=int, default=16_000, help="pairs that the student is trained on")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    on = candidates("dl19-passage", data=arguments.data, n_queries=arguments.queries)
    with tempfile.TemporaryDirectory() as scratch:
        student = arguments.student or trained_student(
            Path(scratch), data=arguments.data, pairs=arguments.pairs
        )
        exact = scores(load(student, "fp32"), on)
        ways = {
            "fp32": exact,
            "bf16_head_fp32": scores(load(student, "bf16"), on),
            "bf16_head_bf16": scores(load(student, "bf16", head_in_fp32=False), on),
        }
    result: dict[str, Any] = {"benchmark": "head_precision", "lists": len(on.lists), "pairs": on.n_pairs}
    print("| way | tau | ties | nDCG@10 |\n|---|---|---|---|", file=sys.stderr)
    for name, found in ways.items():
        tau = interval([stats.kendalltau(a, b).statistic for a, b in zip(exact, found, strict=True)])
        ties = interval([tied(s, texts) for s, (_, texts) in zip(found, on.lists, strict=True)])
        cells = [f"{v[0]:.4f} ({v[1]:.4f} … {v[2]:.4f})" for v in (tau, ties)]
        print(f"| {name} | {' | '.join(cells)} | {on.ndcg(found):.4f} |", file=sys.stderr, flush=True)
        result |= {
            f"{name}_tau": round(tau[0], 4), f"{name}_tau_low": round(tau[1], 4), f"{name}_tau_high": round(tau[2], 4),
            f"{name}_ties": round(ties[0], 4), f"{name}_ndcg10": round(on.ndcg(found), 4),
        }  # fmt: skip
    print(json.dumps(result | {"torch": torch.__version__}))


if __name__ == "__main__":
    main()
