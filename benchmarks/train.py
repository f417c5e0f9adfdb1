"""Measure training beside sentence-transformers and lightning-ir: pairs/s, and the loss after equal pairs.

    python -m benchmarks.train [--data ../shared/data] [--collections dl19-passage,nfcorpus] [--pairs 480] [--repeats 3]
    python -m benchmarks.train --device cuda --shape electra-base --per-list 100 --pairs 9600 [--utilisation]

All trainers start from the same weights, head included, and see the same lists in the same steps. They use RankNet,
AdamW, a constant rate, gradients clipped at norm 1, 256 tokens per pair, and the same dropout of hidden states and
attention (--dropout, by default .1 as in MiniLM and ELECTRA). They run in turns in one process; figures are medians. A
trainer's seconds are those of its whole call, from a model's folder and texts to a model's folder: loading,
tokenising (the token cache is built anew each time) and saving. Random shapes (tiny, electra-base) train on synthetic
texts of MS MARCO's lengths.

pairs_per_second            ours by default: bf16 if the hardware supports it, otherwise fp32 (key precision)
speedup_default             against sentence-transformers' default, which is fp32
speedup_same_precision      both in bf16, or in fp32 if the machine has no bf16 products (key same_precision)
speedup_fp32                both in fp32
speedup_over_lightning_ir   against its module in fp32, …_same_precision as above
loop_speedup_…              of the optimiser steps alone, without loading, tokenising ahead and saving
loop_speedup_compiled       with --compiled: seconds of our optimiser steps over those with compile = true
cpu_speedup_…               by CPU seconds. With OMP_NUM_THREADS=1 this compares well on a busy machine; threads that
                            wait for one another spend CPU time too
model_flops_utilisation     model FLOPs of the real tokens / (seconds of our optimiser steps × measured peak). Ours
                            computes computed_share of these FLOPs, because a score needs only the last layer's first token
NAME_CONTENDER_loss         RankNet on held-out lists after the training, measured in the same way for all
loss_difference             the largest |ours - theirs| among them, with dropout; equal_loss: it is within --tolerance
loss_difference_exact       the same without dropout, in fp32, after the first steps: only rounding is left
"""

import argparse
import importlib.util
import json
import statistics
import sys
import tempfile
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from benchmarks import train_lists, train_steps
from benchmarks.real_lists import DATA
from benchmarks.timing import in_turns, matmul_peak
from benchmarks.train_lists import Work, held_out_loss, in_training_order, make_base, make_lists, make_view
from benchmarks.train_peers import SEED, Trained, Trainer, lightning_ir, ours, sentence_transformers


def trainers(device: str, mini_batch: int | None, *, compiled: bool = False) -> dict[str, Trainer]:
    """List the trainers that can run here; bf16 only if the hardware supports it."""
    from students.rerank.reranker import resolve_precision

    has_bf16 = resolve_precision("auto", device) == "bf16"
    precisions = ("fp32", "bf16") if has_bf16 else ("fp32",)
    found = {f"ours_{p}": ours(p) for p in precisions}
    found |= {f"st_{p}": sentence_transformers(p, mini_batch) for p in precisions}
    if compiled:
        found |= {f"ours_compiled_{p}": ours(p, compiled=True) for p in precisions}
    if importlib.util.find_spec("lightning_ir"):
        found |= {f"lir_{p}": lightning_ir(p) for p in precisions}
    return found


