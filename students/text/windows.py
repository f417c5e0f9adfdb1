"""Score a long passage by overlapping windows.

``first`` scores what fits beside the query, and cuts the rest (FirstP). ``max`` scores windows over the whole passage and
takes the best one (MaxP), ``mean`` the mean of the best three. A window is as long as the part that ``first`` keeps, so
the first window of each passage is the same pair, and a short passage has no other.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from students.errors import ExitCode, StudentError
from students.text.tokens import Ints, PairFormat

Long = Literal["first", "max", "mean"]
MODES: tuple[Long, ...] = ("first", "max", "mean")
_BEST = {"max": 1, "mean": 3}  # windows whose scores count
_SHARED = 4  # a window shares one token in this many with the window before it


def check_mode(mode: str) -> Long:
    """Return the mode of that name.

    Raises:
        StudentError: there is no such mode (exit code 2).
    """
    for known in MODES:
        if mode == known:
            return known
    raise StudentError(
        f"long {mode!r} is not known", hint=f"--long {' | '.join(MODES)}", exit_code=ExitCode.USAGE
    )


@dataclass(frozen=True)
class Windows:
    """The windows of n pairs, pair by pair.

    Attributes:
        owner: (m,) the pair of each window, ascending. start: (m,) its first token in the passage, or None if every window
            begins with its passage.
    """

    owner: Ints
    start: Ints | None

    @classmethod
    def of(cls, form: PairFormat, mode: Long, query_lengths: Ints, passage_lengths: Ints) -> "Windows":
        """Divide passages into windows, from the full lengths of the texts. The last window ends with its passage."""
        if mode == "first":
            return cls(np.arange(len(passage_lengths)), None)
        _, width = form.truncated(query_lengths, passage_lengths)
        beyond = passage_lengths - width
        stride = np.maximum(width - width // _SHARED, 1)
        number = 1 + -(-beyond // stride)
        owner = np.repeat(np.arange(len(number)), number)
        place = np.arange(len(owner)) - np.repeat(np.cumsum(number) - number, number)
        return cls(owner, np.minimum(place * stride[owner], beyond[owner]))

    def take(self, pairs: Ints) -> "Windows":
        """Return the windows of some pairs (ascending); these are numbered anew."""
        chosen = np.isin(self.owner, pairs)
        return Windows(np.searchsorted(pairs, self.owner[chosen]), self.starts(chosen))

    def starts(self, chosen: NDArray[Any]) -> Ints | None:
        """Return the first tokens of some windows."""
        return None if self.start is None else self.start[chosen]


def aggregate(scores: torch.Tensor, owner: torch.Tensor, n: int, mode: Long) -> torch.Tensor:
    """Compute each pair's score from its windows' scores, (n,); gradients reach the windows that count.

    Args:
        scores: (m,) in any order. owner: (m,) int64, the pair of each window.
    """
    if mode == "first":
        return scores.new_empty(n).index_put((owner,), scores)
    order = torch.argsort(scores.detach(), descending=True, stable=True)
    order = order[torch.argsort(owner[order], stable=True)]
    of = owner[order]
    first = torch.searchsorted(of, torch.arange(n, device=of.device))
    rank = torch.arange(len(of), device=of.device) - first[of]
    kept = order[rank < _BEST[mode]]
    number = torch.bincount(owner[kept], minlength=n)
    return scores.new_zeros(n).index_add(0, owner[kept], scores[kept]) / number
