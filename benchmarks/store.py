"""Measure the store at MS MARCO's size beside pandas, polars and others: import, disk, views, mining, memory.

    python -m benchmarks.store --queries 100000 --depth 500 [--passages 8841823] [--folder FOLDER] [--texts]

The benchmark writes a synthetic collection (`benchmarks.synthetic`), adds it to a store and measures. Each phase runs
in a separate process, so that its peak memory can be measured. With --folder the files stay, and a second run reuses
them.

Keys (seconds of wall time unless stated otherwise):

rows_per_second             candidates imported per second of the whole `runs import`, validation included
naive_rows_per_second       the same file by DuckDB's reader, two joins on text ids and INSERT, without checks
write_lock_seconds          time of the import during which the store was locked for writing
bytes_per_row               growth of the store's used blocks per candidate
contrastive_view_seconds    SQL selection of 1 positive + 99 negatives of the top 200 for all queries; …_build_seconds
                            is the whole `views build`, export to Parquet and content hash included
distillation_, rerank_      the same for 20 labelled and for 100 ranked passages per query
mining_seconds              `negatives mine`, 99 of the top 200, stored
documents_per_second        passages per second of `data add`, which adds documents, queries and judgments
pandas_ms_per_query         the founding study's way on a sample: group, merge, sample, collect garbage for each query
speedup_over_pandas         pandas_ms_per_query over the store's contrastive selection per query
polars_ms_per_query         the same selection set-wise in polars from memory, over polars_queries queries
st_mining_ms_per_query      sentence-transformers' mine_hard_negatives, 99 of the top 200, over st_queries queries and
                            st_passages passages. Embeddings come from its cache; its search is included
peak_memory_gb              the largest of the store's own phases (add, import, mine, views); …_memory_gb of each
…_cpu_seconds               CPU seconds of each phase with the start of its process; load of others hardly affects them
"""

import argparse
import gc
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import duckdb
import numpy as np

from benchmarks.synthetic import Shape, write_all

DATASET, RUN, LABELS = "synthetic/train", "first", "made@first"
TOP, NEGATIVES, LABELLED, RERANKED = 200, 99, 20, 100
SAMPLE = {"pandas": 200, "polars": 20_000, "sentence_transformers": 1_000}
ST_PASSAGES = 20_000

Row = dict[str, Any]


# ----------------------------------------------------------------------------------------------- the store
def _store(folder: Path) -> Any:
    from labelstore.store.label_store import LabelStore

    return LabelStore(folder / "store.duckdb")


def add(folder: Path, shape: Shape) -> Row:
    """Add documents, queries and judgments to an empty store."""
    from labelstore.datasets.add import NewDataset
    from labelstore.datasets.from_folder import add_folder

    started = time.perf_counter()
    add_folder(_store(folder), folder, NewDataset(DATASET, role="train"))
    seconds = time.perf_counter() - started
    return {"documents_seconds": seconds, "documents_per_second": shape.passages / seconds}


def load(folder: Path, shape: Shape) -> Row:
    """Import the TREC run into the store."""
    from labelstore.runs.import_run import import_run

    store = _store(folder)
    before = _used_bytes(folder)
    with _writing(store) as held:
        started = time.perf_counter()
        imported = import_run(store, folder / "run.txt", DATASET, RUN)
        seconds = time.perf_counter() - started
    n = imported.run.n_candidates
    if n != shape.candidates:
        raise RuntimeError(f"{n:,} candidates of {shape.candidates:,} came in")
    return {
        "import_seconds": seconds,
        "rows_per_second": n / seconds,
        "write_lock_seconds": sum(held),
        "bytes_per_row": (_used_bytes(folder) - before) / n,
    }


@contextmanager
def _writing(store: Any) -> Iterator[list[float]]:
    """Measure the seconds that each writing connection of a store is open."""
    held: list[float] = []
    write = store.write

    @contextmanager
    def timed(*arguments: Any, **options: Any) -> Iterator[Any]:
        started = time.perf_counter()
        with write(*arguments, **options) as con:
            yield con
        held.append(time.perf_counter() - started)

    store.write = timed
    yield held


def _used_bytes(folder: Path) -> int:
    with _store(folder).read() as con:
        used, size = con.execute("SELECT used_blocks, block_size FROM pragma_database_size()").fetchall()[0]
    return int(used * size)


