"""Self-consistency: rank a list in several shuffled orders and merge the results (arXiv 2310.07712).

The influence of the prior order averages out. The paper calls this permutation self-consistency.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from msft.rankings import kendall_tau
from teachers.errors import ExitCode, TeacherError
from teachers.strategies.base import Bounds, Ranked, Steps, Strategy, checked


@dataclass(frozen=True)
class Consistent:
    """Run another strategy `samples` times over shuffled lists, in parallel, and merge the orders by `merge`.

    ``borda`` ranks by the mean rank, ``reciprocal`` by the sum of 1/(60 + rank); ties keep their prior order. The
    merged scores measure certainty: the share of the others that a passage beats, averaged over the samples. The first
    sample keeps the prior order unless `shuffle_first`, so that one sample equals the plain strategy.
    """

    inner: Strategy
    samples: int = 3
    seed: int = 0
    merge: str = "borda"
    shuffle_first: bool = True

    def __post_init__(self) -> None:
        checked("samples", self.samples, 1)
        if self.merge not in ("borda", "reciprocal"):
            raise TeacherError(
                f"no merge named {self.merge!r}", hint="choose borda or reciprocal", exit_code=ExitCode.USAGE
            )

    @property
    def name(self) -> str:
        return self.inner.name

    @property
    def parameters(self) -> dict[str, Any]:
        return {
            **self.inner.parameters,
            "samples": self.samples,
            "seed": self.seed,
            "merge": self.merge,
            "shuffle_first": self.shuffle_first,
        }

    def starts(self, n: int) -> list[list[int]]:
        """Return the samples' prior orders, which depend only on the seed and n."""
        starts = []
        for sample in range(self.samples):
            order = list(range(n))
            if sample or self.shuffle_first:
                random.Random(f"{self.seed}:{sample}:{n}").shuffle(order)
            starts.append(order)
        return starts

    def steps(self, n: int) -> Steps:
        starts = self.starts(n)
        runs = [self.inner.steps(n) for _ in starts]
        ended: dict[int, Ranked] = {}
        pending = {}
        for k, steps in enumerate(runs):
            try:
                pending[k] = next(steps)
            except StopIteration as stop:
                ended[k] = stop.value
        while pending:
            asked = [(k, window) for k, batch in pending.items() for window in batch]
            answers = yield [tuple(starts[k][i] for i in window) for k, window in asked]
            by_run: dict[int, list[Sequence[int]]] = {k: [] for k in pending}
            for (k, _), answer in zip(asked, answers, strict=True):
                by_run[k].append(answer)
            for k in list(pending):
                try:
                    pending[k] = runs[k].send(by_run[k])
                except StopIteration as stop:
                    ended[k] = stop.value
                    del pending[k]
        orders = [[starts[k][i] for i in ended[k].order] for k in range(self.samples)]
        return merged(orders, self.merge)

    def calls(self, n: int) -> Bounds:
        once = self.inner.calls(n)
        return Bounds(self.samples * once.least, self.samples * once.most)

    def reliable_depth(self, n: int) -> int:
        return self.inner.reliable_depth(n)


def merged(orders: Sequence[Sequence[int]], method: str = "borda") -> Ranked:
    """Merge several orders of 0..n-1 into one, with scores and disagreement (1 - mean Kendall tau of pairs)."""
    n = len(orders[0])
    ranks = [[0] * n for _ in orders]
    for k, order in enumerate(orders):
        for rank, position in enumerate(order, 1):
            ranks[k][position] = rank
    means = [sum(r[i] for r in ranks) / len(orders) for i in range(n)]
    if method == "borda":
        strength = [-mean for mean in means]
    else:
        strength = [sum(1 / (60 + r[i]) for r in ranks) for i in range(n)]
    order = tuple(sorted(range(n), key=lambda i: (-strength[i], i)))
    scores = tuple((n - mean) / (n - 1) if n > 1 else 1.0 for mean in means)
    if method == "reciprocal":
        scores = tuple(strength)
    disagreement = None
    if len(orders) > 1 and n > 1:
        taus = [kendall_tau(a, b) for a, b in combinations(ranks, 2)]
        disagreement = 1 - sum(taus) / len(taus)
    return Ranked(order, scores=scores, disagreement=disagreement)
