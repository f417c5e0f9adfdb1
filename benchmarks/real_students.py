"""Train students from human judgments (nfcorpus) or from LLM labels (RankZephyr's on DL21 and MS MARCO).

    python -m benchmarks.real_students contrastive|contrastive-retrieved|distillation
        [--data ../shared/data] [--store FILE] [--minutes 8]

Every step is an `msft` command, printed as it runs; the same call continues. The benchmark gives the value of each
system on the held-out test queries with its 95 % interval over queries (mean ± t · standard error). For students it
adds the paired t-test against the untrained model.
"""

import argparse
import json
import shlex
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

SEED = 42
MEASURE = "nDCG@10"
# The settings' own defaults, beside what the commands give.
PLAIN = (
    "--recipe", "small", "--set", "max_pairs=0", "--set", "attention_dropout=0.1", "--set", "hidden_dropout=0.1",
)  # fmt: skip


class Commands:
    """A runner of msft commands over one store, each in a new process; `lines` are the commands so far."""

    def __init__(self, store: Path) -> None:
        self._store = store
        self.lines: list[str] = []

    def __call__(self, *arguments: str, tolerate: tuple[int, ...] = ()) -> str:
        self.lines.append(f"msft {shlex.join(arguments)}")
        print(f"$ {self.lines[-1]}", file=sys.stderr, flush=True)
        done = subprocess.run(
            [sys.executable, "-m", "cli.main", *arguments, "--store", str(self._store)],
            stdout=subprocess.PIPE,
            text=True,
        )
        if done.returncode not in (0, *tolerate):
            raise SystemExit(done.returncode)
        return done.stdout

    def rows(self, *arguments: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self(*arguments, "--format", "json"))
        return found


def contrastive(
    msft: Commands, data: Path, minutes: float, *, retrieved: bool = False
) -> tuple[str, str, str]:
    """Train `cl` on nfcorpus's human judgments over mined negatives, to be tested on its test queries."""
    name = "minilm-cl-retrieved" if retrieved else "minilm-cl"
    folder = data / "nfcorpus"
    for part, qrels in (
        ("train", "qrels.train.txt.gz"),
        ("dev", "qrels.dev.txt.gz"),
        ("test", "qrels.txt.gz"),
    ):
        msft(
            "data", "add", f"nfcorpus/{part}", "--from", str(folder), "--qrels", str(folder / qrels),
            "--collection", "nfcorpus",
        )  # fmt: skip
        msft("retrieve", "--dataset", f"nfcorpus/{part}", "--retriever", "bm25s", "--depth", "100")
    msft("retrieve", "--dataset", "nfcorpus/test", "--retriever", "bm25", "--depth", "100")
    msft(
        "negatives", "mine", "--dataset", "nfcorpus/train", "--run", "bm25s", "--depth", "100", "--per-query", "32",
        "--name", "hard",
    )  # fmt: skip
    msft(
        "students", "add", "minilm", "--name", "minilm-untrained", "--max-length", "160", "--seed", str(SEED)
    )
    msft(
        "students", "train", *PLAIN, "--regime", "cl", "--base", "minilm", "--dataset", "nfcorpus/train", "--negatives", "hard",
        "--retrieved" if retrieved else "--no-retrieved", "--name", name, "--lr", "1e-4", "--batch", "8", "--group-size", "8", "--max-length", "160",
        "--epochs", "0", "--max-steps", "200", "--max-minutes", str(minutes), "--seed", str(SEED),
        "--set", 'freeze=["embeddings"]', "--set", "keep=last",
    )  # fmt: skip
    return "nfcorpus/test", "bm25s", name


