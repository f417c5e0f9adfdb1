"""BM25's index built by an external sort, so its memory hardly grows with the collection.

The files are bm25s's: for each token the passages that have it, in order, each with its score. Blocks of passages are sorted by
token and written to a folder; then each range of tokens is read from all blocks, scored and written.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

_BLOCK = (
    4_000_000  # tokens of a block, and postings that are scored at once: some 300 MB while they are sorted
)
_OF_A_PASSAGE = 16  # what a waiting passage takes beside its tokens, in tokens
_FILES = {"data": "<f4", "indices": "<i4", "indptr": "<i8"}

Ints = NDArray[np.int32]
Scores = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class _Block:
    """A sorted block on disk: for each posting (position of the passage, times that the token is in it).

    Attributes:
        tokens: the block's different tokens, ascending.
        starts: where each token's postings begin, and the end: (len(tokens) + 1,).
    """

    path: Path
    tokens: Ints
    starts: Ints

    def range(self, first: int, after: int) -> tuple[Ints, Ints]:
        """Read the postings of tokens from `first` to before `after`: (tokens, rows of (position, times))."""
        low, high = np.searchsorted(self.tokens, [first, after])
        begin, end = int(self.starts[low]), int(self.starts[high])
        tokens = np.repeat(self.tokens[low:high], np.diff(self.starts[low : high + 1]))
        with self.path.open("rb") as file:
            file.seek(8 * begin)
            rows = np.fromfile(file, np.int32, 2 * (end - begin)).reshape(-1, 2)
        return tokens, rows


class Postings:
    """Collects passages' tokens, then writes the index.

    Args:
        folder: for the sorted blocks, 8 bytes a posting.
    """

    def __init__(self, folder: Path, *, block: int = _BLOCK) -> None:
        self._folder = folder
        self._size = block
        self._blocks: list[_Block] = []
        self._waiting: list[Ints] = []
        self._n_waiting = 0
        self._lengths: list[Ints] = []
        self._written = 0  # passages in blocks
        self.n_passages = 0

    def add(self, passages: Iterable[Ints]) -> None:
        """Add passages, each as the tokens of its text in order."""
        for tokens in passages:
            self._waiting.append(tokens)
            self._n_waiting += len(tokens)
            self.n_passages += 1
            if self._n_waiting + _OF_A_PASSAGE * len(self._waiting) >= self._size:
                self._sort()

    def _sort(self) -> None:
        lengths = np.fromiter(map(len, self._waiting), np.int32, len(self._waiting))
        tokens = np.concatenate([*self._waiting, np.empty(0, np.int32)]).astype(np.int64)
        places = np.repeat(np.arange(len(lengths)), lengths)
        found, times = np.unique(tokens * len(lengths) + places, return_counts=True)
        owners, places = np.divmod(found, len(lengths))
        different, counts = np.unique(owners, return_counts=True)
        path = self._folder / f"{len(self._blocks)}.postings"
        path.write_bytes(np.stack([places + self._written, times], axis=1).astype(np.int32).tobytes())
        starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
        self._blocks.append(_Block(path, different.astype(np.int32), starts))
        self._lengths.append(lengths)
        self._written += len(lengths)
        self._waiting, self._n_waiting = [], 0

    def write(self, folder: Path, n_tokens: int, *, k1: float, b: float) -> None:
        """Write the index that ``bm25s.BM25.load`` reads, in Lucene's variant.

        Args:
            n_tokens: of the vocabulary, at least 1.
        """
        if self._waiting:
            self._sort()
        with_token = np.zeros(n_tokens, np.int64)
        for block in self._blocks:
            with_token[block.tokens] += np.diff(block.starts)
        indptr = np.concatenate([[0], np.cumsum(with_token)])
        _write_settings(folder, self.n_passages, k1, b)
        lengths = np.concatenate([*self._lengths, np.empty(0, np.int32)])
        weights = np.log(1 + (self.n_passages - with_token + 0.5) / (with_token + 0.5)).astype(np.float32)
        mean = int(lengths.sum()) / max(len(lengths), 1) or 1.0  # all are empty: no posting divides by it
        norms = k1 * ((1 - b) + b * lengths / mean)
        with (
            _array(folder, "data", int(indptr[-1])) as data,
            _array(folder, "indices", int(indptr[-1])) as indices,
        ):
            for first, after in self._ranges(indptr):
                scores, positions = self._scored(first, after, weights, norms)
                data.write(scores.astype(_FILES["data"]).tobytes())
                indices.write(positions.astype(_FILES["indices"]).tobytes())
        with _array(folder, "indptr", len(indptr)) as file:
            file.write(indptr.astype(_FILES["indptr"]).tobytes())

    def _scored(
        self, first: int, after: int, weights: Scores, norms: NDArray[np.float64]
    ) -> tuple[Scores, Ints]:
        """Read a range of tokens from all blocks: the scores, and the passages' positions, token by token.

        Args:
            weights: idf of each token. norms: k1 (1 − b + b·|d|/avg|d|) of each passage.
        """
        parts = [block.range(first, after) for block in self._blocks]
        tokens = np.concatenate([part[0] for part in parts])
        rows = np.concatenate([part[1] for part in parts])
        order = np.argsort(tokens, kind="stable")  # blocks are in the passages' order
        tokens, rows = tokens[order], rows[order]
        times = rows[:, 1].astype(np.float32)
        return weights[tokens] * (times / (norms[rows[:, 0]] + times)), rows[:, 0]

    def _ranges(self, indptr: NDArray[np.int64]) -> Iterable[tuple[int, int]]:
        """Yield ranges of tokens whose postings fit into a block, or of one token."""
        first, n_tokens = 0, len(indptr) - 1
        while first < n_tokens:
            fits = int(np.searchsorted(indptr, indptr[first] + self._size, side="right")) - 1
            after = min(max(fits, first + 1), n_tokens)
            yield first, after
            first = after


def _write_settings(folder: Path, n_passages: int, k1: float, b: float) -> None:
    """Let bm25s write the index of one token, whose arrays are then replaced."""
    import bm25s

    index = bm25s.BM25(method="lucene", k1=k1, b=b)
    index.index(([[0]], {"": 0}), create_empty_token=False, show_progress=False)
    index.scores["num_docs"] = n_passages
    index.save(str(folder), show_progress=False)


def _array(folder: Path, name: str, n: int) -> BinaryIO:
    """Open a .npy file for n values, which the caller writes."""
    file: Any = (folder / f"{name}.csc.index.npy").open("wb")
    np.lib.format.write_array_header_1_0(file, {"descr": _FILES[name], "fortran_order": False, "shape": (n,)})
    return file  # type: ignore[no-any-return]