def naive(folder: Path, shape: Shape) -> Row:
    """Import as a simple script would: read, join ids, insert, without checks and hashes."""
    with duckdb.connect(str(folder / "naive.duckdb")) as con:
        con.execute("SET enable_progress_bar = false")
        con.execute(f"ATTACH '{folder / 'store.duckdb'}' AS store (READ_ONLY)")
        con.execute("CREATE TABLE q AS SELECT query, query_id FROM store.queries")
        con.execute("CREATE TABLE d AS SELECT document, doc_id FROM store.documents")
        con.execute("CREATE TABLE candidates (query INTEGER, rank INTEGER, document INTEGER, score FLOAT)")
        con.execute("SET memory_limit = '4GB'")
        started = time.perf_counter()
        con.execute(
            f"""INSERT INTO candidates SELECT query, rank, document, score
                FROM read_csv('{folder / "run.txt"}', delim = ' ', header = false, columns = {{'query_id': 'VARCHAR',
                     'q0': 'VARCHAR', 'doc_id': 'VARCHAR', 'rank': 'INTEGER', 'score': 'FLOAT', 'tag': 'VARCHAR'}})
                JOIN q USING (query_id) JOIN d USING (doc_id)"""
        )
        seconds = time.perf_counter() - started
    (folder / "naive.duckdb").unlink()
    return {"naive_rows_per_second": shape.candidates / seconds}


def label(folder: Path, shape: Shape) -> Row:
    """Write a labeling of every query's top 20 directly into the tables, for the distillation view."""
    with _store(folder).write() as con:
        con.execute(
            """INSERT INTO teachers (teacher, teacher_key, name, engine) VALUES (1, 'made', 'made', 'imported');
               INSERT INTO labelings (labeling, name, teacher, dataset, run, first_stage, strategy, parameters, depth, origin)
               SELECT 1, $name, 1, dataset, run, name, 'imported', '{}', $depth, 'made' FROM runs;""",
            {"name": LABELS, "depth": LABELLED},
        )
        con.execute(
            """INSERT INTO permutations
               SELECT query, 1, query, 'ok', 0, 0, 0, 0, NULL, NULL, md5(query::VARCHAR) FROM queries"""
        )
        con.execute(
            """INSERT INTO permutation_items
               SELECT query, row_number() OVER (PARTITION BY query ORDER BY hash(query, document)), document, rank,
                      $depth - row_number() OVER (PARTITION BY query ORDER BY hash(query, document)), NULL, text_hash
               FROM candidates JOIN documents USING (document) WHERE rank <= $depth ORDER BY query""",
            {"depth": LABELLED},
        )
    return {"labels": shape.queries * LABELLED}


def mine(folder: Path, shape: Shape) -> Row:
    """Mine and store 99 negatives of the top 200 for every query."""
    from labelstore.negatives.mine import mine

    started = time.perf_counter()
    mined = mine(_store(folder), dataset=DATASET, runs=[RUN], depth=TOP, per_query=NEGATIVES)
    return {"mining_seconds": time.perf_counter() - started, "mined_negatives": mined.mining.n_negatives}


def _view(kind: str, sources: Row, parameters: Row) -> Callable[[Path, Shape], Row]:
    def measure(folder: Path, shape: Shape) -> Row:
        from labelstore.views import build as views
        from labelstore.views import parameters as parameters_module
        from labelstore.views.sources import resolve

        store, options = _store(folder), parameters_module.make_parameters(kind, parameters)
        named: Row = {"datasets": [DATASET], "runs": [], "negatives": [], "labels": [], **sources}
        with store.read() as con:
            chosen, found = resolve(con, kind, options, note=lambda text: None, **named)
            started = time.perf_counter()
            views.select(con, kind, chosen, found, options, views.DEFAULT_SEED)
            seconds = time.perf_counter() - started
            (n,) = con.execute("SELECT count(*) FROM pairs").fetchall()[0]
        started = time.perf_counter()
        views.build(store, kind, **named, **parameters)
        return {
            f"{kind}_view_seconds": seconds,
            f"{kind}_build_seconds": time.perf_counter() - started,
            f"{kind}_pairs": n,
        }

    return measure


