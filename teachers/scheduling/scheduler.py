"""Keep the engine full with each query's next window. Memory is bounded; scheduling never changes results.

A query is *active* from its first window to its last. When its windows are answered, its next ones become ready. The
engine is kept at capacity, so it never waits for the slowest query. The next window is taken from the query with the
most calls left, started or not, because a long query that begins last would end the job alone in an empty engine. This
is Hu's rule (Operations Research 9(6), 1961), the best for chains of equal calls. The search covers at most twice
``capacity`` active queries and as many waiting ones. A permutation depends only on its query's replies, so the order
in which calls complete cannot change it.

With a limited budget queries go in their given order, started ones first, so that few are half done at the end. Ray's
workers do the same, so that they take no more queries from each other than they need.

Strategies are generators (teachers.strategies). The job (:class:`Job`) renders windows, reads replies and stores
calls, so the same scheduler drives every engine.
"""

import heapq
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Generic, TypeVar

from teachers.engines.base import Completion, Engine, Request
from teachers.errors import TeacherError
from teachers.prompts.replies import ENGINE_ERROR
from teachers.scheduling.budget import Budget
from teachers.scheduling.figures import Figures
from teachers.scheduling.job import Answer, Job, Result, scores_by_candidate
from teachers.strategies.by_name import Order, Ranked, ScoredOrder, Steps, Window

Rank = tuple[int, int]  # calls left (most first) or 0, then the place among the tasks
NO_TASK_YET = 0.01  # seconds before the task source is tried again

TaskT = TypeVar("TaskT")


@dataclass(slots=True, eq=False)
class _Active(Generic[TaskT]):
    """A query between its first window and its last."""

    number: int
    task: TaskT
    strategy: Steps
    calls: int  # most calls
    calls_left: int
    result: Result
    step: int = 0  # step of the first window in the current batch
    windows: Sequence[Window] = ()
    answers: dict[int, Answer] = field(default_factory=dict)  # by the window's place in the batch
    gone: bool = False


@dataclass(slots=True, eq=False)
class _Ask(Generic[TaskT]):
    """A window that waits for its answer."""

    query: _Active[TaskT]
    place: int  # place of the window in the batch
    shown: Window
    request: Request | None = None
    attempt: int = 1
    spent: int = 0  # earlier jobs' attempts, not counted against this job


