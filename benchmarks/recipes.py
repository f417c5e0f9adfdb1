"""Sweep recipes on development queries only: labels, lists, losses, rates, sizes. A second call continues.

    python -m benchmarks.recipes [--folder recipes] [--data ../shared/data] [--collections docstrings,cranfield]
        [--trials base,easy-0] [--seeds 1] [--pairs 3500] [--minutes 60] [--table]

Collections are the demo's docstrings and those of ../shared/data. A hash of the text splits the queries of a collection
without parts: a third is never used, a third is for development and a third for training. Test queries are not read. A
trial is a change to the base recipe below. With one seed a trial is a hint, with three a result. Each trial is one line
of FOLDER/trials.jsonl, with its error if it failed. --table prints the trials as Markdown and trains nothing.
"""

import argparse
import gzip
import json
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.real_students import Commands
from labelstore.store import keys

BM25 = "bm25s"
DEPTH = 20  # candidates labelled and re-ranked
CLASSIC = ("cranfield", "cisi", "vaswani")
COLLECTIONS = ("docstrings", *CLASSIC, "nfcorpus")
PARTS = ("train", "dev", "unused")
Row = dict[str, Any]


@dataclass(frozen=True)
class Trial:
    """The settings of a training. The defaults are the base; each other trial changes one thing."""

    share: float = 0.8  # share of the teacher in the labels; the rest is BM25's
    by: str = "scores"  # what is fused
    depth: int = DEPTH  # of the labels
    stratified: int = 7
    easy: int = 1
    judged_first: bool = False
    sentences: int = 300  # pseudo-queries beside the real ones, which are few
    warm_up: bool = (
        False  # half of the pairs on pseudo-queries first, then the real ones, in the place of both at once
    )
    regime: str = "kd"
    denoise: bool = False  # mined negatives without those that the labels rank above the judged passage
    settings: dict[str, Any] = field(
        default_factory=lambda: {
            "lr": 2e-4,
            "lists": 4,
            "group_size": 8,
            "max_length": 128,
            "head_scale": 5.0,
            "head_identity": "true",
        }
    )

    def of(self, **settings: Any) -> "Trial":
        """Make the same trial with other settings of the recipe."""
        return replace(self, settings={**self.settings, **settings})


BASE = Trial()
TRIALS: dict[str, Trial] = {
    "base": BASE,
    "easy-0": replace(BASE, easy=0, stratified=8),  # as many passages per list
    "easy-3": replace(BASE, easy=3, stratified=5),
    "share-0.5": replace(BASE, share=0.5),
    "share-1": replace(BASE, share=0.999),  # the embedding model alone
    "ranks": replace(BASE, by="ranks", share=0.7),
    "drawn-head": BASE.of(head_identity="false"),
    "judged-first": replace(BASE, judged_first=True),
    "no-sentences": replace(BASE, sentences=0),
    "sentences-1000": replace(BASE, sentences=1000),
    "depth-10": replace(BASE, depth=10),
    "group-4": BASE.of(group_size=4, lists=8),
    "lr-1e-4": BASE.of(lr=1e-4),
    "lr-4e-4": BASE.of(lr=4e-4),
    "listmle": BASE.of(loss="listmle"),
    "kl": BASE.of(loss="kl"),
    "kl-scores": replace(BASE.of(loss="kl", teacher_temperature=0.2), easy=0, stratified=8),
    "margin-mse": replace(BASE.of(loss="margin_mse"), easy=0, stratified=8),
    "lambda": BASE.of(loss="lambda"),
    "64-tokens": BASE.of(max_length=64),
    "256-tokens": BASE.of(max_length=256),
    "freeze-2": BASE.of(freeze='["embeddings", "layers:0-1"]'),
    "layers-3": BASE.of(layers=3),
    "warm-up": replace(BASE, warm_up=True),
    # Mined negatives exist for judged queries alone. The cl stage has a third of the pairs, the kd stage the rest.
    "cl": replace(BASE.of(**{"cl.lr": 1e-4, "cl.lists": 8}), regime="cl"),
    "cl-denoised": replace(BASE.of(**{"cl.lr": 1e-4, "cl.lists": 8}), regime="cl", denoise=True),
    "kd-cl": replace(BASE.of(**{"cl.lr": 1e-4, "cl.lists": 8}), regime="kd,cl"),
    "cl-kd": replace(BASE.of(**{"cl.lr": 1e-4, "cl.lists": 8}), regime="cl,kd"),
}


# ------------------------------------------------------------------------------------------------------ collections
def prepare(msft: Commands, name: str, data: Path, folder: Path) -> None:
    """Add a collection's training and development queries to its store and rank them by BM25."""
    source = _docstrings(folder) if name == "docstrings" else data / name
    made = folder / name
    for part in PARTS[:2]:
        qrels = made / f"qrels.{part}.txt"
        if not qrels.is_file():
            made.mkdir(parents=True, exist_ok=True)
            qrels.write_text("".join(_judgments(source, part)), encoding="utf-8")
        msft(
            "data", "add", f"{name}/{part}", "--from", str(source), "--qrels", str(qrels.resolve()),
            "--collection", name, "--role", part,
        )  # fmt: skip
        msft("retrieve", "--dataset", f"{name}/{part}", "--retriever", BM25, "--depth", str(DEPTH))


