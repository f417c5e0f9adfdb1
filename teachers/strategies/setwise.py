"""Setwise: each call names the best of c + 1 passages, which sorts them (arXiv 2310.09497)."""

from dataclasses import dataclass
from typing import Any

from teachers.errors import ExitCode, TeacherError
from teachers.strategies import sorting
from teachers.strategies.base import Bounds, Ranked, Steps
from teachers.strategies.sorting import Group, Windows


@dataclass(frozen=True)
class Setwise:
    """Compare a passage with `children` others a call, until the first `keep` ranks are settled.

    ``heap`` builds a heap whose nodes have that many children; the nodes of a level are asked side by side. ``bubble`` carries
    the best passage to the head, pass by pass. The other passages keep their prior order. With n = 100, c = 3 and keep = 10 a
    heap takes 42 to 85 calls.
    """

    children: int = 3
    keep: int = 10
    sort: str = "heap"

    def __post_init__(self) -> None:
        sorting.check(self.children, self.keep)
        if self.sort not in sorting.SORTS:
            raise TeacherError(
                f"setwise has no sort named {self.sort!r}",
                hint=f"--sort {' | '.join(sorting.SORTS)}",
                exit_code=ExitCode.USAGE,
            )

    @property
    def name(self) -> str:
        return "setwise"

    @property
    def window(self) -> int:
        return self.children + 1

    @property
    def parameters(self) -> dict[str, Any]:
        return {"children": self.children, "keep": self.keep, "sort": self.sort}

    def steps(self, n: int) -> Steps:
        if n < 2:
            return Ranked(tuple(range(n)))
        order = yield from sorting.asked(sorting.sort(self.sort, n, self.children, self.keep), _best)
        return Ranked(tuple(order), settled=self.keep if self.keep < n else None)

    def calls(self, n: int) -> Bounds:
        return sorting.bounds(self.sort, n, self.children, self.keep, lambda members: 1)

    def reliable_depth(self, n: int) -> int:
        return min(self.keep, n)


def _best(groups: list[Group]) -> Windows:
    orders = yield groups
    return [order[0] for order in orders]
