"""The token cache: every text tokenised once per tokenizer, on disk, memory-mapped, shared by all views.

A cache folder holds one folder per tokenizer (`tokens.tokenizer_key`), and in it segments: ``keys.npy`` (sorted 64-bit
hashes of texts), ``starts.npy``, ``lengths.npy`` and ``ids.npy``. A segment is written beside and renamed into place, so a
killed or concurrent build leaves only whole segments; the same text in two segments does no harm.
"""

import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from students.tokens import Ints, Progress, Tokens, id_type, text_key, tokenise, tokenizer_key

_CHUNK = 1 << 16  # texts held as Python strings at once


@dataclass(frozen=True)
class _Segment:
    keys: NDArray[np.uint64]
    starts: Ints
    lengths: Ints
    ids: NDArray[Any]


class SegmentedIds:
    """The ids of several segments under one numbering; takes what `tokens.Tokens` asks of an array."""

    def __init__(self, parts: Sequence[NDArray[Any]]) -> None:
        self._parts = list(parts)
        self._bounds = np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int64)
        self.dtype = self._parts[0].dtype

    def __len__(self) -> int:
        return int(self._bounds[-1])

    @property
    def starts(self) -> Ints:
        """Where each segment's ids begin in the common numbering."""
        return self._bounds[:-1]

    def __getitem__(self, index: Any) -> NDArray[Any]:
        if isinstance(index, slice):
            index = np.arange(*index.indices(len(self)))
        of = np.searchsorted(self._bounds, index, side="right") - 1
        out = np.empty(len(index), dtype=self.dtype)
        for part in np.unique(of):
            mine = of == part
            out[mine] = self._parts[part][index[mine] - self._bounds[part]]
        return out


class TokenCache:
    """Token ids of texts by content.

    Args:
        folder: of the cache, e.g. ``<store>.files/tokens``; made when first written to.
    """

    def __init__(self, folder: str | Path, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.folder = Path(folder) / tokenizer_key(tokenizer)
        self.n_tokenised = 0  # texts that this object had to tokenise

    def tokens(self, texts: Iterable[str], progress: Progress | None = None) -> Tokens:
        """Ids of the texts, in their order; what the cache lacks is tokenised and added to it.

        Args:
            texts: a sequence, or an Arrow column of strings.
            progress: called with (texts tokenised, texts to tokenise).
        """
        keys = np.fromiter((text_key(text) for text in _strings(texts)), dtype=np.uint64)
        missing = self._missing(keys)
        if len(missing):
            self._add(texts, keys, missing, progress)
        return self._look_up(keys)

    def _segments(self) -> list[_Segment]:
        segments = []
        for path in sorted(self.folder.glob("segment-*")):
            loaded = [
                np.load(path / f"{name}.npy", mmap_mode="r") for name in ("keys", "starts", "lengths", "ids")
            ]
            # plain arrays over the mapped memory: np.memmap's own indexing is several times slower
            segments.append(_Segment(*(np.asarray(array) for array in loaded)))
        return segments

    def _missing(self, keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
        missing = np.unique(keys)
        for segment in self._segments():
            missing = missing[~_found(segment.keys, missing)[0]]
        return missing

    def _look_up(self, keys: NDArray[np.uint64]) -> Tokens:
        segments = self._segments()
        if not segments:
            return Tokens(np.zeros(0, dtype=id_type(self._tokenizer)), _empty(), _empty())
        starts, lengths = np.zeros(len(keys), dtype=np.int64), np.zeros(len(keys), dtype=np.int64)
        which = np.full(len(keys), -1, dtype=np.int64)
        for number, segment in enumerate(segments):
            here, at = _found(segment.keys, keys)
            here &= which < 0
            which[here] = number
            starts[here] = segment.starts[at[here]]
            lengths[here] = segment.lengths[at[here]]
        used = np.unique(which)
        if len(used) == 1:
            return Tokens(segments[int(used[0])].ids, starts, lengths)
        ids = SegmentedIds([segments[int(number)].ids for number in used])
        starts += ids.starts[np.searchsorted(used, which)]
        return Tokens(ids, starts, lengths)  # type: ignore[arg-type]

    def _add(
        self,
        texts: Iterable[str],
        keys: NDArray[np.uint64],
        missing: NDArray[np.uint64],
        progress: Progress | None,
    ) -> None:
        """Tokenise the texts whose keys are missing, each once, into a new segment."""
        wanted = np.zeros(len(keys), dtype=bool)
        wanted[np.unique(keys, return_index=True)[1]] = True
        wanted &= np.isin(keys, missing)
        n = int(np.count_nonzero(wanted))
        parts: list[Tokens] = []
        done = 0
        for chunk in _chunks(text for text, take in zip(_strings(texts), wanted, strict=True) if take):
            base = done

            def tick(within: int, _: int | None, base: int = base) -> None:
                if progress is not None:
                    progress(base + within, n)

            parts.append(tokenise(self._tokenizer, chunk, tick))
            done += len(chunk)
        lengths = np.concatenate([part.lengths for part in parts])
        starts = np.cumsum(lengths) - lengths
        found = keys[wanted]
        order = np.argsort(found)
        self._write(
            {
                "keys": found[order],
                "starts": starts[order],
                "lengths": lengths[order],
                "ids": np.concatenate([part.ids for part in parts]),
            }
        )
        self.n_tokenised += n

    def _write(self, arrays: dict[str, NDArray[Any]]) -> None:
        name = hashlib.blake2b(arrays["keys"].tobytes(), digest_size=16).hexdigest()
        beside = self.folder / f".writing-{name}-{os.getpid()}"
        beside.mkdir(parents=True, exist_ok=True)
        for key, array in arrays.items():
            with (beside / f"{key}.npy").open("wb") as file:
                np.save(file, array)
                file.flush()
                os.fsync(file.fileno())
        try:
            beside.rename(self.folder / f"segment-{name}")
        except OSError:  # another process wrote the same texts meanwhile
            if not (self.folder / f"segment-{name}").is_dir():
                raise
            shutil.rmtree(beside)


def _empty() -> Ints:
    return np.zeros(0, dtype=np.int64)


def _found(sorted_keys: NDArray[np.uint64], keys: NDArray[np.uint64]) -> tuple[NDArray[np.bool_], Ints]:
    """Which keys are there, and where."""
    if not len(sorted_keys):
        return np.zeros(len(keys), dtype=bool), np.zeros(len(keys), dtype=np.int64)
    at = np.minimum(np.searchsorted(sorted_keys, keys), len(sorted_keys) - 1)
    return sorted_keys[at] == keys, at


def _strings(texts: Any) -> Iterator[str]:
    """Python strings of a sequence or an Arrow column, chunk by chunk."""
    if hasattr(texts, "iterchunks"):
        for chunk in texts.iterchunks():
            for first in range(0, len(chunk), _CHUNK):
                yield from chunk.slice(first, _CHUNK).to_pylist()
    else:
        yield from texts


def _chunks(texts: Iterator[str]) -> Iterator[list[str]]:
    held: list[str] = []
    for text in texts:
        held.append(text)
        if len(held) == _CHUNK:
            yield held
            held = []
    if held:
        yield held
