"""Make a store with synthetic passages, queries and one run, for benchmarks and kill tests of labelling."""

import random
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa

from labelstore.provenance import record as provenance
from labelstore.runs.write import NewRun, store_run
from labelstore.store import keys
from labelstore.store.label_store import LabelStore

WORDS = [
    "river",
    "stone",
    "engine",
    "market",
    "cell",
    "protein",
    "treaty",
    "harvest",
    "copper",
    "signal",
    "orbit",
    "ledger",
    "glacier",
    "enzyme",
    "harbour",
    "verdict",
    "fabric",
    "tenant",
    "neuron",
    "quartz",
    "ballot",
    "vessel",
    "pigment",
    "lattice",
    "quota",
    "monsoon",
    "turbine",
    "archive",
    "senate",
    "kernel",
]


def make(
    path: Path,
    queries: int,
    *,
    length: Callable[[int], int] = lambda k: 100,
    passages: int = 500,
    words: int = 20,
    seed: int = 0,
) -> LabelStore:
    """Make a store with the dataset `made` and the run `first` over it.

    Args:
        length: number of candidates of query k.
        words: words per passage.
    """
    rng = random.Random(seed)
    store = LabelStore(path)
    texts = [" ".join(rng.choices(WORDS, k=words)) + f" {d}." for d in range(passages)]
    with store.write() as con, provenance.recorded_in(con, "data.add") as job:
        con.execute("INSERT INTO collections VALUES (1, 'made', NULL, NULL, ?)", [job.job])
        con.execute("INSERT INTO datasets VALUES (1, 'made', 1, 'train', NULL, NULL, NULL, ?)", [job.job])
        documents = pa.table(
            {
                "document": pa.array(range(passages), pa.int32()),
                "doc_id": [f"d{d}" for d in range(passages)],
                "text": texts,
                "text_hash": pa.array([keys.text_hash(None, text) for text in texts], pa.uint64()),
            }
        )
        con.register("new_documents", documents)
        con.execute(
            "INSERT INTO documents SELECT document, 1, doc_id, NULL, text, text_hash, 1 FROM new_documents"
        )
        asked = [" ".join(rng.choices(WORDS, k=4)) + f" {q}" for q in range(queries)]
        con.register(
            "new_queries",
            pa.table(
                {
                    "query": pa.array(range(queries), pa.int32()),
                    "query_id": [f"q{q}" for q in range(queries)],
                    "text": asked,
                    "text_hash": pa.array([keys.text_hash(None, text) for text in asked], pa.uint64()),
                    "normal_hash": pa.array([keys.normal_hash(text) for text in asked], pa.uint64()),
                }
            ),
        )
        con.execute(
            "INSERT INTO queries SELECT query, 1, query_id, text, text_hash, normal_hash FROM new_queries"
        )
        con.execute("INSERT INTO dataset_queries SELECT 1, query FROM new_queries")
        lists = [rng.sample(range(passages), min(length(q), passages)) for q in range(queries)]
        con.register(
            "new_candidates",
            pa.table(
                {
                    "query": pa.array([q for q, row in enumerate(lists) for _ in row], pa.int32()),
                    "document": pa.array([d for row in lists for d in row], pa.int32()),
                    "score": pa.array([1000.0 - k for row in lists for k in range(len(row))], pa.float32()),
                }
            ),
        )
        store_run(con, job, NewRun(1, "first", "first_stage", "made"), "new_candidates")
    return store
