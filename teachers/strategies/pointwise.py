"""One call per passage: each gets a score, and the scores give the order."""

from dataclasses import dataclass
from typing import Any

from teachers.strategies.base import Bounds, Ranked, ScoredOrder, Steps


@dataclass(frozen=True)
class Pointwise:
    """Ask for every passage alone, all at once. Equal scores keep the prior order."""

    @property
    def name(self) -> str:
        return "pointwise"

    @property
    def window(self) -> int:
        return 1

    @property
    def parameters(self) -> dict[str, Any]:
        return {}

    def steps(self, n: int) -> Steps:
        if n < 1:
            return Ranked(())
        replies = yield [(position,) for position in range(n)]
        scores = [reply.scores[0] if isinstance(reply, ScoredOrder) else None for reply in replies]
        known = [score for score in scores if score is not None]
        if len(known) < n:  # a forecast, whose replies have no scores
            return Ranked(tuple(range(n)))
        order = sorted(range(n), key=lambda position: -known[position])
        return Ranked(tuple(order), scores=tuple(known))

    def calls(self, n: int) -> Bounds:
        return Bounds(n, n)

    def reliable_depth(self, n: int) -> int:
        return n