def _judgments(source: Path, part: str) -> Iterator[str]:
    """Yield the TREC lines of a part: the collection's part, or the queries that the hash selects."""
    own = next(source.glob(f"qrels.{part}.txt*"), None)
    if own is not None:
        yield from _lines(own)
        return
    texts = dict(line.rstrip("\n").split("\t", 1) for line in _lines(next(source.glob("queries.tsv*"))))
    for line in _lines(next(source.glob("qrels.txt*"))):
        text = texts.get(line.split()[0])
        if text is not None and PARTS[keys.normal_hash(text) % len(PARTS)] == part:
            yield line


def _lines(file: Path) -> Iterator[str]:
    with (
        gzip.open(file, "rt", encoding="utf-8")
        if file.suffix == ".gz"
        else file.open(encoding="utf-8") as lines
    ):
        yield from lines


def _docstrings(folder: Path) -> Path:
    """Write the demo's collection. Its test queries are written, but no step reads them."""
    from cli.workflows.demo import collection

    if not (folder / "judged").is_dir():
        collection.write(collection.build(), collection.Split(600, 1000, 2500), folder)
    return folder / "judged"


# ----------------------------------------------------------------------------------------------------------- trials
def labelled(msft: Commands, name: str, trial: Trial) -> list[str]:
    """Make the labelings that a trial learns from; existing labels are reused."""
    mix = f"{trial.by}-{trial.share:g}" + (f"-top-{trial.depth}" if trial.depth != DEPTH else "")
    wanted = [(f"{name}/train", f"labels-{mix}")]
    if trial.sentences:
        dataset = f"{name}/sentences-{trial.sentences}"
        msft(
            "queries", "generate", "--model", "sentences", "--collection", name, "--n", str(trial.sentences),
            "--name", dataset,
        )  # fmt: skip
        msft("retrieve", "--dataset", dataset, "--retriever", BM25, "--depth", str(DEPTH))
        wanted.append((dataset, f"sentences-{trial.sentences}-{mix}"))
    for dataset, labels in wanted:
        msft(
            "teachers", "generate", "--model", "minilm", "--engine", "bi-encoder", "--fuse", "--fuse-by",
            trial.by, "--fuse-weight", f"{trial.share:g}", "--dataset", dataset, "--run", BM25, "--depth", str(trial.depth), "--name", labels,
        )  # fmt: skip
    return [labels for _, labels in wanted]


def mined(msft: Commands, name: str, trial: Trial, labels: str) -> str:
    """Mine negatives for the judged training queries among the candidates; return the name of the mining."""
    mining = f"hard-{labels}" if trial.denoise else "hard"
    # A third call of a sweep finds the mining made; to make it again costs little.
    msft(
        "negatives", "mine", "--dataset", f"{name}/train", "--run", BM25, "--depth", str(DEPTH), "--name", mining,
        "--replace", *(["--denoise", labels] if trial.denoise else []),
    )  # fmt: skip
    return mining


def train(msft: Commands, trial: Trial, seed: int, sources: list[str]) -> None:
    """Train one student from its sources, with a trial's lists and settings."""
    msft(
        "students", "train", "--recipe", "small", "--regime", trial.regime, *sources,
        *(["--stratified", str(trial.stratified)] if "kd" in trial.regime else []),
        *(["--easy", str(trial.easy)] if trial.easy else []),
        *(["--judged-first"] if trial.judged_first else []), "--seed", str(seed),
        *(a for k, v in trial.settings.items() for a in ("--set", f"{k}={v}")),
    )  # fmt: skip


