"""Pairwise: each pair is asked in both orders, so that the place of a passage in the prompt cannot decide (arXiv 2306.17563)."""

import math
from dataclasses import dataclass, field
from itertools import combinations, islice
from typing import Any

from teachers.errors import ExitCode, TeacherError
from teachers.strategies import sorting
from teachers.strategies.base import Bounds, Order, Ranked, ScoredOrder, Steps
from teachers.strategies.sorting import Group, Windows

SORTS = ("all", *sorting.SORTS)
AT_ONCE = 500  # pairs of a query that are asked side by side; a hundred passages have 4,950


@dataclass(frozen=True)
class Pairwise:
    """Compare passages two by two, each pair in both orders.

    ``all`` asks every pair, all at once: a passage gets a point for each passage that it beats in both orders and half a point
    where the orders disagree. A teacher that gives scores gives probabilities in place of points: the mean, over the two orders,
    of the probability that the passage is the better one (duoT5's sum over ordered pairs). ``heap`` and ``bubble`` settle the first `keep` ranks; where the orders disagree, the prior order
    decides. The disagreement of the two orders is stored: 1 - Kendall's tau between them, over the pairs asked.
    """

    keep: int = 10
    sort: str = "heap"

    def __post_init__(self) -> None:
        sorting.check(1, self.keep)
        if self.sort not in SORTS:
            raise TeacherError(
                f"pairwise has no sort named {self.sort!r}",
                hint=f"--sort {' | '.join(SORTS)}",
                exit_code=ExitCode.USAGE,
            )

    @property
    def name(self) -> str:
        return "pairwise"

    @property
    def window(self) -> int:
        return 2

    @property
    def parameters(self) -> dict[str, Any]:
        return {"sort": self.sort} if self.sort == "all" else {"keep": self.keep, "sort": self.sort}

    @property
    def _children(self) -> int:
        return 2 if self.sort == "heap" else 1

    def steps(self, n: int) -> Steps:
        if n < 2:
            return Ranked(tuple(range(n)))
        pairs = _Pairs()
        if self.sort == "all":
            return (yield from _all_pairs(n, pairs))
        order = yield from sorting.asked(sorting.sort(self.sort, n, self._children, self.keep), pairs.best)
        settled = self.keep if self.keep < n else None
        return Ranked(tuple(order), settled=settled, disagreement=pairs.disagreement)

    def calls(self, n: int) -> Bounds:
        if self.sort == "all":
            return Bounds(n * (n - 1), n * (n - 1))
        return sorting.bounds(self.sort, n, self._children, self.keep, lambda members: 2 * (members - 1))

    def reliable_depth(self, n: int) -> int:
        return n if self.sort == "all" else min(self.keep, n)


@dataclass
class _Pairs:
    """The pairs of one query that were asked, and those on which the two orders disagreed."""

    asked: int = 0
    disagreed: int = 0
    wins: dict[tuple[int, int], float] = field(
        default_factory=dict
    )  # (one, other) -> points of one: 1, .5 or 0, or a probability

    @property
    def disagreement(self) -> float | None:
        return 2 * self.disagreed / self.asked if self.asked else None

    def compare(self, pairs: list[tuple[int, int]]) -> Windows:
        """Ask pairs in both orders and return nothing; `wins` then holds the points of the first of each."""
        orders = yield [window for one, other in pairs for window in ((one, other), (other, one))]
        for (one, other), there, back in zip(pairs, orders[::2], orders[1::2], strict=True):
            self.asked += 1
            self.disagreed += (there[0] == 0) != (back[0] == 1)
            self.wins[one, other] = (_won(there, 0) + _won(back, 1)) / 2
        return []

    def best(self, groups: list[Group]) -> Windows:
        """Return the place of each group's best member; the prior order decides where the two orders disagree."""
        best = [0] * len(groups)
        for challenger in range(1, max(map(len, groups))):
            open_ = [k for k, group in enumerate(groups) if challenger < len(group)]
            pairs = [(groups[k][challenger], groups[k][best[k]]) for k in open_]
            yield from self.compare(pairs)
            for k, pair in zip(open_, pairs, strict=True):
                if self.wins[pair] > 0.5 or (self.wins[pair] == 0.5 and pair[0] < pair[1]):
                    best[k] = challenger
        return best


def _won(order: Order, place: int) -> float:
    """Return the probability that the passage at a place of the pair is the better one: 0 or 1 without scores."""
    if isinstance(order, ScoredOrder):
        own, other = order.scores[place], order.scores[1 - place]
        if own is not None and other is not None:
            return 1 / (1 + math.exp(min(other - own, 700.0)))
    return float(order[0] == place)


def _all_pairs(n: int, pairs: _Pairs) -> Steps:
    every = combinations(range(n), 2)
    while some := list(islice(every, AT_ONCE)):
        yield from pairs.compare(some)
    points = [0.0] * n
    for (one, other), won in pairs.wins.items():
        points[one] += won
        points[other] += 1 - won
    order = sorted(range(n), key=lambda position: -points[position])
    return Ranked(tuple(order), scores=tuple(points), disagreement=pairs.disagreement)