class Scheduler(Generic[TaskT]):
    """Run tasks through an engine.

    Args:
        max_attempts: tries per request, over all jobs, before its query is quarantined.
        retry_quarantined: whether to leave earlier jobs' tries uncounted.
        backoff: seconds before the second try after an engine error; doubles with each further try, up to 60.
        lockstep: baseline for measurements: send all ready windows at once, and only when none is in flight.
        max_active: baseline for measurements: most active queries (1: one after another).
        in_order: take queries in task order instead of most calls left first; also used with a limited budget.
        chunk: most requests rendered between two polls of the engine.
    """

    def __init__(
        self,
        engine: Engine,
        job: Job[TaskT],
        *,
        budget: Budget | None = None,
        max_attempts: int = 3,
        backoff: float = 0.5,
        lockstep: bool = False,
        max_active: int | None = None,
        in_order: bool = False,
        chunk: int = 32,
        retry_quarantined: bool = False,
        progress: Callable[[Figures], None] | None = None,
    ) -> None:
        self.engine, self.job = engine, job
        self.figures = Figures()
        self._max_attempts, self._backoff = max_attempts, backoff
        self._budget = budget or Budget()
        self._lockstep, self._chunk = lockstep, chunk
        self._max_active = (
            max_active if max_active is not None else (1 << 60 if lockstep else 2 * engine.capacity)
        )
        self._in_order = in_order or self._budget.limited
        self._look_ahead = 1 if self._in_order else 2 * engine.capacity
        self._retry_quarantined = retry_quarantined
        self._progress = progress
        self._tasks: Iterator[TaskT | None] = iter(())
        self._exhausted = False
        self._tickets = itertools.count(1)
        self._numbers = itertools.count()
        self._waiting: list[tuple[Rank, int, TaskT]] = []  # queries not started, with their calls
        self._ready: list[tuple[Rank, int, _Ask[TaskT]]] = []
        self._delayed: list[tuple[float, int, _Ask[TaskT]]] = []
        self._in_flight: dict[int, _Ask[TaskT]] = {}
        self._twins: dict[str, list[_Ask[TaskT]]] = {}  # asks that wait for another ask with the same request
        self._active = 0
        self._rendered = False
        self._unrendered = 0

    def run(self, tasks: Iterator[TaskT | None]) -> Figures:
        """Run every task until it has its permutation, is quarantined, or the budget is spent.

        Args:
            tasks: None means that no task is there yet: the engine continues, and the source is tried again soon.

        Raises:
            TeacherError: if the engine fails for good; completed calls are recorded.
        """
        self._tasks = iter(tasks)
        began = time.monotonic()
        weighted = busy = 0.0
        busy_since: float | None = None  # for a concurrent engine: time at which it got work
        while True:
            more = self._fill()
            if busy_since is None and self._in_flight and self.engine.concurrent:
                busy_since = time.monotonic()
            if not self._in_flight:
                if self._delayed and not more:
                    time.sleep(max(min(self._delayed[0][0] - time.monotonic(), 1.0), 0.0))
                elif not more and (self._all_started or self.figures.stopped):
                    break
                elif not more:
                    time.sleep(NO_TASK_YET)
                continue
            level, before = min(len(self._in_flight) / self.engine.capacity, 1.0), time.monotonic()
            completions = self.engine.poll(0.0 if more else self._patience())
            now = time.monotonic()
            if busy_since is not None:
                self.figures.engine_seconds += now - busy_since
                busy_since = now if len(completions) < len(self._in_flight) else None
            elif not self.engine.concurrent:
                self.figures.engine_seconds += now - before
            if self._ready or not self._all_started:
                weighted += level * (now - before)
                busy += now - before
            for completion in completions:
                self._complete(completion)
            self.figures.seconds = time.monotonic() - began
            if self._progress is not None and completions:
                self._progress(self.figures)
        self.figures.seconds = time.monotonic() - began
        self.figures.occupancy = weighted / busy if busy else 0.0
        self.figures.unfinished += self._active + len(self._waiting)
        if self.figures.stopped:
            self.figures.unfinished += sum(task is not None for task in self._tasks)
        if self._progress is not None:
            self._progress(self.figures)
        return self.figures

    # ------------------------------------------------------------------------------------------- to the engine
    def _fill(self) -> bool:
        """Send up to a chunk of requests; return whether more may be sent at once."""
        if self._lockstep and self._in_flight:
            return False
        now = time.monotonic()
        while self._delayed and self._delayed[0][0] <= now:
            self._push(heapq.heappop(self._delayed)[2])
        chunk: list[Request] = []
        limit = 1 << 60 if self._lockstep else self._chunk
        room = 1 << 60 if self._lockstep else self.engine.capacity
        more = True
        while len(chunk) < limit and len(self._in_flight) < room:
            if self._start_next():
                continue
            if not self._ready:
                more = False
                break
            ask = heapq.heappop(self._ready)[2]
            if not ask.query.gone and not self._settle_from_record(ask):
                request = self._take(ask)
                if request is None:
                    break
                chunk.append(request)
        if chunk:
            before = time.monotonic()
            self.engine.submit(chunk)
            if not self.engine.concurrent:
                self.figures.engine_seconds += time.monotonic() - before
        return more and len(self._in_flight) < room and self.figures.stopped is None and not self._lockstep

    @property
    def _all_started(self) -> bool:
        return self._exhausted and not self._waiting

    def _rank(self, calls_left: int, number: int) -> Rank:
        """Return a query's sort key; the lowest goes first."""
        return (0 if self._in_order else -calls_left, number)

    def _start_next(self) -> bool:
        """Start one more query if it goes before the ready asks; return False if none does or there is no room."""
        if self._active >= self._max_active or self.figures.stopped:
            return False
        if self._ready and self._in_order:
            return False
        while len(self._waiting) < self._look_ahead and (task := self._next_task()) is not None:
            calls = self.job.calls(task)
            heapq.heappush(self._waiting, (self._rank(calls, next(self._numbers)), calls, task))
        if not self._waiting or (self._ready and self._ready[0][0][0] <= self._waiting[0][0][0]):
            return False
        (_, number), calls, task = self._waiting[0]
        if not self._budget.admits(calls):
            if not self._active:
                self.figures.stopped = self._budget.reason()
            return False
        heapq.heappop(self._waiting)
        self._budget.reserve(calls)
        query = _Active(number, task, self.job.start(task), calls, calls, Result())
        self._active += 1
        self.figures.peak_active = max(self.figures.peak_active, self._active)
        self._advance(query, None)
        return True

    def _next_task(self) -> TaskT | None:
        """Return the source's next task; None if it has none now or has ended."""
        if self._exhausted:
            return None
        try:
            return next(self._tasks)
        except StopIteration:
            self._exhausted = True
            return None

    def _settle_from_record(self, ask: _Ask[TaskT]) -> bool:
        """Render an ask; return whether its answer is on record or will come from another ask in flight."""
        if ask.request is None:
            try:
                ask.request = self.job.render(ask.query.task, ask.shown)
            except TeacherError as error:
                self._unrenderable(ask, error)
                return True
            self._rendered = True
            known = self.job.known(ask.request)
            if known is not None:
                if known.complete:
                    self.figures.resumed += 1
                    self._answered(ask, known)
                    return True
                if (
                    known.attempt >= self._max_attempts or not known.retryable
                ) and not self._retry_quarantined:
                    self._give_up(ask, known)
                    return True
                ask.attempt = known.attempt + 1
                ask.spent = known.attempt if self._retry_quarantined else 0
        twins = self._twins.get(ask.request.key)
        if twins is not None:
            twins.append(ask)
            return True
        return False

    def _unrenderable(self, ask: _Ask[TaskT], error: TeacherError) -> None:
        """Quarantine a query whose prompt cannot be made; raise if none can be made, since the settings are then wrong.

        Raises:
            TeacherError: `error`, if it is the tenth and no prompt has been made yet.
        """
        self._unrendered += 1
        if not self._rendered and self._unrendered >= 10:
            raise error
        self._give_up(ask, Answer("", ENGINE_ERROR, None, attempt=0, retryable=False, detail=str(error)))

    def _take(self, ask: _Ask[TaskT]) -> Request | None:
        """Put an ask in flight; if the budget has no room for it, send no further asks."""
        request = ask.request
        if request is None:
            raise RuntimeError("an ask is rendered before it is sent")
        if not self._budget.take(request.n_prompt_tokens, request.max_tokens):
            self.figures.stopped = self.figures.stopped or self._budget.reason()
            self._ready.clear()
            self._delayed.clear()
            return None
        request.ticket, request.attempt = next(self._tickets), ask.attempt
        self._in_flight[request.ticket] = ask
        self._twins[request.key] = []
        return request

    def _patience(self) -> float:
        if self._delayed:
            return max(min(self._delayed[0][0] - time.monotonic(), 0.5), 0.0)
        return 0.5

    def _push(self, ask: _Ask[TaskT]) -> None:
        query = ask.query
        rank = self._rank(query.calls - query.step, query.number)
        heapq.heappush(self._ready, (rank, next(self._tickets), ask))

    # ----------------------------------------------------------------------------------------- from the engine
    def _complete(self, completion: Completion) -> None:
        ask = self._in_flight.pop(completion.ticket)
        request, query = ask.request, ask.query
        if request is None:
            raise RuntimeError("a completion for an ask that was never rendered")
        twins = self._twins.pop(request.key)
        answer = self.job.receive(
            query.task, query.step + ask.place, ask.shown, request, completion, ask.attempt
        )
        figures = self.figures
        figures.calls += 1
        figures.tokens_in += answer.tokens_in
        figures.tokens_out += answer.tokens_out
        figures.repaired += answer.status == "repaired"
        self._budget.settle(request.n_prompt_tokens, request.max_tokens, answer.tokens_in, answer.tokens_out)
        if answer.complete:
            self._budget.release(1)
            query.calls_left -= 1
            for each in (ask, *twins):
                self._answered(each, answer)
        elif answer.attempt - ask.spent < self._max_attempts and answer.retryable:
            figures.retried += 1
            ask.attempt = answer.attempt + 1
            self._retry(ask, answer)
            for twin in twins:
                self._push(twin)
        else:
            for each in (ask, *twins):
                self._give_up(each, answer)

    def _retry(self, ask: _Ask[TaskT], answer: Answer) -> None:
        if ask.query.gone or self.figures.stopped:
            return
        if answer.status != "engine_error":
            self._push(ask)
            return
        pause = min(self._backoff * 2 ** (answer.attempt - 1), 60.0)
        pause *= 0.5 + Random(f"{ask.request and ask.request.key}:{answer.attempt}").random()
        if answer.retry_after is not None:
            pause = max(pause, answer.retry_after)
        heapq.heappush(self._delayed, (time.monotonic() + pause, next(self._tickets), ask))

    def _answered(self, ask: _Ask[TaskT], answer: Answer) -> None:
        query = ask.query
        if query.gone:
            return
        query.answers[ask.place] = answer
        if len(query.answers) == len(query.windows):
            self._advance(query, self._orders(query))

    def _give_up(self, ask: _Ask[TaskT], answer: Answer) -> None:
        query = ask.query
        if query.gone:
            return
        self._leave(query)
        self.figures.quarantined += 1
        self.job.quarantine(query.task, query.step + ask.place, answer)

    def _leave(self, query: _Active[TaskT]) -> None:
        query.gone = True
        query.strategy.close()
        self._budget.release(query.calls_left)
        self._active -= 1

    # ---------------------------------------------------------------------------------------- inside one query
    def _advance(self, query: _Active[TaskT], orders: list[Order] | None) -> None:
        """Send the strategy its replies and make its next windows ready, or finish the query."""
        query.step += len(query.windows)
        try:
            while not (windows := next(query.strategy) if orders is None else query.strategy.send(orders)):
                orders = []
        except StopIteration as end:
            ranked: Ranked = end.value
            query.result.ranked = ranked
            if ranked.scores is not None:
                query.result.scores = list(ranked.scores)
            self._leave(query)
            self.figures.queries += 1
            self.job.finish(query.task, query.result)
            return
        query.windows = list(windows)
        query.answers = {}
        for place, window in enumerate(query.windows):
            self._push(_Ask(query, place, tuple(window)))

    def _orders(self, query: _Active[TaskT]) -> list[Order]:
        """Return a batch's replies in the order of its windows; add the calls to the query's result."""
        result = query.result
        orders: list[Order] = []
        for place in range(len(query.windows)):
            answer = query.answers[place]
            if answer.order is None:
                raise RuntimeError("a batch is merged when all its windows have usable answers")
            scored = answer.scores is not None
            orders.append(ScoredOrder(answer.order, answer.scores or ()) if scored else answer.order)
            result.take(query.step + place, answer)
        only = query.answers[0] if len(query.windows) == 1 and query.step == 0 else None
        result.scores = scores_by_candidate(query.windows[0], only.scores) if only is not None else None
        return orders
