"""Export the collection for a first stage, cache its index folders, and read its rankings.

A retriever never sees the store. It gets a :class:`Corpus` (passages in a Parquet file, queries in memory), works while the
store is free for others, and returns rows of (query, document, score).
"""

import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import duckdb
import numpy as np
import polars as pl
import pyarrow.parquet as pq

from labelstore.errors import BadInput, DataMissing
from labelstore.store import keys, lookup
from labelstore.store.label_store import LabelStore

BATCH = 20_000  # passages that are read at once

Progress = Callable[[int, int | None], None]
Note = Callable[[str], None]


def silent(*_: object) -> None:
    """Ignore progress or a note."""


@dataclass(frozen=True)
class Corpus:
    """A dataset as a retriever reads it.

    Attributes:
        content: hash over doc_ids and texts, the same in every store.
        local: hash over the surrogate keys too; the cache key of an index that answers in surrogate keys.
        n_documents: passages with text.
        queries: (query, text), ordered by query_id.
        queries_hash: hash over query_ids and texts.
        indexes: folder for index folders.
    """

    collection: str
    n_documents: int
    content: str
    local: str
    queries: list[tuple[int, str]]
    queries_hash: str
    indexes: Path
    store: LabelStore
    collection_key: int

    @contextmanager
    def documents(self) -> Iterator[Path]:
        """Write the passages to a Parquet file for the time of the context; the store is free inside.

        Columns document INTEGER, doc_id VARCHAR, text VARCHAR (title and body joined), ordered by document.
        """
        path = self.indexes / f".documents-{os.getpid()}-{secrets.token_hex(4)}.parquet"
        try:
            with self.store.read(reach=[self.indexes]) as con:
                con.execute(
                    f"""COPY (SELECT document, doc_id, {lookup.FULL_TEXT} AS text FROM documents
                              WHERE collection = {int(self.collection_key)} AND text IS NOT NULL ORDER BY document)
                        TO '{str(path).replace("'", "''")}' (FORMAT parquet, COMPRESSION zstd)"""
                )
            yield path
        finally:
            path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Ranking:
    """The result of a retriever.

    Attributes:
        rows: columns query INTEGER, document INTEGER, score FLOAT; at most depth rows a query.
        parameters: facts found during the work (index name, versions).
        drops: reason -> (number of rows left out, one example); the caller counts queries without rows.
    """

    rows: pl.DataFrame
    parameters: Mapping[str, Any]
    drops: Mapping[str, tuple[int, str | None]] = field(default_factory=dict)


class Retriever(Protocol):
    """A first stage; the run records its `system` and `parameters`."""

    @property
    def system(self) -> str: ...

    @property
    def parameters(self) -> dict[str, Any]: ...

    def search(self, corpus: Corpus, depth: int, progress: Progress, note: Note) -> Ranking: ...


def read_corpus(con: duckdb.DuckDBPyConnection, store: LabelStore, of: lookup.Dataset) -> Corpus:
    """Hash the collection and read the dataset's queries.

    Raises:
        DataMissing: the collection has no passage with text, or the dataset no query.
    """
    n, content, local = con.execute(
        """SELECT count(*),
                  bit_xor(md5_number(doc_id || chr(31) || text_hash::VARCHAR))::VARCHAR,
                  bit_xor(md5_number(document::VARCHAR || chr(31) || doc_id || chr(31) || text_hash::VARCHAR))::VARCHAR
           FROM documents WHERE collection = ? AND text IS NOT NULL""",
        [of.collection],
    ).fetchall()[0]
    if not n:
        raise DataMissing(
            f"{of.collection_name} has no passage with text", hint=f"msft data add {of.name} --from FOLDER"
        )
    queries = con.execute(
        """SELECT q.query, q.query_id, q.text FROM dataset_queries dq JOIN queries q USING (query)
           WHERE dq.dataset = ? ORDER BY q.query_id""",
        [of.dataset],
    ).fetchall()
    if not queries:
        raise DataMissing(f"{of.name} has no query", hint=f"msft data show {of.name}")
    return Corpus(
        collection=of.collection_name,
        n_documents=n,
        content=keys.content_key("corpus", [n, content]),
        local=keys.content_key("corpus-local", [n, local]),
        queries=[(query, text) for query, _, text in queries],
        queries_hash=keys.rows_key("corpus-queries", ([query_id, text] for _, query_id, text in queries)),
        indexes=store.folder("indexes"),
        store=store,
        collection_key=of.collection,
    )


