"""The part of `colbert` that runs in PyLate's environment: encode, index, search, write a TREC run.

Needs pylate alone; `colbert.py` starts it. Prints ``progress DONE TOTAL`` lines. With fast-plaid installed (PyLate 1.3
and later bring it) it searches PLAID's approximate index, which millions of passages need; without it every passage's
token vectors are kept as float16 and scored exactly, Σ_i max_j q_i·d_j, which works for some 100,000 passages.
"""

import argparse
import importlib.util
import json
from collections.abc import Iterable, Iterator
from importlib import metadata
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np

_PACKAGES = ("pylate", "torch", "transformers", "sentence-transformers", "fast-plaid")
_DOCUMENTS_AT_ONCE = 2000
_QUERIES_AT_ONCE = 64


class Index(Protocol):
    def add(self, keys: list[str], vectors: list[np.ndarray]) -> None: ...

    def search(self, queries: list[np.ndarray], depth: int) -> list[list[tuple[str, float]]]: ...


class Exact:
    """Token vectors in one shard for each `add`, all scored."""

    name = "exact"

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def add(self, keys: list[str], vectors: list[np.ndarray]) -> None:
        number = len(list(self._folder.glob("*.keys.json")))
        np.save(self._folder / f"{number:06d}.vectors.npy", np.concatenate(vectors).astype(np.float16))
        np.save(
            self._folder / f"{number:06d}.lengths.npy", np.array([len(v) for v in vectors], dtype=np.int32)
        )
        (self._folder / f"{number:06d}.keys.json").write_text(json.dumps(keys), encoding="utf-8")

    def search(self, queries: list[np.ndarray], depth: int) -> list[list[tuple[str, float]]]:
        found: list[list[tuple[str, float]]] = [[] for _ in queries]
        for path in sorted(self._folder.glob("*.keys.json")):
            keys = json.loads(path.read_text(encoding="utf-8"))
            stem = path.name.removesuffix(".keys.json")
            vectors = np.load(self._folder / f"{stem}.vectors.npy").astype(np.float32)
            lengths = np.load(self._folder / f"{stem}.lengths.npy")
            starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
            for position, query in enumerate(queries):
                similar = vectors @ np.asarray(query, dtype=np.float32).T
                scores = np.maximum.reduceat(similar, starts, axis=0).sum(axis=1)
                best = np.argsort(-scores, kind="stable")[:depth]
                found[position] += [(keys[k], float(scores[k])) for k in best]
        return [best_first(hits)[:depth] for hits in found]


class Plaid:
    """fast-plaid through PyLate."""

    name = "plaid"

    def __init__(self, folder: Path, new: bool) -> None:
        from pylate import indexes, retrieve

        self._index = indexes.PLAID(index_folder=str(folder), index_name="index", override=new)
        self._retriever = retrieve.ColBERT(index=self._index)

    def add(self, keys: list[str], vectors: list[np.ndarray]) -> None:
        self._index.add_documents(documents_ids=keys, documents_embeddings=vectors)

    def search(self, queries: list[np.ndarray], depth: int) -> list[list[tuple[str, float]]]:
        found = self._retriever.retrieve(queries_embeddings=queries, k=depth)
        return [best_first([(hit["id"], float(hit["score"])) for hit in hits])[:depth] for hits in found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--index", required=True, type=Path, help="folder of the index")
    parser.add_argument(
        "--documents", type=Path, help="JSONL of {id, text}; without it an existing index is used"
    )
    parser.add_argument("--queries", required=True, type=Path, help="JSONL of {id, text}")
    parser.add_argument("--output", required=True, type=Path, help="TREC run")
    parser.add_argument("--depth", required=True, type=int)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--device")
    arguments = parser.parse_args()

    from pylate import models

    model = models.ColBERT(model_name_or_path=arguments.model, device=arguments.device)
    about = arguments.index / "versions.json"
    new = arguments.documents is not None
    if new:
        kind = "plaid" if importlib.util.find_spec("fast_plaid") is not None else "exact"
    else:
        kind = json.loads(about.read_text(encoding="utf-8"))["index"]
    index: Index = Plaid(arguments.index, new) if kind == "plaid" else Exact(arguments.index)
    if new:
        _fill(index, model, arguments.documents, arguments.batch_size)
        versions = {name: version for name in _PACKAGES if (version := _version(name))}
        about.write_text(json.dumps({"index": kind, **versions}), encoding="utf-8")
    queries = list(_rows(arguments.queries))
    done = 0
    with arguments.output.open("w", encoding="utf-8") as file:
        for chunk in _chunks(queries, _QUERIES_AT_ONCE):
            vectors = _encode(model, [text for _, text in chunk], arguments.batch_size, is_query=True)
            for (query, _), hits in zip(chunk, index.search(vectors, arguments.depth), strict=True):
                for rank, (key, score) in enumerate(hits, 1):
                    file.write(f"{query} Q0 {key} {rank} {score!r} colbert\n")
            done += len(chunk)
            print(f"progress {done} {len(queries)}", flush=True)


def _fill(index: Index, model: Any, documents: Path, batch_size: int) -> None:
    with documents.open(encoding="utf-8") as file:
        total = sum(1 for _ in file)
    done = 0
    for chunk in _chunks(_rows(documents), _DOCUMENTS_AT_ONCE):
        index.add(
            [key for key, _ in chunk], _encode(model, [text for _, text in chunk], batch_size, is_query=False)
        )
        done += len(chunk)
        print(f"progress {done} {total}", flush=True)


def _encode(model: Any, texts: list[str], batch_size: int, is_query: bool) -> list[np.ndarray]:
    """Compute one (tokens, dimensions) array for each text."""
    return list(model.encode(texts, batch_size=batch_size, is_query=is_query, show_progress_bar=False))


def best_first(hits: list[tuple[str, float]]) -> list[tuple[str, float]]:
    """Sort by score descending, ties by key, so that the order does not depend on the index."""
    return sorted(hits, key=lambda hit: (-hit[1], int(hit[0])))


def _rows(path: Path) -> Iterator[tuple[str, str]]:
    with path.open(encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            yield row["id"], row["text"]


def _chunks(rows: Iterable[tuple[str, str]], size: int) -> Iterator[list[tuple[str, str]]]:
    rows = iter(rows)
    while chunk := list(islice(rows, size)):
        yield chunk


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()