def run(msft: Commands, name: str, key: str, trial: Trial, seed: int, pairs: int) -> Row:
    """Train one student and measure it, alone and fused, on development queries."""
    labels = labelled(msft, name, trial)
    student = f"{key}-s{seed}-p{pairs}"
    began = time.monotonic()
    if trial.warm_up:
        warm = ["--labels", labels[1], "--name", f"{student}-warm"]
        train(msft, trial, seed, [*warm, "--set", f"max_pairs={pairs // 2}"])
        own = [
            "--labels",
            labels[0],
            "--base",
            f"student:{student}-warm",
            "--set",
            f"max_pairs={pairs - pairs // 2}",
        ]
        train(msft, trial.of(head_scale=1.0, head_identity="false"), seed, [*own, "--name", student])
    else:
        sources = [a for own in labels for a in ("--labels", own)] if "kd" in trial.regime else []
        if "cl" in trial.regime:
            sources += ["--dataset", f"{name}/train", "--negatives", mined(msft, name, trial, labels[0])]
        stages = trial.regime.split(",")
        parts = {"cl": pairs // 3, "kd": pairs - pairs // 3} if len(stages) > 1 else {trial.regime: pairs}
        bounds = [a for stage, n in parts.items() for a in ("--set", f"{stage}.max_pairs={n}")]
        train(msft, trial, seed, [*sources, *bounds, "--name", student])
    seconds = time.monotonic() - began
    rows = msft.rows(
        "eval", "--dataset", f"{name}/dev", "--student", student, "--depth", str(DEPTH), "--fuse",
        "--measure", "RR@10" if name == "docstrings" else "nDCG@10",
    )  # fmt: skip
    # A store has the labels of several trials, and so the rows of several teachers.
    kinds = {
        row["kind"]: row
        for row in rows
        if row["kind"] != "teacher" or row["system"].rpartition("@")[0] == labels[0]
    }
    return {
        "seconds": round(seconds, 1),
        "measure": rows[0]["measure"],
        "queries": rows[0]["n_queries"],
        **{kind: round(row["value"], 4) for kind, row in kinds.items()},
        "p_student": kinds["student"]["p_value"],
        "p_fused": kinds["fused"]["p_value"],
    }


def sweep(arguments: argparse.Namespace) -> None:
    """Run the trials that are not done, seed by seed and trial by trial, until the minutes are over."""
    file = arguments.folder / "trials.jsonl"
    done = {_key(row) for row in read(file)}
    end = time.monotonic() + 60 * arguments.minutes
    prepared: set[str] = set()
    for seed in arguments.seeds:
        for key in arguments.trials:
            for name in arguments.collections:
                row: Row = {"collection": name, "trial": key, "seed": seed, "pairs": arguments.pairs}
                if _key(row) in done:
                    continue
                if time.monotonic() > end:
                    print(
                        f"the {arguments.minutes:g} minutes are over; the same call continues",
                        file=sys.stderr,
                    )
                    return
                msft = Commands(arguments.folder / f"{name}.duckdb")
                if name not in prepared:
                    prepare(msft, name, arguments.data, arguments.folder)
                    prepared.add(name)
                try:
                    row |= run(msft, name, key, TRIALS[key], seed, arguments.pairs)
                except SystemExit as error:  # recorded: a failed recipe is a finding too
                    row["error"] = f"exit {error.code}: {msft.lines[-1]}"
                with file.open("a", encoding="utf-8") as lines:
                    lines.write(json.dumps(row) + "\n")


def _key(row: Row) -> tuple[Any, ...]:
    return row["collection"], row["trial"], row["seed"], row["pairs"]


def read(file: Path) -> list[Row]:
    """Read all trials so far."""
    return [json.loads(line) for line in _lines(file)] if file.is_file() else []


def table(rows: list[Row]) -> str:
    """Make a Markdown table: a line per collection, number of pairs and trial; means over seeds, best student first."""
    lines = [
        "| collection | pairs | trial | seeds | BM25 | teacher | student | fused | failed |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    groups: dict[tuple[str, int, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["collection"], row["pairs"], row["trial"]), []).append(row)

    def mean(own: list[Row], kind: str) -> float | None:
        values = [row[kind] for row in own if row.get(kind) is not None]
        return statistics.mean(values) if values else None

    order = sorted(groups, key=lambda k: (k[0], k[1], -(mean(groups[k], "student") or 0.0)))
    for key in order:
        own = groups[key]
        values = [mean(own, kind) for kind in ("first_stage", "teacher", "student", "fused")]
        shown = " | ".join("" if value is None else f"{value:.4f}".removeprefix("0") for value in values)
        failed = sum("error" in row for row in own)
        lines.append(f"| {key[0]} | {key[1]:,} | {key[2]} | {len(own)} | {shown} | {failed or ''} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=Path("recipes"))
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--collections", type=_names(COLLECTIONS), default=list(COLLECTIONS))
    parser.add_argument("--trials", type=_names(tuple(TRIALS)), default=list(TRIALS))
    parser.add_argument("--seeds", type=lambda text: [int(s) for s in text.split(",")], default=[1])
    parser.add_argument("--pairs", type=int, default=3_500)
    parser.add_argument("--minutes", type=float, default=60.0, help="no trial begins after these")
    parser.add_argument("--table", action="store_true", help="print what is done and train nothing")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    if not arguments.table:
        sweep(arguments)
    rows = read(arguments.folder / "trials.jsonl")
    print(table(rows))
    print(json.dumps({"trials": len(rows), "failed": sum("error" in row for row in rows)}))


def _names(known: tuple[str, ...]) -> Any:
    def names(text: str) -> list[str]:
        chosen = text.split(",")
        unknown = [name for name in chosen if name not in known]
        if unknown:
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: expected some of {', '.join(known)}")
        return chosen

    return names


if __name__ == "__main__":
    main()
