"""Run a small real grid on a CPU: MiniLM in four regimes and several seeds, from human judgments and LLM rankings.

    python -m benchmarks.grid [--data ../shared/data] [--store FILE] [--seeds 1,2,3] [--pairs 6000]
        [--depths 50,20] [--retrieved | --no-retrieved]

`cl` learns from nfcorpus's human judgments over negatives mined from BM25. It uses only the judged passages in BM25's
top 100, where all negatives come from, because most are not there; ``--no-retrieved`` uses all. `kd` learns from one
view across three collections: RankZephyr's rankings of DL21's queries, RankZephyr's training labels, and TFRank's graded
labels, which hold ties. The recipe is `small`. A list has three random passages, and in `kd` five from across the
teacher's order. The tests are DL19 over Anserini's BM25 and nfcorpus's test queries over bm25s. A stage that another
student of the same seed has trained is reused. Every step is an `msft` command, and the same call continues.

The benchmark prints a table, the verdicts of `msft compare`, the commands, and one JSON object in the last line. The
margin of equivalence is msft's default of .01. No regime is expected to win.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

from benchmarks.real_students import MEASURE, Commands

EASY, STRATIFIED = ("--easy", "3"), ("--stratified", "5")  # as `--recipe auto` makes lists
HELD_OUT = ("--valid-fraction", "0.1")  # the same for all, or a stage could not be reused
REGIMES = ("cl", "kd", "cl,kd", "kd,cl")  # a regime can reuse the stages of an earlier one
LABELS = ("rankzephyr-7b@pisa-bm25-100", "rankzephyr-7b@tct-colbert-hnp-100", "rankzephyr-training", "tfrank")
TESTS = {"dl19": "bm25", "nfcorpus/test": "bm25s"}  # dataset -> first stage
UNTRAINED = "untrained"

Row = dict[str, Any]


def collections(msft: Commands, data: Path) -> None:
    """Add the training and test collections to the store."""
    folder = data / "nfcorpus"
    for part, qrels in (("train", "qrels.train.txt.gz"), ("test", "qrels.txt.gz")):
        msft(
            "data", "add", f"nfcorpus/{part}", "--from", str(folder), "--qrels", str(folder / qrels),
            "--collection", "nfcorpus",
        )  # fmt: skip
        msft("retrieve", "--dataset", f"nfcorpus/{part}", "--retriever", "bm25s", "--depth", "100")
    msft(
        "negatives", "mine", "--dataset", "nfcorpus/train", "--run", "bm25s", "--depth", "100", "--per-query", "32",
        "--name", "hard",
    )  # fmt: skip
    # DL21 serves for training, so its human judgments are not used: only an LLM labelled its queries.
    for dataset, source, collection in (
        ("dl21", "dl21-passage", "msmarco-v2-passage"),
        ("rankzephyr100", "msmarco-train-rankzephyr100", "rankzephyr100"),
        ("tfrank", "msmarco-tfrank367", "tfrank"),
    ):
        msft(
            "data",
            "add",
            dataset,
            "--from",
            str(data / source),
            "--role",
            "train",
            "--collection",
            collection,
        )
        name = {"rankzephyr100": ("--name", LABELS[2]), "tfrank": ("--name", LABELS[3])}.get(dataset, ())
        partly = (6,)  # the import counts lists that it cannot take, such as a query's second list
        msft(
            "teachers", "import", str(data / source / "permutations.jsonl.gz"), "--dataset", dataset, *name,
            tolerate=partly,
        )  # fmt: skip
    dl19 = data / "dl19-passage"
    msft("data", "add", "dl19", "--from", str(dl19))
    msft("runs", "import", str(dl19 / "runs" / "bm25.run.gz"), "--dataset", "dl19", "--name", "bm25")


def student_name(regime: str, seed: int) -> str:
    return f"{regime.replace(',', '-')}-s{seed}"


def train(msft: Commands, seeds: list[int], pairs: int, *, retrieved: bool | None) -> None:
    """Train every regime with every seed, and add the untrained model."""
    msft("students", "add", "minilm", "--name", UNTRAINED, "--max-length", "128", "--seed", str(seeds[0]))
    for seed in seeds:
        for regime in REGIMES:
            objectives = regime.split(",")
            judged = [
                "--dataset",
                "nfcorpus/train",
                "--negatives",
                "hard",
                *([] if retrieved is None else ["--retrieved" if retrieved else "--no-retrieved"]),
            ]
            labelled = [a for name in LABELS for a in ("--labels", name)] if "kd" in objectives else []
            labelled += STRATIFIED if labelled else ()
            msft(
                "students", "train", "--recipe", "small", "--regime", regime, *(judged if "cl" in objectives else []), *labelled, *EASY,
                "--name", student_name(regime, seed), "--seed", str(seed), "--set", f"max_pairs={pairs}",
                "--set", "valid_every=100", *HELD_OUT,
            )  # fmt: skip


def measured(msft: Commands, dataset: str, first_stage: str, depth: int, seeds: list[int]) -> list[Row]:
    """Measure nDCG@10 of the first stage, the untrained model and every student."""
    students = [UNTRAINED, *(student_name(r, s) for s in seeds for r in REGIMES)]
    return msft.rows(
        "eval", "--dataset", dataset, "--run", first_stage, *(a for name in students for a in ("--student", name)),
        "--depth", str(depth), "--measure", MEASURE,
    )  # fmt: skip


def verdicts(msft: Commands, dataset: str, baseline: str, regimes: tuple[str, ...]) -> dict[str, Row]:
    """Compare regimes with a baseline by ``msft compare``: regime -> row. The seeds of a regime are one system."""
    patterns = [student_name(regime, 0).removesuffix("0") + "*" for regime in regimes]
    rows = msft.rows("compare", *patterns, "--baseline", baseline, "--dataset", dataset, "--measure", MEASURE)
    found = {row["system"].partition(" ")[0].partition("-s")[0]: row for row in rows}
    return {regime: found[regime.replace(",", "-")] for regime in regimes}


def table(
    dataset: str, first_stage: str, rows: list[Row], seeds: list[int], against: list[dict[str, Row]]
) -> str:
    """Make a Markdown table: each system with its difference to the first stage and to the untrained model."""
    values = {row["system"]: row["value"] for row in rows}
    alone, untrained = values[first_stage], _value(values, UNTRAINED)
    lines = [
        f"{dataset}, {MEASURE}, over {first_stage}:",
        "",
        f"| system | mean | {' | '.join(f'seed {s}' for s in seeds)} | − {first_stage} | − untrained |",
        f"|---|---|{'---|' * len(seeds)}---|---|",
        f"| {first_stage} | {alone:.4f} |{' |' * len(seeds)} | |",
        f"| {UNTRAINED} | {untrained:.4f} |{' |' * len(seeds)} {untrained - alone:+.4f} | |",
    ]
    for regime in REGIMES:
        own = [_value(values, student_name(regime, s)) for s in seeds]
        mean = statistics.mean(own)
        told = [f"{row['difference']:+.4f} ({row['verdict']})" for row in (side[regime] for side in against)]
        lines.append(
            f"| {regime} | {mean:.4f} | {' | '.join(f'{v:.4f}' for v in own)} | {' | '.join(told)} |"
        )
    return "\n".join(lines)


def _value(values: dict[str, float], student: str) -> float:
    """Find a value by the student's name, ignoring the first stage and depth that follow it."""
    return next(value for name, value in values.items() if name.partition("@")[0] == student)


