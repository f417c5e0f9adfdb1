"""Re-ranking real lists: pairs/s and nDCG@10 beside sentence-transformers' CrossEncoder.predict and lightning-ir.

    python -m benchmarks.rerank [--data ../shared/data] [--student FOLDER] [--collections dl19-passage,nfcorpus]
        [--queries 20] [--repeats 3]

The same MiniLM, pairs and limit of 256 tokens for all, in one process and run, in turns; medians. `speedup_default` is
what each does unasked (here: bf16 where the machine multiplies it, there: fp32), `speedup_same_precision` is bf16 against
a peer that was told to take bf16, `speedup_fp32` fp32 against fp32. sentence-transformers gets all pairs in one call,
which is its best case; lightning-ir's `score` gets a query at a time, with a head of its own, so only its speed counts.
Without --student a student is trained first (four minutes), because scores that order nothing measure nothing.
"""

import argparse
import json
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import lightning_peer
from benchmarks.real_lists import DATA, Candidates, candidates, trained_student
from benchmarks.timing import in_turns
from students.rerank import Reranker, resolve_precision

MAX_LENGTH = 256

Way = Callable[[Candidates], Any]


def ours(student: Path, precision: str) -> Way:
    reranker = Reranker.load(student, precision=precision, max_length=MAX_LENGTH)
    return lambda on: np.concatenate(reranker.scores(on.lists))


def sentence_transformers(student: Path, dtype: torch.dtype) -> Way:
    from sentence_transformers import CrossEncoder

    model = CrossEncoder(str(student), max_length=MAX_LENGTH, model_kwargs={"dtype": dtype})
    return lambda on: model.predict(on.pairs, show_progress_bar=False)


def lightning_ir(student: Path, dtype: torch.dtype) -> Way:
    score = lightning_peer.scorer(student, MAX_LENGTH, dtype)

    def all_lists(on: Candidates) -> None:  # its head is another one: the scores are not to be measured
        for query, passages in on.lists:
            score(query, passages)

    return all_lists


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--student", type=Path, help="a student's folder")
    parser.add_argument("--collections", default="dl19-passage,nfcorpus")
    parser.add_argument("--queries", type=int, default=20, help="per collection")
    parser.add_argument("--depth", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as scratch:
        student = arguments.student or trained_student(Path(scratch), data=arguments.data)
        ways = _ways(student)
        result: dict[str, Any] = {
            "benchmark": "rerank",
            "precision": resolve_precision("auto"),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        }
        seconds = dict.fromkeys(ways, 0.0)
        n_pairs, differences = 0, []
        for name in arguments.collections.split(","):
            on = candidates(name, data=arguments.data, depth=arguments.depth, n_queries=arguments.queries)
            few = candidates(name, data=arguments.data, depth=20, n_queries=2)
            for way in ways.values():
                way(few)
            timed = in_turns(ways, on, arguments.repeats)
            measured = {
                key: on.ndcg(on.split(one.result)) for key, one in timed.items() if one.result is not None
            }
            differences.append(abs(measured["ours"] - measured["st_fp32"]))
            n_pairs += on.n_pairs
            for key, one in timed.items():
                seconds[key] += one.seconds
                result[f"{name}_{key}_pairs_per_second"] = round(on.n_pairs / one.seconds, 1)
            result |= {f"{name}_{key}_ndcg10": round(value, 4) for key, value in measured.items()}
            print(json.dumps(result), file=sys.stderr)
    result |= {
        "pairs": n_pairs,
        "pairs_per_second": round(n_pairs / seconds["ours"], 1),
        "speedup_default": round(seconds["st_fp32"] / seconds["ours"], 2),
        "speedup_same_precision": round(seconds["st_bf16"] / seconds["ours_bf16"], 2),
        "speedup_fp32": round(seconds["st_fp32"] / seconds["ours_fp32"], 2),
        "speedup_over_lightning_ir": round(seconds["lir_fp32"] / seconds["ours"], 2),
        "speedup_over_lightning_ir_same_precision": round(seconds["lir_bf16"] / seconds["ours_bf16"], 2),
        "measure_difference": round(max(differences), 5),
    }
    print(json.dumps(result))


def _ways(student: Path) -> dict[str, Way]:
    default = ours(student, "auto")
    same = resolve_precision("auto") == "bf16"
    return {
        "ours": default,
        "ours_bf16": default if same else ours(student, "bf16"),
        "ours_fp32": ours(student, "fp32"),
        "st_fp32": sentence_transformers(student, torch.float32),
        "st_bf16": sentence_transformers(student, torch.bfloat16),
        "lir_fp32": lightning_ir(student, torch.float32),
        "lir_bf16": lightning_ir(student, torch.bfloat16),
    }


if __name__ == "__main__":
    main()
