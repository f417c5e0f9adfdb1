"""Read real lists for the students' benchmarks: candidates with judgments, teachers' rankings, a trained student."""

import gzip
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

DATA = Path("../shared/data")


@dataclass(frozen=True)
class Candidates:
    """Lists to re-rank, with the judgments of their passages."""

    name: str
    query_ids: list[str]
    lists: list[tuple[str, list[str]]]  # query text, passage texts in the run's order
    doc_ids: list[list[str]]
    qrels: dict[str, dict[str, int]]

    @property
    def n_pairs(self) -> int:
        return sum(map(len, self.doc_ids))

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Return all (query, passage) pairs, list after list."""
        return [(query, passage) for query, passages in self.lists for passage in passages]

    def split(self, scores: Any) -> list[np.ndarray]:
        """Split the scores of all pairs by list."""
        return np.split(np.asarray(scores), np.cumsum([len(ids) for ids in self.doc_ids])[:-1])

    def ndcg(self, scores: Sequence[Any]) -> float:
        """Compute nDCG@10 of the lists, ordered by their scores, by ir-measures."""
        import ir_measures

        run = [
            ir_measures.ScoredDoc(query_id, doc_id, float(score))
            for query_id, ids, row in zip(self.query_ids, self.doc_ids, scores, strict=True)
            for doc_id, score in zip(ids, row, strict=True)
        ]
        qrels = {query_id: self.qrels[query_id] for query_id in self.query_ids}
        return float(ir_measures.calc_aggregate([ir_measures.nDCG @ 10], qrels, run)[ir_measures.nDCG @ 10])


def rows(path: Path) -> Iterator[dict[str, Any]]:
    """Read the objects of a gzipped JSONL file; only a newline ends an object."""
    with gzip.open(path, "rt", encoding="utf-8", newline="\n") as file:
        for line in file:
            yield json.loads(line)


def passages(folder: Path) -> dict[str, str]:
    """Read passages: doc_id -> title and text, joined as in the store."""
    return {
        row["doc_id"]: f"{row.get('title') or ''} {row['text']}".strip()
        for row in rows(folder / "docs.jsonl.gz")
    }


def queries(folder: Path) -> dict[str, str]:
    """Read query texts by query_id."""
    path = next(folder.glob("queries.tsv*"))
    text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return dict(line.split("\t", 1) for line in text.decode("utf-8").split("\n") if line)


def candidates(
    name: str, *, data: Path = DATA, run: str = "bm25", depth: int = 100, n_queries: int | None = None
) -> Candidates:
    """Read the top `depth` passages of a run for the first judged queries of a collection."""
    folder = data / name
    qrels: dict[str, dict[str, int]] = {}
    with gzip.open(folder / "qrels.txt.gz", "rt") as file:
        for query_id, _, doc_id, relevance in map(str.split, file):
            qrels.setdefault(query_id, {})[doc_id] = int(relevance)
    ranked: dict[str, list[tuple[int, str]]] = {}
    with gzip.open(folder / "runs" / f"{run}.run.gz", "rt") as file:
        for query_id, _, doc_id, rank, *_ in map(str.split, file):
            ranked.setdefault(query_id, []).append((int(rank), doc_id))
    texts, asked = passages(folder), queries(folder)
    chosen = [query_id for query_id in sorted(ranked) if query_id in qrels][:n_queries]
    doc_ids = [[doc_id for _, doc_id in sorted(ranked[query_id])[:depth]] for query_id in chosen]
    lists = [(asked[q], [texts[d] for d in ids]) for q, ids in zip(chosen, doc_ids, strict=True)]
    return Candidates(name, chosen, lists, doc_ids, qrels)


@dataclass(frozen=True)
class Ranked:
    """A query's passages, best first by the teacher, or with grades."""

    query: str
    passages: list[str]
    grades: list[int] | None = None  # higher is better, equal is a tie

    @property
    def labels(self) -> list[int]:
        """Return the grades, or each passage's place from the end."""
        return self.grades or list(range(len(self.passages), 0, -1))


def rankings(
    *, data: Path = DATA, per_list: int = 20, n_lists: int | None = None, seed: int = 0
) -> list[Ranked]:
    """Read RankZephyr's rankings of DL21's candidates: ``per_list`` sampled passages each, lists in random order."""
    rng = np.random.default_rng(seed)
    found = [
        Ranked(
            one.query,
            [one.passages[i] for i in np.sort(rng.choice(len(one.passages), per_list, replace=False))],
        )
        for one in permutations(data / "dl21-passage", "zephyr")
        if len(one.passages) >= per_list
    ]
    while n_lists is not None and len(found) < n_lists:
        found += found
    return [found[i] for i in rng.permutation(len(found))[:n_lists]]


