"""Write a view's lists as JSONL rows in the layouts that sentence-transformers trains on.

``triplet`` (query, positive, negative), ``n-tuple`` (query, positive, negative_1 …), ``labeled-pair`` (query, document,
label), ``labeled-list`` (query, documents, labels). With scores a ``scores`` column joins the first two; in the labelled
layouts the teacher's ``score``/``scores`` take the labels' place.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from labelstore.errors import BadInput, UsageError
from labelstore.files.whole_file import appearing

Row = dict[str, Any]


def write(folder: Path, layout: str, output: Path, *, scores: bool = False) -> int:
    """Write a view folder's training lists; returns the number of rows.

    Raises:
        UsageError: the layout is unknown, the view has no scores, or the layout needs positives.
        BadInput: the file exists already.
    """
    if layout not in LAYOUTS:
        raise UsageError(f"no layout {layout!r}", hint=f"--layout folder | {' | '.join(LAYOUTS)}")
    if output.exists():
        raise BadInput(f"{output} exists already", hint="name a new file with -o")
    queries = pq.read_table(folder / "queries.parquet")["text"]
    passages = pq.read_table(folder / "passages.parquet")["text"]
    n = 0
    with appearing(output) as partial, partial.open("w", encoding="utf-8") as file:
        for batch in pq.ParquetFile(folder / "lists.parquet").iter_batches(batch_size=4096):
            for item in batch.to_pylist():
                if scores and item["scores"] is None:
                    raise UsageError("this view has no scores", hint="leave out --scores")
                texts = [passages[p].as_py() for p in item["passages"]]
                for row in LAYOUTS[layout](queries[item["query"]].as_py(), texts, item, scores):
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
                    n += 1
    return n


def _sides(item: Row) -> tuple[list[int], list[int]]:
    positives = [k for k, label in enumerate(item["labels"]) if label > 0]
    negatives = [k for k, label in enumerate(item["labels"]) if label == 0]
    if not positives or not negatives:
        raise UsageError(
            "this layout needs lists of positives and negatives",
            hint="--layout labeled-list, or a contrastive view",
        )
    return positives, negatives


def _triplet(query: str, texts: list[str], item: Row, scores: bool) -> Iterator[Row]:
    positives, negatives = _sides(item)
    for p in positives:
        for n in negatives:
            row: Row = {"query": query, "positive": texts[p], "negative": texts[n]}
            yield row | ({"scores": [item["scores"][p], item["scores"][n]]} if scores else {})


def _n_tuple(query: str, texts: list[str], item: Row, scores: bool) -> Iterator[Row]:
    positives, negatives = _sides(item)
    for p in positives:
        row: Row = {"query": query, "positive": texts[p]}
        row |= {f"negative_{k}": texts[n] for k, n in enumerate(negatives, 1)}
        yield row | ({"scores": [item["scores"][k] for k in (p, *negatives)]} if scores else {})


def _labeled_pair(query: str, texts: list[str], item: Row, scores: bool) -> Iterator[Row]:
    for k, text in enumerate(texts):
        value: Row = {"score": item["scores"][k]} if scores else {"label": item["labels"][k]}
        yield {"query": query, "document": text} | value


def _labeled_list(query: str, texts: list[str], item: Row, scores: bool) -> Iterator[Row]:
    yield {"query": query, "documents": texts} | (
        {"scores": item["scores"]} if scores else {"labels": item["labels"]}
    )


LAYOUTS: dict[str, Callable[[str, list[str], Row, bool], Iterator[Row]]] = {
    "triplet": _triplet,
    "n-tuple": _n_tuple,
    "labeled-pair": _labeled_pair,
    "labeled-list": _labeled_list,
}
