"""Draw the passages that queries are asked for: by the seed, of those that a file names, evenly from clusters."""

from pathlib import Path

import duckdb
import numpy as np
from numpy.typing import NDArray

from labelstore.errors import BadInput, DataMissing, UsageError
from labelstore.store.label_store import LabelStore
from teachers import models
from teachers.generate.single.ask import Note
from teachers.generate.single.wanted import Wanted

POOL = 20  # passages that are embedded, for each that is wanted


def sql_of(file: Path | None) -> str | None:
    if file is None:
        return None
    try:
        return file.read_text("utf-8").strip().rstrip(";")
    except (OSError, UnicodeDecodeError) as error:
        raise DataMissing(f"{file} cannot be read: {error}", hint="--documents FILTER.sql") from error


def passages(con: duckdb.DuckDBPyConnection, wanted: Wanted, collection: int, sql: str | None) -> list[int]:
    """Draw passages with a text, by an order that the seed makes of their ids; more of them if clusters are drawn from.

    Raises:
        BadInput: the SQL of --documents fails, or it returns no doc_id.
    """
    chosen = "" if sql is None else f"AND doc_id IN (SELECT chosen.doc_id FROM (\n{sql}\n) AS chosen)"
    try:
        rows = con.execute(
            f"""SELECT document FROM documents
                WHERE collection = ? AND text IS NOT NULL AND trim(text) <> '' {chosen}
                ORDER BY md5(concat(?, ':', doc_id)), doc_id LIMIT ?""",
            [collection, wanted.seed, wanted.n * (POOL if wanted.stratify is not None else 1)],
        ).fetchall()
    except duckdb.Error as error:
        if sql is None:
            raise
        raise BadInput(
            f"{wanted.documents}: {str(error).splitlines()[0]}",
            hint="write one SELECT that returns doc_id, e.g. SELECT doc_id FROM passages WHERE length(text) > 200",
        ) from error
    return [document for (document,) in rows]


def stratified(store: LabelStore, pool: list[int], wanted: Wanted, note: Note) -> list[int]:
    """Draw `wanted.n` passages of a pool, as many from each cluster of their vectors as there are.

    The pool is in the seed's order, and so is each cluster; the result is in the pool's order. A cluster with too few passages
    gives all it has, and the others give more.

    Raises:
        UsageError: the number of clusters is wrong. TeacherError: the embedding model is not found.
    """
    if wanted.clusters < 2:
        raise UsageError(f"--clusters {wanted.clusters}: expected at least 2", hint="--clusters 64")
    if len(pool) <= wanted.n:
        return pool
    from teachers.engines.bi_encoder import BiEncoderEngine

    model = models.resolve(wanted.stratify or "", engine="bi-encoder")
    engine = BiEncoderEngine(model.model or model.name)
    note(
        f"embedding {len(pool):,} passages with {model.name} to draw {wanted.n:,} evenly from their clusters"
    )
    with store.read() as con:
        texts = dict(
            con.execute(
                "SELECT document, concat_ws(' ', title, text) FROM documents WHERE list_contains(?, document)",
                [pool],
            ).fetchall()
        )
    try:
        vectors = np.stack([one.vector for one in engine.embed([texts[document] for document in pool])])
    finally:
        engine.close()
    return [pool[k] for k in evenly(clusters_of(vectors, wanted.clusters, wanted.seed), wanted.n)]


def clusters_of(vectors: NDArray[np.float32], n: int, seed: int) -> NDArray[np.int64]:
    """Number the clusters of unit vectors by k-means."""
    from scipy.cluster.vq import kmeans2

    _, found = kmeans2(
        vectors.astype(np.float64), min(n, len(vectors)), minit="++", seed=seed, missing="warn"
    )
    return np.asarray(found, dtype=np.int64)


def evenly(clusters: NDArray[np.int64], n: int) -> list[int]:
    """Return the places of n members, the first of each cluster before the second of any; in their order."""
    turn = np.zeros(len(clusters), dtype=np.int64)  # a member's place within its cluster
    for cluster in np.unique(clusters):
        members = np.flatnonzero(clusters == cluster)
        turn[members] = np.arange(len(members))
    return sorted(int(k) for k in np.argsort(turn, kind="stable")[:n])
