"""Print the results of `benchmarks/gpu.sh` as one table, beside what is wanted.

python -m benchmarks.gpu_table gpu-results.jsonl
"""

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.train_steps import table

# Benchmark, key, the text of the line, and the least value that is wanted on an H200.
LINES = (
    ("encoder", "model_flops_utilisation", "training: share of the measured peak", 0.45),
    ("encoder", "pairs_per_second", "training: pairs/s", None),
    ("decoder", "model_flops_utilisation", "decoder with LoRA: share of the measured peak", 0.40),
    ("decoder", "pairs_per_second", "decoder with LoRA: pairs/s", None),
    ("rerank", "pairs_per_second", "re-ranking: pairs/s", 15_000),
    (
        "rerank",
        "speedup_same_precision",
        "re-ranking: against sentence-transformers in the same precision",
        4,
    ),
    ("rerank", "device_waited", "re-ranking: share of the time in which the device waited", None),
    ("train", "loop_speedup_default", "training steps: against sentence-transformers' default", 3),
    ("train", "loop_speedup_same_precision", "training steps: against it in the same precision", 3),
    ("train", "loss_difference_exact", "largest difference of losses without dropout", None),
)


def rows(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Make the table's rows: a line for each figure, way and kind of work."""
    found = {_name(result): result for result in results}
    made: list[dict[str, Any]] = []
    for benchmark, key, text, wanted in LINES:
        value = found.get(benchmark, {}).get(key)
        verdict = "" if wanted is None or value is None else "yes" if value >= wanted else "no"
        made.append({
            "figure": text, "measured": "not measured" if value is None else value,
            "wanted": "" if wanted is None else f"≥ {wanted:,}", "reached": verdict,
        })  # fmt: skip
    for name in ("encoder", "decoder"):
        for key, value in found.get(name, {}).items():
            if key.endswith("_us_per_pair"):
                way = key.removesuffix("_us_per_pair").replace("_", " ")
                share = found[name][key.replace("_us_per_pair", "_share_of_peak")]
                made.append(
                    {"figure": f"{name}, {way}: µs a pair, share of peak", "measured": f"{value}, {share}"}
                )
            elif key.endswith("_ms"):
                kind = key.removesuffix("_ms")
                made.append({"figure": f"{name}, best way: {kind}, ms a step", "measured": value})
    return made


def _name(result: dict[str, Any]) -> str:
    if result["benchmark"] != "train utilisation":
        return str(result["benchmark"])
    return "decoder" if result["lora"] else "encoder"


def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    (path,) = sys.argv[1:] if argv is None else argv
    results = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
    made = rows(results)
    print(table(made))
    return made


if __name__ == "__main__":
    main()
