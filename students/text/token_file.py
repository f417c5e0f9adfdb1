"""Token ids of many texts in a temporary file: written block by block, read back batch by batch.

Re-ranking sorts all pairs of a run by length, so a batch holds texts from anywhere. Their ids lie in a file without a
name, which is gone with the process however that ends; in memory stay two numbers a text. It is read with calls and not
memory-mapped, so that what was read once does not count as memory of the process.
"""

import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from students.text.tokens import Ints, Tokens, id_type, tokenise

_AT_ONCE = 1 << 20  # characters given to the tokenizer at once: what it makes of one takes up to 100 bytes


class TokenSpool:
    """Ids of up to n texts; a context that ends with the file gone.

    Args:
        tokenizer: a Hugging Face tokenizer.
        n: texts at most.
        keep: ids of a text that are kept. A pair never takes more than its room of one text, while how it is cut
            depends on the whole lengths, which are all kept.
        folder: where the file is to lie; it should be on a disk.
    """

    def __init__(self, tokenizer: Any, n: int, *, keep: int, folder: Path) -> None:
        self._tokenizer = tokenizer
        self._keep = keep
        self._dtype = np.dtype(id_type(tokenizer))
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by __exit__
        self._starts: Ints = np.zeros(n + 1, dtype=np.int64)
        self._lengths: Ints = np.zeros(n, dtype=np.int64)
        self._n = 0

    def __enter__(self) -> "TokenSpool":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __len__(self) -> int:
        return self._n

    @property
    def lengths(self) -> Ints:
        """Tokens of each text added so far, whole."""
        return self._lengths[: self._n]

    def add(self, texts: Iterable[str]) -> None:
        """Tokenise texts and number them on from the last."""
        for part in _by_characters(texts):
            tokens = tokenise(self._tokenizer, part)
            kept = np.minimum(tokens.lengths, self._keep)
            here = slice(self._n, self._n + len(part))
            self._lengths[here] = tokens.lengths
            ends = self._starts[self._n] + np.cumsum(kept)
            self._starts[self._n + 1 : self._n + 1 + len(part)] = ends
            within = np.arange(len(tokens.ids)) - np.repeat(tokens.starts, tokens.lengths)
            self._file.write(np.ascontiguousarray(tokens.ids[within < self._keep], dtype=self._dtype).data)
            self._n += len(part)
        self._file.flush()

    def take(self, numbers: NDArray[Any]) -> Tokens:
        """The ids of these texts, in this order, in memory; safe to call from several threads once all are added.

        Raises:
            IndexError: a text that was not added. OSError: the file cannot be read.
        """
        if len(numbers) and not 0 <= int(numbers.min()) <= int(numbers.max()) < self._n:
            raise IndexError(f"texts {numbers.min()} to {numbers.max()} of {self._n}")
        size, file = self._dtype.itemsize, self._file.fileno()
        first = self._starts[numbers]
        kept = self._starts[numbers + 1] - first
        found = b"".join(
            os.pread(file, n * size, start * size)
            for start, n in zip(first.tolist(), kept.tolist(), strict=True)
        )
        if len(found) != int(kept.sum()) * size:
            raise OSError("a temporary file of token ids was cut short")
        return Tokens(np.frombuffer(found, dtype=self._dtype), np.cumsum(kept) - kept, self._lengths[numbers])


def _by_characters(texts: Iterable[str]) -> Iterator[list[str]]:
    """The texts in parts that the tokenizer takes in bounded memory, unless a single text is larger."""
    part: list[str] = []
    characters = 0
    for text in texts:
        if part and characters + len(text) > _AT_ONCE:
            yield part
            part, characters = [], 0
        part.append(text)
        characters += len(text) + 64  # what a text takes however short it is
    if part:
        yield part
