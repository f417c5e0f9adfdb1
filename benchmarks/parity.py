"""Compare ways to score with one student: difference from Hugging Face's fp32 scores, order, nDCG@10, pairs/s.

    python -m benchmarks.parity [--student FOLDER] [--data ../shared/data] [--collections dl19-passage,nfcorpus]
        [--queries 20] [--repeats 1] [--calibrate dl21-passage]

ours_fp32, ours_bf16              `students.rerank.Reranker`
hf_fp32                           AutoModelForSequenceClassification, batches of 32 pairs in the order given
st_fp32                           sentence-transformers' CrossEncoder with the activation of the folder (identity)
onnx_fp32, onnx_int8              `msft students export --format onnx | int8` in onnxruntime
openvino_fp32, openvino_int8      `msft students export --format openvino | openvino-int8`, calibrated on --calibrate's pairs

Keys per collection and way: max_difference and mean_difference of the scores; score_deviation, the spread of the
scores, as a scale for them; tau, Kendall's tau of each list's order, averaged; ndcg10; ndcg10_difference from hf_fp32;
pairs_per_second. The table goes to stderr. Without --student the benchmark first trains one (some minutes), because an
untrained head's scores are all alike and any difference changes their order.
"""

import argparse
import json
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.real_lists import DATA, Candidates, candidates, trained_student
from benchmarks.timing import in_turns
from students.jobs.export_check import differences
from students.rerank.exports import export_graph
from students.rerank.reranker import Reranker, TextLists

MAX_LENGTH = 256
REFERENCE = "hf_fp32"
COLUMNS = (
    "max_difference", "mean_difference", "score_deviation", "tau", "ndcg10", "ndcg10_difference", "pairs_per_second",
)  # fmt: skip

Way = Callable[[Candidates], Any]


def hugging_face(student: Path, max_length: int) -> Way:
    """Score by the tokenizer's pairs and the model's logits, 32 at a time: the reference for the other ways."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(student)
    model = AutoModelForSequenceClassification.from_pretrained(student, dtype=torch.float32).eval()

    @torch.inference_mode()
    def score(on: Candidates) -> Any:
        found = []
        for first in range(0, on.n_pairs, 32):
            queries, passages = zip(*on.pairs[first : first + 32], strict=True)
            batch = tokenizer(
                list(queries), list(passages), truncation=True, max_length=max_length, padding=True, return_tensors="pt",
            )  # fmt: skip
            found.append(model(**batch).logits[:, 0].numpy())
        return np.concatenate(found)

    return score


def sentence_transformers(student: Path, max_length: int) -> Way:
    from sentence_transformers import CrossEncoder

    model = CrossEncoder(str(student), max_length=max_length, device="cpu")
    return lambda on: model.predict(on.pairs, show_progress_bar=False)


def ours(student: Path, max_length: int, precision: str) -> Way:
    reranker = Reranker.load(student, max_length=max_length, precision=precision, device="cpu")
    return lambda on: np.concatenate(reranker.scores(on.lists))


def exported(
    student: Path, max_length: int, folder: Path, backend: str, calibrate: Any = None, *, int8: bool = False
) -> Way:
    export_graph(student, folder, backend, max_length=max_length, int8=int8, calibrate=calibrate)
    scorer = Reranker.load(folder, max_length=max_length)
    return lambda on: np.concatenate(scorer.scores(on.lists))


def all_ways(student: Path, max_length: int, scratch: Path, calibrate: TextLists) -> dict[str, Way]:
    """Make every way, by name; exports are written to `scratch`.

    Args:
        calibrate: lists of another collection, whose pairs OpenVINO's int8 is calibrated on.
    """
    openvino = {
        int8: exported(student, max_length, scratch / f"openvino-{int8}", "openvino", calibrate, int8=int8)
        for int8 in (False, True)
    }
    return {
        REFERENCE: hugging_face(student, max_length),
        "st_fp32": sentence_transformers(student, max_length),
        "ours_fp32": ours(student, max_length, "fp32"),
        "ours_bf16": ours(student, max_length, "bf16"),
        "onnx_fp32": exported(student, max_length, scratch / "fp32", "onnx"),
        "onnx_int8": exported(student, max_length, scratch / "int8", "onnx", int8=True),
        "openvino_fp32": openvino[False],
        "openvino_int8": openvino[True],
    }


def compare(ways: Mapping[str, Way], on: Candidates, repeats: int = 1) -> dict[str, dict[str, float]]:
    """Measure each way: name -> row with the keys of `COLUMNS`. One way must be `REFERENCE`."""
    timed = in_turns(ways, on, repeats)
    exact = on.split(timed[REFERENCE].result)
    wanted = on.ndcg(exact)
    rows: dict[str, dict[str, float]] = {}
    for name, one in timed.items():
        scores = on.split(one.result)
        value = on.ndcg(scores)
        rows[name] = differences(exact, scores) | {
            "ndcg10": value,
            "ndcg10_difference": value - wanted,
            "pairs_per_second": on.n_pairs / one.seconds,
        }
    return rows


def table(name: str, rows: Mapping[str, Mapping[str, float]]) -> str:
    """Format the rows of a collection as a Markdown table."""
    lines = [f"| {name} | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for way, row in rows.items():
        cells = [
            f"{row['max_difference']:.1e}", f"{row['mean_difference']:.1e}", f"{row['score_deviation']:.2f}",
            f"{row['tau']:.4f}", f"{row['ndcg10']:.4f}", f"{row['ndcg10_difference']:+.4f}",
            f"{row['pairs_per_second']:.0f}",
        ]  # fmt: skip
        lines.append(f"| {way} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--student", type=Path, help="a student's folder")
    parser.add_argument("--collections", default="dl19-passage,nfcorpus")
    parser.add_argument("--queries", type=int, default=20, help="per collection")
    parser.add_argument("--depth", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument(
        "--calibrate", default="dl21-passage", help="the collection that int8 is calibrated on"
    )
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    result: dict[str, Any] = {"benchmark": "parity", "threads": torch.get_num_threads()}
    n_pairs, every = 0, []
    with tempfile.TemporaryDirectory() as scratch:
        student = arguments.student or trained_student(Path(scratch), data=arguments.data)
        other = candidates(arguments.calibrate, data=arguments.data, depth=100, n_queries=60).lists
        ways = all_ways(student, MAX_LENGTH, Path(scratch), [(query, texts[::20]) for query, texts in other])
        for name in arguments.collections.split(","):
            on = candidates(name, data=arguments.data, depth=arguments.depth, n_queries=arguments.queries)
            few = candidates(name, data=arguments.data, depth=20, n_queries=2)
            for way in ways.values():
                way(few)  # warm up: the first batches include one-time work
            rows = compare(ways, on, arguments.repeats)
            print(table(name, rows), file=sys.stderr, flush=True)
            every.append(rows)
            n_pairs += on.n_pairs
            for way_name, row in rows.items():
                result |= {f"{name}_{way_name}_{key}": float(f"{value:.4g}") for key, value in row.items()}
    for way_name in ways:
        result |= {
            f"{way_name}_max_difference": float(f"{max(r[way_name]['max_difference'] for r in every):.4g}"),
            f"{way_name}_tau": round(min(r[way_name]["tau"] for r in every), 4),
            f"{way_name}_measure_difference": round(
                max(abs(r[way_name]["ndcg10_difference"]) for r in every), 4
            ),
        }
    print(json.dumps(result | {"pairs": n_pairs}))


if __name__ == "__main__":
    main()
