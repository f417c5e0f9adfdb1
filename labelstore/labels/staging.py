"""Read and repair a file of labels into columns, while the store is closed."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class LabelSource:
    """A labeling of the file: the teacher and the first stage."""

    teacher: str
    first_stage: str | None


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
    parameters: list[dict[str, Any]]
    licences: list[str | None]
    depths: list[int]


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
    return _Stage(request, layout, is_ranking).run(items, progress)


class _Stage:
    def __init__(self, request: LabelsToImport, layout: str, is_ranking: Callable[[int, int], bool]) -> None:
        self.request, self.layout, self.is_ranking = request, layout, is_ranking
        self.sources: dict[LabelSource, int] = {}
        self.parameters: list[dict[str, Any]] = []
        self.licences: list[str | None] = []
        self.depths: list[int] = []
        self.lists, self.items = _Columns(_LISTS), _Columns(_ITEMS)
        self.failed, self.texts = _Columns(_FAILED), _Columns(_TEXTS)
        self.with_text: set[str] = set()
        self.named = 0
        self.repairs: Counter[str] = Counter()
        self.examples: dict[str, str] = {}

    def run(
        self, items: Iterable[LabelList | Malformed], progress: Callable[[int, int | None], None] | None
    ) -> Staged:
        n_read = 0
        for n_read, item in enumerate(items, 1):
            whole = repair(item, self.is_ranking) if isinstance(item, LabelList) else item
            source = self._source(item)
            if isinstance(whole, Malformed):
                self.failed.add(source, whole.query_id, whole.reason, f"{whole.place}: {whole.detail}")
            elif isinstance(item, LabelList):
                self._take(n_read, source, item, whole)
            if progress is not None and n_read % 500 == 0:
                progress(n_read, None)
        drops: dict[str, tuple[int, str | None]] = {
            reason: (n, self.examples[reason]) for reason, n in self.repairs.items()
        }
        return Staged(
            list(self.sources), self.lists.table(), self.items.table(), self.failed.table(), self.texts.table(),
            n_read, self.named, drops, self.parameters, self.licences, self.depths,
        )  # fmt: skip

    def _source(self, item: LabelList | Malformed) -> int:
        teacher = item.teacher or self.request.model
        if teacher is None:
            if isinstance(item, Malformed):
                teacher = next(iter(self.sources), LabelSource("unknown", None)).teacher
            else:
                raise BadInput(
                    f"{item.place}: the file does not name the teacher",
                    hint="name the teacher with --model NAME",
                )
        if self.request.model is not None and self.layout == "trec":
            teacher = self.request.model  # a run's tag is often no more than a program's name
        source = LabelSource(teacher, item.first_stage or self.request.first_stage or self.request.run)
        if source not in self.sources:
            self.sources[source] = len(self.sources)
            self.parameters.append({})
            self.licences.append(None)
            self.depths.append(0)
        return self.sources[source]

    def _take(self, number: int, source: int, item: LabelList, whole: Repaired) -> None:
        self.parameters[source] = self.parameters[source] or {
            key: value for key, value in item.parameters.items() if key not in ("example_id", "timestamp")
        }
        self.licences[source] = self.licences[source] or item.licence
        self.depths[source] = max(self.depths[source], item.depth or 0, len(whole.docs))
        text = item.query_text
        self.lists.add(
            number, source, item.place, item.query_id, text, None if text is None else keys.normal_hash(text),
            whole.status, whole.repairs, item.n_calls, item.tokens_in, item.tokens_out, len(whole.docs),
            whole.n_missing, whole.n_repeated, whole.n_out_of_range, item.reply, item.settled,
        )  # fmt: skip
        initial: Sequence[int | None] = whole.initial_ranks or [None] * len(whole.docs)
        for rank, row in enumerate(zip(whole.docs, initial, whole.grades, whole.scores, strict=True), 1):
            self.items.add(number, rank, *row)
        self.named += len(whole.docs) - whole.n_missing + whole.n_repeated + whole.n_out_of_range
        self.named += item.n_without_text
        for reason, n in (
            ("repeated", whole.n_repeated),
            ("not among those shown", whole.n_out_of_range),
            ("left out by the source, without text", item.n_without_text),
        ):
            if n:
                self.repairs[reason] += n
                self.examples.setdefault(reason, item.place)
        if self.request.with_texts:
            for doc_id, (title, body) in item.texts.items():
                if doc_id not in self.with_text and body.strip():
                    self.with_text.add(doc_id)
                    self.texts.add(doc_id, title, body, keys.text_hash(title, body))


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