# --------------------------------------------------------------------------------------------------- peers
def _sampled(folder: Path, queries: int) -> tuple[Any, Any]:
    """Read (run, qrels) of the first queries as polars frames of text ids."""
    with _store(folder).read() as con:
        run = con.sql(
            f"""SELECT q.query_id, d.doc_id, c.rank, c.score FROM candidates c JOIN queries q USING (query)
                JOIN documents d ON d.document = c.document WHERE c.query <= {queries}"""
        ).pl()
        qrels = con.sql(
            f"SELECT query_id, doc_id, relevance FROM judgments JOIN queries USING (query_id) WHERE query <= {queries}"
        ).pl()
    return run, qrels


def pandas_way(folder: Path, shape: Shape) -> Row:
    """For each training query: merge its group with the judgments, and take one positive and 99 sampled negatives."""
    import pandas as pd

    n = min(SAMPLE["pandas"], shape.queries)
    run, qrels = (frame.to_pandas() for frame in _sampled(folder, n))
    groups, judged = run.groupby("query_id"), qrels.groupby("query_id")
    started = time.perf_counter()
    pairs = 0
    for query_id in run["query_id"].unique():
        group = groups.get_group(query_id)
        merged = group.merge(judged.get_group(query_id), on=["query_id", "doc_id"], how="left")
        merged["relevance"] = merged["relevance"].fillna(0)
        merged = merged[(merged["rank"] <= TOP) | (merged["relevance"] > 0)]
        positive = merged[merged["relevance"] > 0].head(1)
        negatives = merged[(merged["relevance"] == 0) & (merged["rank"] <= TOP)]
        negatives = negatives.sample(min(NEGATIVES, len(negatives)), random_state=42)
        pairs += len(pd.concat([positive, negatives]))
        del group, merged
        gc.collect()
        gc.collect()
    return {"pandas_queries": n, "pandas_ms_per_query": 1000 * (time.perf_counter() - started) / n}


def polars_way(folder: Path, shape: Shape) -> Row:
    """Select for all queries at once, with run and judgments in memory."""
    import polars as pl

    n = min(SAMPLE["polars"], shape.queries)
    run, qrels = _sampled(folder, n)
    started = time.perf_counter()
    positives = qrels.lazy().filter(pl.col("relevance") > 0)
    negatives = (
        run.lazy()
        .filter(pl.col("rank") <= TOP)
        .join(positives, on=["query_id", "doc_id"], how="anti")
        .with_columns(draw=pl.struct("query_id", "doc_id").hash(42))
        .filter(pl.col("draw").rank("ordinal").over("query_id") <= NEGATIVES)
        .select("query_id", "doc_id", "rank", pl.lit(0).alias("label"))
    )
    chosen = positives.join(run.lazy(), on=["query_id", "doc_id"], how="left").select(
        "query_id", "doc_id", "rank", pl.lit(1).alias("label")
    )
    pairs = pl.concat([chosen, negatives], how="vertical_relaxed").collect()
    return {
        "polars_queries": n,
        "polars_ms_per_query": 1000 * (time.perf_counter() - started) / n,
        "polars_pairs": len(pairs),
    }


def st_way(folder: Path, shape: Shape) -> Row:
    """Time mine_hard_negatives with synthetic embeddings in its cache: the second of two equal calls."""
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import StaticEmbedding
    from sentence_transformers.util import mine_hard_negatives
    from tokenizers import Tokenizer, models, pre_tokenizers

    n, passages = SAMPLE["sentence_transformers"], ST_PASSAGES
    words = [f"w{k}" for k in range(5000)]
    rng = np.random.default_rng(shape.seed)
    tokenizer = Tokenizer(models.WordLevel({word: k for k, word in enumerate(["[UNK]", *words])}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    weights = rng.standard_normal((len(words) + 1, 64)).astype(np.float32)
    model = SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_weights=weights)], device="cpu")
    texts = [" ".join(rng.choice(words, 12)) for _ in range(passages)]
    asked = Dataset.from_dict(
        {"query": [" ".join(rng.choice(words, 4)) for _ in range(n)], "positive": texts[:n]}
    )

    def once() -> float:
        started = time.perf_counter()
        mine_hard_negatives(
            asked, model, corpus=texts, range_max=TOP, num_negatives=NEGATIVES, sampling_strategy="random",
            output_format="labeled-list", cache_folder=str(folder / "st-cache"), verbose=False,
        )  # fmt: skip
        return time.perf_counter() - started

    once()
    return {
        "st_queries": n,
        "st_passages": passages,
        "st_mining_ms_per_query": 1000 * once() / n,
    }


