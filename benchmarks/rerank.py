"""Measure re-ranking of real lists: pairs/s and nDCG@10 beside sentence-transformers' CrossEncoder and lightning-ir.

    python -m benchmarks.rerank [--data ../shared/data] [--student FOLDER] [--collections dl19-passage,nfcorpus]
        [--queries 20] [--measured 100] [--repeats 3]
    python -m benchmarks.rerank --device cuda --shape electra-base --queries 200

All ways use the same MiniLM, pairs and limit of 256 tokens, in one process, in turns; times are medians.

`speedup_default` compares the defaults: msft's is bf16 if the hardware supports it, sentence-transformers' is fp32.
`speedup_same_precision` compares bf16 with a peer set to bf16, or fp32 with fp32 if the machine has no bf16 products
(key same_precision). `speedup_fp32` compares fp32 with fp32. sentence-transformers gets all pairs in one call, its best
case. lightning-ir's `score` gets one query at a time, on the CPU; it has another head, so only its speed counts.

A plain loop over transformers' model, in batches of 32 pairs sorted by length, shows the speed that anyone gets on this
machine. plain_loop_over_default is the speed of the loop in bf16 over that of sentence-transformers in fp32.
speedup_over_plain_loop is the speed of msft over that of the loop in the same precision.

Without --student the benchmark first trains one (some minutes), because scores without an order measure nothing. Other
shapes have random weights and synthetic texts of MS MARCO's lengths. Their key is score_difference: the largest
difference from sentence-transformers' fp32 scores, in standard deviations of these scores.

measure_difference is the largest difference of nDCG@10, over the collections, between msft's default and
sentence-transformers' fp32. In bf16 it needs --measured queries to tell a difference from chance: any rounding swaps
passages with nearly equal scores, which moves the mean of 20 queries by .004. Over these queries the reference is
msft's fp32, which takes a third of the time. fp32_measure_difference compares that reference with
sentence-transformers' fp32 on the timed queries.

device_waited is the share of the time in which the GPU had nothing to do between two batches of msft's default.

peak_tflops_… is the highest rate of a large matrix product; on a virtual machine it depends on the neighbours.
bound_over_default, on a CPU, is speedup_default if msft took only the time of its products at that peak rate.
"""

import argparse
import importlib.util
import json
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import lightning_peer
from benchmarks.real_lists import DATA, Candidates, candidates, trained_student
from benchmarks.timing import in_turns, matmul_peak
from benchmarks.train_lists import SHAPES, first_token_flops, make_base, make_lists
from students.rerank.pipeline import DeviceTime
from students.rerank.reranker import Reranker, resolve_precision

MAX_LENGTH = 256

Way = Callable[[Candidates], Any]
RUNNING: dict[str, DeviceTime] = {}  # precision: the device's time in the last call of `ours`


def ours(student: Path, precision: str, device: str) -> Way:
    reranker = Reranker.load(student, precision=precision, max_length=MAX_LENGTH, device=device)

    def all_lists(on: Candidates) -> Any:
        reranker.device_time = RUNNING[precision] = DeviceTime()
        return np.concatenate(reranker.scores(on.lists))

    return all_lists


def sentence_transformers(student: Path, dtype: torch.dtype, device: str) -> Way:
    from sentence_transformers import CrossEncoder

    model = CrossEncoder(str(student), max_length=MAX_LENGTH, device=device, model_kwargs={"dtype": dtype})
    raw = torch.nn.Identity()  # by default a folder without an activation gets a sigmoid
    return lambda on: model.predict(on.pairs, activation_fn=raw, show_progress_bar=False)


def lightning_ir(student: Path, dtype: torch.dtype) -> Way:
    score = lightning_peer.scorer(student, MAX_LENGTH, dtype)

    def all_lists(on: Candidates) -> None:  # the head differs, so the scores are not measured
        for query, passages in on.lists:
            score(query, passages)

    return all_lists


