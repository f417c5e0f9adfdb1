"""The candidates of a run: as keys for all of it, as texts block by block, never all texts at once.

A run of many queries is read as numbers: some twenty bytes a pair, some thirty a passage. Texts are read in blocks, with
the store closed while a block is worked on. A text that was changed in between is noticed by its hash.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import duckdb
import numpy as np
import polars as pl
from numpy.typing import NDArray

from labelstore.errors import BadInput, DataMissing
from labelstore.store import lookup
from labelstore.store.label_store import LabelStore
from msft import refusals

if TYPE_CHECKING:
    from students.rerank.reranker import Reranker, Scores

BLOCK_BYTES = 8 << 20  # of the texts that are in memory at once

Tick = Callable[[int, int | None], None]

# What is read of a text, by table; d and q are the tables' names in the statements below.
_TEXT = {"documents": lookup.FULL_TEXT, "queries": "text"}
_SIZE = {
    "documents": "coalesce(strlen(title), 0) + coalesce(strlen(text), 0)",
    "queries": "strlen(text)",
}
_KEY = {"documents": "document", "queries": "query"}


@dataclass(frozen=True)
class Texts:
    """Texts of the store that are to be read: n keys, and what each was like when the work began."""

    table: str  # documents or queries
    key: NDArray[np.int32]  # (n,)
    text_hash: NDArray[np.uint64]  # (n,)
    size: NDArray[np.int64]  # (n,) bytes

    def blocks(self, store: LabelStore, block_bytes: int) -> Iterator[list[str]]:
        """All texts in the order of their keys here, some at a time; the store is held for each reading alone.

        Raises:
            BadInput: a text was changed or removed since the keys were read.
        """
        ends = np.cumsum(self.size + 64)  # an empty text takes memory too
        first = 0
        while first < len(self.key):
            before = int(ends[first - 1]) if first else 0
            last = max(first + 1, int(np.searchsorted(ends, before + block_bytes, side="right")))
            with store.read() as con:
                block = self.read(con, first, last)
            yield block
            first = last

    def read(self, con: duckdb.DuckDBPyConnection, first: int, last: int) -> list[str]:
        """The texts of ``key[first:last]``.

        Raises:
            BadInput: one of them was changed or removed since the keys were read.
        """
        key = _KEY[self.table]
        wanted = {
            "number": np.arange(first, last),
            key: self.key[first:last],
            "text_hash": self.text_hash[first:last],
        }
        con.register("wanted", pl.DataFrame(wanted).to_arrow())
        found = con.execute(
            f"""SELECT {_TEXT[self.table]} FROM wanted JOIN {self.table} USING ({key}, text_hash)
                WHERE text IS NOT NULL ORDER BY number"""
        ).fetchall()
        if len(found) < last - first:
            raise BadInput(
                f"{last - first - len(found):,} texts of the {self.table} were changed while they were re-ranked",
                hint="run it again",
            )
        return [text for (text,) in found]


@dataclass(frozen=True)
class Candidates:
    """The candidates of a run that a student is to score, in (query_id, rank) order.

    Attributes:
        queries: the queries, one a list. sizes: (n_lists,) candidates of each.
        passages: each passage once, whatever lists it is in. passage: (n_pairs,) its number there.
    """

    queries: Texts
    sizes: NDArray[np.int64]
    passages: Texts
    passage: NDArray[np.int32]

    @property
    def n_pairs(self) -> int:
        return len(self.passage)

    @property
    def query(self) -> NDArray[np.int32]:
        """Query key of each pair, (n_pairs,)."""
        return np.repeat(self.queries.key, self.sizes)

    @property
    def document(self) -> NDArray[np.int32]:
        """Document key of each pair, (n_pairs,)."""
        return self.passages.key[self.passage]


@dataclass(frozen=True)
class CandidateLists:
    """Some lists with their texts.

    Attributes:
        query: query key of each list. texts: (query text, passage texts) of each list.
        documents: document keys of each list, aligned with its texts.
    """

    query: list[int]
    texts: list[tuple[str, list[str]]]
    documents: list[list[int]]

    @property
    def n_pairs(self) -> int:
        return sum(map(len, self.documents))


def candidates(
    con: duckdb.DuckDBPyConnection, source: lookup.Run, depth: int, queries: Sequence[int] | None = None
) -> Candidates:
    """The keys of the top `depth` candidates of a run.

    Args:
        queries: keys of the queries that are wanted; all where None.

    Raises:
        DataMissing: naming the first candidate whose text the store does not hold.
    """
    only = "" if queries is None else "AND query IN (SELECT unnest(?::INTEGER[]))"
    parameters = [source.run, depth, *([] if queries is None else [list(queries)])]
    chosen = f"(SELECT query, rank, document FROM candidates WHERE run = ? AND rank <= ? {only}) c"
    _all_held(con, source, chosen, parameters)
    rows = con.execute(
        f"""SELECT c.query, c.document FROM {chosen} JOIN queries q USING (query)
            ORDER BY q.query_id, c.rank""",
        parameters,
    ).fetchnumpy()
    query, document = np.asarray(rows["query"]), np.asarray(rows["document"])
    starts = np.flatnonzero(np.diff(query, prepend=query[:1] - 1))
    key, passage = np.unique(document, return_inverse=True)
    return Candidates(
        queries=_texts(con, "queries", query[starts]),
        sizes=np.diff(starts, append=len(query)),
        passages=_texts(con, "documents", key),
        passage=passage.astype(np.int32),
    )


def score(
    store: LabelStore,
    reranker: "Reranker",
    found: Candidates,
    *,
    progress: Tick | None = None,
    block_bytes: int = BLOCK_BYTES,
) -> "Scores":
    """Raw logits of all pairs, (n_pairs,), as `Reranker.scores` gives them for the lists in one call.

    Each text is read and tokenised once, in blocks, into a temporary file beside the store; batches are then formed
    over all pairs. So memory does not grow with texts, and the block's size changes nothing in the scores.

    Args:
        progress: called with (pairs scored, pairs).

    Raises:
        BadInput: a text was changed meanwhile. NoRoom: the disk is full.
    """
    from students.rerank.reranker import Pairs
    from students.text.token_file import TokenSpool

    encoder, folder = reranker.encoder, store.path.parent

    def spool(texts: Texts) -> TokenSpool:
        return TokenSpool(encoder.tokenizer, len(texts.key), keep=encoder.form.room, folder=folder)

    if progress is not None:
        progress(0, found.n_pairs)
    with (
        refusals.named(folder, duckdb.Error),
        spool(found.queries) as queries,
        spool(found.passages) as passages,
    ):
        for texts, into in ((found.queries, queries), (found.passages, passages)):
            for block in texts.blocks(store, block_bytes):
                into.add(block)
        query = np.repeat(np.arange(len(found.sizes), dtype=np.int32), found.sizes)
        return reranker.score_pairs(Pairs(queries, passages, query, found.passage), progress)


def lists(con: duckdb.DuckDBPyConnection, found: Candidates) -> CandidateLists:
    """The lists with their texts, all in memory: for a sample of a run."""
    queries, passages = (part.read(con, 0, len(part.key)) for part in (found.queries, found.passages))
    parts = np.split(found.passage, np.cumsum(found.sizes)[:-1])
    return CandidateLists(
        found.queries.key.tolist(),
        [(text, [passages[i] for i in part]) for text, part in zip(queries, parts, strict=True)],
        [found.passages.key[part].tolist() for part in parts],
    )


def _texts(con: duckdb.DuckDBPyConnection, table: str, keys: NDArray[Any]) -> Texts:
    key = _KEY[table]
    con.register("wanted", pl.DataFrame({"number": np.arange(len(keys)), key: keys}).to_arrow())
    rows = con.execute(
        f"""SELECT text_hash, ({_SIZE[table]})::BIGINT AS size FROM wanted JOIN {table} USING ({key})
            ORDER BY number"""
    ).fetchnumpy()
    return Texts(table, keys.astype(np.int32), np.asarray(rows["text_hash"]), np.asarray(rows["size"]))


def _all_held(con: duckdb.DuckDBPyConnection, source: lookup.Run, chosen: str, parameters: list[Any]) -> None:
    ((absent, pairs),) = con.execute(
        f"SELECT count(*) FILTER (d.text IS NULL), count(*) FROM {chosen} JOIN documents d USING (document)",
        parameters,
    ).fetchall()
    if not absent:
        return
    ((doc_id, query_id),) = con.execute(
        f"""SELECT d.doc_id, q.query_id FROM {chosen} JOIN documents d USING (document) JOIN queries q USING (query)
            WHERE d.text IS NULL ORDER BY q.query_id, c.rank LIMIT 1""",
        parameters,
    ).fetchall()
    raise DataMissing(
        f"run {source.name}: the store has no text of {absent:,} of {pairs:,} candidates,"
        f" first {doc_id} of query {query_id}",
        hint="add the collection with its passages: msft data add DATASET --from FOLDER",
    )
