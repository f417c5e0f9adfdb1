"""View folders in the format that the store exports, made of made-up sentences: training needs no store."""

import hashlib
import json
import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tiny_models


def write(
    folder: Path,
    kind: str,
    *,
    n_lists: int = 40,
    n_valid: int = 20,
    size: int = 6,
    scores: bool = False,
    seed: int = 0,
    lists: list[dict] | None = None,
    longest: int = 30,
) -> Path:
    """A view of ``n_lists`` lists of ``size`` passages; passage i of a query is the more relevant the more of the
    query's words it repeats, so that there is something to learn. ``lists`` replaces generated rows."""
    rng = random.Random(seed)
    queries = [f"what is {rng.choice(tiny_models.WORDS)} {i}" for i in range(n_lists)]
    passages, rows = [], []
    for i, query in enumerate(queries):
        start = len(passages)
        for k in range(size):
            words = rng.choices(tiny_models.WORDS, k=rng.randint(3, longest))
            passages.append(" ".join(query.split() * (size - 1 - k) + words))
        numbers = list(range(start, start + size))
        rng.shuffle(numbers)
        grade = [size - 1 - (p - start) for p in numbers]
        contrastive = kind == "contrastive"
        rows.append(
            {
                "list": i,
                "query": i,
                "passages": numbers,
                "labels": [int(g == size - 1) for g in grade] if contrastive else grade,
                "ranks": [size - g for g in grade],
                "scores": [float(g) / 2 for g in grade] if scores else None,
                "weights": [1.0] * size,
                "relevances": [int(g == size - 1) if g in (0, size - 1) else -1 for g in grade],
                "split": "valid" if i >= n_lists - n_valid else "train",
            }
        )
    for row, changes in zip(rows, lists or [], strict=False):
        row.update(changes)
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(
        pa.table(
            {
                "query": pa.array(range(n_lists), pa.int32()),
                "query_id": [f"q{i}" for i in range(n_lists)],
                "text": queries,
            }
        ),
        folder / "queries.parquet",
    )
    pq.write_table(
        pa.table(
            {
                "passage": pa.array(range(len(passages)), pa.int32()),
                "doc_id": [f"d{i}" for i in range(len(passages))],
                "text": passages,
                "text_hash": pa.array(np.arange(len(passages)), pa.uint64()),
            }
        ),
        folder / "passages.parquet",
    )
    schema = pa.schema(
        [
            ("list", pa.int32()),
            ("query", pa.int32()),
            ("passages", pa.list_(pa.int32())),
            ("labels", pa.list_(pa.int16())),
            ("ranks", pa.list_(pa.int16())),
            ("scores", pa.list_(pa.float32())),
            ("weights", pa.list_(pa.float32())),
            ("relevances", pa.list_(pa.int16())),
            ("split", pa.string()),
        ]
    )
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), folder / "lists.parquet")
    files = {
        name: hashlib.blake2b((folder / name).read_bytes(), digest_size=16).hexdigest()
        for name in ("queries.parquet", "passages.parquet", "lists.parquet")
    }
    manifest = {
        "format": 1,
        "kind": kind,
        "name": f"tiny-{kind}",
        "view_hash": hashlib.blake2b(json.dumps(rows).encode(), digest_size=16).hexdigest(),
        "seed": seed,
        "licence": None,
        "files": files,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder
