"""Cache token ids on disk. Each text is tokenised once per tokenizer, and all views share the cache.

A cache folder holds one folder per tokenizer (`tokens.tokenizer_key`). That folder holds memory-mapped segments, each
with ``keys.npy`` (sorted 64-bit hashes of texts), ``starts.npy``, ``lengths.npy`` and ``ids.npy``. A segment is written
under a temporary name, in bounded memory, and then renamed. So a killed or concurrent build leaves only whole segments.
The same text in two segments does no harm.
"""

import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from students.text.tokens import Ints, Progress, Tokens, id_type, text_key, tokenise, tokenizer_key

_CHUNK = 1 << 16  # texts held as Python strings at once
_SEGMENT = 1 << 22  # largest number of texts in a segment, and the most that a killed build loses


@dataclass(frozen=True)
class _Segment:
    keys: NDArray[np.uint64]
    starts: Ints
    lengths: Ints
    ids: NDArray[Any]


class SegmentedIds:
    """The ids of several segments under one numbering, with the array operations that `tokens.Tokens` uses."""

    def __init__(self, parts: Sequence[NDArray[Any]]) -> None:
        self._parts = list(parts)
        self._bounds = np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int64)
        self.dtype = self._parts[0].dtype

    def __len__(self) -> int:
        return int(self._bounds[-1])

    @property
    def starts(self) -> Ints:
        """Compute where each segment's ids begin in the common numbering."""
        return self._bounds[:-1]

    def __getitem__(self, index: Any) -> NDArray[Any]:
        if isinstance(index, slice):
            index = np.arange(*index.indices(len(self)))
        of = np.searchsorted(self._bounds, index, side="right") - 1
        out = np.empty(len(index), dtype=self.dtype)
        for part in np.flatnonzero(np.bincount(of, minlength=len(self._parts))):
            mine = of == part
            out[mine] = self._parts[part][index[mine] - self._bounds[part]]
        return out


