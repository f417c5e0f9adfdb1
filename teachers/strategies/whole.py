"""One call per query: over the first window only, or over the whole list."""

from dataclasses import dataclass
from typing import Any

from teachers.strategies.base import Bounds, Ranked, Steps, apply, checked


@dataclass(frozen=True)
class Single:
    """Rank the first w passages in one call; the rest keeps its prior order and is not settled."""

    window: int = 20

    def __post_init__(self) -> None:
        checked("window", self.window, 2)

    @property
    def name(self) -> str:
        return "single"

    @property
    def parameters(self) -> dict[str, Any]:
        return {"window": self.window}

    def steps(self, n: int) -> Steps:
        shown = min(self.window, n)
        if n < 2:
            return Ranked(tuple(range(n)))
        window = tuple(range(shown))
        (reply,) = yield [window]
        return Ranked((*apply(window, reply), *range(shown, n)), settled=shown if shown < n else None)

    def calls(self, n: int) -> Bounds:
        number = int(n >= 2)
        return Bounds(number, number)

    def reliable_depth(self, n: int) -> int:
        return min(self.window, n)


@dataclass(frozen=True)
class Full:
    """Rank the whole list in one call: half the input tokens of sliding, but weaker if not trained on long lists."""

    @property
    def name(self) -> str:
        return "full"

    @property
    def parameters(self) -> dict[str, Any]:
        return {}

    def steps(self, n: int) -> Steps:
        if n < 2:
            return Ranked(tuple(range(n)))
        window = tuple(range(n))
        (reply,) = yield [window]
        return Ranked(tuple(apply(window, reply)))

    def calls(self, n: int) -> Bounds:
        number = int(n >= 2)
        return Bounds(number, number)

    def reliable_depth(self, n: int) -> int:
        return n
