"""Read the candidates of a run: keys for the whole run, texts block by block.

A pair takes about twenty bytes, a passage about thirty. The store is closed while a block of texts is worked on. A
text's hash shows whether it was changed in the meantime.
"""

import sys
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
    from students.rerank.pairs import Scores
    from students.rerank.reranker import Reranker

BLOCK_BYTES = 8 << 20  # of texts in memory at once

Tick = Callable[[int, int | None], None]

# SQL by table: the text that a student reads, its size, and its key column.
_TEXT = {"documents": lookup.FULL_TEXT, "queries": "text"}
_SIZE = {
    "documents": "coalesce(strlen(title), 0) + coalesce(strlen(text), 0)",
    "queries": "strlen(text)",
}
_KEY = {"documents": "document", "queries": "query"}


@dataclass(frozen=True)
class Texts:
    """Texts of the store to be read: n keys, with the hash and size of each text at the start of the work."""

    table: str  # documents or queries
    key: NDArray[np.int32]  # (n,)
    text_hash: NDArray[np.uint64]  # (n,)
    size: NDArray[np.int64]  # (n,) bytes

    def blocks(self, store: LabelStore, block_bytes: int) -> Iterator[list[str]]:
        """Yield all texts in the order of their keys, block by block. The store is open only during each reading.

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
        """Read the texts of ``key[first:last]``.

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
                f"{last - first - len(found):,} texts of {self.table} were changed during re-ranking",
                hint="run the command again",
            )
        return [text for (text,) in found]


@dataclass(frozen=True)
class Candidates:
    """The candidates of a run that a student is to score, in (query_id, rank) order.

    Attributes:
        queries: the query of each list. sizes: (n_lists,) number of candidates of each list.
        passages: the distinct passages. passage: (n_pairs,) index of each pair's passage among them.
    """

    queries: Texts
    sizes: NDArray[np.int64]
    passages: Texts
    passage: NDArray[np.int32]

    @property
    def n_pairs(self) -> int:
        return len(self.passage)

    def complete(self, n_passages: int) -> int:
        """Count the pairs of the first lists that need no more than the first passages."""
        needed = np.maximum.accumulate(np.append(self.passage, len(self.passages.key)))
        ends = np.cumsum(self.sizes)
        whole = np.searchsorted(ends, np.searchsorted(needed, n_passages), side="right")
        return int(ends[whole - 1]) if whole else 0

    @property
    def query(self) -> NDArray[np.int32]:
        """The query key of each pair, (n_pairs,)."""
        return np.repeat(self.queries.key, self.sizes)

    @property
    def document(self) -> NDArray[np.int32]:
        """The document key of each pair, (n_pairs,)."""
        return self.passages.key[self.passage]


@dataclass(frozen=True)
class CandidateLists:
    """A sample of a run's lists with their texts.

    Attributes:
        query: the query key of each list. texts: (query text, passage texts) of each list.
        documents: the document keys of each list, aligned with its texts.
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
    """Read the keys of the top `depth` candidates of a run.

    Args:
        queries: keys of the queries to read; None reads all.

    Raises:
        DataMissing: the store lacks the text of a candidate; the message names the first one.
    """
    only = "" if queries is None else "AND query IN (SELECT unnest(?::INTEGER[]))"
    parameters = [source.run, depth, *([] if queries is None else [list(queries)])]
    chosen = f"(SELECT query, rank, document FROM candidates WHERE run = ? AND rank <= ? {only}) c"
    _check_texts(con, source, chosen, parameters)
    rows = con.execute(
        f"""SELECT c.query, c.document FROM {chosen} JOIN queries q USING (query)
            ORDER BY q.query_id, c.rank""",
        parameters,
    ).fetchnumpy()
    query, document = np.asarray(rows["query"]), np.asarray(rows["document"])
    starts = np.flatnonzero(np.diff(query, prepend=query[:1] - 1))
    key, first, passage = np.unique(document, return_index=True, return_inverse=True)
    order = np.argsort(
        first
    )  # in the order in which lists need them, so that the first lists are complete early
    place = np.empty(len(order), dtype=np.int32)
    place[order] = np.arange(len(order))
    return Candidates(
        queries=_texts(con, "queries", query[starts]),
        sizes=np.diff(starts, append=len(query)),
        passages=_texts(con, "documents", key[order]),
        passage=place[passage],
    )


def score(
    store: LabelStore,
    reranker: "Reranker",
    found: Candidates,
    *,
    progress: Tick | None = None,
    block_bytes: int = BLOCK_BYTES,
) -> "Scores":
    """Compute the raw logits of all pairs, (n_pairs,), as one call of `Reranker.scores` would.

    Each text is read and tokenised once, in blocks, into a temporary file beside the store; ids that the token cache has
    are taken from there. Batches are then formed over all pairs. So memory does not grow with the texts, and the scores do
    not depend on the block's size. For a GPU, the lists whose texts are there are scored while the next block is
    tokenised.

    Args:
        progress: called with (pairs scored, pairs).

    Raises:
        BadInput: a text was changed in the meantime. NoRoom: the disk is full.
    """
    from students.rerank.pairs import Pairs
    from students.rerank.pipeline import ahead
    from students.text.token_cache import TokenCache
    from students.text.token_file import TokenFile

    encoder, folder = reranker.encoder, store.path.parent
    cache = TokenCache(store.files / "tokens", encoder.tokenizer)
    keep = encoder.form.room if encoder.long == "first" else sys.maxsize

    def token_file(texts: Texts) -> TokenFile:
        return TokenFile(encoder.tokenizer, len(texts.key), keep=keep, folder=folder, cache=cache)

    if progress is not None:
        progress(0, found.n_pairs)
    with (
        refusals.named(folder, duckdb.Error),
        token_file(found.queries) as queries,
        token_file(found.passages) as passages,
    ):
        query = np.repeat(np.arange(len(found.sizes), dtype=np.int32), found.sizes)

        def filled() -> Iterator[Pairs]:
            """Tokenise block by block; yield the pairs whose texts are there."""
            for block in found.queries.blocks(store, block_bytes):
                queries.add(block)
            first = 0
            for block in found.passages.blocks(store, block_bytes):
                passages.add(block)
                last = found.complete(len(passages))
                yield Pairs(queries, passages, query[first:last], found.passage[first:last])
                first = last

        if reranker.in_blocks:
            return reranker.score_blocks(ahead(filled(), lambda pairs: pairs, 1), progress, found.n_pairs)
        for _ in filled():
            pass
        return reranker.score_pairs(Pairs(queries, passages, query, found.passage), progress)


def lists(con: duckdb.DuckDBPyConnection, found: Candidates) -> CandidateLists:
    """Read the lists with all their texts into memory. Use it for a sample of a run."""
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


def _check_texts(
    con: duckdb.DuckDBPyConnection, source: lookup.Run, chosen: str, parameters: list[Any]
) -> None:
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
        f"run {source.name}: {absent:,} of {pairs:,} candidates have no text in the store;"
        f" the first is {doc_id} of query {query_id}",
        hint="add the collection with its passages: msft data add DATASET --from FOLDER",
    )
