"""Stage a source: read and hash it line by line into a DuckDB file beside the store, until it is merged.

The store is neither touched nor held meanwhile; memory is bounded by one batch.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from labelstore.errors import BadInput
from labelstore.files import fast_jsonl as quick_documents
from labelstore.files import jsonl
from labelstore.files.jsonl import Bad, Document, Query
from labelstore.files.trec import Judgment
from labelstore.files.work_folder import work_folder
from labelstore.provenance import record as provenance
from labelstore.store import keys
from labelstore.store.interrupts import interruptible
from labelstore.store.label_store import LabelStore, configure

Progress = Callable[[int, int | None], None]
Drops = dict[str, tuple[int, str | None]]

BATCH = 20_000
EMPTY_PASSAGE = "empty passage"
EMPTY_QUERY = "empty query"
REPEATED = "same id and text again"
SUPERSEDED = "an earlier text of the same id"
UNJUDGED = "query without a judgment in the given qrels"
NO_TEXT = "judgment of a query without text"
REPEATED_JUDGMENT = "same judgment again"
BAD_LINE = "line that cannot be read"
NAMED = 3  # skipped lines that are named

_TABLES = {
    "docs": pa.schema([("line", pa.int64()), ("doc_id", pa.string()), ("title", pa.string()), ("text", pa.string()), ("text_hash", pa.uint64())]),
    "queries": pa.schema([("line", pa.int64()), ("query_id", pa.string()), ("text", pa.string()), ("text_hash", pa.uint64()), ("normal_hash", pa.uint64())]),
    "judgments": pa.schema([("line", pa.int64()), ("query_id", pa.string()), ("doc_id", pa.string()), ("relevance", pa.int16()), ("iteration", pa.string())]),
}  # fmt: skip


@dataclass
class ReadCounts:
    """Counts of one step: read = kept + rejected; of the kept, `new` were not in the store yet."""

    step: str
    source: str
    n_read: int = 0
    n_new: int = 0
    n_updated: int = 0
    drops: Drops = field(default_factory=dict)

    @property
    def n_kept(self) -> int:
        return self.n_read - sum(n for n, _ in self.drops.values())

    def drop(self, reason: str, n: int, example: str | None = None) -> None:
        if n:
            before, first = self.drops.get(reason, (0, None))
            self.drops[reason] = (before + n, first or example)


class Staging:
    """A source, read and hashed into a DuckDB file until it is merged.

    Args:
        skip: bad lines that a file of passages or queries may have; they are left out, and counted with reasons.
    """

    def __init__(self, path: Path, skip: int = 0) -> None:
        self.path = path
        self._skip = skip
        self.notes: list[str] = []
        self.con = duckdb.connect(str(path), config={"storage_compatibility_version": "v1.5.0"})
        configure(self.con)
        self.con.execute("SET preserve_insertion_order = false")
        self.con.execute(
            """CREATE TABLE docs (line BIGINT, doc_id VARCHAR, title VARCHAR, text VARCHAR, text_hash UBIGINT);
               CREATE TABLE queries (line BIGINT, query_id VARCHAR, text VARCHAR, text_hash UBIGINT,
                                     normal_hash UBIGINT);
               CREATE TABLE judgments (line BIGINT, query_id VARCHAR, doc_id VARCHAR, relevance SMALLINT,
                                       iteration VARCHAR)"""
        )
        self.steps: dict[str, ReadCounts] = {}
        self.clock = provenance.Clock()  # the reading is part of the job

    def _append(
        self, table: str, rows: Iterable[tuple[Any, ...] | None], step: ReadCounts, progress: Progress | None
    ) -> None:
        """Append rows in batches; None counts as read (the caller counted why it was dropped)."""
        schema = _TABLES[table]
        batch: list[tuple[Any, ...]] = []
        self.con.execute("BEGIN")
        for row in rows:
            step.n_read += 1
            if row is not None:
                batch.append(row)
                if len(batch) == BATCH:
                    self._flush(table, batch, schema)
                    if progress:
                        progress(step.n_read, None)
        self._flush(table, batch, schema)
        if progress:
            progress(step.n_read, None)
        self.con.execute("COMMIT")

    def _flush(self, table: str, batch: list[tuple[Any, ...]], schema: pa.Schema) -> None:
        if batch:
            columns = [
                pa.array(c, type=f.type) for c, f in zip(zip(*batch, strict=True), schema, strict=True)
            ]
            self.con.register("batch", pa.table(columns, schema=schema))
            self.con.execute(f"INSERT INTO {table} SELECT * FROM batch")
            self.con.unregister("batch")
            batch.clear()

    @contextmanager
    def _skipping(self, step: ReadCounts) -> Iterator[Bad]:
        """Give a reader's handler of bad lines; afterwards name the first ones.

        Raises:
            BadInput: one bad line more than may be skipped; the message names it.
        """
        found: list[str] = []

        def bad(error: BadInput) -> None:
            if len(found) >= self._skip:
                before = f"; {len(found)} bad lines were skipped before it" if found else ""
                more = f"N, N above {self._skip}," if found else "N"
                raise BadInput(
                    error.message + before,
                    hint=f"{error.hint or 'repair the file'}; or --skip-bad-lines {more} leaves out up to N such lines",
                ) from error
            found.append(error.message)
            step.n_read += 1
            step.drop(BAD_LINE, 1, error.message)

        yield bad
        if found:
            more = f"; and {len(found) - NAMED:,} more" if len(found) > NAMED else ""
            self.notes.append(f"bad lines skipped, {len(found):,}: {'; '.join(found[:NAMED])}{more}")

    def add_documents(
        self,
        documents: Iterable[Document],
        source: str,
        progress: Progress | None = None,
    ) -> None:
        """Read documents; passages without title and text are rejected with a count."""
        step = self._step("documents", source)

        def rows() -> Iterator[tuple[Any, ...] | None]:
            for d in documents:
                if not d.text.strip() and not (d.title or "").strip():
                    step.drop(EMPTY_PASSAGE, 1, f"{source}:{d.line} ({d.doc_id})")
                    yield None
                else:
                    yield d.line, d.doc_id, d.title, d.text, keys.text_hash(d.title, d.text)

        self._append("docs", rows(), step, progress)

    def add_document_file(self, path: Path, progress: Progress | None = None) -> None:
        """Read a TSV or a JSONL file: in blocks if it has the common form, otherwise line by line.

        Raises:
            BadInput: a line is wrong; the message names it.
        """
        if ".tsv" in path.suffixes:
            with self._skipping(self._step("documents", str(path))) as bad:
                self.add_documents(jsonl.read_document_table(path, bad), str(path), progress)
            return
        step = ReadCounts("documents", str(path))
        self.con.execute("BEGIN")
        try:
            for n, batch, empty in quick_documents.batches(path):
                step.n_read += n
                for line, doc_id in empty:
                    step.drop(EMPTY_PASSAGE, 1, f"{path}:{line} ({doc_id})")
                self.con.register("batch", batch)
                self.con.execute("INSERT INTO docs SELECT * FROM batch")
                self.con.unregister("batch")
                if progress:
                    progress(step.n_read, None)
        except quick_documents.UnusualForm:
            self.con.execute("ROLLBACK")
            with self._skipping(self._step("documents", str(path))) as bad:
                self.add_documents(jsonl.read_documents(path, bad), str(path), progress)
            return
        self.con.execute("COMMIT")
        self.steps["documents"] = step

    def add_query_file(self, path: Path) -> None:
        """Read a TSV or JSONL file of queries.

        Raises:
            BadInput: a line is wrong; the message names it.
        """
        with self._skipping(self._step("queries", str(path))) as bad:
            self.add_queries(jsonl.read_queries(path, bad), str(path))

    def _step(self, name: str, source: str) -> ReadCounts:
        return self.steps.setdefault(name, ReadCounts(name, source))

    def add_queries(self, queries: Iterable[Query], source: str) -> None:
        """Read queries; empty ones are rejected with a count."""
        step = self._step("queries", source)

        def rows() -> Iterator[tuple[Any, ...] | None]:
            for q in queries:
                if q.text:
                    yield q.line, q.query_id, q.text, keys.text_hash(None, q.text), keys.normal_hash(q.text)
                else:
                    step.drop(EMPTY_QUERY, 1, f"{source}:{q.line} ({q.query_id})")
                    yield None

        self._append("queries", rows(), step, None)

    def add_judgments(self, judgments: Iterable[Judgment], source: str) -> None:
        """Read judgments.

        Raises:
            BadInput: the source has no judgment, or a pair has judgments for several subtopics.
        """
        step = self.steps.setdefault("qrels", ReadCounts("qrels", source))
        rows = ((j.line, j.query_id, j.doc_id, j.relevance, j.iteration) for j in judgments)
        self._append("judgments", rows, step, None)
        if not step.n_read:
            raise BadInput(
                f"{source}: the file holds no judgment",
                hint="give the file with the judgments; without one leave --qrels out",
            )
        self._refuse_subtopics(source)

    def _refuse_subtopics(self, source: str) -> None:
        """Refuse qrels for diversity: they judge a passage once for each subtopic, and the store has one grade for each pair."""
        found = self.con.execute(
            """SELECT query_id, doc_id, min(iteration), max(iteration), max(line) FROM judgments
               GROUP BY query_id, doc_id HAVING min(iteration) <> max(iteration) ORDER BY min(line) LIMIT 1"""
        ).fetchall()
        if found:
            query, document, one, other, line = found[0]
            raise BadInput(
                f"{source}:{line}: {document} is judged for the subtopics {one} and {other} of query {query};"
                " one judgment for each query and passage is wanted",
                hint="make plain qrels of it first, e.g. the highest relevance of each query and passage, field two 0",
            )

    def finish(self, update: bool) -> None:
        """Refuse contradictions within the source, count repeats once, and make the file ready to be attached.

        Raises:
            BadInput: an id has two texts, or a pair two grades; the message has file:line.
        """
        for step, table, key, value in (
            ("documents", "docs", "doc_id", "text_hash"),
            ("queries", "queries", "query_id", "text_hash"),
            ("qrels", "judgments", "query_id, doc_id", "relevance"),
        ):
            if step in self.steps:
                self._unique(self.steps[step], table, key, value, update and step != "qrels")
        self.con.close()

    def _unique(self, step: ReadCounts, table: str, key: str, value: str, last_wins: bool) -> None:
        clashes = self.con.execute(
            f"""SELECT count(*), min(first), arg_min(again, again), arg_min(ids, again), arg_min(first, again) FROM (
                  SELECT concat_ws(' ', {key}) AS ids, min(line) AS first,
                         min(line) FILTER (v <> head) AS again FROM (
                    SELECT {key}, line, {value} AS v,
                           first_value({value}) OVER (PARTITION BY {key} ORDER BY line) AS head
                    FROM {table} SEMI JOIN (SELECT {key} FROM {table} GROUP BY {key} HAVING count(*) > 1)
                         USING ({key}))
                  GROUP BY {key}) WHERE again IS NOT NULL"""
        ).fetchall()[0]
        n, _, again, ids, first = clashes
        if n and not last_wins:
            what = "judgment" if table == "judgments" else "text"
            raise BadInput(
                f"{step.source}:{again}: {ids} again with another {what} (first on line {first})"
                + (f"; {n} ids in all" if n > 1 else ""),
                hint="keep one line for each"
                + ("" if table == "judgments" else ", or --update takes the last one"),
            )
        before = self._count(table)
        order = "DESC" if n else "ASC"
        repeats = f"SELECT {key} FROM {table} GROUP BY {key} HAVING count(*) > 1"
        self.con.execute(
            f"""DELETE FROM {table} WHERE rowid IN (
                  SELECT rowid FROM {table} SEMI JOIN ({repeats}) USING ({key})
                  QUALIFY row_number() OVER (PARTITION BY {key} ORDER BY line {order}) > 1)"""
        )
        reason = REPEATED_JUDGMENT if table == "judgments" else SUPERSEDED if n else REPEATED
        step.drop(reason, before - self._count(table), f"{step.source}:{again}" if n else None)

    def _count(self, table: str) -> int:
        return int(self.con.execute(f"SELECT count(*) FROM {table}").fetchall()[0][0])


@contextmanager
def staging(store: LabelStore, skip: int = 0) -> Iterator[Staging]:
    """Make a staging file beside the store, and remove it afterwards; `skip` is that of :class:`Staging`."""
    with work_folder(store.path.parent) as folder:
        stage = Staging(folder / "staging.duckdb", skip)
        try:
            with interruptible(stage.con):
                yield stage
        finally:
            stage.con.close()
