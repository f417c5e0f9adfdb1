"""Sliding window, bottom up: RankGPT's strategy (arXiv 2304.09542), without leaving out any passage."""

from dataclasses import dataclass
from typing import Any

from teachers.errors import ExitCode, TeacherError
from teachers.strategies.base import Bounds, Ranked, Steps, apply, checked


@dataclass(frozen=True)
class Sliding:
    """Slide windows of w passages from the end of the list to its head, s places at a time, `passes` times.

    ``end = n, start = max(end - w, 0)``; rank, apply, move both up by s, clamp start at 0. The window that starts at 0
    is the last one of a pass. So n = 100, w = 20, s = 10 takes 9 calls, n = 95 also 9 (the last window shows 15),
    n = 25 takes 2 and n <= 20 takes one. A pass carries w - s passages to the top, so it settles w - s ranks.
    """

    window: int = 20
    stride: int = 10
    passes: int = 1

    def __post_init__(self) -> None:
        checked("window", self.window, 2)
        checked("stride", self.stride, 1)
        checked("passes", self.passes, 1)
        if self.stride >= self.window:
            raise TeacherError(
                f"--stride {self.stride} carries nothing from one window of {self.window} to the next",
                hint=f"--stride {self.window // 2}",
                exit_code=ExitCode.USAGE,
            )

    @property
    def name(self) -> str:
        return "sliding"

    @property
    def parameters(self) -> dict[str, Any]:
        return {"window": self.window, "stride": self.stride, "passes": self.passes}

    def bounds(self, n: int) -> list[tuple[int, int]]:
        """Return (start, end) of a pass's windows in order; empty for fewer than two passages."""
        if n < 2:
            return []
        end, start = n, max(n - self.window, 0)
        places = [(start, end)]
        while start > 0:
            end -= self.stride
            start = max(start - self.stride, 0)
            places.append((start, end))
        return places

    def steps(self, n: int) -> Steps:
        order = list(range(n))
        for _ in range(self.passes):
            for start, end in self.bounds(n):
                window = tuple(order[start:end])
                (reply,) = yield [window]
                order[start:end] = apply(window, reply)
            if n <= self.window:
                break  # one window showed everything; another call would be self-consistency
        return Ranked(tuple(order))

    def calls(self, n: int) -> Bounds:
        number = len(self.bounds(n)) * (self.passes if n > self.window else 1)
        return Bounds(number, number)

    def reliable_depth(self, n: int) -> int:
        if n <= self.window:
            return n
        return min(n, self.passes * (self.window - self.stride))
