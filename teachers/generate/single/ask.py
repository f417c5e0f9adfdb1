"""Ask a model about single passages, or about a few beside each other: each call is journaled when it completes.

What is asked stands in the temporary table ``asked(query, documents)``: a call for each row, which shows these passages in this
order; the query is NULL where a query is asked for. The store is read once, stays closed while the model answers, and then takes
the journal. What the calls mean, queries, grades or verdicts, is derived from the store afterwards (`queries`, `judge`, `check`),
so a job that was killed loses nothing, and no call is made twice.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
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
from teachers.generate.single.settings import Asking as Settings
from teachers.generate.worklist import Task, Work
from teachers.journal.segments import Journal
from teachers.prompts.replies import Parsed
from teachers.scheduling.budget import Budget
from teachers.scheduling.figures import Figures, summed
from teachers.scheduling.job import Answer, Result
from teachers.scheduling.scheduler import Scheduler
from teachers.strategies.base import Bounds
from teachers.strategies.by_name import Ranked, Steps, Window

Note = Callable[[str], None]
Fill = Callable[[duckdb.DuckDBPyConnection], None]
Build = Callable[[Asked], Engine]
Progress = Callable[[int, int, Figures, float | None], None]  # passages done, total, figures, cost so far
# A completion about n passages -> its status, and a score for each passage.
Read = Callable[[Completion, int], tuple[str, list[float | None] | None]]

# Every call of a teacher (its key is the parameter) about a row of `asked`, and the text versions that it saw.
CALLS = """
    SELECT a.query, a.documents, s.hashes, s.request_key, c.* EXCLUDE (request)
    FROM asked a JOIN (
        SELECT r.request, r.request_key, r.query, list(p.document ORDER BY p.position) AS documents,
               list(p.text_hash ORDER BY p.position) AS hashes
        FROM requests r JOIN teachers t ON t.teacher = r.teacher AND t.teacher_key = ?
        JOIN request_passages p ON p.request = r.request GROUP BY ALL
    ) s ON s.documents = a.documents AND s.query IS NOT DISTINCT FROM a.query
    JOIN calls c ON c.request = s.request"""


@dataclass(frozen=True)
class OneCall:
    """One call about the whole list, of any length."""

    name = "one call"

    @property
    def parameters(self) -> dict[str, Any]:
        return {}

    def steps(self, n: int) -> Steps:
        shown = tuple(range(n))
        yield [shown]
        return Ranked(shown)

    def calls(self, n: int) -> Bounds:
        return Bounds(1, 1)

    def reliable_depth(self, n: int) -> int:
        return n


ONE_CALL = OneCall()


def rendered(rendering: Rendering, collection: str, task: Task, samples: int) -> tuple[Request, int | None]:
    """Return a task's request, and the words kept per passage if the context forced a cut.

    Raises:
        TeacherError: no prompt can be made.
    """
    request, words = rendering.request(task, tuple(range(len(task.candidates))))
    request.sample = task.number % samples
    identity: list[Any] = [request.key, collection, task.query_id]
    for shown in task.candidates:
        identity += [shown.doc_id, shown.text_hash]
    if request.sample:
        identity.append(f"sample {request.sample}")
    request.key = keys.content_key("request", identity)
    return request, words


@dataclass
class Asking:
    """The scheduler's job: one call for each task, which shows all its passages.

    A request is of one query and its passages: what two passages have in common, e.g. their first 300 words, may make one
    prompt, and each still has its own call. So has each of several samples.
    """

    job_key: str
    collection: str
    rendering: Rendering
    journal: Journal
    work: Work
    read: Read
    of_query: bool  # whether a task has a query; otherwise a query is asked for
    samples: int = 1  # tasks in a row that ask the same
    unrenderable: list[tuple[str, str]] = field(
        default_factory=list
    )  # passage, and why no prompt can be made
    _words: dict[str, int] = field(default_factory=dict)

    def start(self, task: Task) -> Steps:
        return ONE_CALL.steps(len(task.candidates))

    def calls(self, task: Task) -> int:
        return 1

    def render(self, task: Task, window: Window) -> Request:
        request, words = rendered(self.rendering, self.collection, task, self.samples)
        if words is not None:
            self._words[request.key] = words
        return request

    def known(self, request: Request) -> Answer | None:
        return self.work.known(request.key)

    def receive(
        self, task: Task, step: int, window: Window, request: Request, completion: Completion, attempt: int
    ) -> Answer:
        status, scores = (
            ("engine_error", None) if completion.error is not None else self.read(completion, len(window))
        )
        parsed = Parsed(tuple(window) if status in ("ok", "repaired") else None, status)
        record = call_record(
            call_key=keys.content_key("call", [request.key, self.job_key, attempt, request.sample]),
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
            self.unrenderable.append((task.candidates[-1].doc_id, answer.detail))


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
        samples: calls for each row of ``asked``.
        writer: distinguishes the journals of a job that asks several models.
    """

    store: LabelStore
    asked: Asked
    collection: str
    read: Read
    fill: Fill
    of_query: bool
    engine: Engine | None = None
    build: Build = engines.build
    note: Note = lambda message: None
    progress: Progress | None = None
    samples: int = 1
    writer: str = "0"

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
            work = Work(path)
            try:
                with self.store.read() as con:
                    self.fill(con)
                    fill_work(con, work, self.asked.row.teacher_key, self.samples)
                figures, unrenderable = self._asked(job, folder, work, budget)
            finally:
                work.close()
                child_process.merge_small_or_large(self.store, folder, self.note)
        finally:
            path.unlink(missing_ok=True)
        priced = row.input_price is not None and row.output_price is not None
        return Done(figures, budget.cost() if priced else None, unrenderable)

    def _asked(
        self, job: provenance.Job, folder: Path, work: Work, budget: Budget
    ) -> tuple[Figures, list[tuple[str, str]]]:
        total = len(work.lengths())
        if not total:
            return Figures(), []
        engine = self.engine if self.engine is not None else self.build(self.asked)
        try:
            rendering = Rendering(self.asked.teacher, engine.tokenizer, engine.context)
            header = self.asked.header(self.collection)
            with Journal(folder, job.job_key, header, writer=self.writer) as journal:
                asking = Asking(
                    job.job_key,
                    self.collection,
                    rendering,
                    journal,
                    work,
                    self.read,
                    self.of_query,
                    self.samples,
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


def run_each(asking: Sequence[Job], job: provenance.Job, done: list[Done]) -> None:
    """Ask several models one after another, and add to `done`; limits hold for all together, and end the job."""
    for number, each in enumerate(asking):
        limited = replace(each.asked, settings=_left(each.asked.settings, done))
        done.append(replace(each, asked=limited, writer=str(number)).run(job))
        if done[-1].figures.stopped:
            break


def _left(settings: Settings, done: Sequence[Done]) -> Settings:
    """Take what the models before have used off the limits."""
    spent = together(done)
    tokens = spent.figures.tokens_in + spent.figures.tokens_out
    return replace(
        settings,
        max_calls=None if settings.max_calls is None else settings.max_calls - spent.figures.calls,
        max_tokens=None if settings.max_tokens is None else settings.max_tokens - tokens,
        max_cost=None if settings.max_cost is None else settings.max_cost - (spent.cost or 0.0),
    )


def together(done: Sequence[Done]) -> Done:
    """Add up what models did; the cost is None if one of them has no price."""
    costs = [one.cost for one in done if one.cost is not None]
    return Done(
        summed([one.figures for one in done]),
        sum(costs) if len(costs) == len(done) else None,
        [passage for one in done for passage in one.unrenderable],
    )


def fill_work(con: duckdb.DuckDBPyConnection, work: Work, teacher_key: str, samples: int = 1) -> None:
    """Fill a working file from the table ``asked``: a task for each row and sample, its passages, and the recorded answers."""
    con.execute(
        """CREATE OR REPLACE TEMP TABLE numbered AS
           SELECT row_number() OVER (ORDER BY query, documents) - 1 AS number, query, documents FROM asked"""
    )
    work.add_documents(
        _rows(
            con,
            """SELECT document, doc_id, title, text, text_hash FROM documents
               WHERE document IN (SELECT unnest(documents) FROM asked)""",
        )
    )
    work.add_lists(
        (number * samples + sample, query_id or "", text or "", documents, range(1, len(documents) + 1))
        for number, query_id, text, documents in _rows(
            con,
            """SELECT n.number, q.query_id, q.text, n.documents FROM numbered n LEFT JOIN queries q USING (query)
               ORDER BY n.number""",
        )
        for sample in range(samples)
    )
    work.add_answers(
        (row[0] * samples + row[1], row[2], answer_of(row[3:]))
        for row in _rows(
            con,
            f"""SELECT n.number, k.sample, k.request_key, k.call_key, k.status, k.parsed, k.scores, 0, k.tokens_in, k.tokens_out,
                       k.attempt, k.reply
                FROM ({CALLS}) k JOIN numbered n ON n.documents = k.documents AND n.query IS NOT DISTINCT FROM k.query
                WHERE k.sample < {int(samples)} ORDER BY k.call""",
            [teacher_key],
        )
    )


def _rows(
    con: duckdb.DuckDBPyConnection, sql: str, parameters: list[Any] | None = None
) -> Iterator[tuple[Any, ...]]:
    yield from con.execute(sql, parameters or []).fetchall()


def best_calls(con: duckdb.DuckDBPyConnection, teacher_key: str, samples: int = 1) -> None:
    """Make the temporary table ``best`` of the call that counts for each row of `asked` and sample.

    It is the newest usable call about the passages' current texts, or the newest call if none is usable. The columns document and
    text_hash are those of the first passage.
    """
    con.execute(
        f"""CREATE OR REPLACE TEMP TABLE best AS
            WITH current_texts AS (
                SELECT u.query, u.documents, list(d.text_hash ORDER BY u.place) AS hashes
                FROM (SELECT query, documents, unnest(documents) AS document, generate_subscripts(documents, 1) AS place FROM asked) u
                JOIN documents d ON d.document = u.document GROUP BY u.query, u.documents
            )
            SELECT DISTINCT ON (k.query, k.documents, k.sample) k.*, k.documents[1] AS document, k.hashes[1] AS text_hash
            FROM ({CALLS}) k JOIN current_texts t ON t.query IS NOT DISTINCT FROM k.query AND t.documents = k.documents
                 AND t.hashes = k.hashes
            WHERE k.sample < {int(samples)}
            ORDER BY k.query, k.documents, k.sample, (k.status IN ('ok', 'repaired')) DESC, k.call DESC""",
        [teacher_key],
    )
