"""The strategy interface: a pure generator of windows whose calls and reliable depth are known in advance.

A strategy sees only positions 0..n-1 of the prior order. Its generator yields a *batch*: a list of windows that may be
asked at the same time. A window is a tuple of positions, in the order in which they are shown. The generator receives
a list of orders, one per window, each a permutation of 0..len(window)-1, best first (``replies.Parsed.order``); it is a
:class:`ScoredOrder` if the teacher gave scores. It returns a :class:`Ranked`. It does no I/O, uses no clock, and its only randomness comes from its seed: the same replies
give the same order, whatever the order of completion.
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from teachers.errors import ExitCode, TeacherError

Window = tuple[int, ...]
Order = Sequence[int]


class ScoredOrder(tuple[int, ...]):
    """An order with a score per place of its window, from a teacher that gives scores."""

    scores: Sequence[float | None]

    def __new__(cls, order: Order, scores: Sequence[float | None]) -> "ScoredOrder":
        made = super().__new__(cls, order)
        made.scores = scores
        return made


@dataclass(frozen=True)
class Bounds:
    """Least and most of a number; equal if the number does not depend on the replies."""

    least: int
    most: int

    @property
    def exact(self) -> bool:
        return self.least == self.most

    def __str__(self) -> str:
        return str(self.least) if self.exact else f"{self.least} to {self.most}"


@dataclass(frozen=True)
class Ranked:
    """A merged order.

    Attributes:
        order: all n positions, best first.
        settled: number of first places decided by the teacher; the rest keeps the prior order. None: all.
        scores: one per position, higher is better, if the strategy has scores (self-consistency: the share of the
            other passages that a passage beats, averaged over the samples).
        disagreement: 1 - mean Kendall tau between samples; None without samples.
    """

    order: tuple[int, ...]
    settled: int | None = None
    scores: tuple[float, ...] | None = None
    disagreement: float | None = None


Steps = Generator[list[Window], list[Order], Ranked]


class Strategy(Protocol):
    """A method of ordering n passages with a teacher that orders windows."""

    @property
    def name(self) -> str: ...

    @property
    def parameters(self) -> dict[str, Any]:
        """Return the parameters for the store's ``labelings.parameters``."""

    def steps(self, n: int) -> Steps:
        """Return the generator for a list of n passages."""

    def calls(self, n: int) -> Bounds:
        """Return the number of windows for a list of n passages."""

    def reliable_depth(self, n: int) -> int:
        """Return the number of first places that the strategy settles, if the teacher orders windows correctly."""


def apply(window: Window, order: Order) -> list[int]:
    """Return the window's positions in the order of a reply.

    Raises:
        TeacherError: if `order` is not a permutation of the window's places.
    """
    if len(order) != len(window) or set(order) != set(range(len(window))):
        raise TeacherError(
            f"an order of {len(order)} for a window of {len(window)} is not a permutation of it"
        )
    return [window[i] for i in order]


def checked(name: str, value: int, least: int) -> int:
    """Return an integer parameter of a strategy after a check.

    Raises:
        TeacherError: if the value is below `least`.
    """
    if value < least:
        raise TeacherError(f"--{name} {value} is below {least}", exit_code=ExitCode.USAGE)
    return value


def run(strategy: Strategy, n: int, rank: Callable[[Window], Order]) -> tuple[Ranked, list[Window]]:
    """Run a strategy to its end with `rank` as the teacher; return its result and the windows asked, in order."""
    asked: list[Window] = []
    steps = strategy.steps(n)
    try:
        batch = next(steps)
        while True:
            asked += batch
            batch = steps.send([rank(window) for window in batch])
    except StopIteration as stop:
        return stop.value, asked
