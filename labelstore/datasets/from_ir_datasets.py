"""Add a dataset of ir_datasets: judgments and queries, then its corpus in batches."""

import logging
import os
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from labelstore.datasets import add as ingest
from labelstore.datasets import catalog
from labelstore.datasets.staging import Progress, staging
from labelstore.errors import BadInput, DataMissing
from labelstore.files.jsonl import Document, Query
from labelstore.files.trec import Judgment
from labelstore.store.label_store import LabelStore

_NO_SOURCE = "All download sources failed"


def knows(ir_id: str) -> bool:
    """Tell whether ir_datasets has an id, on disk or not."""
    import ir_datasets

    try:
        ir_datasets.load(ir_id)
    except KeyError:
        return False
    return True


def add_ir_dataset(
    store: LabelStore, request: ingest.NewDataset, progress: Progress | None = None
) -> ingest.Added:
    """Add a dataset by its id in ir_datasets (by default `request.name`); its corpus is read once.

    Raises:
        DataMissing: ir_datasets has no such id, or has its files neither on disk nor within reach.
    """
    ir_id = request.ir_datasets_id or request.name
    request = replace(request, ir_datasets_id=ir_id, source=request.source or f"ir_datasets:{ir_id}")
    os.environ.setdefault("IR_DATASETS_DL_TRIES", "2")  # without a network fail soon
    import ir_datasets

    ir_datasets.log.easy().logger().setLevel(logging.ERROR)
    try:
        source = ir_datasets.load(ir_id)
    except KeyError:
        raise DataMissing(
            f"{ir_id} is neither an alias nor an id that ir_datasets knows",
            hint=f"msft data add {request.name} --from FOLDER (docs.jsonl, queries.tsv, qrels.txt)",
        ) from None
    missing = [kind for kind in ("docs", "queries") if not source.has(kind)]
    if missing:
        raise DataMissing(
            f"{ir_id} has no {' and no '.join(missing)} in ir_datasets",
            hint="name one of its subsets, e.g. " + ", ".join(_subsets(ir_id)[:3])
            if _subsets(ir_id)
            else None,
        )
    corpus = f"ir_datasets:{ir_datasets.docs_parent_id(ir_id)}"
    try:
        with staging(store) as stage:
            if source.has("qrels"):
                stage.add_judgments(_judgments(source), f"{ir_id} qrels")
            stage.add_queries(_queries(source), f"{ir_id} queries")
            if not _has_corpus(store, request, corpus):
                stage.add_documents(_documents(source), corpus, progress)
            stage.finish(request.update)
            return ingest.merge_dataset(store, stage, request)
    except (RuntimeError, OSError) as error:
        if isinstance(error, RuntimeError) and _NO_SOURCE not in str(error):
            raise
        raise DataMissing(
            f"ir_datasets has {ir_id} neither on disk nor within reach ({_reason(error)})",
            hint=f"msft data add {request.name} --from FOLDER, or put the files where ir_datasets looks"
            " (IR_DATASETS_HOME)",
        ) from error


def _reason(error: Exception) -> str:
    text = str(error)
    if "NameResolution" in text or "Max retries" in text:
        return "no network"
    return text.splitlines()[0][:120] if text else type(error).__name__


def _subsets(ir_id: str) -> list[str]:
    import ir_datasets

    return [name for name in ir_datasets.registry if name.startswith(ir_id + "/")]


def _has_corpus(store: LabelStore, request: ingest.NewDataset, corpus: str) -> bool:
    """Tell whether an earlier add read this whole corpus, by its filter row."""
    if not store.exists or request.update:
        return False
    name = request.collection or catalog.collection(request.name)
    with store.read() as con:
        found = con.execute(
            """SELECT count(*) FROM filters f JOIN provenance p USING (job) JOIN datasets d ON d.job = p.job
               JOIN collections c USING (collection)
               WHERE f.step = 'documents' AND f.subject = ? AND c.name = ?""",
            [corpus, name],
        ).fetchall()
    return bool(found[0][0])


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _checked_id(value: str, number: int, what: str) -> str:
    if not value or len(value.split()) != 1:
        raise BadInput(f"{what} {number}: the id {value!r} is empty or holds white space")
    return value


def _documents(source: Any) -> Iterator[Document]:
    for number, doc in enumerate(source.docs_iter(), 1):
        title = _text(getattr(doc, "title", None))
        # If title and text are separate (BEIR, classics), both are kept; other records build their text.
        text = doc.text if title and isinstance(getattr(doc, "text", None), str) else doc.default_text()
        yield Document(number, _checked_id(doc.doc_id, number, "document"), title or None, text)


def _queries(source: Any) -> Iterator[Query]:
    for number, query in enumerate(source.queries_iter(), 1):
        yield Query(number, _checked_id(query.query_id, number, "query"), query.default_text().strip())


def _judgments(source: Any) -> Iterator[Judgment]:
    for number, row in enumerate(source.qrels_iter(), 1):
        subtopic = str(getattr(row, "subtopic_id", "0"))
        yield Judgment(number, row.query_id, row.doc_id, int(row.relevance), subtopic)