def permutations(folder: Path, teacher: str = "") -> list[Ranked]:
    """Read the rankings of the teachers whose names contain ``teacher``."""
    texts, asked = passages(folder), queries(folder)
    return [
        Ranked(asked.get(row["query_id"], row["query"]), [texts[d] for d in row["permutation"] if d in texts])
        for row in rows(folder / "permutations.jsonl.gz")
        if teacher in row["teacher"].lower()
    ]


def judged(folder: Path, n_lists: int, per_list: int, seed: int) -> list[Ranked]:
    """Make lists of training queries: judged passages with their grades, then random passages with grade 0."""
    rng = np.random.default_rng(seed)
    texts, asked = passages(folder), queries(folder)
    graded: dict[str, list[tuple[int, str]]] = {}
    with gzip.open(folder / "qrels.train.txt.gz", "rt") as file:
        for query_id, _, doc_id, relevance in map(str.split, file):
            if int(relevance) > 0 and doc_id in texts:
                graded.setdefault(query_id, []).append((-int(relevance), doc_id))
    every = sorted(texts)
    made = []
    for query_id in rng.permutation(sorted(graded))[:n_lists]:
        best = sorted(graded[query_id])[: per_list // 4]
        relevant = {doc_id for _, doc_id in graded[query_id]}
        drawn = dict.fromkeys(rng.choice(every, 2 * per_list).tolist())
        others = [(0, doc_id) for doc_id in drawn if doc_id not in relevant]
        chosen = [*best, *others][:per_list]
        made.append(
            Ranked(asked[query_id], [texts[d] for _, d in chosen], [-negative for negative, _ in chosen])
        )
    return made


def write_view(folder: Path, ranked: Sequence[Ranked], n_valid: int = 0) -> Path:
    """Write rankings as a distillation view; the last ``n_valid`` lists are for validation."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = list(dict.fromkeys(text for one in ranked for text in one.passages))
    number = {text: i for i, text in enumerate(texts)}
    n = len(ranked)
    lists = pa.table(
        {
            "list": pa.array(range(n), pa.int32()),
            "query": pa.array(range(n), pa.int32()),
            "passages": pa.array([[number[t] for t in one.passages] for one in ranked], pa.list_(pa.int32())),
            "labels": pa.array([one.labels for one in ranked], pa.list_(pa.int16())),
            "ranks": pa.array([range(1, len(one.passages) + 1) for one in ranked], pa.list_(pa.int16())),
            "scores": pa.array([None] * n, pa.list_(pa.float32())),
            "weights": pa.array([[1.0] * len(one.passages) for one in ranked], pa.list_(pa.float32())),
            "relevances": pa.array([[-1] * len(one.passages) for one in ranked], pa.list_(pa.int16())),
            "split": ["valid" if i >= n - n_valid else "train" for i in range(n)],
        }
    )
    pq.write_table(lists, folder / "lists.parquet")
    ids = {"query": pa.array(range(n), pa.int32()), "query_id": [str(i) for i in range(n)]}
    pq.write_table(pa.table({**ids, "text": [one.query for one in ranked]}), folder / "queries.parquet")
    ids = {"passage": pa.array(range(len(texts)), pa.int32()), "doc_id": [str(i) for i in range(len(texts))]}
    pq.write_table(pa.table({**ids, "text": texts}), folder / "passages.parquet")
    files = {
        name: hashlib.blake2b((folder / name).read_bytes(), digest_size=16).hexdigest()
        for name in ("queries.parquet", "passages.parquet", "lists.parquet")
    }
    manifest = {"format": 1, "kind": "distillation", "name": folder.name, "view_hash": files["lists.parquet"]}
    (folder / "manifest.json").write_text(json.dumps(manifest | {"seed": 0, "licence": None, "files": files}))
    return folder


def trained_student(folder: Path, *, data: Path = DATA, pairs: int = 16_000) -> Path:
    """Train a MiniLM for some minutes, because the scores of an untrained head give no order.

    The result does not depend on the machine's load. The student learns from RankZephyr's rankings of DL21's
    candidates, RankZephyr's training labels and nfcorpus's judgments of training queries. It serves only to give
    meaningful scores; other benchmarks compare regimes.
    """
    from students.recipes.read import make_recipe
    from students.train.run import train

    lists = [
        *permutations(data / "dl21-passage", "zephyr"),
        *permutations(data / "msmarco-train-rankzephyr100"),
        *judged(data / "nfcorpus", 400, 16, seed=0),
    ]
    view = write_view(folder / "view", [one for one in lists if len(one.passages) > 2])
    recipe = make_recipe(
        {
            "base": "minilm", "regime": "kd", "lr": 2e-4, "lists": 8, "group_size": 10, "max_length": 160, "epochs": 0,
            "max_pairs": pairs, "freeze": ["embeddings"], "keep": "last", "patience": 0,
            "attention_dropout": 0.0, "hidden_dropout": 0.0,
        }
    )  # fmt: skip
    return train(recipe, [view], folder / "student").folder
