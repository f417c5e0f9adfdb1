"""Measure first stages over a collection of MS MARCO's size: seconds and peak memory of building and searching.

    python -m benchmarks.first_stages_at_size FOLDER [--passages 8841823] [--queries 7000] [--retrievers bm25s,bm25]

FOLDER gets the synthetic collection (`benchmarks.synthetic`) and the store, and is kept, so a second call goes on. Each
retriever runs as `msft retrieve` in a process of its own, twice: the second time the index is there. `peak_gb` is the largest
sum of the process and its children, sampled five times a second. A retriever that says it does not fit has `refused`.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from benchmarks.synthetic import PASSAGES, Shape, write_documents, write_qrels, write_queries
from labelstore.datasets.add import NewDataset
from labelstore.datasets.from_folder import add_folder
from labelstore.store.label_store import LabelStore

DATASET, DEPTH = "synthetic", 1000


def prepare(folder: Path, shape: Shape) -> LabelStore:
    """Write the collection and add it to a store; what is there already stays."""
    source, store = folder / "source", LabelStore(folder / "own.duckdb")
    source.mkdir(parents=True, exist_ok=True)
    if not store.exists:
        write_queries(shape, source / "queries.tsv")
        write_qrels(shape, source / "qrels.txt")
        write_documents(shape, source / "docs.jsonl")
        add_folder(store, source, NewDataset(DATASET, role="test"))
    return store


def measured(command: list[str]) -> dict[str, Any]:
    """Run a command; returns its seconds and the peak memory of its processes, or why it refused."""
    began, peak = time.monotonic(), 0
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        own = psutil.Process(process.pid)
        while process.poll() is None:
            held = 0
            for one in (own, *_children(own)):
                try:
                    held += one.memory_info().rss
                except psutil.NoSuchProcess:
                    continue
            peak = max(peak, held)
            time.sleep(0.2)
        said = process.stderr.read() if process.stderr else ""
    row: dict[str, Any] = {"seconds": round(time.monotonic() - began, 1), "peak_gb": round(peak / 1e9, 2)}
    return row if process.returncode == 0 else {"refused": said.strip().splitlines()[:2]}


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--passages", type=int, default=PASSAGES)
    parser.add_argument("--queries", type=int, default=7_000)
    parser.add_argument("--retrievers", default="bm25s,bm25")
    arguments = parser.parse_args()
    shape = Shape(queries=arguments.queries, passages=arguments.passages)
    store = prepare(arguments.folder, shape)
    result: dict[str, Any] = {
        "benchmark": "first_stages_at_size",
        "passages": shape.passages,
        "queries": shape.queries,
    }
    for retriever in arguments.retrievers.split(","):
        for turn, depth in (("first", DEPTH), ("again", DEPTH - 1)):
            row = measured(
                [sys.executable, "-m", "cli.main", "retrieve", "--dataset", DATASET, "--retriever", retriever,
                 "--depth", str(depth), "--name", f"{retriever}-{turn}", "--replace", "--store", str(store.path), "-q"]
            )  # fmt: skip
            result |= {f"{retriever}_{turn}_{key}": value for key, value in row.items()}
            print(json.dumps({retriever: row}), file=sys.stderr, flush=True)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
