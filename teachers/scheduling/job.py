"""The interface between the scheduler and a job: answers to calls, results of queries, and the job's methods."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from teachers.engines.base import Completion, Request
from teachers.prompts.replies import OK, USABLE, worst
from teachers.strategies.by_name import Ranked, Steps, Window

NOTHING = Ranked(())


@dataclass(slots=True)
class Answer:
    """The outcome of a recorded call, as the scheduler needs it.

    Attributes:
        order: positions shown (from 0), best first; None if the reply is unusable.
        scores: a score per position shown, if the teacher gives scores.
        attempt: number of this try, from 1, over all jobs.
        retryable: whether a retry can help.
    """

    call_key: str
    status: str
    order: list[int] | None
    scores: list[float | None] | None = None
    repairs: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    attempt: int = 1
    retryable: bool = True
    retry_after: float | None = None
    detail: str = ""

    @property
    def complete(self) -> bool:
        return self.status in USABLE and self.order is not None


@dataclass(slots=True)
class Result:
    """A query's merged order.

    Attributes:
        ranked: the strategy's result: candidate indices, best first.
        status: the worst status of its calls.
        calls: (step, call_key) of the answers that the order is merged from.
        scores: one per candidate index: from the strategy, or from a call that showed all candidates; otherwise None.
    """

    ranked: Ranked = NOTHING
    status: str = OK
    repairs: int = 0
    calls: list[tuple[int, str]] = field(default_factory=list)
    tokens_in: int = 0
    tokens_out: int = 0
    scores: list[float | None] | None = None

    def take(self, step: int, answer: Answer) -> None:
        """Add an answer that the order is merged from."""
        self.calls.append((step, answer.call_key))
        self.repairs += answer.repairs
        self.tokens_in += answer.tokens_in
        self.tokens_out += answer.tokens_out
        if answer.status != self.status:
            self.status = worst([self.status, answer.status])


TaskIn = TypeVar("TaskIn", contravariant=True)


class Job(Protocol[TaskIn]):
    """The interface between the scheduler and a job."""

    def start(self, task: TaskIn) -> Steps:
        """Start the strategy over the task's candidates."""

    def calls(self, task: TaskIn) -> int:
        """Return the most calls that the strategy needs."""

    def render(self, task: TaskIn, window: Window) -> Request:
        """Return the request that shows these candidates in this order.

        Raises:
            TeacherError: if no prompt can be made; the query is then quarantined.
        """

    def known(self, request: Request) -> Answer | None:
        """Return the last recorded answer to this request, from this job or an earlier one."""

    def receive(
        self, task: TaskIn, step: int, window: Window, request: Request, completion: Completion, attempt: int
    ) -> Answer:
        """Read a completion and record the call; the call is durable when this returns."""

    def finish(self, task: TaskIn, result: Result) -> None:
        """Record a query's permutation."""

    def quarantine(self, task: TaskIn, step: int, answer: Answer) -> None:
        """Record that a query has no permutation, and why."""


def scores_by_candidate(window: Window, scores: Sequence[float | None] | None) -> list[float | None] | None:
    """Return a call's scores by candidate index if its window shows each candidate 0..n-1 once, otherwise None.

    A window over the head of a longer list has no scores for the rest, so the query gets none.
    """
    if scores is None or sorted(window) != list(range(len(window))):
        return None
    by_candidate: list[float | None] = [None] * len(window)
    for candidate, score in zip(window, scores, strict=True):
        by_candidate[candidate] = score
    return by_candidate
