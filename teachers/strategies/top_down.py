"""Top-down partitioning (TDPart, arXiv 2405.14589): a pivot from the first window, then partitions in parallel."""

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

from teachers.errors import ExitCode, TeacherError
from teachers.strategies.base import Bounds, Order, Ranked, Steps, Window, apply, checked
from teachers.strategies.tournament import Tournament


@dataclass(frozen=True)
class TopDown:
    """Rank the first w and take the k-th as the pivot; rank the others in groups of w - 1 with the pivot, in parallel.

    Passages that beat the pivot join the first k - 1. If any joined, these are ranked once more: in one call if they
    fit a window (the paper's budget), otherwise as a tournament that keeps k. So the first k are always settled. With
    n = 100, w = 20, k = 10 it takes 6 or 7 calls in three rounds; sliding takes 9 calls in nine. It takes more calls
    only if more than 11 of the other 80 beat the tenth best of the first window.
    """

    window: int = 20
    pivot: int = 10

    def __post_init__(self) -> None:
        checked("window", self.window, 3)
        checked("pivot", self.pivot, 1)
        if 2 * self.pivot > self.window:
            raise TeacherError(
                f"the pivot at rank {self.pivot} lies beyond the middle of a window of {self.window}",
                hint=f"--pivot {self.window // 2}",
                exit_code=ExitCode.USAGE,
            )

    @property
    def name(self) -> str:
        return "top-down"

    @property
    def parameters(self) -> dict[str, Any]:
        return {"window": self.window, "pivot": self.pivot}

    def _partitions(self, n: int) -> list[tuple[int, ...]]:
        """Return the places below the first window, in even parts of at most w - 1."""
        rest = range(self.window, n)
        number = -(-len(rest) // (self.window - 1))
        base, longer = divmod(len(rest), number) if number else (0, 0)
        parts, at = [], self.window
        for k in range(number):
            size = base + (k < longer)
            parts.append(tuple(range(at, at + size)))
            at += size
        return parts

    def steps(self, n: int) -> Steps:
        if n < 2:
            return Ranked(tuple(range(n)))
        first = tuple(range(min(self.window, n)))
        (reply,) = yield [first]
        head = apply(first, reply)
        if n <= self.window:
            return Ranked(tuple(head))
        above, pivot, below = head[: self.pivot - 1], head[self.pivot - 1], head[self.pivot :]
        windows = [(pivot, *part) for part in self._partitions(n)]
        winners: list[tuple[int, int, int]] = []  # (place in its partition, partition, position)
        replies = yield windows
        for k, (window, order) in enumerate(zip(windows, replies, strict=True)):
            ranked = apply(window, order)
            cut = ranked.index(pivot)
            winners += [(place, k, position) for place, position in enumerate(ranked[:cut])]
            below += ranked[cut + 1 :]
        if winners:
            again = [*above, *(position for _, _, position in sorted(winners))]
            above = yield from self._ranked_again(again)
        return Ranked((*above, pivot, *below))

    def _ranked_again(self, positions: list[int]) -> Generator[list[Window], list[Order], list[int]]:
        steps = self._final.steps(len(positions))
        try:
            batch = next(steps)
            while True:
                replies = yield [tuple(positions[i] for i in window) for window in batch]
                batch = steps.send(replies)
        except StopIteration as stop:
            return [positions[i] for i in stop.value.order]

    @property
    def _final(self) -> Tournament:
        return Tournament(self.window, self.pivot)

    def calls(self, n: int) -> Bounds:
        if n < 2:
            return Bounds(0, 0)
        if n <= self.window:
            return Bounds(1, 1)
        least = 1 + len(self._partitions(n))
        again = (self._final.calls(self.pivot - 1 + k).most for k in range(n - self.window + 1))
        return Bounds(least, least + max(again))

    def reliable_depth(self, n: int) -> int:
        return n if n <= self.window else min(self.pivot, n)