PHASES: dict[str, Callable[[Path, Shape], Row]] = {
    "add": add,
    "import": load,
    "contrastive": _view("contrastive", {"runs": [RUN]}, {"depth": TOP, "per_query": NEGATIVES}),
    "rerank": _view("rerank", {"runs": [RUN]}, {"depth": RERANKED}),
    "mine": mine,
    "label": label,
    "distillation": _view("distillation", {"labels": [LABELS]}, {}),
    "naive": naive,
    "pandas": pandas_way,
    "polars": polars_way,
    "sentence_transformers": st_way,
}
OWN = ("add", "import", "contrastive", "rerank", "mine", "distillation")


def _phase(name: str, folder: Path, shape: Shape) -> Row:
    """Run a phase in a separate process."""
    print(f"{name} …", file=sys.stderr, flush=True)
    command = [sys.executable, "-m", "benchmarks.store", "--phase", name, "--folder", str(folder)]
    for key, value in asdict(shape).items():
        command += [f"--{key}", str(value)]
    output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    row: Row = json.loads(output.splitlines()[-1])
    print(f"  {json.dumps(row)}", file=sys.stderr, flush=True)
    return row


def _peak_gb() -> float:
    """Read this process's peak resident memory. The value of getrusage would include that of its parent."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 2**20


def run(folder: Path, shape: Shape, texts: bool, phases: list[str]) -> Row:
    """Run all phases over one collection."""
    described = json.dumps({**asdict(shape), "texts": texts})
    mark = folder / "shape.json"
    if not mark.is_file() or mark.read_text() != described:
        write_all(shape, folder, texts)
        mark.write_text(described)
    for path in folder.glob("store.*"):
        subprocess.run(["rm", "-rf", str(path)], check=True)
    row: Row = {**asdict(shape), "candidates": shape.candidates, "texts": texts}
    for name in phases:
        row |= _phase(name, folder, shape)
    row["peak_memory_gb"] = max(row[f"{name}_memory_gb"] for name in phases if name in OWN)
    if "contrastive_view_seconds" in row:
        own = 1000 * row["contrastive_view_seconds"] / shape.queries
        row["contrastive_ms_per_query"] = own
        for peer, key in (
            ("pandas", "pandas_ms_per_query"),
            ("polars", "polars_ms_per_query"),
            ("sentence_transformers", "st_mining_ms_per_query"),
        ):
            if key in row:
                row[f"speedup_over_{peer}"] = row[key] / own
    return {key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--queries", type=int, default=Shape.queries)
    parser.add_argument("--depth", type=int, default=Shape.depth)
    parser.add_argument("--passages", type=int, default=Shape.passages)
    parser.add_argument("--seed", type=int, default=Shape.seed)
    parser.add_argument("--folder", type=Path, help="a working folder; its files are kept")
    parser.add_argument("--texts", action="store_true", help="passages of MS MARCO's lengths, not one word")
    parser.add_argument("--only", help=f"phases, of {','.join(PHASES)} (add and import come first)")
    parser.add_argument("--phase", choices=list(PHASES), help=argparse.SUPPRESS)
    options = parser.parse_args()
    shape = Shape(options.queries, options.depth, options.passages, options.seed)
    if options.phase:
        row = PHASES[options.phase](options.folder, shape)
        spent = {"memory_gb": _peak_gb(), "cpu_seconds": time.process_time()}
        print(json.dumps(row | {f"{options.phase}_{key}": value for key, value in spent.items()}))
        return
    phases = list(PHASES)
    if options.only:
        asked = {"add", "import", *options.only.split(",")}
        phases = [name for name in phases if name in asked]
    if options.folder:
        options.folder.mkdir(parents=True, exist_ok=True)
        print(json.dumps(run(options.folder, shape, options.texts, phases)))
        return
    with tempfile.TemporaryDirectory(prefix="msft-store-") as folder:
        print(json.dumps(run(Path(folder), shape, options.texts, phases)))


if __name__ == "__main__":
    main()