def batches(documents: Path, rows: int = BATCH) -> Iterator[tuple[list[int], list[str]]]:
    """Read (document keys, texts) of an exported collection, batch by batch."""
    with pq.ParquetFile(documents) as file:
        for batch in file.iter_batches(rows, columns=["document", "text"]):
            yield batch["document"].to_pylist(), batch["text"].to_pylist()


@contextmanager
def index_folder(
    corpus: Corpus, kind: str, settings: Mapping[str, Any], note: Note
) -> Iterator[tuple[Path, bool]]:
    """Give (folder, whether it is complete) of an index; a new one is built in a temporary folder and then moved.

    The index is keyed by the collection's content and `settings`; indexes of the same kind and settings over earlier
    contents of the collection are removed once a new one is complete.
    """
    meta = {"kind": kind, "collection": corpus.collection, "settings": dict(settings)}
    final = corpus.indexes / f"{kind}-{keys.content_key('index', [meta, corpus.local])}"
    if final.is_dir():
        note(f"{kind} index over {corpus.collection}: reused")
        yield final, True
        return
    building = final.with_name(f".{final.name}-{os.getpid()}-{secrets.token_hex(4)}")
    building.mkdir(parents=True)
    try:
        yield building, False
        (building / "msft.json").write_text(keys.canonical_json(meta), encoding="utf-8")
        try:
            building.rename(final)
        except OSError:  # another process was faster; its index is equal
            if not final.is_dir():
                raise
        else:
            _remove_stale(final, meta)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _remove_stale(final: Path, meta: Mapping[str, Any]) -> None:
    for other in final.parent.glob(f"{meta['kind']}-*/msft.json"):
        if other.parent != final and json.loads(other.read_text(encoding="utf-8")) == meta:
            shutil.rmtree(other.parent, ignore_errors=True)


def frame(query: np.ndarray, document: np.ndarray, score: np.ndarray) -> pl.DataFrame:
    """Make the rows of a ranking from flat arrays."""
    return pl.DataFrame(
        {
            "query": query.astype(np.int32),
            "document": document.astype(np.int32),
            "score": score.astype(np.float32),
        }
    )


def read_trec(path: Path, depth: int) -> pl.DataFrame:
    """Read a TREC run whose ids are surrogate keys (of a worker or Anserini) as rows of a ranking.

    Raises:
        BadInput: a line does not have six columns with integer ids and a finite score.
    """
    queries, documents, scores = [], [], []
    for parts in _trec_lines(path):
        if int(parts[3]) <= depth:
            queries.append(int(parts[0]))
            documents.append(int(parts[2]))
            scores.append(float(parts[4]))
    return frame(np.array(queries, dtype=np.int64), np.array(documents, dtype=np.int64), np.array(scores))


def read_trec_by_doc_id(
    path: Path, depth: int, corpus: Corpus
) -> tuple[pl.DataFrame, tuple[int, str | None]]:
    """Read a TREC run with doc_ids and join it to the collection's passages.

    Returns:
        The rows, and (number, one example) of those whose passage the collection lacks.
    """
    lines = pl.DataFrame(
        [parts for parts in _trec_lines(path) if int(parts[3]) <= depth],
        schema=["query", "q0", "doc_id", "rank", "score", "tag"],
        orient="row",
    )
    with corpus.store.read() as con:
        con.register("found", lines.select("doc_id").unique().to_arrow())
        held = con.sql(
            "SELECT d.doc_id, d.document FROM documents d JOIN found USING (doc_id) WHERE d.collection = ?",
            params=[corpus.collection_key],
        ).pl()
    joined = lines.join(held, on="doc_id", how="left")
    unknown = joined.filter(pl.col("document").is_null())["doc_id"]
    rows = joined.drop_nulls("document").select(
        pl.col("query").cast(pl.Int32), pl.col("document").cast(pl.Int32), pl.col("score").cast(pl.Float32)
    )
    return rows, (len(unknown), unknown[0] if len(unknown) else None)


def _trec_lines(path: Path) -> Iterator[list[str]]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            parts = line.split()
            if len(parts) != 6 or not np.isfinite(float(parts[4])):
                raise BadInput(f"{path}:{number}: not a TREC run line: {line.strip()[:80]!r}")
            yield parts
