"""One of Ray's workers: an engine of its own, the same scheduler, the same journal; it knows no store and no neighbour.

The driver (cluster.py) feeds it parts of the queries, each with the answers that are on record for them, and asks for
a report twice a second. Calls go to the journal's folder where the worker sees it as the driver does, locks included;
else to a folder of its own, whose segments travel with the reports.
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
from teachers.scheduling.scheduler import Answer, Result, Scheduler
from teachers.strategies.by_name import Steps, Window

REPORT_SECONDS = 0.5
ROTATE_SECONDS = 30.0  # after which a segment is closed, so that the driver can merge it


@dataclass(frozen=True)
class Assignment:
    """What a worker is made for.

    Attributes:
        build: the plan's engine, its model loaded.
        name: tells this worker's segments apart, from those of the one that it replaces too.
        server: what its calls' rows say of who answered, before the host's name.
        folder: the job's journal as the driver sees it; None: do not look for it.
        token: a file in it that the driver holds locked.
        budget: the worker's own share, with what its predecessors spent.
        sung: the teacher's first canaries; None where another worker asks them.
    """

    plan: Plan
    build: Callable[[Plan], Engine]
    job_key: str
    name: str
    server: str
    folder: str | None
    token: str
    budget: Budget
    sung: Mapping[str, str] | None


@dataclass(frozen=True)
class Part:
    """Some queries with their passages, and (number, request key, answer) of what is on record for them."""

    tasks: list[Task]
    answers: list[tuple[int, str, Answer]]


@dataclass(frozen=True)
class Report:
    """How a worker stands.

    Attributes:
        finished: numbers of queries that got a permutation or went to quarantine since the last report.
        segments: name -> bytes of closed segments that the driver has not said to have.
    """

    figures: Figures
    finished: list[int]
    segments: dict[str, bytes]
    notes: list[str]
    drifted: int


@dataclass
class Memory:
    """Answers by request key, held while their query is under way (generate.work.Answers)."""

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
    """The labelling job, with note taken of which queries are done and where calls were answered."""

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
    """The actor. `run` works in one thread until `end`; the other methods answer beside it."""

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
        """Label what is fed until `end` was called or the budget's share is spent.

        Raises:
            TeacherError: if the engine cannot be made, or fails for good; what was completed is in the journal.
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
                    settings.fuse,
                    settings.fuse_weight,
                )
                if own.sung is not None and settings.canaries:
                    self._drifted = canary.sing(
                        engine, labelling, settings.canaries, own.sung, own.budget, self._notes.append
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
        """Returns when the model is loaded and all that was fed is under way."""
        with self._state:
            self._state.wait_for(lambda: self._stopped or (self._journal is not None and not self._fed))

    def feed(self, part: Part) -> None:
        """More to do; returns when it is under way."""
        with self._state:
            for number, request_key, answer in part.answers:
                self._memory.take(number, request_key, answer)
            self._fed.extend(part.tasks)
        self.hungry()

    def end(self) -> None:
        """Nothing more will be fed."""
        with self._state:
            self._ended = True

    def report(self, taken: list[str], wait: bool = True) -> Report:
        """How it stands, half a second later unless the work ends before.

        Args:
            taken: segments that the driver has: they are removed here.
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
        """What was fed; None while nothing is there and more may come."""
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
    """Whether this machine sees the driver's folder, and in it the lock that the driver holds on a file.

    A folder that is shared without its locks will not do: the driver would take an open segment for a closed one.
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
