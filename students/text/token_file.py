"""Keep token ids of many texts in a temporary file, written block by block and read back batch by batch.

Re-ranking sorts all pairs of a run by length, so a batch holds texts from anywhere in the run. Their ids lie in a file
without a name, so the file disappears with the process, however the process ends. Memory holds two numbers per text.
The file is read with calls instead of a memory map, because mapped pages would count as memory of the process.
"""

import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from students.text.token_cache import TokenCache
from students.text.tokens import Ints, Tokens, id_type, tokenise

_AT_ONCE = (
    1 << 20
)  # characters given to the tokenizer at once; its output takes up to 100 bytes per character


class TokenFile:
    """Ids of up to n texts in a temporary file; a context manager that removes the file at its end.

    Args:
        tokenizer: a Hugging Face tokenizer.
        n: largest number of texts.
        keep: how many ids of each text are kept. A pair never takes more of one text than it has room for. The cut
            depends on the full lengths, so these are always kept.
        folder: the file's folder; it should be on a disk.
        cache: ids that it has are taken from it; nothing is added to it.
    """

    def __init__(
        self, tokenizer: Any, n: int, *, keep: int, folder: Path, cache: TokenCache | None = None
    ) -> None:
        self._tokenizer, self._cache = tokenizer, cache
        self._keep = keep
        self._dtype = np.dtype(id_type(tokenizer))
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by __exit__
        self._starts: Ints = np.zeros(n + 1, dtype=np.int64)
        self._lengths: Ints = np.zeros(n, dtype=np.int64)
        self._n = 0

    def __enter__(self) -> "TokenFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __len__(self) -> int:
        return self._n

    @property
    def lengths(self) -> Ints:
        """Return the full length in tokens of each text added so far."""
        return self._lengths[: self._n]

    def add(self, texts: Iterable[str]) -> None:
        """Tokenise texts; their numbers continue from the last text."""
        for part in _by_characters(texts):
            tokens = tokenise(self._tokenizer, part) if self._cache is None else self._cache.peek(part)
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
        """Read the ids of these texts, in this order, into memory.

        Several threads may call this at once, after all texts are added.

        Raises:
            IndexError: a text was not added. OSError: the file cannot be read.
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
    """Yield the texts in parts that bound the tokenizer's memory, unless a single text is larger."""
    part: list[str] = []
    characters = 0
    for text in texts:
        if part and characters + len(text) > _AT_ONCE:
            yield part
            part, characters = [], 0
        part.append(text)
        characters += len(text) + 64  # the memory that even an empty text takes
    if part:
        yield part
