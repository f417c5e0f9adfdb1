"""Ask a model about single passages: each call is journaled when it completes, and none is made twice.

What is asked stands in the temporary table ``asked(query, document)``, with a NULL query where a query is asked for. The
store is read once, stays closed while the model answers, and then takes the journal. What the calls mean, queries or grades,
is derived from the store afterwards (`queries`, `judge`), so a job that was killed loses nothing.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb

from labelstore.provenance import record as provenance
from labelstore.store import keys
from labelstore.store.label_store import LabelStore
from teachers.engines.base import Completion, Engine, Request
from teachers.generate import child_process
from teachers.generate import make_engine as engines
from teachers.generate.calling.records import answered, call_record
from teachers.generate.calls import Rendering
from teachers.generate.fill_worklist import answer_of
from teachers.generate.job import remove_stale
from teachers.generate.single.asked import Asked
from teachers.generate.worklist import Task, Work
from teachers.journal.segments import Journal
from teachers.prompts.replies import Parsed
from teachers.scheduling.budget import Budget
from teachers.scheduling.figures import Figures
from teachers.scheduling.job import Answer, Result
from teachers.scheduling.scheduler import Scheduler
from teachers.strategies.by_name import Ranked, Steps, Window

Note = Callable[[str], None]
Build = Callable[[Asked], Engine]
Progress = Callable[[int, int, Figures, float | None], None]  # passages done, total, figures, cost so far
Read = Callable[[Completion], tuple[str, list[float | None] | None]]  # a completion's status, and its score

# Every call of a teacher (its key is the parameter) about a pair of `asked`, and the text version that it saw.
CALLS = """
    SELECT a.query, a.document, r.request_key, p.text_hash, c.* EXCLUDE (request)
    FROM asked a JOIN request_passages p ON p.document = a.document AND p.position = 1
    JOIN requests r ON r.request = p.request AND r.n_passages = 1 AND r.query IS NOT DISTINCT FROM a.query
    JOIN teachers t ON t.teacher = r.teacher AND t.teacher_key = ? JOIN calls c ON c.request = r.request"""


@dataclass
class Asking:
    """The scheduler's job: one call for each task, which shows its only passage.

    A request is of one query and one passage: what two passages have in common, e.g. their first 300 words, may make one
    prompt, and each still has its own call.
    """

    job_key: str
    collection: str
    rendering: Rendering
    journal: Journal
    work: Work
    read: Read
    of_query: bool  # whether a task has a query; otherwise a query is asked for
    unrenderable: list[tuple[str, str]] = field(
        default_factory=list
    )  # passage, and why no prompt can be made
    _words: dict[str, int] = field(default_factory=dict)

    def start(self, task: Task) -> Steps:
        yield [(0,)]
        return Ranked((0,))

    def calls(self, task: Task) -> int:
        return 1

    def render(self, task: Task, window: Window) -> Request:
        request, words = self.rendering.request(task, window)
        shown = task.candidates[0]
        identity = [request.key, self.collection, task.query_id, shown.doc_id, shown.text_hash]
        request.key = keys.content_key("request", identity)
        if words is not None:
            self._words[request.key] = words
        return request

    def known(self, request: Request) -> Answer | None:
        return self.work.known(request.key)

    def receive(
        self, task: Task, step: int, window: Window, request: Request, completion: Completion, attempt: int
    ) -> Answer:
        status, scores = ("engine_error", None) if completion.error is not None else self.read(completion)
        parsed = Parsed((0,) if status in ("ok", "repaired") else None, status)
        record = call_record(
            call_key=keys.content_key("call", [request.key, self.job_key, attempt, 0]),
            task=task,
            window=window,
            request=request,
            completion=completion,
            attempt=attempt,
            parsed=parsed,
            scores=scores,
            job_key=self.job_key,
            words=self._words.pop(request.key, None),
        )
        if not self.of_query:
            record["query_id"] = None
        self.journal.append(record)
        answer = answered(record["key"], completion, attempt, parsed, scores)
        self.work.learn(request.key, answer)
        return answer

    def finish(self, task: Task, result: Result) -> None:
        """Do nothing: the call says everything."""

    def quarantine(self, task: Task, step: int, answer: Answer) -> None:
        """Remember a passage for which no prompt can be made; other failures stand in their calls."""
        if not answer.call_key:
            self.unrenderable.append((task.candidates[0].doc_id, answer.detail))


@dataclass(frozen=True)
class Done:
    """What a job did: its figures, cost, and passages for which no prompt could be made, with the reason."""

    figures: Figures
    cost: float | None
    unrenderable: list[tuple[str, str]]


@dataclass
class Job:
    """A job that asks, with what it needs to run.

    Attributes:
        fill: makes the temporary table ``asked`` on a read-only connection.
        engine: replaces the engine in the settings (tests, benchmarks).
    """

    store: LabelStore
    asked: Asked
    collection: str
    read: Read
    fill: Callable[[duckdb.DuckDBPyConnection], None]
    of_query: bool
    engine: Engine | None = None
    build: Build = engines.build
    note: Note = lambda message: None
    progress: Progress | None = None

    def run(self, job: provenance.Job) -> Done:
        """Ask about everything that has no usable answer yet, and merge the calls into the store.

        Raises:
            TeacherError: the engine fails; completed calls are kept, and the same command goes on from there.
        """
        folder = self.store.folder("journal")
        remove_stale(folder)
        before = child_process.merge_small_or_large(self.store, folder, self.note)
        if before.calls:
            self.note(f"merged {before.calls:,} calls that an earlier job left in the journal")
        path = folder / f"{job.job_key}.{os.getpid()}.work"
        row = self.asked.row
        budget = Budget(
            self.asked.settings.max_calls,
            self.asked.settings.max_tokens,
            self.asked.settings.max_cost,
            row.input_price,
            row.output_price,
        )
        try:
            work = self._filled(path)
            try:
                figures, unrenderable = self._asked(job, folder, work, budget)
            finally:
                work.close()
                child_process.merge_small_or_large(self.store, folder, self.note)
        finally:
            path.unlink(missing_ok=True)
        priced = row.input_price is not None and row.output_price is not None
        return Done(figures, budget.cost() if priced else None, unrenderable)

    def _filled(self, path: Path) -> Work:
        work = Work(path)
        with self.store.read() as con:
            self.fill(con)
            con.execute(
                """CREATE TEMP TABLE numbered AS
                   SELECT row_number() OVER (ORDER BY query, document) - 1 AS number, query, document FROM asked"""
            )
            work.add_documents(
                _rows(
                    con,
                    """SELECT document, doc_id, title, text, text_hash FROM documents
                       WHERE document IN (SELECT document FROM asked)""",
                )
            )
            work.add_lists(
                (number, query_id or "", text or "", [document], [1])
                for number, query_id, text, document in _rows(
                    con,
                    """SELECT n.number, q.query_id, q.text, n.document FROM numbered n LEFT JOIN queries q USING (query)
                       ORDER BY n.number""",
                )
            )
            work.add_answers(
                (row[0], row[1], answer_of(row[2:]))
                for row in _rows(
                    con,
                    f"""SELECT n.number, k.request_key, k.call_key, k.status, k.parsed, k.scores, 0, k.tokens_in, k.tokens_out,
                               k.attempt, k.reply
                        FROM ({CALLS}) k JOIN numbered n ON n.document = k.document AND n.query IS NOT DISTINCT FROM k.query
                        ORDER BY k.call""",
                    [self.asked.row.teacher_key],
                )
            )
        return work

    def _asked(
        self, job: provenance.Job, folder: Path, work: Work, budget: Budget
    ) -> tuple[Figures, list[tuple[str, str]]]:
        total = len(work.lengths())
        if not total:
            return Figures(), []
        engine = self.engine if self.engine is not None else self.build(self.asked)
        try:
            rendering = Rendering(self.asked.teacher, engine.tokenizer, engine.context)
            with Journal(folder, job.job_key, self.asked.header(self.collection)) as journal:
                asking = Asking(
                    job.job_key, self.collection, rendering, journal, work, self.read, self.of_query
                )
                work.begin()
                scheduler: Scheduler[Task] = Scheduler(
                    engine,
                    asking,
                    budget=budget,
                    max_attempts=self.asked.settings.max_attempts,
                    retry_quarantined=self.asked.settings.retry_quarantined,
                    progress=lambda figures: self._tell(figures, total, budget),
                )
                return scheduler.run(work.tasks()), asking.unrenderable
        finally:
            if self.engine is None:
                engine.close()

    def _tell(self, figures: Figures, total: int, budget: Budget) -> None:
        if self.progress is not None:
            priced = self.asked.row.input_price is not None
            self.progress(
                figures.queries + figures.quarantined, total, figures, budget.cost() if priced else None
            )


def _rows(
    con: duckdb.DuckDBPyConnection, sql: str, parameters: list[Any] | None = None
) -> Iterator[tuple[Any, ...]]:
    yield from con.execute(sql, parameters or []).fetchall()


def best_calls(con: duckdb.DuckDBPyConnection, teacher_key: str) -> None:
    """Make the temporary table ``best`` of the call that counts for each pair of `asked`.

    It is the newest usable call about the passage's current text, or the newest call if none is usable.
    """
    con.execute(
        f"""CREATE OR REPLACE TEMP TABLE best AS SELECT DISTINCT ON (k.query, k.document) k.*
            FROM ({CALLS}) k JOIN documents d ON d.document = k.document AND d.text_hash = k.text_hash
            ORDER BY k.query, k.document, (k.status IN ('ok', 'repaired')) DESC, k.call DESC""",
        [teacher_key],
    )
