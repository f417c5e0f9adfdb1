"""Find near-duplicates among short texts: pairs whose character trigrams have a Jaccard similarity of at least t.

The result is exact. Two sets of similarity t share one of the first ``n - ceil(t n) + 1`` of their trigrams, the rarest first
(prefix filtering, Chaudhuri et al., ICDE 2006). Of the pairs that do, sizes, places and a 256-bit sketch of each set leave out
nearly all that are not alike, in one DuckDB join; what is left is compared. benchmarks/results/near-duplicates.md has figures.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import duckdb
import pyarrow as pa

from labelstore.store import keys

SIZE = 3
_WORDS = 4  # of 64 bits in a sketch

# Each pair of a set and an earlier one that can be alike. A sketch has a bit for each trigram, so two sets differ in at least as
# many trigrams as their sketches in bits; sets of sizes n and m share at least t / (1 + t) (n + m) trigrams.
_PAIRS = f"""
    SELECT DISTINCT x.text, y.text AS earlier
    FROM prefixes x JOIN prefixes y ON x.trigram = y.trigram AND y.text < x.text
    WHERE x.text >= $ours AND least(x.n, y.n) >= $least * greatest(x.n, y.n) - 1e-9
      AND 1 + least(x.n - x.place, y.n - y.place) >= $share * (x.n + y.n) - 1e-9
      AND {" + ".join(f"bit_count(xor(x.b{k}, y.b{k}))" for k in range(_WORDS))} <= (1 - 2 * $share) * (x.n + y.n) + 1e-9"""


class Near(NamedTuple):
    """The text that another one is like, and their similarity."""

    name: str
    similarity: float


def shingles(text: str) -> frozenset[str]:
    """Cut a normalised text into trigrams; spaces mark the ends of words."""
    padded = f" {keys.normalise_query(text)} "
    return frozenset(padded[k : k + SIZE] for k in range(len(padded) - SIZE + 1)) or frozenset([padded])


def near_duplicates(
    texts: Iterable[tuple[str, str]], others: Mapping[str, str], least: float
) -> dict[str, Near]:
    """Map the name of each text that is like an earlier kept one, or like one of the others, to what it is like.

    Args:
        texts: (name, text); the first of some that are alike is kept.
        others: name -> text of what is there already.
        least: the lowest similarity, above 0 and at most 1.
    """
    named = [*others.items(), *texts]
    sets = [shingles(text) for _, text in named]
    alike: dict[int, list[int]] = defaultdict(list)
    for text, earlier in _candidates(sets, len(others), least):
        alike[text].append(earlier)
    near: dict[str, Near] = {}
    gone: set[int] = set()
    for text in sorted(alike):
        found = [
            Near(named[k][0], similarity)
            for k in alike[text]
            if k not in gone and (similarity := _similarity(sets[text], sets[k])) >= least - 1e-12
        ]
        if found:
            gone.add(text)
            near[named[text][0]] = min(found, key=lambda one: (-one.similarity, one.name))
    return near


def _similarity(one: frozenset[str], other: frozenset[str]) -> float:
    shared = len(one & other)
    return shared / (len(one) + len(other) - shared)


def _candidates(sets: Sequence[frozenset[str]], ours: int, least: float) -> list[tuple[int, int]]:
    """Return (place of one of ours, place of an earlier set) of all pairs that can be alike."""
    rarity = Counter(trigram for found in sets for trigram in found)
    number = {trigram: k for k, (trigram, _) in enumerate(sorted(rarity.items(), key=lambda i: (i[1], i[0])))}
    columns: list[list[int]] = [[] for _ in range(4 + _WORDS)]
    for text, found in enumerate(sets):
        trigrams = sorted(number[trigram] for trigram in found)
        n = len(trigrams)
        words = [0] * _WORDS
        for trigram in trigrams:
            bit = (trigram * 0x9E3779B1) >> 7 & (64 * _WORDS - 1)
            words[bit >> 6] |= 1 << (bit & 63)
        signed = [word - (1 << 64) if word >> 63 else word for word in words]
        for place, trigram in enumerate(trigrams[: n - math.ceil(least * n - 1e-9) + 1], 1):
            for column, value in zip(columns, (text, n, place, trigram, *signed), strict=True):
                column.append(value)
    names = ["text", "n", "place", "trigram", *(f"b{k}" for k in range(_WORDS))]
    kinds = [pa.int32()] * 4 + [pa.int64()] * _WORDS
    prefixes = pa.table([pa.array(c, kind) for c, kind in zip(columns, kinds, strict=True)], names)
    with duckdb.connect() as con:
        con.register("prefixes", prefixes)
        return con.execute(_PAIRS, {"ours": ours, "least": least, "share": least / (1 + least)}).fetchall()
