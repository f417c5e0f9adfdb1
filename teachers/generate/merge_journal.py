"""Merge journal segments into the store: short transactions, safe to repeat.

A segment is removed only after a checkpoint.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from labelstore.errors import BadInput, DataMissing, UsageError
from labelstore.labels import write as labels
from labelstore.provenance.record import Job
from labelstore.store import lookup
from labelstore.store.label_store import LabelStore, in_transaction
from teachers.journal import segments as journal
from teachers.journal.exact_json import clean
from teachers.journal.segments import Record

CHUNK = 500  # most records per transaction
CHUNK_PASSAGES = 10_000  # most passages in these records (or one record's)
CHECKPOINT_CHUNKS = 5
KIND = "teachers.generate"

_REQUESTS = pa.schema(
    [
        ("request_key", pa.string()),
        ("query_id", pa.string()),
        ("n_passages", pa.uint16()),
        ("n_prompt_tokens", pa.int32()),
        ("truncated_words", pa.uint16()),
    ]
)
_PASSAGES = pa.schema(
    [
        ("request_key", pa.string()),
        ("position", pa.uint16()),
        ("doc_id", pa.string()),
        ("text_hash", pa.uint64()),
    ]
)
_CALLS = pa.schema(
    [
        ("call_key", pa.string()),
        ("request_key", pa.string()),
        ("job_key", pa.string()),
        ("attempt", pa.uint16()),
        ("sample", pa.uint16()),
        ("status", pa.string()),
        ("reply", pa.string()),
        ("parsed", pa.list_(pa.uint16())),
        ("scores", pa.list_(pa.float32())),
        ("n_missing", pa.uint16()),
        ("n_repeated", pa.uint16()),
        ("n_out_of_range", pa.uint16()),
        ("finish_reason", pa.string()),
        ("tokens_in", pa.int32()),
        ("tokens_out", pa.int32()),
        ("seconds", pa.float64()),
        ("server", pa.string()),
        ("completed_at", pa.timestamp("us", "UTC")),
    ]
)
_LISTS = pa.schema(
    [
        ("query_id", pa.string()),
        ("status", pa.string()),
        ("repairs", pa.int32()),
        ("n_calls", pa.int32()),
        ("tokens_in", pa.int64()),
        ("tokens_out", pa.int64()),
        ("disagreement", pa.float32()),
        ("settled", pa.int32()),
    ]
)
_ITEMS = pa.schema(
    [
        ("query_id", pa.string()),
        ("rank", pa.uint16()),
        ("doc_id", pa.string()),
        ("initial_rank", pa.uint16()),
        ("grade", pa.uint16()),
        ("score", pa.float32()),
        ("text_hash", pa.uint64()),
    ]
)
_USED = pa.schema([("query_id", pa.string()), ("step", pa.int32()), ("call_key", pa.string())])
_QUARANTINE = pa.schema(
    [
        ("query_id", pa.string()),
        ("step", pa.int32()),
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("attempts", pa.int32()),
    ]
)
_CANARIES = pa.schema([("request_key", pa.string()), ("reply_hash", pa.string()), ("reply", pa.string())])


@dataclass
class MergedJournal:
    """The result of a merge."""

    segments: int = 0
    calls: int = 0  # new in the store
    permutations: int = 0  # new in the store
    quarantined: int = 0
    aside: int = 0  # segments that could not be merged completely
    notes: list[str] = field(default_factory=list)


def merge_journal(
    store: LabelStore, folder: Path, note: Callable[[str], None] | None = None
) -> MergedJournal:
    """Merge every closed segment of a journal into the store and remove it.

    Calls of all segments are merged before the permutations made from them. Each transaction takes at most
    :data:`CHUNK` records. The store is released after each segment, so that other processes can use it and memory does
    not grow with the journal. After a kill at any point, the next merge finds the segments and adds what is missing.
    Only one merge runs at a time; it waits for a merge of another process. If a record cannot be merged, all others
    are still merged, and its segment is set aside with the reason.

    Raises:
        StoreError: if the store stays locked; the journal then stays unchanged.
    """
    with journal.merging(folder):
        done = _merge(store, folder)
    if note is not None:
        for line in done.notes:
            note(line)
    return done


def _merge(store: LabelStore, folder: Path) -> MergedJournal:
    ready = journal.closed(folder)
    done = MergedJournal()
    wrong: dict[Path, list[str]] = {path: [] for path, _ in ready}  # reasons why records cannot be merged

    def calls(con: duckdb.DuckDBPyConnection, target: Target, chunk: list[Record]) -> None:
        done.calls += target.calls(con, chunk)

    for path, head in ready:
        damage = journal.Damage()
        wrong[path] += _taken(store, head, journal.read(path, damage), ("call", "canary"), calls)
        if damage.torn or damage.lines:
            done.notes.append(
                f"journal segment {path.name}: {damage.torn} bytes of an unfinished last line,"
                f" {len(damage.lines)} damaged lines skipped"
            )

    def lists(con: duckdb.DuckDBPyConnection, target: Target, chunk: list[Record]) -> None:
        new, failed = target.lists(con, chunk)
        done.permutations += new
        done.quarantined += failed

    for path, head in ready:
        if _readable(head) is None:
            wrong[path] += _taken(store, head, journal.read(path), ("permutation", "quarantine"), lists)
    for path, _ in ready:
        if wrong[path]:
            journal.set_aside(path, wrong[path])
            done.aside += 1
            done.notes.append(
                f"journal segment {path.name} was set aside: {_summed(wrong[path])}; msft verify says what to do"
            )
        else:
            journal.remove(path)
            done.segments += 1
    return done


# Errors in a merge from a record with a valid format and wrong content. They must not stop the merge of other records.
_UNMERGEABLE = (
    BadInput, DataMissing, UsageError, LookupError, TypeError, ValueError, AttributeError, ArithmeticError,
    duckdb.DataError, duckdb.IntegrityError, duckdb.InvalidInputException,
)  # fmt: skip


def _taken(
    store: LabelStore,
    head: Record | None,
    records: Iterable[Record],
    kinds: tuple[str, ...],
    take: Callable[[duckdb.DuckDBPyConnection, "Target", list[Record]], None],
) -> list[str]:
    """Merge a segment's records of some kinds; return a line for each record that cannot be merged."""
    reason = _readable(head)
    if head is None or reason is not None:
        return [reason or ""]
    wrong: list[str] = []
    try:
        with _target(store, head) as (con, target):
            for chunk in _chunks(con, records, kinds):
                wrong += _each(con, chunk, partial(take, con, target))
    except _UNMERGEABLE as error:
        return [_why(error)]
    return wrong


