"""Find near-duplicates among short texts: pairs whose character trigrams have a Jaccard similarity of at least t.

The result is exact. Two sets of similarity t share one of the first ``n - ceil(t n) + 1`` of their trigrams, the rarest first
(prefix filtering, Chaudhuri et al., ICDE 2006), so that each text is compared with few others.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from labelstore.store import keys

SIZE = 3


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
    ours = [(name, shingles(text)) for name, text in texts]
    theirs = [(name, shingles(text)) for name, text in others.items()]
    rarity = Counter(shingle for _, found in (*theirs, *ours) for shingle in found)
    index = _Index(rarity, least)
    for name, found in theirs:
        index.add(name, found)
    near: dict[str, Near] = {}
    for name, found in ours:
        like = index.nearest(found)
        if like is None:
            index.add(name, found)
        else:
            near[name] = like
    return near


class _Index:
    """Sets by the trigrams of their prefixes."""

    def __init__(self, rarity: Counter[str], least: float) -> None:
        self._rarity, self._least = rarity, least
        self._by_shingle: dict[str, list[tuple[str, frozenset[str]]]] = defaultdict(list)

    def _prefix(self, found: frozenset[str]) -> list[str]:
        ordered = sorted(found, key=lambda shingle: (self._rarity[shingle], shingle))
        return ordered[: len(ordered) - math.ceil(self._least * len(ordered) - 1e-9) + 1]

    def add(self, name: str, found: frozenset[str]) -> None:
        for shingle in self._prefix(found):
            self._by_shingle[shingle].append((name, found))

    def nearest(self, found: frozenset[str]) -> Near | None:
        """Return the most similar set; of equals the one with the first name. None if all are below the threshold."""
        seen: set[str] = set()
        best: Near | None = None
        for shingle in self._prefix(found):
            for name, other in self._by_shingle.get(shingle, ()):
                if name in seen:
                    continue
                seen.add(name)
                shared = len(found & other)
                similarity = shared / (len(found) + len(other) - shared)
                if similarity < self._least - 1e-12:
                    continue
                if best is None or (-similarity, name) < (-best.similarity, best.name):
                    best = Near(name, similarity)
        return best
