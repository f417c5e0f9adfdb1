"""Hold a view folder's lists as arrays, and draw an epoch's passages from them.

Draws are vectorised and counter-based. The random number of a passage depends only on (view, seed, epoch, list, place).
It does not depend on the batch, on the process, or on earlier draws. So a training resumes at the exact list, and N
processes draw the same passages as one process.
"""

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from students.losses import LOSSES, Loss
from students.recipes.recipe import Objective
from students.text.tokens import Ints


@dataclass(frozen=True)
class ViewLists:
    """L lists over P rows: list i is rows ``starts[i] : starts[i + 1]``.

    Attributes:
        query: (L,) row of the query table. passage: (P,) row of the passage table.
        labels: (P,) graded target, higher is better. scores: (P,) teacher scores, NaN if the teacher gave none.
        weights: (P,) weights of the passages. relevances: (P,) human judgments, -1 if unjudged.
    """

    query: Ints
    starts: Ints
    passage: Ints
    labels: NDArray[np.float32]
    scores: NDArray[np.float32]
    weights: NDArray[np.float32]
    relevances: Ints

    def __len__(self) -> int:
        return len(self.query)

    @property
    def sizes(self) -> Ints:
        """Count the passages of each list, (L,)."""
        return np.diff(self.starts)

    def take(self, chosen: NDArray[Any]) -> "ViewLists":
        """Return the chosen lists, in the given order."""
        rows, sizes = self.rows(chosen)
        return ViewLists(
            self.query[chosen],
            np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
            self.passage[rows],
            self.labels[rows],
            self.scores[rows],
            self.weights[rows],
            self.relevances[rows],
        )

    def rows(self, chosen: NDArray[Any]) -> tuple[Ints, Ints]:
        """Return the rows of the chosen lists, one list after the other, and the number of rows of each list."""
        sizes = self.sizes[chosen]
        within = np.arange(int(sizes.sum())) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        return np.repeat(self.starts[:-1][chosen], sizes) + within, sizes


# --------------------------------------------------------------------------------------------------- drawing
@dataclass(frozen=True)
class Draw:
    """Passages drawn for some lists: row ``rows[k]`` is one of the ``local[k]``-th of them; lists stay together."""

    local: Ints  # (n,) 0..m-1, ascending
    rows: Ints  # (n,) rows of Lists
    tiebreak: NDArray[np.uint64]  # (n,) orders equal labels
    query: Ints  # (n,) row of the query table
    in_batch: NDArray[np.bool_]  # (n,) whether the row is another list's, and here a negative

    def take(self, kept: NDArray[Any], local: Ints | None = None) -> "Draw":
        """Return some of the passages, perhaps with their lists numbered anew."""
        own = self.local[kept] if local is None else local
        return Draw(own, self.rows[kept], self.tiebreak[kept], self.query[kept], self.in_batch[kept])


def stream_key(view_hash: str, seed: int, epoch: int, purpose: str) -> int:
    """Compute the 64-bit key of one random stream."""
    data = f"{view_hash}:{seed}:{epoch}:{purpose}".encode()
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def epoch_order(n: int, key: int) -> Ints:
    """Compute the order in which an epoch takes n lists."""
    return np.argsort(_random(key, np.arange(n), np.zeros(n, dtype=np.int64)), kind="stable")


def _random(key: int, lists: NDArray[Any], places: NDArray[Any]) -> NDArray[np.uint64]:
    """Compute a 64-bit random number for each (key, list, place), by SplitMix64's finaliser over a Weyl sequence."""
    mask = (1 << 64) - 1
    with np.errstate(over="ignore"):
        x = lists.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(key & mask)
        x = _mix(x) + (places.astype(np.uint64) + np.uint64(1)) * np.uint64(0xD1B54A32D192ED03)
        return _mix(x)


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def draw(lists: ViewLists, chosen: Ints, objective: Objective, key: int) -> Draw:
    """Draw an epoch's passages from the chosen lists.

    ``cl`` draws one positive and negatives at random, ``group_size`` in all. From graded lists a loss that learns an order
    draws up to half the group as positives. ``kd`` takes the teacher's top ``depth``, or
    ``group_size`` of them at random. Passages keep the view's order. ``in_batch`` adds passages of the other chosen
    lists, so it depends on all of them.
    """
    rows, sizes = lists.rows(chosen)
    local = np.repeat(np.arange(len(chosen)), sizes)
    places = rows - np.repeat(lists.starts[:-1][chosen], sizes)
    random = _random(key, np.repeat(chosen, sizes), places)
    if objective.name == "cl":
        negative = lists.labels[rows] <= 0
        rank = _rank_within(local * 2 + negative, random)
        most = objective.group_size // 2 if _learns_grades(lists, objective) else 1
        positives = np.clip(np.bincount(local[~negative], minlength=len(chosen)), 1, most)
        kept = rank < np.where(negative, objective.group_size - positives[local], most)
    else:
        kept = _rank_within(local, random, -lists.labels[rows]) < objective.depth
        if objective.group_size:
            rows, local, random = rows[kept], local[kept], random[kept]
            kept = _rank_within(local, _mix(random)) < objective.group_size
    local, rows = local[kept], rows[kept]
    own = Draw(local, rows, random[kept], lists.query[chosen[local]], np.zeros(len(rows), dtype=bool))
    return _with_in_batch(lists, chosen, own, objective.in_batch, key) if objective.in_batch else own


