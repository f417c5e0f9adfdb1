"""Tournament of groups: the best of each group go on until they fit one window.

This is the group stage of TourRank (arXiv 2406.11678) as an elimination: one round of games instead of points over
many.
"""

from dataclasses import dataclass
from typing import Any

from teachers.errors import ExitCode, TeacherError
from teachers.strategies.base import Bounds, Ranked, Steps, Window, apply, checked


@dataclass(frozen=True)
class Tournament:
    """Rank groups of at most w, seeded so that each has strong and weak passages; the best `keep` of each group go on.

    A passage among the true first `keep` can never drop out, so `keep` ranks are settled. With n = 100, w = 20,
    keep = 5 it takes 5 + 2 + 1 calls that show 135 passages in three rounds; sliding shows 180 in nine. A passage that drops
    out ranks below all that stayed longer, by its place in its group, then by prior rank.
    """

    window: int = 20
    keep: int = 5

    def __post_init__(self) -> None:
        checked("window", self.window, 2)
        checked("keep", self.keep, 1)
        if 2 * self.keep > self.window:
            raise TeacherError(
                f"--keep {self.keep} of a window of {self.window}: at least half must drop out in each round",
                hint=f"--keep {self.window // 4 or 1}",
                exit_code=ExitCode.USAGE,
            )

    @property
    def name(self) -> str:
        return "tournament"

    @property
    def parameters(self) -> dict[str, Any]:
        return {"window": self.window, "keep": self.keep}

    def _groups(self, alive: list[int]) -> list[Window]:
        """Return even groups, with the strong passages spread as in a draw: 1 to the first, 2 to the second …"""
        number = -(-len(alive) // self.window)
        return [tuple(alive[k::number]) for k in range(number)]

    def _sizes(self, n: int) -> list[list[int]]:
        """Return the group sizes of each round; they do not depend on the replies."""
        rounds = []
        while n > self.window:
            number = -(-n // self.window)
            sizes = [len(range(k, n, number)) for k in range(number)]
            rounds.append(sizes)
            n = sum(min(self.keep, size) for size in sizes)
        if n >= 2:
            rounds.append([n])
        return rounds

    def steps(self, n: int) -> Steps:
        alive = list(range(n))
        out: list[int] = []  # worst last; a round's losers go before the losers of earlier rounds
        while len(alive) > self.window:
            groups = self._groups(alive)
            replies = yield [group for group in groups if len(group) > 1]
            answers = iter(replies)
            places: list[tuple[int, int, int]] = []
            for group in groups:
                ranked = apply(group, next(answers)) if len(group) > 1 else list(group)
                places += [(place, alive.index(position), position) for place, position in enumerate(ranked)]
            places.sort()
            out = [position for place, _, position in places if place >= self.keep] + out
            alive = [position for place, _, position in places if place < self.keep]
        if len(alive) > 1:
            window = tuple(alive)
            (reply,) = yield [window]
            alive = apply(window, reply)
        return Ranked((*alive, *out))

    def calls(self, n: int) -> Bounds:
        number = sum(size > 1 for sizes in self._sizes(n) for size in sizes)
        return Bounds(number, number)

    def reliable_depth(self, n: int) -> int:
        return n if n <= self.window else min(self.keep, n)