def _each(
    con: duckdb.DuckDBPyConnection, records: list[Record], take: Callable[[list[Record]], None]
) -> list[str]:
    """Merge records in one transaction; after a failure each half alone, so that only wrong records are left out."""
    try:
        with in_transaction(con):
            take(records)
    except _UNMERGEABLE as error:
        if len(records) > 1:
            middle = len(records) // 2
            return _each(con, records[:middle], take) + _each(con, records[middle:], take)
        record = records[0]
        return [f"{record['t']} {record.get('key') or record.get('query_id')}: {_why(error)}"]
    return []


def _readable(head: Record | None) -> str | None:
    """Return why a header cannot be read; None if it can."""
    if head is None:
        return "its first line, which says where its calls belong, is damaged"
    if head.get("format") != journal.FORMAT:
        return f"its format is {head.get('format')!r}, and this msft reads format {journal.FORMAT}"
    return None


def _why(error: BaseException) -> str:
    said = str(error).splitlines()
    return f"{type(error).__name__}: {said[0][:300] if said else 'without a message'}"


def _summed(reasons: list[str]) -> str:
    return reasons[0] + (f" (and {len(reasons) - 1:,} more)" if len(reasons) > 1 else "")


@contextmanager
def _target(store: LabelStore, head: Record) -> Iterator[tuple[duckdb.DuckDBPyConnection, "Target"]]:
    """Open the store for one segment; checkpoint it at the end."""
    with store.write(transaction=False) as con:
        # For chunks of this size more threads take more memory and save no time.
        con.execute("SET threads = 1")
        with in_transaction(con):
            target = Target.of(con, head)
        yield con, target
        con.execute("CHECKPOINT")


