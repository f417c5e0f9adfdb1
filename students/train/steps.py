"""Plan an optimiser step: divide its lists over processes by tokens, and into pieces that fit in memory.

The targets determine the loss's denominator before anything is scored. So pieces, gradient accumulation and processes
add up to exactly the loss of the whole step. A step depends only on (views, seed, stage, step), so it can be planned
ahead of time, and again after a restart.
"""

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from students.losses import Targets, get, normaliser, total
from students.model.encoder import CrossEncoder
from students.recipes.recipe import Objective, Stage
from students.text.batches import PairBatch, budget_batches
from students.text.tokens import Ints, PairFormat, Tokens
from students.text.windows import Long, Windows, aggregate
from students.train.lists import Draw, ViewLists, draw, epoch_order, stream_key, usable
from students.train.view_folder import View


@dataclass(frozen=True)
class Task:
    """An objective with its tokenised view."""

    objective: Objective
    view: View
    queries: Tokens
    passages: Tokens
    train: Ints  # training lists that have a term of the loss
    n_skipped: int  # number of training lists without a term
    form: PairFormat | None = None  # the view's own format of pairs, if it has one

    @classmethod
    def of(
        cls,
        objective: Objective,
        view: View,
        queries: Tokens,
        passages: Tokens,
        form: PairFormat | None = None,
    ) -> "Task":
        """Make a task; lists without a term of the loss are set aside."""
        good = usable(view.train, objective, get(objective.loss))
        without = int(np.count_nonzero(~good))
        return cls(objective, view, queries, passages, np.flatnonzero(good), without, form)

    @property
    def steps_per_epoch(self) -> int:
        """Count the optimiser steps in which every list is seen once."""
        return -(-len(self.train) // self.objective.lists)

    def drawn(self, seed: int, stage: int, step: int) -> tuple[Ints, Draw]:
        """Choose the lists of a step (from 0), and draw passages from them."""
        epoch, at = divmod(step, self.steps_per_epoch)
        key = stream_key(self.view.view_hash, seed, epoch, f"{stage}:{self.objective.name}")
        order = _order(len(self.train), key)
        chosen = self.train[order[at * self.objective.lists : (at + 1) * self.objective.lists]]
        return chosen, draw(self.view.train, chosen, self.objective, key)

    def lengths(self, lists: ViewLists, drawn: Draw) -> tuple[Ints, Ints]:
        """Return the tokens of the queries and of the passages that are drawn, before truncation."""
        return self.queries.lengths[drawn.query], self.passages.lengths[lists.passage[drawn.rows]]


@lru_cache(maxsize=4)
def _order(n: int, key: int) -> Ints:
    """Compute an epoch's order; the cache keeps it for the epoch's steps."""
    return epoch_order(n, key)


@dataclass(frozen=True)
class Cells:
    """The places of drawn pairs in a (lists, longest list) matrix."""

    index: torch.Tensor  # (n,) flat, int64
    shape: tuple[int, int]

    def matrix(self, scores: torch.Tensor) -> torch.Tensor:
        """Arrange the pairs' scores as a (lists, longest list) matrix, 0 elsewhere."""
        flat = scores.new_zeros(self.shape[0] * self.shape[1])
        return flat.index_put((self.index,), scores).view(self.shape)

    def to(self, device: torch.device) -> "Cells":
        """Copy the places to a device; copies from pinned memory do not block."""
        return Cells(self.index.to(device, non_blocking=True), self.shape)

    def pin(self) -> "Cells":
        """Copy the places to page-locked memory."""
        return Cells(self.index.pin_memory(), self.shape)


@dataclass(frozen=True)
class Part:
    """The lists of one objective in a micro-batch."""

    objective: Objective
    number: int  # number of the objective in the stage
    cells: Cells  # places of the pairs, in the pieces' order; with windows in the lists' order
    targets: Targets
    owner: torch.Tensor | None = None  # the pair of each window, in the pieces' order

    @property
    def n_scores(self) -> int:
        """Count this part's scores; in the micro-batch they follow the scores of the parts before it."""
        return len(self.cells.index) if self.owner is None else len(self.owner)

    def of_pairs(self, scores: torch.Tensor, mode: Long) -> torch.Tensor:
        """Compute the pairs' scores from those of this part's windows."""
        if self.owner is None:
            return scores
        owner = self.owner.to(scores.device, non_blocking=True)
        return aggregate(scores, owner, len(self.cells.index), mode)

    def pin(self) -> "Part":
        """Copy places and targets to page-locked memory."""
        owner = None if self.owner is None else self.owner.pin_memory()
        return replace(self, cells=self.cells.pin(), targets=self.targets.pin(), owner=owner)


@dataclass(frozen=True)
class MicroBatch:
    """Whole lists whose pairs are scored together. Each piece is one forward pass; the longest pairs come first."""

    parts: list[Part]
    pieces: list[PairBatch]
    n_tokens: int
    long: Long = "first"

    def loss(self, scores: torch.Tensor, denominators: list[float]) -> torch.Tensor:
        """Compute this micro-batch's share of the step's loss from scores in the pieces' order.

        Args:
            denominators: per objective, the loss's denominator over the whole step.
        """
        value = scores.new_zeros(())
        first = 0
        for part in self.parts:
            own = part.of_pairs(scores[first : first + part.n_scores], self.long)
            first += part.n_scores
            objective, device = part.objective, scores.device
            loss = get(objective.loss)
            terms = loss(part.cells.to(device).matrix(own), part.targets.to(device), **objective.parameters)
            value = value + objective.weight * total(terms, objective.reduction) / denominators[part.number]
        return value

    def pin(self) -> "MicroBatch":
        """Copy pieces, places and targets to page-locked memory, so that no copy to the device waits."""
        pieces, parts = [piece.pin() for piece in self.pieces], [part.pin() for part in self.parts]
        return replace(self, pieces=pieces, parts=parts)


def collate_rows(
    encoder: CrossEncoder, task: Task, lists: ViewLists, drawn: Draw, pairs: Ints, start: Ints | None = None
) -> PairBatch:
    """Make a batch of some of the pairs that are drawn, or of windows of them."""
    query, passage = drawn.query[pairs], lists.passage[drawn.rows[pairs]]
    return encoder.collate(task.queries, task.passages, query, passage, start, task.form)


def targets_of(lists: ViewLists, drawn: Draw, n_lists: int) -> tuple[Cells, Targets]:
    """Compute the places of drawn rows in a (lists, longest) matrix, and their targets in that form."""
    sizes = np.bincount(drawn.local, minlength=n_lists)
    column = np.arange(len(drawn.local)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    shape = (n_lists, int(sizes.max(initial=1)))
    index = drawn.local * shape[1] + column

    def matrix(values: NDArray[Any], fill: Any, dtype: Any) -> torch.Tensor:
        filled = np.full(shape[0] * shape[1], fill, dtype=dtype)
        filled[index] = values
        return torch.from_numpy(filled).view(shape)

    targets = Targets.of(
        labels=matrix(np.where(drawn.in_batch, 0, lists.labels[drawn.rows]), 0, np.float32),
        mask=matrix(np.ones(len(drawn.rows), dtype=bool), False, bool),
        scores=matrix(np.where(drawn.in_batch, np.nan, lists.scores[drawn.rows]), np.nan, np.float32),
        weights=matrix(np.where(drawn.in_batch, 1, lists.weights[drawn.rows]), 1, np.float32),
        tiebreak=matrix((drawn.tiebreak >> np.uint64(1)).astype(np.int64), 0, np.int64),
    )
    return Cells(torch.from_numpy(index), shape), targets


@dataclass(frozen=True)
class Step:
    """One process's share of an optimiser step; the figures count all processes together."""

    micro_batches: list[MicroBatch]
    denominators: list[float]  # per objective
    n_pairs: int
    n_tokens: int
    n_truncated: int  # pairs that max_length cuts
    n_skipped: int  # lists without a term in this draw

    @property
    def empty(self) -> bool:
        """Return True if no list of the step has a term of its loss."""
        return all(d <= 0 for d in self.denominators)


@dataclass(frozen=True)
class _Drawn:
    """The lists and passages that a step draws for one objective."""

    task: Task
    draw: Draw
    windows: Windows
    lengths: Ints  # tokens of each window's pair
    tokens: Ints  # tokens of each list; 0 if it has no term


def plan(
    tasks: list[Task],
    encoder: CrossEncoder,
    stage: Stage,
    seed: int,
    step: int,
    *,
    batch_tokens: int,
    memory_tokens: int,
    rank: int = 0,
    processes: int = 1,
    workers: int = 1,
) -> Step:
    """Plan this process's share of a step. Every process computes the same division.

    The longest list goes first, each to the process with the fewest tokens so far. Within a process, whole lists are
    grouped into micro-batches of at most ``memory_tokens``.

    Args:
        batch_tokens: tokens of a piece, padding counted.
        workers: threads that share a micro-batch's pieces. Each thread gets the same number of pieces, of about one
            size.
    """
    drawn, denominators = [], []
    n_pairs = n_tokens = n_truncated = n_skipped = 0
    for task in tasks:
        chosen, rows = task.drawn(seed, stage.number, step)
        of_queries, of_passages = task.lengths(task.view.train, rows)
        windows = encoder.windows(of_queries, of_passages, task.form)
        lengths = (task.form or encoder.form).lengths(of_queries[windows.owner], of_passages[windows.owner])
        cells, targets = targets_of(task.view.train, rows, len(chosen))
        terms = get(task.objective.loss)(torch.zeros(cells.shape), targets, **task.objective.parameters)
        denominators.append(float(normaliser(terms.counts, task.objective.reduction)))
        teaches = (terms.counts > 0).numpy()
        of_list = rows.local[windows.owner]
        tokens = np.bincount(of_list, weights=lengths, minlength=len(chosen)).astype(np.int64) * teaches
        drawn.append(_Drawn(task, rows, windows, lengths, tokens))
        used = teaches[rows.local]
        n_pairs += int(used.sum())
        n_tokens += int(tokens.sum())
        n_truncated += int(np.count_nonzero(encoder.cuts(of_queries[used], of_passages[used], task.form)))
        n_skipped += int(np.count_nonzero(~teaches))
    units = [(int(n), k, i) for k, one in enumerate(drawn) for i, n in enumerate(one.tokens) if n]
    micro_batches = [
        _micro_batch(drawn, group, encoder, batch_tokens, workers)
        for group in _grouped(_share(units, rank, processes), memory_tokens)
    ]
    return Step(micro_batches, denominators, n_pairs, n_tokens, n_truncated, n_skipped)


def _share(units: list[tuple[int, int, int]], rank: int, processes: int) -> list[tuple[int, int, int]]:
    """Select one process's (tokens, objective, list) triples."""
    loads = [0] * processes
    mine = []
    for unit in sorted(units, key=lambda u: (-u[0], u[1], u[2])):
        lightest = loads.index(min(loads))
        loads[lightest] += unit[0]
        if lightest == rank:
            mine.append(unit)
    return mine


def _grouped(units: list[tuple[int, int, int]], memory_tokens: int) -> list[list[tuple[int, int, int]]]:
    """Group lists, longest first, up to ``memory_tokens`` per group; a longer list is a group by itself."""
    groups: list[list[tuple[int, int, int]]] = []
    held = 0
    for unit in units:
        if not groups or held + unit[0] > memory_tokens:
            groups.append([])
            held = 0
        groups[-1].append(unit)
        held += unit[0]
    return groups


def _pieces(lengths: Ints, batch_tokens: int, workers: int, *, multiple: int, padded: bool) -> list[Any]:
    """Divide pairs into pieces of at most ``batch_tokens`` and of about one size, the same number for every worker."""

    def divided(budget: int) -> list[Any]:
        return budget_batches(lengths, budget, multiple=multiple, padded=padded)

    if workers > 1:
        return divided(_even(lengths, batch_tokens, workers))
    found = divided(batch_tokens)
    low, high = int(lengths.sum()) // len(found), batch_tokens
    while high - low > max(batch_tokens // 64, 1):  # the smallest budget that needs no more pieces
        middle = (low + high) // 2
        tried = divided(middle)
        if len(tried) > len(found):
            low = middle
        else:
            found, high = tried, middle
    return found


def _even(lengths: Ints, batch_tokens: int, workers: int) -> int:
    """Find the largest budget within ``batch_tokens`` that gives every worker the same number of pieces.

    The budget leaves a little room for padding.
    """
    total = 1.05 * float(lengths.sum())
    rounds = math.ceil(total / (batch_tokens * workers))
    return max(min(batch_tokens, math.ceil(total / (rounds * workers))), int(lengths.max(initial=1)))


def _micro_batch(
    drawn: list[_Drawn],
    units: list[tuple[int, int, int]],
    encoder: CrossEncoder,
    batch_tokens: int,
    workers: int,
) -> MicroBatch:
    parts, pieces, n_tokens = [], [], 0
    for number, one in enumerate(drawn):
        chosen = np.array(sorted(i for _, k, i in units if k == number), dtype=np.int64)
        if not len(chosen):
            continue
        inside = np.isin(one.draw.local, chosen)
        local = np.searchsorted(chosen, one.draw.local[inside])
        mine = one.draw.take(inside, local)
        lengths, windows = one.lengths[inside[one.windows.owner]], one.windows.take(np.flatnonzero(inside))
        batches = _pieces(
            lengths,
            batch_tokens,
            workers,
            multiple=encoder.multiple,
            padded=encoder.layout == "padded",
        )
        lists = one.task.view.train
        pieces += [
            collate_rows(encoder, one.task, lists, mine, windows.owner[batch], windows.starts(batch))
            for batch in batches
        ]
        cells, targets = targets_of(lists, mine, len(chosen))
        order, owner = np.concatenate(batches), None
        if windows.start is None:
            cells = Cells(cells.index[torch.from_numpy(order)], cells.shape)
        else:
            owner = torch.from_numpy(windows.owner[order])
        parts.append(Part(one.task.objective, number, cells, targets, owner))
        n_tokens += int(lengths.sum())
    return MicroBatch(parts, pieces, n_tokens, encoder.long)
