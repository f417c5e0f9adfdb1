"""Import label files in tests, and read the rows that they become."""

from pathlib import Path
from typing import Any

from labelstore.labels.import_file import Imported, import_labels
from labelstore.labels.staging import LabelsToImport
from labelstore.store.label_store import LabelStore
from teachers.prompts import replies as reader

DATASET = "c/train"


def take(store: LabelStore, path: Path, replies: Path | None = None, **options: Any) -> Imported:
    return import_labels(
        store, path, LabelsToImport(options.pop("dataset", DATASET), replies=replies, **options), reader
    )


def rows(store: LabelStore, sql: str) -> list[tuple[Any, ...]]:
    with store.read() as con:
        return con.execute(sql).fetchall()


def line(query_id: str, permutation: list[str], **more: Any) -> dict[str, Any]:
    return {
        "query_id": query_id,
        "permutation": permutation,
        "teacher": "T 1 (x)",
        "first_stage": "first",
        **more,
    }


ITEMS = "SELECT doc_id, rank, initial_rank, grade, score FROM labels ORDER BY labeling, query_id, rank"
