"""Read a view's folder for tests."""

import pyarrow.parquet as pq

from labelstore.store.label_store import LabelStore
from labelstore.views import build as views
from labelstore.views import folder as export


def read(store: LabelStore, view) -> tuple[dict, list[dict], dict[int, str], dict[int, str]]:
    """Manifest, lists, doc_id by passage, query_id by query."""
    folder = views.folder_of(store, view)
    passages = pq.read_table(folder / "passages.parquet").to_pylist()
    queries = pq.read_table(folder / "queries.parquet").to_pylist()
    assert [p["passage"] for p in passages] == list(range(len(passages)))
    assert [q["query"] for q in queries] == list(range(len(queries)))
    return (
        export.read_manifest(folder),
        pq.read_table(folder / "lists.parquet").to_pylist(),
        {p["passage"]: p["doc_id"] for p in passages},
        {q["query"]: q["query_id"] for q in queries},
    )