def _chunks(
    con: duckdb.DuckDBPyConnection, records: Iterable[Record], kinds: tuple[str, ...]
) -> Iterator[list[Record]]:
    """Yield records for one transaction each; checkpoint from time to time, so that memory does not fill up."""
    chunk: list[Record] = []
    passages = made = 0
    for record in records:
        if record["t"] not in kinds:
            continue
        chunk.append(record)
        docs = record.get("docs")
        passages += len(docs) if isinstance(docs, list) else 0
        if len(chunk) >= CHUNK or passages >= CHUNK_PASSAGES:
            yield chunk
            chunk, passages, made = [], 0, made + 1
            if made % CHECKPOINT_CHUNKS == 0:
                con.execute("CHECKPOINT")
    if chunk:
        yield chunk


@dataclass(frozen=True)
class Target:
    """The store's rows that a segment's records belong to; without a labeling its records are calls alone."""

    teacher: int
    labeling: int | None
    collection: int
    job: Job

    @classmethod
    def of(cls, con: duckdb.DuckDBPyConnection, head: Record) -> "Target":
        found = con.execute("SELECT job FROM provenance WHERE job_key = ?", [head["job"]]).fetchall()
        job = Job(int(found[0][0]) if found else 0, head["job"], KIND)
        if "labeling" not in head:
            teacher = labels.store_teacher(con, labels.Teacher(**head["teacher"]))
            return cls(teacher, None, lookup.collection(con, head["collection"]), job)
        return cls(*store_labeling(con, job, head), job)

    def calls(self, con: duckdb.DuckDBPyConnection, records: list[Record]) -> int:
        canaries = [record for record in records if record["t"] == "canary"]
        if canaries:
            self._store_canaries(con, canaries)
        records = [record for record in records if record["t"] == "call"]
        if not records:
            return 0
        first: dict[str, Record] = {}
        for record in records:
            first.setdefault(record["request"], record)
        with _registered(
            con,
            requests=_table(_REQUESTS, (_request_row(record) for record in first.values())),
            passages=_table(_PASSAGES, (row for record in first.values() for row in _passage_rows(record))),
            answers=_table(_CALLS, map(_call_row, records)),
        ):
            labels.store_requests(con, self.teacher, self.collection, "merging_requests", "merging_passages")
            return labels.store_calls(con, "merging_answers")

    def lists(self, con: duckdb.DuckDBPyConnection, records: list[Record]) -> tuple[int, int]:
        new = failed = 0
        if self.labeling is None:
            raise BadInput("the segment's first line names no labeling, and lists belong to one")
        # After a kill, a query may be done again and have two equal permutations; the last one counts.
        made = list({r["query_id"]: r for r in records if r["t"] == "permutation"}.values())
        if made:
            with _registered(
                con,
                lists=_table(_LISTS, map(_list_row, made)),
                items=_table(_ITEMS, (row for record in made for row in _item_rows(record))),
                used=_table(_USED, ((r["query_id"], step, key) for r in made for step, key in r["calls"])),
            ):
                new = labels.store_permutations(con, self.labeling, "merging_lists", "merging_items").new
                kept = labels.store_labeling_calls(con, self.labeling, "merging_used")
            wanted = {(r["query_id"], step, key) for r in made for step, key in r["calls"]}
            if kept != len(wanted):
                raise BadInput(f"it was made from {len(wanted)} calls, of which the store holds {kept}")
        failures = [r for r in records if r["t"] == "quarantine"]
        if failures:
            rows = (
                (r["query_id"], r["step"], r["reason"], clean(r["detail"]), r["attempts"]) for r in failures
            )
            with _registered(con, failures=_table(_QUARANTINE, rows)):
                failed = labels.store_quarantine(con, self.job, self.labeling, "merging_failures")
        labels.release(con, self.labeling)
        return new, failed

    def _store_canaries(self, con: duckdb.DuckDBPyConnection, records: list[Record]) -> None:
        rows = ((r["request"], r["reply_hash"], r["reply"]) for r in records)
        with _registered(con, canaries=_table(_CANARIES, rows)):
            con.execute(
                """INSERT INTO canaries
                   SELECT ?, ?, n.request_key, n.reply_hash, n.reply,
                          coalesce(first.reply_hash <> n.reply_hash, false)
                   FROM (SELECT DISTINCT * FROM merging_canaries) n
                   LEFT JOIN (SELECT request_key, arg_min(reply_hash, job) AS reply_hash FROM canaries
                              WHERE teacher = ? GROUP BY request_key) first USING (request_key)
                   ANTI JOIN (SELECT request_key FROM canaries WHERE teacher = ? AND job = ?) known
                          USING (request_key)""",
                [self.teacher, self.job.job, self.teacher, self.teacher, self.job.job],
            )