class TokenCache:
    """A cache of token ids, looked up by text.

    Args:
        folder: the cache's folder, e.g. ``<store>.files/tokens``; it is made at the first write.
    """

    def __init__(self, folder: str | Path, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.folder = Path(folder) / tokenizer_key(tokenizer)
        self.n_tokenised = 0  # texts that this object had to tokenise

    def tokens(self, texts: Iterable[str], progress: Progress | None = None) -> Tokens:
        """Return the ids of the texts, in their order. Texts that the cache lacks are tokenised and added.

        Args:
            texts: a sequence, or an Arrow column of strings.
            progress: called with (texts tokenised, texts to tokenise).
        """
        keys = np.fromiter((text_key(text) for text in _strings(texts)), dtype=np.uint64)
        missing = self._missing(keys)
        if len(missing):
            self._add(texts, keys, missing, progress)
        return self._look_up(keys)

    def peek(self, texts: Sequence[str]) -> Tokens:
        """Return the ids of the texts without adding any: those that the cache lacks are only tokenised."""
        keys = np.fromiter((text_key(text) for text in texts), dtype=np.uint64, count=len(texts))
        lacking = np.isin(keys, self._missing(keys))
        if lacking.all():
            return tokenise(self._tokenizer, texts)
        here = self._look_up(keys[~lacking])
        known = here.take(np.arange(len(here)))
        new = tokenise(self._tokenizer, [text for text, lacks in zip(texts, lacking, strict=True) if lacks])
        starts, lengths = np.zeros(len(texts), dtype=np.int64), np.zeros(len(texts), dtype=np.int64)
        starts[~lacking], lengths[~lacking] = known.starts, known.lengths
        starts[lacking], lengths[lacking] = new.starts + len(known.ids), new.lengths
        in_order = Tokens(np.concatenate([known.ids, new.ids]), starts, lengths)
        return in_order.take(np.arange(len(texts)))

    def _segments(self) -> list[_Segment]:
        segments = []
        for path in sorted(self.folder.glob("segment-*")):
            loaded = [
                np.load(path / f"{name}.npy", mmap_mode="r") for name in ("keys", "starts", "lengths", "ids")
            ]
            # plain arrays over the mapped memory, because indexing np.memmap is several times slower
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
        """Tokenise each text whose key is missing, once, into a new segment."""
        wanted = np.zeros(len(keys), dtype=bool)
        wanted[np.unique(keys, return_index=True)[1]] = True
        wanted &= np.isin(keys, missing)
        found = keys[wanted]
        new = (text for text, take in zip(_strings(texts), wanted, strict=True) if take)
        for first in range(0, len(found), _SEGMENT):
            of_segment = found[first : first + _SEGMENT]

            def tick(done: int, base: int = first) -> None:
                if progress is not None:
                    progress(base + done, len(found))

            self._write(of_segment, islice(new, len(of_segment)), tick)
            self.n_tokenised += len(of_segment)

    def _write(self, keys: NDArray[np.uint64], texts: Iterator[str], tick: Callable[[int], None]) -> None:
        """Tokenise the texts of these keys into a segment."""
        order = np.argsort(keys)
        name = hashlib.blake2b(keys[order].tobytes(), digest_size=16).hexdigest()
        beside = self.folder / f".writing-{name}-{os.getpid()}"
        beside.mkdir(parents=True, exist_ok=True)
        lengths = np.zeros(len(keys), dtype=np.int64)
        done = 0
        with _Growing(beside / "ids.npy", np.dtype(id_type(self._tokenizer))) as ids:
            while chunk := list(islice(texts, min(_CHUNK, len(keys) - done))):
                part = tokenise(self._tokenizer, chunk, lambda within, _, base=done: tick(base + within))  # type: ignore[misc]
                ids.append(part.ids)
                lengths[done : done + len(chunk)] = part.lengths
                done += len(chunk)
        starts = np.cumsum(lengths) - lengths
        arrays = {"keys": keys[order], "starts": starts[order], "lengths": lengths[order]}
        for key, array in arrays.items():
            with _Growing(beside / f"{key}.npy", array.dtype) as file:
                file.append(array)
        try:
            beside.rename(self.folder / f"segment-{name}")
        except OSError:  # another process wrote the same texts meanwhile
            if not (self.folder / f"segment-{name}").is_dir():
                raise
            shutil.rmtree(beside)


class _Growing:
    """A one-dimensional .npy file to append to; closing it flushes it to disk."""

    def __init__(self, path: Path, dtype: "np.dtype[Any]") -> None:
        self._path, self._dtype, self._n = path, dtype, 0

    def __enter__(self) -> "_Growing":
        self._file = self._path.open("wb")
        self._header()
        return self

    def append(self, array: NDArray[Any]) -> None:
        """Add numbers at the end."""
        self._file.write(np.ascontiguousarray(array, dtype=self._dtype).data)
        self._n += len(array)

    def __exit__(self, *_: object) -> None:
        self._file.seek(0)
        self._header()  # numpy leaves room in the header for a longer length
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def _header(self) -> None:
        described = {
            "descr": np.lib.format.dtype_to_descr(self._dtype),
            "fortran_order": False,
            "shape": (self._n,),
        }
        np.lib.format.write_array_header_1_0(self._file, described)


def _empty() -> Ints:
    return np.zeros(0, dtype=np.int64)


def _found(sorted_keys: NDArray[np.uint64], keys: NDArray[np.uint64]) -> tuple[NDArray[np.bool_], Ints]:
    """Mark the keys that are found, and give their places."""
    if not len(sorted_keys):
        return np.zeros(len(keys), dtype=bool), np.zeros(len(keys), dtype=np.int64)
    at = np.minimum(np.searchsorted(sorted_keys, keys), len(sorted_keys) - 1)
    return sorted_keys[at] == keys, at


def _strings(texts: Any) -> Iterator[str]:
    """Yield a sequence or an Arrow column as Python strings, chunk by chunk."""
    if hasattr(texts, "iterchunks"):
        for chunk in texts.iterchunks():
            for first in range(0, len(chunk), _CHUNK):
                yield from chunk.slice(first, _CHUNK).to_pylist()
    else:
        yield from texts
