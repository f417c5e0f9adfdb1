"""A Ray worker: its own engine, scheduler and journal, without access to the store or to other workers.

The driver (driver.py) sends it parts of the queries, each with the recorded answers for them, and asks for a report
twice a second. Calls go to the job's journal folder if the worker can access it and its locks. Otherwise they go to a
local folder, and the segments are sent with the reports.
"""

import fcntl
import socket
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

from teachers.engines.base import Completion, Engine, Request
from teachers.generate import canary
from teachers.generate.calls import Labelling, Rendering
from teachers.generate.plan import Plan
from teachers.generate.worklist import Task
from teachers.journal import segments as journal
from teachers.journal.segments import Journal
from teachers.scheduling.budget import Budget
from teachers.scheduling.figures import Figures
from teachers.scheduling.job import Answer, Result
from teachers.scheduling.scheduler import Scheduler
from teachers.strategies.by_name import Steps, Window

REPORT_SECONDS = 0.5
ROTATE_SECONDS = 30.0  # a segment is closed after this time, so that the driver can merge it


@dataclass(frozen=True)
class Assignment:
    """The settings of a worker.

    Attributes:
        build: makes the plan's engine, with its model loaded.
        name: distinguishes this worker's segments, also from those of the worker that it replaces.
        server: prefix of the server's name in the rows of its calls, before the host's name.
        folder: the job's journal folder on the driver; None: do not look for it.
        token: name of a file in the folder that the driver holds locked.
        budget: the worker's share, including what earlier workers in its place spent.
        first_canaries: the teacher's first canaries; None if another worker asks them.
    """

    plan: Plan
    build: Callable[[Plan], Engine]
    job_key: str
    name: str
    server: str
    folder: str | None
    token: str
    budget: Budget
    first_canaries: Mapping[str, str] | None


@dataclass(frozen=True)
class Part:
    """Some queries with their passages, and their recorded answers as (number, request key, answer)."""

    tasks: list[Task]
    answers: list[tuple[int, str, Answer]]


@dataclass(frozen=True)
class Report:
    """A worker's progress.

    Attributes:
        finished: numbers of queries that got a permutation or were quarantined since the last report.
        segments: name -> bytes of closed segments that the driver has not confirmed.
    """

    figures: Figures
    finished: list[int]
    segments: dict[str, bytes]
    notes: list[str]
    drifted: int


@dataclass
class Memory:
    """Recorded answers by request key, kept while their query is active (as teachers.generate.worklist.Answers)."""

    _answers: dict[str, Answer] = field(default_factory=dict)
    _keys: dict[int, list[str]] = field(default_factory=dict)

    def known(self, request_key: str) -> Answer | None:
        return self._answers.get(request_key)

    def learn(self, request_key: str, answer: Answer) -> None:
        self._answers[request_key] = answer

    def take(self, number: int, request_key: str, answer: Answer) -> None:
        self.learn(request_key, answer)
        self.belongs(number, request_key)

    def belongs(self, number: int, request_key: str) -> None:
        self._keys.setdefault(number, []).append(request_key)

    def forget(self, number: int) -> None:
        for request_key in self._keys.pop(number, ()):
            self._answers.pop(request_key, None)


@dataclass
class Watched:
    """The labelling job, which also notes which queries are done and where calls were answered."""

    inner: Labelling
    memory: Memory
    server: str
    done: Callable[[int], None]

    def start(self, task: Task) -> Steps:
        return self.inner.start(task)

    def calls(self, task: Task) -> int:
        return self.inner.calls(task)

    def render(self, task: Task, window: Window) -> Request:
        return self.inner.render(task, window)

    def known(self, request: Request) -> Answer | None:
        return self.inner.known(request)

    def receive(
        self, task: Task, step: int, window: Window, request: Request, completion: Completion, attempt: int
    ) -> Answer:
        completion.server = self.server
        self.memory.belongs(task.number, request.key)
        return self.inner.receive(task, step, window, request, completion, attempt)

    def finish(self, task: Task, result: Result) -> None:
        self.inner.finish(task, result)
        self._end(task)

    def quarantine(self, task: Task, step: int, answer: Answer) -> None:
        self.inner.quarantine(task, step, answer)
        self._end(task)

    def _end(self, task: Task) -> None:
        self.memory.forget(task.number)
        self.done(task.number)


