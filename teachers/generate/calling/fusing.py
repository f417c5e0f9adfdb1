"""Fuse a scoring teacher's ranking of a query with the first stage's: by reciprocal ranks, or by scores."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from msft.rankings import scaled

if TYPE_CHECKING:
    from teachers.generate.worklist import Task
    from teachers.scheduling.job import Result

FUSIONS = {
    "ranks": "reciprocal ranks with the run, k = 60",
    "scores": "scores with the run's, each scaled to 0..1 within the query",
}


@dataclass(frozen=True)
class Fusion:
    """How a teacher and the run that it labels make one ranking.

    Attributes:
        by: ``ranks`` sums w / (60 + rank); ``scores`` sums w · score, each scaled to 0..1 within the query, as
            `msft eval --fuse` does.
        weight: w of the teacher; the run has 1 - w.
    """

    by: str = "ranks"
    weight: float = 0.5

    def scores(self, task: "Task", result: "Result") -> list[float]:
        """Return each candidate's fused score.

        Args:
            result: the teacher's order; for ``scores`` with a score for each candidate, unless there is only one: a
                query with one candidate is labelled without a call.

        Raises:
            RuntimeError: a score is missing; plans are checked for that.
        """
        own = self.weight
        if self.by == "scores" and len(task.candidates) == 1:
            return scaled([1.0])
        if self.by == "scores":
            teacher = scaled(_all(result.scores))
            run = scaled(_all([candidate.score for candidate in task.candidates]))
            return [own * a + (1 - own) * b for a, b in zip(teacher, run, strict=True)]
        ranks = {index: rank for rank, index in enumerate(result.ranked.order, start=1)}
        # Doubled, so that equal weights give the plain sum.
        return [
            2 * (own / (60 + ranks[index]) + (1 - own) / (60 + candidate.initial_rank))
            for index, candidate in enumerate(task.candidates)
        ]


def _all(scores: Sequence[float | None] | None) -> list[float]:
    known = [score for score in scores or () if score is not None]
    if scores is None or len(known) < len(scores):
        raise RuntimeError("a candidate without a score cannot be fused by scores")
    return known
