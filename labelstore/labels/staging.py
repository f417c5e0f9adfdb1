"""Read and repair a file of labels into columns, while the store is closed."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from labelstore.errors import BadInput
from labelstore.labels.label_list import LabelList, Malformed
from labelstore.labels.repair import Repaired, repair
from labelstore.store import keys

_LISTS = pa.schema(
    [
        ("list", pa.int64()), ("source", pa.int32()), ("place", pa.string()), ("query_id", pa.string()),
        ("query_text", pa.string()), ("normal_hash", pa.uint64()), ("status", pa.string()), ("repairs", pa.int32()),
        ("n_calls", pa.int32()), ("tokens_in", pa.int64()), ("tokens_out", pa.int64()), ("length", pa.int32()),
        ("missing", pa.int32()), ("repeated", pa.int32()), ("out_of_range", pa.int32()), ("reply", pa.string()),
        ("settled", pa.int32()),
    ]
)  # fmt: skip
_ITEMS = pa.schema(
    [
        ("list", pa.int64()), ("rank", pa.uint16()), ("doc_id", pa.string()), ("initial_rank", pa.uint16()),
        ("grade", pa.uint16()), ("score", pa.float32()),
    ]
)  # fmt: skip
_FAILED = pa.schema(
    [("source", pa.int32()), ("query_id", pa.string()), ("reason", pa.string()), ("detail", pa.string())]
)
_TEXTS = pa.schema(
    [("doc_id", pa.string()), ("title", pa.string()), ("text", pa.string()), ("text_hash", pa.uint64())]
)
_BATCH = 200_000


@dataclass
class LabelSource:
    """A labeling of the file: its teacher and first stage, and what its lists say of it."""

    number: int
    teacher: str
    first_stage: str | None
    parameters: dict[str, Any] = field(default_factory=dict)
    licence: str | None = None
    depth: int = 0


@dataclass
class Staged:
    """The content of a file: columns of lists and items, and what was refused or repaired."""

    sources: list[LabelSource]
    lists: pa.Table
    items: pa.Table
    failed: pa.Table
    texts: pa.Table
    n_read: int
    n_named: int  # passages that the lists named, repeats and left-out ones included
    passage_drops: dict[str, tuple[int, str | None]]


@dataclass(frozen=True)
class LabelsToImport:
    """The options of `teachers import`.

    Attributes:
        model: the teacher's name, if the file does not have it.
        name: the labeling's name, if the file has one labeling.
        run: the run of the dataset that was labelled; its ranks are the initial ranks if the file has none.
        with_texts: take queries and passages that the store lacks from the file, if it has their texts.
    """

    dataset: str | None
    layout: str | None = None
    model: str | None = None
    first_stage: str | None = None
    name: str | None = None
    run: str | None = None
    licence: str | None = None
    replies: Path | None = None
    with_texts: bool = False
    replace: bool = False


def stage(
    items: Iterable[LabelList | Malformed],
    request: LabelsToImport,
    layout: str,
    is_ranking: Callable[[int, int], bool],
    progress: Callable[[int, int | None], None] | None = None,
) -> Staged:
    """Repair all lists of a file and collect them as columns."""
    lists, ranked, failed, texts = (_Columns(schema) for schema in (_LISTS, _ITEMS, _FAILED, _TEXTS))
    sources: dict[tuple[str, str | None], LabelSource] = {}
    with_text: set[str] = set()
    drops: dict[str, tuple[int, str | None]] = {}
    n_read = n_named = 0
    for n_read, item in enumerate(items, 1):
        key = _labeling_of(item, request, layout, next(iter(sources), ("unknown", None)))
        source = sources.setdefault(key, LabelSource(len(sources), *key))
        whole = repair(item, is_ranking) if isinstance(item, LabelList) else item
        if isinstance(whole, Malformed):
            failed.add(source.number, whole.query_id, whole.reason, f"{whole.place}: {whole.detail}")
        elif isinstance(item, LabelList):
            _learn(source, item, len(whole.docs))
            lists.add(n_read, source.number, *_list_row(item, whole))
            initial: Sequence[int | None] = whole.initial_ranks or [None] * len(whole.docs)
            columns = zip(whole.docs, initial, whole.grades, whole.scores, strict=True)
            for rank, row in enumerate(columns, 1):
                ranked.add(n_read, rank, *row)
            left_out = _left_out(item, whole)
            n_named += len(whole.docs) - whole.n_missing + sum(left_out.values())
            for reason, n in left_out.items():
                total, example = drops.get(reason, (0, item.place))
                drops[reason] = (total + n, example)
            for text in _new_texts(item, with_text) if request.with_texts else ():
                texts.add(*text)
        if progress is not None and n_read % 500 == 0:
            progress(n_read, None)
    return Staged(
        list(sources.values()), lists.table(), ranked.table(), failed.table(), texts.table(), n_read, n_named, drops
    )  # fmt: skip


def _labeling_of(
    item: LabelList | Malformed, request: LabelsToImport, layout: str, first: tuple[str, str | None]
) -> tuple[str, str | None]:
    """Return a list's teacher and first stage; a malformed list without a teacher counts for the first labeling's.

    Raises:
        BadInput: neither the list nor the request names the teacher.
    """
    teacher = item.teacher or request.model
    if teacher is None and isinstance(item, LabelList):
        raise BadInput(
            f"{item.place}: the file does not name the teacher", hint="name the teacher with --model NAME"
        )
    if layout == "trec":
        teacher = request.model or teacher  # a run's tag is often no more than a program's name
    return teacher or first[0], item.first_stage or request.first_stage or request.run


def _learn(source: LabelSource, item: LabelList, depth: int) -> None:
    """Keep the first parameters and licence that a labeling's lists name, and the greatest depth."""
    source.parameters = source.parameters or {
        key: value for key, value in item.parameters.items() if key not in ("example_id", "timestamp")
    }
    source.licence = source.licence or item.licence
    source.depth = max(source.depth, item.depth or 0, depth)