def verdict_table(dataset: str, rows: dict[str, Row]) -> str:
    """Make a Markdown table of each regime against `cl`, with the test's verdict."""
    lines = [
        f"{dataset}, against cl (margin {next(iter(rows.values()))['margin']:g}):",
        "",
        "| regime | difference | 90 % interval | p (Holm) | p (TOST) | margin these queries could show | verdict |",
        "|---|---|---|---|---|---|---|",
    ]
    for regime, row in rows.items():
        lines.append(
            f"| {regime} | {row['difference']:+.4f} | {row['ci90_low']:+.4f} … {row['ci90_high']:+.4f} "
            f"| {row['p_holm']:.3f} | {row['tost_p']:.3f} | {row['margin_showable']:.3f} | {row['verdict']} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--store", type=Path, default=Path("grid.duckdb"))
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--pairs", type=int, default=6_000, help="pairs of each stage")
    parser.add_argument("--depths", default="50,20", help="candidates re-ranked: DL19's, nfcorpus's")
    parser.add_argument(
        "--retrieved",
        action=argparse.BooleanOptionalAction,
        help="cl: only positives that BM25 ranks, or all; by default as `msft students train` decides",
    )
    arguments = parser.parse_args()
    began = time.monotonic()
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    depths = [int(depth) for depth in arguments.depths.split(",")]
    msft = Commands(arguments.store)
    collections(msft, arguments.data)
    train(msft, seeds, arguments.pairs, retrieved=arguments.retrieved)
    result: Row = {
        "benchmark": "grid",
        "measure": MEASURE,
        "seeds": len(seeds),
        "pairs": arguments.pairs,
        "retrieved": arguments.retrieved,
    }
    for (dataset, first_stage), depth in zip(TESTS.items(), depths, strict=True):
        rows = measured(msft, dataset, first_stage, depth, seeds)
        against = [verdicts(msft, dataset, baseline, REGIMES) for baseline in (first_stage, UNTRAINED)]
        by_cl = verdicts(msft, dataset, student_name("cl", 0).removesuffix("0") + "*", REGIMES[1:])
        print(table(dataset, first_stage, rows, seeds, against), end="\n\n")
        print(verdict_table(dataset, by_cl), end="\n\n")
        result[f"{dataset} depth"] = depth
        result |= {f"{dataset} {row['system'].partition('@')[0]}": round(row["value"], 4) for row in rows}
        result[f"{dataset} cl,kd - cl"] = round(by_cl["cl,kd"]["difference"], 4)
        result[f"{dataset} verdict cl,kd"] = by_cl["cl,kd"]["verdict"]
    print("The commands:\n\n```sh\n" + "\n".join(msft.lines) + "\n```\n")
    (spent,) = msft.rows(
        "sql",
        "SELECT sum(seconds) / 60 AS minutes, count(*) AS stages FROM student_stages"
        " WHERE hyperparameters ->> 'reused_from' IS NULL",
    )
    result |= {"stages_trained": spent["stages"], "training_minutes": round(spent["minutes"], 1)}
    print(json.dumps({**result, "minutes": round((time.monotonic() - began) / 60, 1)}))


if __name__ == "__main__":
    main()