def make_work(name: str, base: Path, arguments: argparse.Namespace, scratch: Path) -> Work:
    """Make a collection's lists, and a view with the same lists."""
    n_lists = max(1, arguments.pairs // arguments.per_list)
    lists, held_out = make_lists(
        name, data=arguments.data, base=base, per_list=arguments.per_list, n_lists=n_lists, n_held=arguments.held_out
    )  # fmt: skip
    view = make_view(scratch / f"view-{name}-{n_lists}", lists)
    return Work(
        name=name, base=base, lists=in_training_order(view, lists, SEED), view=view, held_out=held_out,
        per_step=arguments.lists, lr=arguments.lr, max_length=arguments.max_length, dropout=arguments.dropout,
        device=arguments.device, scratch=scratch,
    )  # fmt: skip


def without_dropout(work: Work, scratch: Path, shape: str, steps: int) -> Work:
    """Make a work of the first steps, from the same weights with dropout 0."""
    lists = work.lists[: steps * work.per_step]
    view = make_view(scratch / f"view-{work.name}-exact", lists)
    base = make_base(shape, scratch / "base-exact", 0.0)
    return replace(
        work, name=f"{work.name}-exact", base=base, view=view, lists=in_training_order(view, lists, SEED), dropout=0.0
    )  # fmt: skip


def measure(work: Work, ways: dict[str, Trainer], repeats: int) -> dict[str, Any]:
    """Measure each trainer: median seconds, loop seconds and CPU seconds, and the loss on held-out lists."""
    loops: dict[str, list[float]] = {name: [] for name in ways}
    cpu: dict[str, list[float]] = {name: [] for name in ways}

    def noting(name: str) -> Any:
        def run(on: Work) -> Trained:
            began = time.process_time()
            made = ways[name](on)
            cpu[name].append(time.process_time() - began)
            loops[name].append(made.loop_seconds)
            return made

        return run

    timed = in_turns({name: noting(name) for name in ways}, work, repeats)
    return {
        name: {
            "seconds": one.seconds,
            "loop": statistics.median(loops[name]),
            "cpu": statistics.median(cpu[name]),
            "loss": one.result.loss(),
        }
        for name, one in timed.items()
    }


def token_cache_seconds(work: Work) -> float:
    """Measure the seconds of tokenising the view's texts into a new cache, a part of msft's time."""
    from transformers import AutoTokenizer

    from students.text.token_cache import TokenCache
    from students.train.view_folder import read_view

    view, tokenizer = read_view(work.view), AutoTokenizer.from_pretrained(work.base)
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        cache = TokenCache(folder, tokenizer)
        cache.tokens(view.queries), cache.tokens(view.passages)
        return time.perf_counter() - began


def summary(found: dict[str, dict[str, Any]], n_pairs: dict[str, int], tolerance: float) -> dict[str, Any]:
    """Compute the ratios over all collections.

    Args:
        found: by collection, then trainer: seconds, loop, cpu, loss.
        n_pairs: by collection.
    """
    names = list(next(iter(found.values())))
    whole = {name: sum(one[name]["seconds"] for one in found.values()) for name in names}
    loop = {name: sum(one[name]["loop"] for one in found.values()) for name in names}
    cpu = {name: sum(one[name]["cpu"] for one in found.values()) for name in names}
    best = "bf16" if "ours_bf16" in names else "fp32"
    total = sum(n_pairs.values())
    row: dict[str, Any] = {"precision": best, "same_precision": best, "pairs": total}
    row |= {
        f"{work}_{name}_pairs_per_second": round(n_pairs[work] / one[name]["seconds"], 1)
        for work, one in found.items()
        for name in names
    }
    row |= {
        f"{work}_{name}_loss": round(one[name]["loss"], 4) for work, one in found.items() for name in names
    }
    ratios = {"default": "st_fp32", "same_precision": f"st_{best}", "over_lightning_ir": "lir_fp32"}
    ratios["over_lightning_ir_same_precision"] = f"lir_{best}"
    for key, peer in ratios.items():
        if peer in names:
            row[f"speedup_{key}"] = round(whole[peer] / whole[f"ours_{best}"], 2)
            row[f"loop_speedup_{key}"] = round(loop[peer] / loop[f"ours_{best}"], 2)
            row[f"cpu_speedup_{key}"] = round(cpu[peer] / cpu[f"ours_{best}"], 2)
    if f"ours_compiled_{best}" in names:
        row["loop_speedup_compiled"] = round(loop[f"ours_{best}"] / loop[f"ours_compiled_{best}"], 2)
    row["speedup_fp32"] = round(whole["st_fp32"] / whole["ours_fp32"], 2)
    row["pairs_per_second"] = round(total / whole[f"ours_{best}"], 1)
    difference = largest_difference(found)
    return row | {
        "loss_difference": round(difference, 4),
        "tolerance": tolerance,
        "equal_loss": difference <= tolerance,
    }


def largest_difference(found: dict[str, dict[str, Any]], ours_too: str = "ours") -> float:
    """Find the largest difference between msft's loss and that of a peer that started from the same head."""
    return max(
        abs(mine["loss"] - theirs["loss"])
        for one in found.values()
        for a, mine in one.items()
        for b, theirs in one.items()
        if a.startswith(ours_too) and not b.startswith("ours") and theirs["loss"] is not None
    )


def utilisation(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure the share of the machine's measured peak that msft's optimiser steps use (`benchmarks.train_steps`)."""
    from students.rerank.reranker import resolve_precision

    precision, device = resolve_precision("auto", arguments.device), arguments.device
    if arguments.precision:
        precision = arguments.precision
    decoder = arguments.shape in train_lists.DECODERS
    more = {"frame": "plain"} if decoder else {}
    more |= {"lora": arguments.lora} if arguments.lora else {}
    with tempfile.TemporaryDirectory(prefix="msft-train-") as folder:
        scratch = Path(folder)
        base = make_base(arguments.shape, scratch / "base", arguments.dropout)
        name = "made-up" if arguments.shape != "minilm" else arguments.collections.split(",")[0]
        steps = train_steps.WARM_UP + train_steps.TIMED
        arguments.pairs = steps * arguments.lists * arguments.per_list
        work = make_work(name, base, arguments, scratch)
        peak = matmul_peak(device, precision)
        rows = train_steps.measure(work, precision, peak, more, arguments.repeats)
        lengths = train_lists.pair_lengths(work)
    print(train_steps.table(rows), file=sys.stderr)
    best = max(rows, key=lambda row: row["pairs_per_second"])
    result: dict[str, Any] = {
        "benchmark": "train utilisation", "shape": arguments.shape, "device": device, "precision": precision,
        "lora": arguments.lora or "", "dropout": arguments.dropout, "lists": arguments.lists,
        "per_list": arguments.per_list, "steps": train_steps.TIMED, "warm_up": train_steps.WARM_UP,
        "tokens_per_pair": round(float(lengths.mean()), 1), "peak_tflops": round(peak / 1e12, 3),
        "best": best["way"], "pairs_per_second": best["pairs_per_second"],
        "model_flops_utilisation": best["share_of_peak"], "torch": torch.__version__,
    }  # fmt: skip
    for row in rows:
        way = row["way"].replace(" ", "_")
        result |= {f"{way}_{key}": row[key] for key in ("us_per_pair", "share_of_peak")}
    return result | {key: value for key, value in rows[-1].items() if key.endswith("_ms")}


def main(argv: list[str] | None = None) -> dict[str, Any]:
    arguments = _arguments(argv)
    if arguments.utilisation:
        print(json.dumps(result := utilisation(arguments)))
        return result
    warnings.simplefilter("ignore")
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    shape, device = arguments.shape, arguments.device
    names = arguments.collections.split(",") if shape == "minilm" else ["made-up"]
    ways = trainers(device, arguments.peer_mini_batch, compiled=arguments.compiled)
    found: dict[str, dict[str, Any]] = {}
    result: dict[str, Any] = {
        "benchmark": "train", "shape": shape, "device": device, "dropout": arguments.dropout, "lists": arguments.lists,
        "per_list": arguments.per_list, "repeats": arguments.repeats, "threads": torch.get_num_threads(),
        "torch": torch.__version__, "st_mini_batch": arguments.peer_mini_batch or arguments.lists,
    }  # fmt: skip
    works: list[Work] = []
    exact: list[float] = []
    flops = computed = cache_seconds = 0.0
    with tempfile.TemporaryDirectory(prefix="msft-train-") as folder:
        scratch = Path(folder)
        base = make_base(shape, scratch / "base", arguments.dropout)
        for name in names:
            work = make_work(name, base, arguments, scratch)
            works.append(work)
            first = without_dropout(
                work, scratch, shape, arguments.exact_steps
            )  # this also warms up every trainer
            same = {way: {"loss": run(first).loss()} for way, run in ways.items() if way.endswith("fp32")}
            print(f"{name}, first steps without dropout: {same}", file=sys.stderr)
            exact.append(largest_difference({name: _from_one_head(same, shape)}))
            result[f"{name}_loss_before"] = round(held_out_loss(base, work), 4)
            found[name] = measure(work, ways, arguments.repeats)
            lengths = train_lists.pair_lengths(work)
            result[f"{name}_tokens_per_pair"] = round(float(lengths.mean()), 1)
            own = train_lists.model_flops(_config(base), lengths)
            flops += own
            computed += own * train_lists.computed_share(_config(base), lengths)
            cache_seconds += token_cache_seconds(work)
            print(json.dumps({"collection": name, **found[name]}), file=sys.stderr, flush=True)
    row = summary(found, {work.name: work.n_pairs for work in works}, arguments.tolerance)
    peak = matmul_peak(device, row["precision"])
    seconds = sum(one[f"ours_{row['precision']}"]["loop"] for one in found.values())
    result |= row | {
        "loss_difference_exact": max(exact),
        "token_cache_seconds": round(cache_seconds, 3),
        "peak_tflops": round(peak / 1e12, 3),
        "model_flops_utilisation": round(flops / (seconds * peak), 4),
        "computed_share": round(computed / flops, 4),
    }
    print(json.dumps(result))
    return result


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument(
        "--collections", default="dl19-passage,nfcorpus", help="collections of --shape minilm"
    )
    parser.add_argument("--shape", choices=train_lists.SHAPES, default="minilm")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--pairs", type=int, default=480, help="per collection")
    parser.add_argument("--lists", type=int, default=8, help="lists per optimiser step")
    parser.add_argument("--per-list", type=int, default=10, help="passages of a list")
    parser.add_argument("--held-out", type=int, default=20, help="lists to measure the loss on")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--lr", type=float, default=2e-4)
    parser.add_argument("--max-length", type=int, default=256)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--exact-steps", type=int, default=2, help="steps of the comparison without dropout")
    parser.add_argument(
        "--tolerance", type=float, default=0.02, help="largest difference of the loss, with dropout"
    )
    parser.add_argument(
        "--utilisation",
        action="store_true",
        help="measure only the utilisation of the steps, way by way, without peers (benchmarks.train_steps)",
    )
    parser.add_argument("--lora", help="with --utilisation: r=32[,alpha=64,…]")
    parser.add_argument(
        "--precision", choices=["fp32", "bf16"], help="with --utilisation: instead of the device's"
    )
    parser.add_argument("--compiled", action="store_true", help="also measure ours with compile = true")
    parser.add_argument(
        "--peer-mini-batch", type=int, help="pairs of sentence-transformers' forward instead of its default"
    )
    return parser.parse_args(argv)


def _from_one_head(found: dict[str, Any], shape: str) -> dict[str, Any]:
    """Keep the trainers with the same head. lightning-ir has BERT's head but gives an ELECTRA another one."""
    return {name: one for name, one in found.items() if shape == "minilm" or not name.startswith("lir")}


def _config(folder: Path) -> Any:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(folder)


if __name__ == "__main__":
    main()
