"""Describe the pairs of a call: their texts' token ids, in memory or in a file, and which text is whose."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from students.text.token_file import TokenFile
from students.text.tokens import Ints, PairFormat, Tokens

Scores = NDArray[np.float32]
Progress = Callable[[int, int | None], None]
Rows = NDArray[np.intp]
Item = TypeVar("Item")


@dataclass(frozen=True)
class Pairs:
    """All pairs of a call, as numbers of their texts. The token ids are in memory or in a file."""

    queries: Tokens | TokenFile
    passages: Tokens | TokenFile
    query: NDArray[Any]  # (n_pairs,) integers: the number of each pair's query
    passage: NDArray[Any]  # (n_pairs,)
    start: Ints | None = None  # (n_pairs,) the first token that is taken of each pair's passage

    @property
    def query_lengths(self) -> Ints:
        """The tokens of each pair's query, (n_pairs,)."""
        return self.queries.lengths[self.query]

    @property
    def passage_lengths(self) -> Ints:
        """The tokens of each pair's passage, (n_pairs,)."""
        return self.passages.lengths[self.passage]

    def take(self, rows: Rows) -> "Pairs":
        """Copy some pairs into memory, with no other texts than theirs. Several threads may call this at once."""
        queries, query = _taken(self.queries, self.query[rows])
        passages, passage = _taken(self.passages, self.passage[rows])
        return Pairs(queries, passages, query, passage, None if self.start is None else self.start[rows])


class Scorers(Protocol):
    """Other processes that score the batches of a call; `students.rerank.fleet` has the one class."""

    device: str  # cuda or cpu

    def score(
        self, work: Iterator[tuple[Item, Pairs, Rows]], form: PairFormat
    ) -> Iterator[tuple[Item, Rows, Scores]]:
        """Yield each batch's raw logits as they come, in any order, each with its item.

        Args:
            work: the batches: rows of pairs, and any item that belongs to them.
        """

    def close(self) -> None:
        """End the processes."""


def _taken(texts: Tokens | TokenFile, numbers: NDArray[Any]) -> tuple[Tokens, Ints]:
    used, number = np.unique(numbers, return_inverse=True)
    return texts.take(used), number.astype(np.int64)
