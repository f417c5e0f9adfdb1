"""What a strategy is: a pure generator of windows, with its calls and reliable depth known before it runs.

A strategy sees positions 0..n-1 of the prior order and nothing else. Its generator yields a *batch*: a list of windows
that may be asked at the same time, each a tuple of positions in the order in which they are to be shown. It is sent a
list of orders, one per window, each a permutation of 0..len(window)-1, best first (``replies.Parsed.order``). It
returns a :class:`Ranked`. It holds no I/O, no clock and no randomness beyond its seed: the same replies give the same
order, whatever the order of completion.
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from teachers.errors import ExitCode, TeacherError

Window = tuple[int, ...]
Order = Sequence[int]


@dataclass(frozen=True)
class Bounds:
    """Least and most; equal where the number does not depend on the replies."""

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
        settled: first places that the teacher decided; the rest keeps the prior order. None: all.
        scores: one per position, higher is better, where the strategy yields any (self-consistency: the share of
            passages that a passage beats, averaged over the samples).
        disagreement: 1 - mean Kendall tau between samples; None without samples.
    """

    order: tuple[int, ...]
    settled: int | None = None
    scores: tuple[float, ...] | None = None
    disagreement: float | None = None


Steps = Generator[list[Window], list[Order], Ranked]


class Strategy(Protocol):
    """A way to order n passages with a teacher that orders windows."""

    @property
    def name(self) -> str: ...

    @property
    def parameters(self) -> dict[str, Any]:
        """What the store's ``labelings.parameters`` keeps."""

    def steps(self, n: int) -> Steps:
        """The generator for a list of n."""

    def calls(self, n: int) -> Bounds:
        """Windows that will be asked for a list of n."""

    def reliable_depth(self, n: int) -> int:
        """First places that the strategy settles, given a teacher that orders windows rightly."""


def apply(window: Window, order: Order) -> list[int]:
    """The window's positions in the order of a reply.

    Raises:
        TeacherError: if `order` is no permutation of the window's places.
    """
    if len(order) != len(window) or set(order) != set(range(len(window))):
        raise TeacherError(
            f"an order of {len(order)} for a window of {len(window)} is not a permutation of it"
        )
    return [window[i] for i in order]


def checked(name: str, value: int, least: int) -> int:
    """An integer parameter of a strategy.

    Raises:
        TeacherError: if it is below `least`.
    """
    if value < least:
        raise TeacherError(f"--{name} {value} is below {least}", exit_code=ExitCode.USAGE)
    return value


def run(strategy: Strategy, n: int, rank: Callable[[Window], Order]) -> tuple[Ranked, list[Window]]:
    """Run a strategy to its end with `rank` as the teacher: its result and the windows it asked, in order."""
    asked: list[Window] = []
    steps = strategy.steps(n)
    try:
        batch = next(steps)
        while True:
            asked += batch
            batch = steps.send([rank(window) for window in batch])
    except StopIteration as stop:
        return stop.value, asked