def plain_loop(student: Path, dtype: torch.dtype, device: str, batch_size: int = 32) -> Way:
    """Score by transformers' model and tokenizer in a common plain loop over batches of pairs, the longest first."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(student)
    model = AutoModelForSequenceClassification.from_pretrained(student, dtype=dtype).eval().to(device)

    @torch.inference_mode()
    def all_pairs(on: Candidates) -> Any:
        queries, passages = zip(*on.pairs, strict=True)
        encoded = tokenizer(list(queries), list(passages), truncation=True, max_length=MAX_LENGTH)
        order = sorted(range(on.n_pairs), key=lambda i: -len(encoded["input_ids"][i]))
        scores = torch.empty(on.n_pairs)
        for begin in range(0, on.n_pairs, batch_size):
            rows = order[begin : begin + batch_size]
            some = {name: [values[i] for i in rows] for name, values in encoded.items()}
            batch = tokenizer.pad(some, return_tensors="pt").to(device)
            scores[rows] = model(**batch).logits[:, 0].float().cpu()
        return scores.numpy()

    return all_pairs


def scoring_flops(student: Path, on: Candidates) -> float:
    """Count the FLOPs of the matrix products of msft's forward pass on a CPU over all pairs."""
    from transformers import AutoConfig, AutoTokenizer

    queries, passages = zip(*on.pairs, strict=True)
    encoded = AutoTokenizer.from_pretrained(student)(
        list(queries), list(passages), truncation=True, max_length=MAX_LENGTH
    )
    return first_token_flops(AutoConfig.from_pretrained(student), [len(ids) for ids in encoded["input_ids"]])


def made_up(base: Path, depth: int, n_queries: int) -> Candidates:
    """Make lists of synthetic texts without judgments."""
    lists, _ = make_lists("made-up", data=DATA, base=base, per_list=depth, n_lists=n_queries, n_held=0)
    ids = [str(i) for i in range(n_queries)]
    doc_ids = [[f"{i}-{k}" for k in range(depth)] for i in ids]
    return Candidates("made-up", ids, [(one.query, one.passages) for one in lists], doc_ids, {})