def store_labeling(con: duckdb.DuckDBPyConnection, job: Job, head: Record) -> tuple[int, int, int]:
    """Return (teacher, labeling, collection) of a journal's header; insert those that are new."""
    teacher = labels.store_teacher(con, labels.Teacher(**head["teacher"]))
    of = lookup.dataset(con, head["dataset"])
    run = lookup.run(con, of, head["run"])
    labeling = labels.store_labeling(
        con, job, labels.NewLabeling(teacher=teacher, dataset=of.dataset, run=run.run, **head["labeling"])
    )
    return teacher, labeling, of.collection


class _registered:
    """Register Arrow tables as ``merging_NAME`` for the statements inside the block."""

    def __init__(self, con: duckdb.DuckDBPyConnection, **tables: pa.Table) -> None:
        self._con, self._tables = con, tables

    def __enter__(self) -> None:
        for name, table in self._tables.items():
            self._con.register(f"merging_{name}", table)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # An error inside may have ended the transaction. That error counts, and the rollback unregisters the tables.
        with suppress(duckdb.TransactionException) if kind is not None else nullcontext():
            for name in self._tables:
                self._con.unregister(f"merging_{name}")


def _table(schema: pa.Schema, rows: Iterable[tuple[Any, ...]]) -> pa.Table:
    columns = list(zip(*rows, strict=True)) or [()] * len(schema)
    return pa.table(
        [pa.array(column, type=kind.type) for column, kind in zip(columns, schema, strict=True)],
        schema=schema,
    )


def _request_row(r: Record) -> tuple[Any, ...]:
    return r["request"], r["query_id"], len(r["docs"]), r["prompt_tokens"], r["words"]


def _passage_rows(r: Record) -> Iterator[tuple[Any, ...]]:
    for position, (doc_id, text_hash) in enumerate(zip(r["docs"], r["hashes"], strict=True), start=1):
        yield r["request"], position, doc_id, text_hash


def _call_row(r: Record) -> tuple[Any, ...]:
    return (
        r["key"],
        r["request"],
        r["job"],
        r["attempt"],
        r["sample"],
        r["status"],
        None if r["reply"] is None else clean(r["reply"]),  # older journals contain half surrogate pairs
        r["parsed"],
        r["scores"],
        r["missing"],
        r["repeated"],
        r["out_of_range"],
        None if r["finish"] is None else clean(str(r["finish"])),  # and finish reasons of other types
        r["in"],
        r["out"],
        r["seconds"],
        r["server"],
        datetime.fromisoformat(r["at"]),
    )


def _list_row(r: Record) -> tuple[Any, ...]:
    return (
        r["query_id"],
        r["status"],
        r["repairs"],
        len(r["calls"]),
        r["in"],
        r["out"],
        r["disagreement"],
        r["settled"],
    )


def _item_rows(r: Record) -> Iterator[tuple[Any, ...]]:
    """Yield items with grades: n for the best down to 1.

    Equal scores of a scoring teacher are ties and share the better grade. A record may contain its own grades (an
    imported labeling has other grades).
    """
    n = len(r["docs"])
    own = r.get("grades")
    scores = r["scores"] or [None] * n
    grade = n
    for index, (doc_id, text_hash, initial, score) in enumerate(
        zip(r["docs"], r["hashes"], r["initial"], scores, strict=True)
    ):
        if index == 0 or score is None or score != scores[index - 1]:
            grade = n - index
        yield r["query_id"], index + 1, doc_id, initial, own[index] if own else grade, score, text_hash
