"""Copy the ids of a collection and their keys from the store before a run is read.

If all ids are whole numbers, like MS MARCO's, the key of an id is found in an array. Other ids are joined.
"""

from dataclasses import dataclass
from typing import Any

import duckdb
import numpy as np

from labelstore.store import lookup
from labelstore.store.label_store import LabelStore
from labelstore.store.row_hashes import id_hash, whole_number

BATCH = 1 << 16  # rows at a time, so that the arrays fit the processor's cache
UNKNOWN = -1
_MOST_NUMBERS = 1 << 26  # keys of whole-number ids below this always fit an array (256 MiB)


@dataclass(frozen=True)
class KnownIds:
    """Keys by id.

    Attributes:
        dataset: as it was when the ids were copied.
        members: by the key of a query, whether it belongs to the dataset.
        queries, documents: the key of each whole-number id, the last one UNKNOWN; both None if one of the ids is text:
            then the tables of :func:`copy_ids` are there.
    """

    dataset: lookup.Dataset
    members: Any
    queries: Any
    documents: Any


def known_ids(store: LabelStore, con: duckdb.DuckDBPyConnection, dataset_name: str | None) -> KnownIds:
    """Copy a dataset's ids; what does not fit arrays goes into tables of `con`."""
    with store.read() as held:
        dataset = lookup.pick_dataset(held, dataset_name)
        queries = _keys(held, "queries", "query", "query_id", dataset.collection)
        documents = _keys(held, "documents", "document", "doc_id", dataset.collection)
        (top,) = held.execute("SELECT coalesce(max(query), 0) FROM queries").fetchall()[0]
        members = np.zeros(top + 1, dtype=bool)
        rows = held.sql(f"SELECT query FROM dataset_queries WHERE dataset = {dataset.dataset}")
        members[rows.to_arrow_table()["query"].to_numpy()] = True
        if queries is None or documents is None:
            queries = documents = None
            _copy(held, con, dataset)
    return KnownIds(dataset, members, queries, documents)


def copy_ids(store: LabelStore, con: duckdb.DuckDBPyConnection, known: KnownIds) -> None:
    """Copy the ids into the tables known_queries and known_documents, unless they are there."""
    if known.queries is not None:
        with store.read() as held:
            _copy(held, con, known.dataset)


def _copy(held: duckdb.DuckDBPyConnection, con: duckdb.DuckDBPyConnection, dataset: lookup.Dataset) -> None:
    for table, columns in (
        (
            "queries",
            f"query, query_id, query IN (SELECT query FROM dataset_queries WHERE dataset = {dataset.dataset}) AS member",
        ),
        ("documents", f"document, doc_id, {id_hash('doc_id')} AS id_hash"),
    ):
        rows = held.sql(f"SELECT {columns} FROM {table} WHERE collection = {dataset.collection}")
        con.register("ids", rows.to_arrow_reader(BATCH))
        con.execute(f"CREATE TABLE known_{table} AS SELECT * FROM ids")
        con.unregister("ids")


def _keys(con: duckdb.DuckDBPyConnection, table: str, key: str, id_: str, collection: int) -> Any:
    """Make an array from id to key; None if an id is not a whole number, or the ids are too far from each other."""
    rows = con.sql(
        f"SELECT {key} AS key, {whole_number(id_)} AS number FROM {table} WHERE collection = {collection}"
    )
    keys = np.full(1 << 16, UNKNOWN, dtype=np.int32)
    n = 0
    with rows.to_arrow_reader(BATCH) as batches:
        for batch in batches:
            numbers = batch.column("number")
            n += len(numbers)
            if numbers.null_count:
                return None
            if not len(numbers):
                continue
            values = numbers.to_numpy()
            top = int(values.max()) + 1
            if top >= min(max(_MOST_NUMBERS, 4 * n), 1 << 32):
                return None
            if top >= len(keys):
                grown = np.full(max(top + 1, 2 * len(keys)), UNKNOWN, dtype=np.int32)
                grown[: len(keys)] = keys
                keys = grown
            keys[values] = batch.column("key").to_numpy()
    return keys
