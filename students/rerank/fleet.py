"""Score batches in several worker processes: on the GPUs of this machine, or on the machines of a Ray cluster.

The calling process tokenises and forms the batches, the same ones as without workers. A thread for each worker hands
batches to it, two at a time, so that the worker collates the next batch while it scores one. A fast worker gets more of
them. A lost worker (killed, machine gone) is replaced, and the batches that it had are scored again.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Protocol

from students.errors import ExitCode, StudentError
from students.rerank.pairs import Item, Pairs, Rows, Scores
from students.text.tokens import PairFormat

AHEAD = 2  # batches that a worker holds at once
FRUITLESS = 3  # workers lost in one place, one after the other, without a score

Note = Callable[[str], None]


class Lost(Exception):
    """A worker ended without an answer."""


@dataclass(frozen=True)
class Part:
    """The pairs of one batch, with their own texts alone."""

    pairs: Pairs
    form: PairFormat


@dataclass(frozen=True)
class About:
    """What a worker says of itself: its device (cuda, cpu) and its precision (fp32, bf16)."""

    device: str
    precision: str


class Worker(Protocol):
    """A process with a student. `send` and `receive` raise `Lost` if it has ended, and its own errors as they are."""

    name: str

    def about(self) -> About:
        """Wait until the student is loaded."""

    def send(self, part: Part) -> None:
        """Hand over a batch."""

    def receive(self) -> Scores:
        """Wait for the scores of the oldest batch that was handed over."""

    def close(self) -> None:
        """End the process."""


@dataclass(frozen=True)
class _Batch:
    item: Any
    pairs: Pairs
    rows: Rows


@dataclass
class _Call:
    """A call in progress: the batches that no worker holds, and what the threads say."""

    work: Iterator[tuple[Any, Pairs, Rows]]
    form: PairFormat
    answers: "SimpleQueue[tuple[_Batch, Scores] | Future[None]]" = field(default_factory=SimpleQueue)
    stopped: bool = False
    _alone: threading.Lock = field(default_factory=threading.Lock)

    def take(self) -> _Batch | None:
        """Take the next batch; None if no batch is left."""
        with self._alone:
            following = None if self.stopped else next(self.work, None)
        return None if following is None else _Batch(*following)

    def part(self, batch: _Batch) -> Part:
        """Make the message to a worker."""
        return Part(batch.pairs.take(batch.rows), self.form)


class Fleet:
    """Workers that score the batches of each call side by side.

    Args:
        start: begins a worker in a place (0 …); it does not wait until the worker is ready.
        number: the places.
        note: called with a sentence about each lost worker.
    """

    def __init__(self, start: Callable[[int], Worker], number: int, note: Note | None = None) -> None:
        self._start, self._note = start, note
        self._workers: list[Worker | None] = [start(place) for place in range(number)]
        self._fruitless = [0] * number
        self._closing = threading.Lock()
        self._about: About | None = None
        self.device = "cpu"

    def begin(self) -> About:
        """Wait for the first worker, whose device and precision are those of all.

        Raises:
            StudentError: the workers cannot load the student, or are lost before they have.
        """
        while True:
            try:
                found = self._ready(0).about()
            except Lost as error:
                self._lose(0, error)
            else:
                self.device, self._about = found.device, found
                return found

    def score(
        self, work: Iterator[tuple[Item, Pairs, Rows]], form: PairFormat
    ) -> Iterator[tuple[Item, Rows, Scores]]:
        """Yield each batch's raw logits as they come, in any order, each with its item.

        Raises:
            StudentError: a worker failed, or workers are lost again and again.
        """
        call, ended = _Call(work, form), False
        try:
            with ThreadPoolExecutor(len(self._workers), "fleet") as threads:
                try:
                    yield from self._answers(call, threads)
                    ended = True
                finally:
                    if not ended:
                        call.stopped = True
                        self.close()  # a thread that waits for its worker finds it lost
        finally:
            if not ended:
                self.close()  # and what a thread began in the meantime

    def _answers(self, call: _Call, threads: ThreadPoolExecutor) -> Iterator[tuple[Any, Rows, Scores]]:
        running = len(self._workers)
        for place in range(running):
            threads.submit(self._serve, place, call).add_done_callback(call.answers.put)
        while running:
            answer = call.answers.get()
            if isinstance(answer, Future):
                answer.result()  # raises what ended the thread
                running -= 1
            else:
                batch, scores = answer
                yield batch.item, batch.rows, scores

    def close(self) -> None:
        """End the workers. A later call starts new ones."""
        with self._closing:
            for place, worker in enumerate(self._workers):
                if worker is not None:
                    worker.close()
                    self._workers[place] = None

    def _serve(self, place: int, call: _Call) -> None:
        """Hand batches to a worker until none is left; a lost one is replaced, and gets its batches again."""
        held: deque[_Batch] = deque()
        while not call.stopped:
            try:
                if not held and (batch := call.take()) is not None:
                    held.append(batch)
                if not held:
                    return
                worker = self._alike(self._ready(place))
                for batch in held:
                    worker.send(call.part(batch))
                while held:
                    while len(held) < AHEAD and (batch := call.take()) is not None:
                        held.append(batch)
                        worker.send(call.part(batch))
                    scores = worker.receive()
                    call.answers.put((held.popleft(), scores))
                    self._fruitless[place] = 0
            except Lost as error:
                if not call.stopped:
                    self._lose(place, error, len(held))

    def _ready(self, place: int) -> Worker:
        worker = self._workers[place]
        if worker is None:
            worker = self._workers[place] = self._start(place)
        return worker

    def _alike(self, worker: Worker) -> Worker:
        """Refuse a worker whose device or precision would give other scores than those of the first."""
        about = worker.about()
        if self._about is not None and about != self._about:
            raise StudentError(
                f"{worker.name} scores on {about.device} in {about.precision}, the first worker on"
                f" {self._about.device} in {self._about.precision}",
                hint="take machines of one kind",
                exit_code=ExitCode.USAGE,
            )
        return worker

    def _lose(self, place: int, error: Lost, n_held: int = 0) -> None:
        """Drop a lost worker.

        Raises:
            StudentError: several were lost in its place, one after the other, without a score.
        """
        worker, self._workers[place] = self._workers[place], None
        name = "a worker" if worker is None else worker.name
        if worker is not None:
            worker.close()
        self._fruitless[place] += 1
        if self._fruitless[place] > FRUITLESS:
            raise StudentError(
                f"{name} is lost before it scores anything, {self._fruitless[place]} times in a row: {error}",
                hint="look for the reason above (memory, the device); `--gpus 1` scores in this process",
            )
        if self._note is not None:
            self._note(f"{name} is lost ({error}): its {n_held} batches are scored again")


class Scorer:
    """The student in a worker. Two threads may score at once: one collates while the other's batch is computed."""

    def __init__(self, path: str | Path, options: dict[str, Any]) -> None:
        from students.rerank.reranker import Reranker

        self._reranker = Reranker.load(path, **options)
        self._alone = threading.Lock()

    def about(self) -> About:
        """Say which device and precision this is."""
        return About(self._reranker.encoder.device.type, self._reranker.precision)

    def score(self, part: Part) -> Scores:
        """Score one batch."""
        batch = self._reranker.collate(part.pairs, part.form)
        with self._alone:
            launched = self._reranker.launch(batch)
        return launched.scores()
