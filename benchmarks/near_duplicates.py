"""Find near-duplicates among short queries: msft's exact join, and MinHash with LSH bands as its peer.

    python -m benchmarks.near_duplicates [--queries 100000] [--least 0.8] [--folder ../shared/data]

The queries are pieces of 4 to 10 words of real passages; one in a hundred is another one with its last word changed. MinHash
has 128 hashes in 16 bands: half of the pairs with a similarity of .71 meet, and every pair that meets is compared exactly.
"""

import argparse
import gzip
import json
import random
import resource
import time
from collections import defaultdict
from pathlib import Path

import numpy as np

from labelstore.generated.near_duplicates import near_duplicates, shingles

HASHES, BANDS = 128, 16  # bands of 8 rows: half of the pairs with a similarity of (1/16)^(1/8) = .71 meet
PRIME = (1 << 31) - 1


def texts_of(folder: Path, n: int, seed: int = 1) -> list[str]:
    """Cut real passages into queries, and plant variants."""
    rng = random.Random(seed)
    found: dict[str, None] = {}
    for path in sorted(folder.glob("*/docs.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            for line in lines:
                words = json.loads(line)["text"].split()
                at = 0
                while at + 4 <= len(words):
                    size = rng.randint(4, 10)
                    found.setdefault(" ".join(words[at : at + size]))
                    at += size
    texts = list(found)
    rng.shuffle(texts)
    texts = texts[:n]
    for k in range(0, len(texts), 100):
        texts[k] = texts[(k * 7 + 13) % len(texts)] + "s"
    return texts


def minhash(texts: list[str], least: float) -> int:
    """Count the texts that are like an earlier kept one, as far as LSH finds them."""
    rng = np.random.default_rng(1)
    a, b = rng.integers(1, PRIME, (2, HASHES), dtype=np.int64)
    sets = [shingles(text) for text in texts]
    number = {s: k for k, s in enumerate({s for found in sets for s in found})}
    tables: list[dict[bytes, list[int]]] = [defaultdict(list) for _ in range(BANDS)]
    rows, near = HASHES // BANDS, 0
    for k, found in enumerate(sets):
        ids = np.fromiter((number[s] for s in found), dtype=np.int64, count=len(found))
        signature = ((ids[:, None] * a + b) % PRIME).min(0)
        keys = [signature[r * rows : (r + 1) * rows].tobytes() for r in range(BANDS)]
        met = {other for table, key in zip(tables, keys, strict=True) for other in table.get(key, ())}
        if any(len(found & sets[o]) / len(found | sets[o]) >= least for o in met):
            near += 1
            continue
        for table, key in zip(tables, keys, strict=True):
            table[key].append(k)
    return near


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--queries", type=int, default=100_000)
    parser.add_argument("--least", type=float, default=0.8)
    parser.add_argument(
        "--folder", type=Path, default=Path(__file__).resolve().parents[2] / "shared" / "data"
    )
    given = parser.parse_args()
    texts = texts_of(given.folder, given.queries)
    began = time.monotonic()
    exact = len(near_duplicates([(f"q{k:07}", text) for k, text in enumerate(texts)], {}, given.least))
    exact_seconds = time.monotonic() - began
    exact_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    began = time.monotonic()
    found = minhash(texts, given.least)
    print(
        json.dumps(
            {
                "queries": len(texts),
                "least": given.least,
                "exact_found": exact,
                "exact_seconds": round(exact_seconds, 1),
                "exact_peak_mb": round(exact_mb),
                "minhash_found": found,
                "minhash_seconds": round(time.monotonic() - began, 1),
            }
        )
    )


if __name__ == "__main__":
    main()