def main(argv: list[str] | None = None) -> dict[str, Any]:
    arguments = _arguments(argv)
    warnings.simplefilter("ignore")
    shape, device = arguments.shape, arguments.device
    real = shape == "minilm"
    with tempfile.TemporaryDirectory() as scratch:
        student = arguments.student
        if student is None:
            folder = Path(scratch)
            student = (
                trained_student(folder, data=arguments.data)
                if real
                else make_base(shape, folder / shape, 0.0)
            )
        ways, best = _ways(student, device)
        result: dict[str, Any] = {
            "benchmark": "rerank",
            "shape": shape,
            "device": device,
            "precision": best,
            "same_precision": best,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        }
        seconds = dict.fromkeys(ways, 0.0)
        n_pairs, flops, differences, in_fp32 = 0, 0.0, [], []
        peaks = dict.fromkeys(("fp32", best), 0.0)
        for name in arguments.collections.split(",") if real else ["made-up"]:
            on, few = (
                candidates(name, data=arguments.data, depth=depth, n_queries=n)
                if real
                else made_up(student, depth, n)
                for depth, n in ((arguments.depth, arguments.queries), (20, 2))
            )
            for way in ways.values():
                way(few)
            _raise_peaks(peaks, device)
            timed = in_turns(ways, on, arguments.repeats)
            _raise_peaks(peaks, device)
            scored = {key: one.result for key, one in timed.items() if one.result is not None}
            if real:
                measured = {key: on.ndcg(on.split(scores)) for key, scores in scored.items()}
                in_fp32.append(abs(measured["ours_fp32"] - measured["st_fp32"]))
                more = max(arguments.measured, arguments.queries)
                over = candidates(name, data=arguments.data, depth=arguments.depth, n_queries=more)
                rough = {} if best == "fp32" else {f"ours_{best}": ways[f"ours_{best}"]}
                measured_differences = _ndcg_differences(over, rough, ways["ours_fp32"])
                differences.append(measured_differences.get(f"ours_{best}", in_fp32[-1]))
                result |= {f"{name}_{key}_ndcg10": round(value, 4) for key, value in measured.items()}
            else:
                away = np.abs(scored[f"ours_{best}"] - scored["st_fp32"]).max()
                differences.append(float(away / np.std(scored["st_fp32"])))
            n_pairs += on.n_pairs
            flops += scoring_flops(student, on)
            for key, one in timed.items():
                seconds[key] += one.seconds
                result[f"{name}_{key}_pairs_per_second"] = round(on.n_pairs / one.seconds, 1)
            print(json.dumps(result), file=sys.stderr)
    ratios = {
        "default": ("st_fp32", best),
        "same_precision": (f"st_{best}", best),
        "fp32": ("st_fp32", "fp32"),
        "over_plain_loop": (f"plain_{best}", best),
        "over_lightning_ir": ("lir_fp32", best),
        "over_lightning_ir_same_precision": (f"lir_{best}", best),
    }
    result |= {
        "pairs": n_pairs,
        "pairs_per_second": round(n_pairs / seconds[f"ours_{best}"], 1),
        **{
            f"speedup_{key}": round(seconds[peer] / seconds[f"ours_{mine}"], 2)
            for key, (peer, mine) in ratios.items()
            if peer in seconds
        },
        "plain_loop_over_default": round(seconds["st_fp32"] / seconds[f"plain_{best}"], 2),
        "device_waited": round(RUNNING[best].share_waited, 4),
        "measure_difference" if real else "score_difference": round(max(differences), 5),
    }
    result |= {f"peak_tflops_{precision}": round(peak / 1e12, 3) for precision, peak in peaks.items()}
    if device == "cpu":
        result["bound_over_default"] = round(seconds["st_fp32"] * peaks[best] / flops, 2)
    if real:
        result |= {
            "measure_differences": [round(one, 5) for one in differences],
            "fp32_measure_difference": round(max(in_fp32), 5),
        }
    print(json.dumps(result))
    return result


def _raise_peaks(peaks: dict[str, float], device: str) -> None:
    for precision, peak in peaks.items():
        peaks[precision] = max(peak, matmul_peak(device, precision))


def _ndcg_differences(on: Candidates, ways: Mapping[str, Way], reference: Way) -> dict[str, float]:
    """Measure the difference of each way's nDCG@10 from the reference's over the same lists."""
    if not ways:
        return {}
    exact = on.ndcg(on.split(reference(on)))
    return {name: abs(on.ndcg(on.split(way(on))) - exact) for name, way in ways.items()}


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--student", type=Path, help="a student's folder")
    parser.add_argument("--shape", choices=SHAPES, default="minilm")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument(
        "--collections", default="dl19-passage,nfcorpus", help="collections of --shape minilm"
    )
    parser.add_argument("--queries", type=int, default=20, help="per collection")
    parser.add_argument("--measured", type=int, default=100, help="number of queries of measure_difference")
    parser.add_argument("--depth", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=3)
    return parser.parse_args(argv)


def _ways(student: Path, device: str) -> tuple[dict[str, Way], str]:
    """List the ways that can run here, and msft's default precision; bf16 only if the hardware supports it."""
    best = resolve_precision("auto", device)
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16}
    chosen = {name: dtypes[name] for name in dict.fromkeys(("fp32", best))}
    ways = {f"ours_{name}": ours(student, name, device) for name in chosen}
    ways |= {f"st_{name}": sentence_transformers(student, dtype, device) for name, dtype in chosen.items()}
    ways[f"plain_{best}"] = plain_loop(student, dtypes[best], device)
    if device == "cpu" and importlib.util.find_spec("lightning_ir"):
        ways |= {f"lir_{name}": lightning_ir(student, dtype) for name, dtype in chosen.items()}
    return ways, best


if __name__ == "__main__":
    main()
