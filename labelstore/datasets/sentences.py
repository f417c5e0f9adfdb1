"""Pseudo-queries out of a collection itself: its titles, or each passage's most informative sentence.

They cost nothing and need no model. A teacher ranks passages for them as for the queries of a log, so that a student can
learn where real queries are few. They are no questions that people asked: measure on real queries alone.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import duckdb

from labelstore.datasets import add as ingest
from labelstore.datasets.staging import staging
from labelstore.errors import BadInput, DataMissing, UsageError
from labelstore.files.jsonl import Query
from labelstore.provenance import record as provenance
from labelstore.store import keys
from labelstore.store.label_store import LabelStore

MODEL = "sentences"
WORDS = (4, 25)  # of a sentence that can be a query; a title may have fewer by one
MOST_READ = 20_000  # passages that document frequencies are counted over, and that queries are chosen from
_SOURCE = "titles and sentences of the collection"
_WORD = re.compile(r"[^\W_]+(?:['-][^\W_]+)*")
_END = re.compile(r"(?<=[.!?;])\s+")

Passage = tuple[str, str | None, str]  # doc_id, title, text


@dataclass(frozen=True)
class Generated:
    """What :func:`generate` made: ``n_read = n_queries + the sum of drops`` (reason -> number, one example)."""

    dataset: str
    n_read: int
    n_queries: int
    drops: dict[str, tuple[int, str | None]]
    changed: bool


def generate(
    store: LabelStore,
    collection: str | None = None,
    *,
    n: int = 1500,
    name: str | None = None,
    seed: int = 42,
    note: Callable[[str], None] | None = None,
) -> Generated:
    """Add a training dataset of pseudo-queries over a collection; the same again changes nothing.

    Args:
        collection: its name; the only one by default.
        n: queries at most. The seed draws the passages that they come from.
        name: of the dataset; COLLECTION/sentences by default.

    Raises:
        UsageError: n below 1, or several collections and none named.
        DataMissing: an unknown collection, or one without a usable passage.
        BadInput: the dataset is there with other queries.
    """
    if n < 1:
        raise UsageError(f"n is {n}: expected at least 1", hint="--n 1500")
    clock = provenance.Clock()
    with store.read() as con:
        own = _collection(con, collection)
        if collection is None and note is not None:
            note(f"collection {own} (the only one)")
        passages = _passages(con, own, seed)
        known = _real_queries(con, own)
    queries, drops = choose(passages, n, known)
    if not queries:
        raise DataMissing(
            f"no passage of {own} has a title or a sentence of {WORDS[0]} to {WORDS[1]} words",
            hint=f"check with msft data list that {own} is the right collection",
        )
    request = ingest.NewDataset(
        name=name or f"{own}/sentences",
        collection=own,
        role="train",
        source=f"{_SOURCE}, seed {seed}",
    )
    with staging(store) as stage:
        stage.add_queries(queries, MODEL)
        stage.finish(False)
        try:
            added = ingest.merge_dataset(store, stage, request)
        except BadInput as error:
            raise BadInput(error.message, hint="make another dataset with --name NAME") from error
    if added.changed:
        with store.write() as con, provenance.recorded_in(con, "queries.generate", clock) as job:
            job.count(con, "queries from sentences", added.dataset, len(passages), drops)
    return Generated(added.dataset, len(passages), len(queries), drops, added.changed)


def choose(
    passages: Sequence[Passage], n: int, known: set[int]
) -> tuple[list[Query], dict[str, tuple[int, str | None]]]:
    """Choose a query from each passage until there are n, and give the reasons why other passages gave none.

    Args:
        known: hashes of normalised queries that the collection's datasets hold already.
    """
    counts = Counter(word for _, title, text in passages for word in set(_words(f"{title or ''} {text}")))
    rarity = {word: math.log(len(passages) / count) for word, count in counts.items()}
    found: list[Query] = []
    drops: dict[str, tuple[int, str | None]] = {}
    seen = set(known)
    for doc_id, title, text in passages:
        query = _query(title, text, rarity)
        if len(found) == n:
            reason = "not drawn"
        elif query is None:
            reason = "no title or sentence of fitting length"
        elif keys.normal_hash(query) in seen:
            reason = "reads as another query"
        else:
            seen.add(keys.normal_hash(query))
            found.append(Query(len(found) + 1, f"s-{doc_id}", query))
            continue
        count, example = drops.get(reason, (0, doc_id))
        drops[reason] = (count + 1, example)
    return found, drops


def _query(title: str | None, text: str, rarity: dict[str, float]) -> str | None:
    """Choose the title, or the sentence whose words are rarest on average."""
    if title and WORDS[0] - 1 <= len(_words(title)) <= WORDS[1]:
        return " ".join(title.split()).rstrip(" .")
    fitting = [s for s in _END.split(text) if WORDS[0] <= len(_words(s)) <= WORDS[1]]
    if not fitting:
        return None
    best = max(fitting, key=lambda s: sum(rarity[w] for w in set(_words(s))) / len(set(_words(s))))
    return " ".join(best.split()).rstrip(" .;")


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _collection(con: duckdb.DuckDBPyConnection, name: str | None) -> str:
    known = [n for (n,) in con.execute("SELECT name FROM collections ORDER BY name").fetchall()]
    if name is None and len(known) == 1:
        return str(known[0])
    if name is None and known:
        raise UsageError("the store has several collections", hint=f"--collection {' | '.join(known[:8])}")
    if name not in known:
        raise DataMissing(
            f"collection {name} is not in the store" if name else "the store has no collection",
            hint=f"--collection {' | '.join(known[:8])}" if known else "msft data add DATASET --from FOLDER",
        )
    return str(name)


def _real_queries(con: duckdb.DuckDBPyConnection, collection: str) -> set[int]:
    """Hash the normalised queries of the collection's other datasets."""
    found = con.execute(
        """SELECT DISTINCT q.normal_hash FROM queries q JOIN dataset_queries USING (query) JOIN datasets d USING (dataset)
           JOIN collections c ON c.collection = d.collection
           WHERE c.name = ? AND NOT starts_with(coalesce(d.source, ''), ?)""",
        [collection, _SOURCE],
    ).fetchall()
    return {hash_ for (hash_,) in found}


def _passages(con: duckdb.DuckDBPyConnection, collection: str, seed: int) -> list[Passage]:
    """Read at most MOST_READ passages with a text, in an order that the seed draws from their ids."""
    return con.execute(
        f"""SELECT doc_id, title, text FROM documents JOIN collections c USING (collection)
            WHERE c.name = ? AND text_hash IS NOT NULL
            ORDER BY md5(concat(?, ':', doc_id)), doc_id LIMIT {MOST_READ}""",
        [collection, seed],
    ).fetchall()
