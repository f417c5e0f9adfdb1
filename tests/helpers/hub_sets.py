"""Made-up sets in the layout of sentence-transformers/NanoBEIR-en: Parquet by subset and split, with BM25's candidates."""

import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import tiny_models

SUBSETS = ("corpus", "queries", "qrels", "bm25")


def table(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows as a Parquet file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def make(folder: Path, names: list[str], *, documents: int = 30, queries: int = 4, depth: int = 12) -> Path:
    """Write a set for each name. Some positives are missing in BM25's lists, and one query has none in its list."""
    for seed, name in enumerate(names):
        rng = random.Random(seed)
        texts = [f"{text} {n}" for n, text in enumerate(tiny_models.sentences(documents, seed, 20))]
        asked = [f"{text} ?" for text in tiny_models.sentences(queries, seed + 99, 6)]
        ids = [f"d{n}" for n in range(documents)]
        lists = {f"q{n}": rng.sample(ids, depth) for n in range(queries)}
        judged = {
            query: [*([] if query == "q1" else rng.sample(own, 2)), rng.choice(sorted(set(ids) - set(own)))]
            for query, own in lists.items()
        }
        content: dict[str, list[dict[str, Any]]] = {
            "corpus": [{"_id": i, "text": text} for i, text in zip(ids, texts, strict=True)],
            "queries": [{"_id": f"q{n}", "text": text} for n, text in enumerate(asked)],
            "qrels": [{"query-id": q, "corpus-id": d} for q, own in judged.items() for d in own],
            "bm25": [{"query-id": q, "corpus-ids": own} for q, own in lists.items()],
        }
        for subset, rows in content.items():
            table(folder / subset / f"{name}-00000-of-00001.parquet", rows)
    _card(folder, names)
    return folder


def _card(folder: Path, names: list[str]) -> None:
    """Write the card by which the library `datasets` finds subsets and splits."""
    lines = ["---", "configs:"]
    for subset in SUBSETS:
        lines += [f"- config_name: {subset}", "  data_files:"]
        for name in names:
            lines += [f"  - split: {name}", f"    path: {subset}/{name}-*"]
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]))
