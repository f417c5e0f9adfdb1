"""Form batches of pairs: joined ids as tensors, padded or packed, within a token budget.

Batches are sorted by length and cut by the token budget, so padded batches hold hardly any padding. Packed batches hold
none. The order of `budget_batches` depends on the lengths only, so it is the same on every machine.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from students.text.tokens import Ints, Joined, PairFormat, Tokens

Layout = Literal["padded", "packed"]


@dataclass(frozen=True)
class PairBatch:
    """n pairs in the form that a model takes.

    Padded: ids, types and mask are (n, longest). Packed: all pairs lie in one row, and ids, types and positions are
    (1, T). ``boundaries`` (n + 1,) int32 holds where each pair begins and ends. A packed batch has no mask.
    """

    ids: torch.Tensor
    types: torch.Tensor | None
    mask: torch.Tensor | None
    positions: torch.Tensor | None
    boundaries: torch.Tensor | None
    longest: int  # tokens of the longest pair
    n_pairs: int
    n_tokens: int  # real tokens, padding not counted
    n_truncated: int

    @property
    def packed(self) -> bool:
        """Return True if all pairs lie in one row."""
        return self.boundaries is not None

    def to(self, device: torch.device | str) -> "PairBatch":
        """Copy the batch to a device; copies from pinned memory do not block."""
        moved = {
            name: value.to(device, non_blocking=True)
            for name in ("ids", "types", "mask", "positions", "boundaries")
            if (value := getattr(self, name)) is not None
        }
        return replace(self, **moved)

    def pin(self) -> "PairBatch":
        """Copy the batch to page-locked memory, so that copies to the device overlap with computation."""
        pinned = {
            name: value.pin_memory()
            for name in ("ids", "types", "mask", "positions", "boundaries")
            if (value := getattr(self, name)) is not None
        }
        return replace(self, **pinned)


def budget_batches(
    lengths: Ints | Sequence[int],
    max_tokens: int,
    *,
    max_pairs: int | None = None,
    multiple: int = 1,
    padded: bool = True,
) -> list[NDArray[np.intp]]:
    """Divide pairs into batches of at most ``max_tokens`` (at least one pair), longest first; gives their indices.

    Args:
        lengths: tokens of each pair.
        max_tokens: budget of a batch; counted with padding (rows × longest, rounded up to ``multiple``) if ``padded``.
        max_pairs: bound on rows, for memory that grows with rows only.
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    order = np.argsort(-lengths, kind="stable")
    batches, first = [], 0
    while first < len(order):
        if padded:
            width = -(-int(lengths[order[first]]) // multiple) * multiple
            rows = max(1, max_tokens // max(width, 1))
        else:
            ahead = np.cumsum(lengths[order[first : first + max_tokens]])
            rows = max(1, int(np.searchsorted(ahead, max_tokens, side="right")))
        if max_pairs is not None:
            rows = min(rows, max_pairs)
        batches.append(order[first : first + rows])
        first += rows
    return batches


def collate(
    form: PairFormat,
    queries: Tokens,
    passages: Tokens,
    query: Ints,
    passage: Ints,
    start: Ints | None = None,
    *,
    layout: Layout = "padded",
    multiple: int = 1,
    position_start: int = 0,
) -> PairBatch:
    """Make one batch of the pairs (query[i], passage[i]).

    Args:
        start: the first token that is taken of each passage; by default its first one.
        multiple: pad the length to a multiple of this number. In a packed batch, one pair of padding extends the row,
            and its score is not returned.
        position_start: first position id of each packed pair; RoBERTa counts from ``padding_idx + 1``.
    """
    joined = form.join(queries, passages, np.asarray(query), np.asarray(passage), start)
    if layout == "packed":
        return _packed(form, joined, multiple, position_start)
    return _padded(form, joined, multiple)


def _padded(form: PairFormat, joined: Joined, multiple: int) -> PairBatch:
    n, longest = len(joined.lengths), int(joined.lengths.max(initial=1))
    width = -(-longest // multiple) * multiple
    inside = np.arange(width)[None, :] < joined.lengths[:, None]
    ids = np.full((n, width), form.pad_id, dtype=np.int64)
    ids[inside] = joined.ids
    types = None
    if form.has_types:
        types = np.full((n, width), form.pad_type, dtype=np.int64)
        types[inside] = joined.types
    return PairBatch(
        ids=torch.from_numpy(ids),
        types=None if types is None else torch.from_numpy(types),
        mask=torch.from_numpy(inside.astype(np.int64)),
        positions=None,
        boundaries=None,
        longest=longest,
        n_pairs=n,
        n_tokens=len(joined.ids),
        n_truncated=joined.n_truncated,
    )


def _packed(form: PairFormat, joined: Joined, multiple: int, position_start: int) -> PairBatch:
    lengths, ids, types = joined.lengths, joined.ids, joined.types
    filler = -len(ids) % multiple
    if filler:
        lengths = np.append(lengths, filler)
        ids = np.append(ids, np.full(filler, form.pad_id))
        types = np.append(types, np.full(filler, form.pad_type))
    ends = np.cumsum(lengths)
    positions = np.arange(len(ids)) - np.repeat(ends - lengths, lengths) + position_start
    return PairBatch(
        ids=torch.from_numpy(ids)[None],
        types=torch.from_numpy(types)[None] if form.has_types else None,
        mask=None,
        positions=torch.from_numpy(positions)[None],
        boundaries=torch.from_numpy(np.concatenate([[0], ends]).astype(np.int32)),
        longest=int(lengths.max(initial=1)),
        n_pairs=len(joined.lengths),
        n_tokens=len(joined.ids),
        n_truncated=joined.n_truncated,
    )
