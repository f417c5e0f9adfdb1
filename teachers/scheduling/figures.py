"""Progress figures of a labelling job."""

from collections.abc import Sequence
from dataclasses import dataclass, fields


@dataclass
class Figures:
    """Progress figures of a job; the progress line shows them."""

    queries: int = 0  # finished with a permutation
    calls: int = 0  # answered in this job
    resumed: int = 0  # answers reused from the record
    repaired: int = 0
    retried: int = 0
    quarantined: int = 0
    unfinished: int = 0  # started or waiting when the budget ended the job
    tokens_in: int = 0
    tokens_out: int = 0
    engine_seconds: float = 0.0  # seconds in which the engine had work
    seconds: float = 0.0
    peak_active: int = 0
    occupancy: float = 0.0  # mean requests in flight over capacity, weighted by time, while work was left
    stopped: str | None = None  # the limit that ended the job

    @property
    def tokens_per_second(self) -> float:
        return (self.tokens_in + self.tokens_out) / self.seconds if self.seconds > 0 else 0.0

    @property
    def overhead_share(self) -> float:
        """Return (wall - engine time) / wall."""
        return max(self.seconds - self.engine_seconds, 0.0) / self.seconds if self.seconds > 0 else 0.0


def summed(parts: Sequence[Figures]) -> Figures:
    """Combine the figures of parallel jobs: sums of counts, means of shares of time."""
    total = Figures()
    for part in parts:
        for each in fields(Figures):
            value = getattr(part, each.name)
            if isinstance(value, int | float):
                setattr(total, each.name, getattr(total, each.name) + value)
        total.stopped = total.stopped or part.stopped
    busy = sum(part.seconds for part in parts if part.occupancy)
    total.occupancy = sum(part.occupancy * part.seconds for part in parts) / busy if busy else 0.0
    return total