class Worker:
    """The Ray actor. `run` works in one thread until `end`; the other methods run in other threads."""

    def __init__(self, assignment: Assignment) -> None:
        self._own = assignment
        self._server = f"{assignment.server}@{socket.gethostname()}"
        self._state = threading.Condition()
        self._fed: deque[Task] = deque()
        self._ended = self._stopped = False
        self._memory = Memory()
        self._finished: list[int] = []
        self._notes: list[str] = []
        self._figures = Figures()
        self._drifted = 0
        self._journal: Journal | None = None
        shared = sees_journal(assignment.folder, assignment.token)
        self._shipping = None if shared else tempfile.TemporaryDirectory(prefix="msft-journal-")
        self._folder = Path(self._shipping.name if self._shipping else assignment.folder or "")

    def run(self) -> None:
        """Label the queries sent by the driver until `end` is called or the share of the budget is spent.

        Raises:
            TeacherError: if the engine cannot be made, or fails for good; completed calls are in the journal.
        """
        own, settings = self._own, self._own.plan.settings
        try:
            with ExitStack() as stack:
                engine = own.build(own.plan)
                stack.callback(engine.close)
                rendering = Rendering(own.plan.teacher, engine.tokenizer, engine.context)
                writing = stack.enter_context(
                    Journal(self._folder, own.job_key, own.plan.header(), writer=own.name)
                )
                labelling = Labelling(
                    own.job_key,
                    rendering,
                    own.plan.strategy,
                    writing,
                    self._memory,
                    settings.fusion,
                )
                if own.first_canaries is not None and settings.canaries:
                    self._drifted = canary.run_canaries(
                        engine,
                        labelling,
                        settings.canaries,
                        own.first_canaries,
                        own.budget,
                        self._notes.append,
                    )
                scheduler: Scheduler[Task] = Scheduler(
                    engine,
                    Watched(labelling, self._memory, self._server, self._done),
                    budget=own.budget,
                    max_attempts=settings.max_attempts,
                    in_order=True,
                    retry_quarantined=settings.retry_quarantined,
                    progress=self._rotation(writing),
                )
                with self._state:
                    self._figures, self._journal = scheduler.figures, writing
                    self._state.notify_all()
                scheduler.run(self._tasks())
        finally:
            with self._state:
                self._stopped, self._journal = True, None
                self._state.notify_all()

    def hungry(self) -> None:
        """Wait until the model is loaded and all queries sent so far have been started."""
        with self._state:
            self._state.wait_for(lambda: self._stopped or (self._journal is not None and not self._fed))

    def feed(self, part: Part) -> None:
        """Add queries; return when they have been started."""
        with self._state:
            for number, request_key, answer in part.answers:
                self._memory.take(number, request_key, answer)
            self._fed.extend(part.tasks)
        self.hungry()

    def end(self) -> None:
        """Tell the worker that no more queries will be sent."""
        with self._state:
            self._ended = True

    def report(self, taken: list[str], wait: bool = True) -> Report:
        """Return the worker's progress, after half a second or when the work ends.

        Args:
            taken: segments that the driver has received; they are removed here.
        """
        with self._state:
            if wait and not self._stopped:
                self._state.wait_for(lambda: self._stopped, REPORT_SECONDS)
            finished, self._finished = self._finished, []
            notes, self._notes = self._notes, []
            return Report(replace(self._figures), finished, self._segments(taken), notes, self._drifted)

    def _segments(self, taken: list[str]) -> dict[str, bytes]:
        if self._shipping is None:
            return {}
        for name in taken:
            journal.remove(self._folder / name)
        if self._journal is not None:
            self._journal.rotate()
        return {
            path.name: path.read_bytes()
            for path in journal.segments(self._folder)
            if not journal.is_open(path)
        }

    def _tasks(self) -> Iterator[Task | None]:
        """Yield the queries sent by the driver; yield None while there are none and more may come."""
        while not self._figures.stopped:
            with self._state:
                if self._ended and not self._fed:
                    return
                task = self._fed.popleft() if self._fed else None
                if not self._fed:
                    self._state.notify_all()
            yield task

    def _done(self, number: int) -> None:
        with self._state:
            self._finished.append(number)

    def _rotation(self, writing: Journal) -> Callable[[Figures], None]:
        rotated = time.monotonic()

        def tick(_: Figures) -> None:
            nonlocal rotated
            if time.monotonic() - rotated >= ROTATE_SECONDS:
                writing.rotate()
                rotated = time.monotonic()

        return tick


def sees_journal(folder: str | None, token: str) -> bool:
    """Return whether this machine can access the driver's folder and sees the driver's lock on a file in it.

    A folder shared without its locks cannot be used: the driver would take an open segment for a closed one.
    """
    if folder is None:
        return False
    try:
        with (Path(folder) / token).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
