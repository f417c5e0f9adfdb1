"""Keep passages' vectors on disk, so that the next labeling of a store does not embed the same passages again.

A folder holds the vectors of one model and one way to compute them. Each process appends to two files of its own:
``NAME.f32`` gets the vectors, and then ``NAME.keys`` gets 24 bytes for each: its digest, its tokens, its checksum. So only
whole rows count after a kill, and processes never wait for each other. The same passage in two files does no harm. All of it can be
removed at any time: it is computed again.
"""

import os
import secrets
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]
MOST_BYTES = 2 << 30  # in all files of a folder; 1.3 million vectors of 384 dimensions fit
_KEY = np.dtype([("digest", "V16"), ("tokens", "<u4"), ("check", "<u4")])


class Embedded(NamedTuple):
    """Hold a text's unit vector and its length in tokens after truncation."""

    vector: Vectors
    n_tokens: int


class _Part(NamedTuple):
    """The two files of one process, and an index: sorted beginnings of digests, and the row of each."""

    beginnings: NDArray[np.uint64]
    rows: NDArray[np.intp]
    keys: NDArray[np.void]
    vectors: Vectors


class PassageVectors:
    """The vectors of passages that this and earlier processes embedded, found by a digest of 16 bytes.

    Args:
        folder: of one model and precision; it is made at the first write.
        dimensions: of a vector.
    """

    def __init__(self, folder: Path, dimensions: int) -> None:
        self._folder, self._dimensions = folder, dimensions
        self._row_bytes = 4 * dimensions
        self._parts: list[_Part] = []
        self._own = folder / f"{os.getpid()}-{secrets.token_hex(4)}"
        self._writes = True
        self._bytes = 0
        for file in sorted(folder.glob("*.keys")):
            self._load(file)

    def find(self, digests: Sequence[bytes]) -> dict[bytes, Embedded]:
        """Return the vectors that are kept. A row that does not match its checksum is left out."""
        found: dict[bytes, Embedded] = {}
        if not digests:
            return found
        wanted = _beginnings(np.frombuffer(b"".join(digests), dtype="V16"))
        for part in self._parts:
            at = np.minimum(np.searchsorted(part.beginnings, wanted), len(part.rows) - 1)
            for k in map(int, np.flatnonzero(part.beginnings[at] == wanted)):
                row = part.rows[at[k]]
                vector = np.array(part.vectors[row])
                whole = bytes(part.keys["digest"][row]) == digests[k]
                if whole and zlib.crc32(vector.tobytes()) == part.keys["check"][row]:
                    found[digests[k]] = Embedded(vector, int(part.keys["tokens"][row]))
        return found

    def add(self, new: Mapping[bytes, Embedded]) -> None:
        """Append vectors. Without room on the disk or in :data:`MOST_BYTES`, these and later ones are not kept."""
        added = len(new) * (self._row_bytes + _KEY.itemsize)
        if not new or not self._writes or self._bytes + added > MOST_BYTES:
            return
        rows = np.stack([own.vector for own in new.values()]).astype("<f4", copy=False)
        keys = np.zeros(len(new), dtype=_KEY)
        keys["digest"] = [np.void(digest) for digest in new]
        keys["tokens"] = [own.n_tokens for own in new.values()]
        keys["check"] = [zlib.crc32(row.tobytes()) for row in rows]
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            for ending, array in ((".f32", rows), (".keys", keys)):
                with self._own.with_suffix(ending).open("ab") as file:
                    file.write(array.tobytes())
        except OSError:  # a full disk must not end a labeling, whose results need less room
            self._writes = False
        self._bytes += added

    def _load(self, file: Path) -> None:
        try:
            keys = np.fromfile(file, dtype=_KEY)
            n = min(len(keys), file.with_suffix(".f32").stat().st_size // self._row_bytes)
            if not n:
                return
            mapped = np.memmap(file.with_suffix(".f32"), dtype="<f4", mode="r", shape=(n, self._dimensions))
        except OSError:  # another process removed the files, or they belong to another user
            return
        self._bytes += n * (self._row_bytes + _KEY.itemsize)
        beginnings = _beginnings(keys["digest"][:n])
        rows = np.argsort(beginnings)
        self._parts.append(_Part(beginnings[rows], rows, keys, np.asarray(mapped)))


def _beginnings(digests: NDArray[np.void]) -> NDArray[np.uint64]:
    """The first eight bytes of each digest as a number."""
    return np.ascontiguousarray(digests).view("<u8")[::2]
