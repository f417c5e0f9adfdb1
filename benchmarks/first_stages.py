"""Measure first stages over real collections: nDCG@10 and queries/s of msft's bm25s, bm25s alone, and Anserini.

    python -m benchmarks.first_stages [--data ../shared/data] [--collections nfcorpus,cranfield,cisi,vaswani]

The peer `bm25s alone` uses the library's tokenizer, stop words and search as its README shows them.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from labelstore import retrieval
from labelstore.datasets.add import NewDataset
from labelstore.datasets.from_folder import add_folder
from labelstore.errors import DataMissing
from labelstore.evaluation import scores as evaluation
from labelstore.retrieval.anserini import Anserini, find_jar, find_java
from labelstore.retrieval.bm25s import Bm25s
from labelstore.store import lookup
from labelstore.store.label_store import LabelStore

DEPTH = 100


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--collections", default="nfcorpus,cranfield,cisi,vaswani")
    arguments = parser.parse_args()
    result: dict[str, Any] = {"benchmark": "first_stages", "measure": "nDCG@10", "depth": DEPTH}
    for name in arguments.collections.split(","):
        with tempfile.TemporaryDirectory() as scratch:
            result |= _measure(arguments.data / name, name, LabelStore(Path(scratch) / "own.duckdb"))
    print(json.dumps(result))


def _measure(folder: Path, name: str, store: LabelStore) -> dict[str, Any]:
    qrels = next(folder.glob("qrels.txt*"))
    add_folder(store, folder, NewDataset(name=name, judged_only=True), qrels)
    found: dict[str, Any] = {}
    retrievers: dict[str, Callable[[], object]] = {
        "bm25s": lambda: retrieval.retrieve(store, name, Bm25s(), DEPTH, name="bm25s"),
        "bm25s_index_reused": lambda: retrieval.retrieve(store, name, Bm25s(), DEPTH - 1, name="again"),
        "bm25s_alone": lambda: _alone(store, name),
    }
    try:
        find_jar(), find_java()
    except DataMissing as error:
        print(f"without Anserini: {error} ({error.hint})", file=sys.stderr)
    else:
        retrievers["anserini"] = lambda: retrieval.retrieve(store, name, Anserini(), DEPTH, name="anserini")
    for system, run in retrievers.items():
        began = time.monotonic()
        run()
        found[f"{name}_{system}_seconds"] = round(time.monotonic() - began, 2)
    for row in evaluation.evaluate(store, name, measures=["nDCG@10"]):
        if row["system"] != "again":
            found[f"{name}_{row['system']}_ndcg10"] = round(row["value"], 4)
    print(json.dumps(found), file=sys.stderr)
    return found


def _alone(store: LabelStore, dataset: str) -> None:
    """Run bm25s with its own analysis, and store the ranking as a run so that all are measured in the same way."""
    import bm25s
    import polars as pl
    import Stemmer

    from labelstore.provenance import record as provenance
    from labelstore.runs import write as runs

    with store.read() as con:
        of = lookup.dataset(con, dataset)
        documents = con.execute(
            f"SELECT document, {lookup.FULL_TEXT} FROM documents WHERE text IS NOT NULL ORDER BY document"
        ).fetchall()
        queries = con.execute(
            "SELECT query, text FROM dataset_queries JOIN queries USING (query) WHERE dataset = ?",
            [of.dataset],
        ).fetchall()
    stemmer = Stemmer.Stemmer("english")
    index = bm25s.BM25(method="lucene", k1=0.9, b=0.4)
    index.index(
        bm25s.tokenize([text for _, text in documents], stopwords="en", stemmer=stemmer, show_progress=False),
        show_progress=False,
    )
    tokens = bm25s.tokenize(
        [text for _, text in queries], stopwords="en", stemmer=stemmer, show_progress=False
    )
    positions, scores = index.retrieve(tokens, k=min(DEPTH, len(documents)), show_progress=False)
    rows = [
        (query, documents[position][0], float(score))
        for (query, _), line, values in zip(queries, positions, scores, strict=True)
        for position, score in zip(line, values, strict=True)
        if score > 0
    ]
    with store.write() as con, provenance.recorded_in(con, "benchmark") as job:
        frame = pl.DataFrame(rows, schema=["query", "document", "score"], orient="row")
        con.register("alone", frame.to_arrow())
        runs.store_run(
            con, job, runs.NewRun(of.dataset, "bm25s_alone", "first_stage", "bm25s alone"), "alone"
        )


if __name__ == "__main__":
    main()
