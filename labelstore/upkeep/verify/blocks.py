"""Check the file's blocks against their checksums without DuckDB. This is fast, but does not say what a block held.

A DuckDB file is three headers of 4 KiB and then blocks. Each begins with a 64-bit checksum of the rest (DuckDB's
`common/checksum.cpp`: the words, each times a constant, combined by exclusive or). Unused blocks may hold anything, so
a mismatch is only a candidate: `damage` lets DuckDB confirm each one.
"""

from pathlib import Path

import numpy as np

HEADERS = 3 * 4096
_SEED, _FACTOR = np.uint64(5381), np.uint64(0xBF58476D1CE4E5B9)
_AT_ONCE = 64  # blocks per read


def mismatches(path: Path, block_size: int, n_blocks: int) -> list[int] | None:
    """List byte offsets of blocks whose checksum differs, or that are beyond the file's end.

    None if most differ: the file has an unknown format.
    """
    found: list[int] = []
    n = 0
    with path.open("rb") as file:
        file.seek(HEADERS)
        while data := file.read(block_size * _AT_ONCE):
            whole = len(data) // block_size
            words = np.frombuffer(data, dtype="<u8", count=whole * block_size // 8).reshape(whole, -1)
            sums = np.bitwise_xor.reduce(words[:, 1:] * _FACTOR, axis=1) ^ _SEED
            found += [HEADERS + (n + int(k)) * block_size for k in np.flatnonzero(sums != words[:, 0])]
            n += whole
    found += range(HEADERS + n * block_size, HEADERS + n_blocks * block_size, block_size)
    return found if len(found) <= max(n_blocks // 2, 1) else None