def _with_in_batch(lists: ViewLists, chosen: Ints, own: Draw, number: int, key: int) -> Draw:
    """Add up to `number` passages that the other lists have drawn to each list.

    Passages of all lists on the query are left out, drawn or not: one of them may be a positive.
    """
    _, first = np.unique(lists.passage[own.rows], return_index=True)
    pool = np.sort(first)
    passages = lists.passage[own.rows[pool]]
    held = np.zeros((len(chosen), len(pool)), dtype=bool)
    for k, query in enumerate(lists.query[chosen]):
        rows, _ = lists.rows(np.flatnonzero(lists.query == query))
        held[k] = np.isin(passages, lists.passage[rows])
    random = _random(key, np.repeat(chosen, len(pool)), np.tile(passages, len(chosen)) + (1 << 40))
    random = random.reshape(held.shape)
    order = np.lexsort((random, held), axis=1)[:, :number]
    free = ~np.take_along_axis(held, order, 1)
    local, at = np.nonzero(free)[0], order[free]
    both = np.concatenate([own.local, local])
    together = np.argsort(both, kind="stable")
    return Draw(
        both[together],
        np.concatenate([own.rows, own.rows[pool[at]]])[together],
        np.concatenate([own.tiebreak, random[local, at]])[together],
        np.concatenate([own.query, lists.query[chosen[local]]])[together],
        np.concatenate([own.in_batch, np.ones(len(local), dtype=bool)])[together],
    )


def _learns_grades(lists: ViewLists, objective: Objective) -> bool:
    loss = LOSSES.get(objective.loss)
    return loss is not None and loss.needs == "order" and bool((lists.labels > 1).any())


def _rank_within(group: NDArray[Any], *keys: NDArray[Any]) -> Ints:
    """Rank each row within its group by the keys, from 0; the last key counts first. Groups need not be adjacent."""
    order = np.lexsort((*keys, group))
    sorted_group = group[order]
    first = np.flatnonzero(np.r_[True, sorted_group[1:] != sorted_group[:-1]]) if len(order) else order
    counts = np.diff(np.append(first, len(order)))
    ranks = np.empty(len(order), dtype=np.int64)
    ranks[order] = np.arange(len(order)) - np.repeat(first, counts)
    return ranks


def usable(lists: ViewLists, objective: Objective, loss: Loss) -> NDArray[np.bool_]:
    """Mark the lists that can have a term of the loss, (L,) bool. The other lists are skipped and counted."""
    every = np.arange(len(lists))
    rows, sizes = lists.rows(every)
    group = np.repeat(every, sizes)
    if objective.name == "kd":
        top = _rank_within(group, -lists.labels[rows]) < objective.depth
        rows, group = rows[top], group[top]
    labels = lists.labels[rows]
    if loss.needs == "scores":
        known = np.isfinite(lists.scores[rows])
        rows, group, labels = rows[known], group[known], labels[known]
    if loss.needs == "binary" or objective.name == "cl":
        positives = np.bincount(group[labels > 0], minlength=len(lists))
        negatives = np.bincount(group[labels <= 0], minlength=len(lists))
        return (positives > 0) & ((negatives > 0) | (objective.in_batch > 0))
    low = np.full(len(lists), np.inf)
    high = np.full(len(lists), -np.inf)
    np.minimum.at(low, group, labels)
    np.maximum.at(high, group, labels)
    return np.asarray(low < high)