def distillation(msft: Commands, data: Path, minutes: float) -> tuple[str, str, str]:
    """Train `kd` on RankZephyr's rankings of DL21's queries and its training labels, to be tested on DL19."""
    dl21, labels, dl19 = data / "dl21-passage", data / "msmarco-train-rankzephyr100", data / "dl19-passage"
    # DL21's queries serve for training, so its human judgments are not used: only the LLM labelled them.
    msft("data", "add", "dl21", "--from", str(dl21), "--role", "train", "--collection", "msmarco-v2-passage")
    msft(
        "data",
        "add",
        "rankzephyr100",
        "--from",
        str(labels),
        "--role",
        "train",
        "--collection",
        "rankzephyr100",
    )
    msft("data", "add", "dl19", "--from", str(dl19))
    msft("runs", "import", str(dl19 / "runs" / "bm25.run.gz"), "--dataset", "dl19", "--name", "bm25")
    partly = (6,)  # one of the 100 lists is a query's second list, which the import leaves out
    msft("teachers", "import", str(dl21 / "permutations.jsonl.gz"), "--dataset", "dl21")
    msft(
        "teachers", "import", str(labels / "permutations.jsonl.gz"), "--dataset", "rankzephyr100",
        "--name", "rankzephyr-training", tolerate=partly,
    )  # fmt: skip
    sources = ("rankzephyr-7b@pisa-bm25-100", "rankzephyr-7b@tct-colbert-hnp-100", "rankzephyr-training")
    msft(
        "students", "add", "minilm", "--name", "minilm-untrained", "--max-length", "128", "--seed", str(SEED)
    )
    msft(
        "students", "train", *PLAIN, "--regime", "kd", "--base", "minilm",
        *(a for source in sources for a in ("--labels", source)),
        "--name", "minilm-kd", "--lr", "2e-4", "--batch", "4", "--group-size", "12", "--max-length", "128",
        "--epochs", "0", "--max-steps", "240", "--max-minutes", str(minutes), "--seed", str(SEED),
        "--set", 'freeze=["embeddings"]', "--set", "keep=last",
    )  # fmt: skip
    return "dl19", "bm25", "minilm-kd"


EXPERIMENTS = {
    "contrastive": contrastive,
    "contrastive-retrieved": partial(contrastive, retrieved=True),
    "distillation": distillation,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("experiment", choices=EXPERIMENTS)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--store", type=Path, help="default: EXPERIMENT.duckdb in the current folder")
    parser.add_argument("--minutes", type=float, default=8.0, help="largest number of minutes of training")
    parser.add_argument("--depth", type=int, default=50, help="candidates that are re-ranked")
    arguments = parser.parse_args()
    began = time.monotonic()
    msft = Commands(arguments.store or Path(f"{arguments.experiment}.duckdb"))
    dataset, first_stage, student = EXPERIMENTS[arguments.experiment](msft, arguments.data, arguments.minutes)
    msft(
        "eval", "--dataset", dataset, "--run", first_stage, "--student", "minilm-untrained", "--student", student,
        "--depth", str(arguments.depth), "--measure", MEASURE, "--fuse",
    )  # fmt: skip
    result = {
        "benchmark": f"real_students {arguments.experiment}",
        "seed": SEED,
        "depth": arguments.depth,
        "minutes": round((time.monotonic() - began) / 60, 1),
        **_summary(msft, dataset, student),
    }
    print(json.dumps(result))


def _summary(msft: Commands, dataset: str, student: str) -> dict[str, Any]:
    """Compute each system's value, interval and comparison from the per-query scores in the store."""
    found = msft.rows(
        "sql",
        f"SELECT system, kind, query_id, value FROM result_queries WHERE dataset = '{dataset}' AND measure = '{MEASURE}' "
        "ORDER BY system, query_id",
        "--limit", "0",
    )  # fmt: skip
    scores: dict[tuple[str, str], list[float]] = {}
    for row in found:
        scores.setdefault((row["kind"], row["system"]), []).append(row["value"])
    result: dict[str, Any] = {"dataset": dataset, "measure": MEASURE}
    untrained = next(
        np.array(v) for (kind, name), v in scores.items() if kind == "student" and "untrained" in name
    )
    for (kind, name), column in scores.items():
        values = np.array(column)
        half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
        result[name] = round(float(values.mean()), 4)
        result[f"{name} ci95"] = [
            round(float(values.mean() - half), 4),
            round(float(values.mean() + half), 4),
        ]
        if kind != "first_stage" and "untrained" not in name:
            result[f"{name} p_vs_untrained"] = float(f"{stats.ttest_rel(values, untrained).pvalue:.3g}")
    (trained,) = msft.rows(
        "sql",
        f"SELECT sum(seconds) / 60 AS minutes, sum(pairs) AS pairs FROM student_stages WHERE student = '{student}'",
    )
    return {**result, "training_minutes": round(trained["minutes"], 1), "training_pairs": trained["pairs"]}


if __name__ == "__main__":
    main()