def _list_row(item: LabelList, whole: Repaired) -> tuple[Any, ...]:
    """Return the columns of ``_LISTS`` from `place` on."""
    text = item.query_text
    return (
        item.place, item.query_id, text, None if text is None else keys.normal_hash(text), whole.status, whole.repairs,
        item.n_calls, item.tokens_in, item.tokens_out, len(whole.docs), whole.n_missing, whole.n_repeated,
        whole.n_out_of_range, item.reply, item.settled,
    )  # fmt: skip


def _left_out(item: LabelList, whole: Repaired) -> dict[str, int]:
    """Count the named passages that were left out, by reason."""
    counts = {
        "repeated": whole.n_repeated,
        "not among those shown": whole.n_out_of_range,
        "left out by the source, without text": item.n_without_text,
    }
    return {reason: n for reason, n in counts.items() if n}


def _new_texts(item: LabelList, known: set[str]) -> Iterator[tuple[Any, ...]]:
    """Yield the rows of ``_TEXTS`` for the passages that are not `known` yet, and add these."""
    for doc_id, (title, body) in item.texts.items():
        if doc_id not in known and body.strip():
            known.add(doc_id)
            yield doc_id, title, body, keys.text_hash(title, body)


class _Columns:
    """Rows gathered into Arrow tables, a batch at a time."""

    def __init__(self, schema: pa.Schema) -> None:
        self._schema = schema
        self._rows: list[tuple[Any, ...]] = []
        self._tables: list[pa.Table] = []

    def add(self, *row: Any) -> None:
        self._rows.append(row)
        if len(self._rows) >= _BATCH:
            self._flush()

    def _flush(self) -> None:
        columns = zip(*self._rows, strict=True) if self._rows else ([] for _ in self._schema)
        arrays = [
            pa.array(list(column), type=kind.type) for column, kind in zip(columns, self._schema, strict=True)
        ]
        self._tables.append(pa.table(arrays, schema=self._schema))
        self._rows = []

    def table(self) -> pa.Table:
        self._flush()
        return pa.concat_tables(self._tables)
