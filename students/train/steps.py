"""One optimiser step as data: the lists it takes, split over processes by tokens and into pieces that fit in memory.

The loss's denominator is known from the targets before anything is scored, so pieces, gradient accumulation and
processes all add up to exactly the loss of the whole step. A step depends on (views, seed, stage, step) alone, so it can
be made ahead of time, and again after a restart.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from students.losses import Targets, get, normaliser, total
from students.model.encoder import CrossEncoder
from students.recipes.recipe import Objective, Stage
from students.text.batches import PairBatch, budget_batches
from students.text.tokens import Ints, Tokens
from students.train.lists import Draw, ViewLists, draw, epoch_order, stream_key, usable
from students.train.view_folder import View


@dataclass(frozen=True)
class Task:
    """An objective with the view it learns from, tokenised."""

    objective: Objective
    view: View
    queries: Tokens
    passages: Tokens
    train: Ints  # training lists with something to learn
    n_skipped: int  # training lists without

    @classmethod
    def of(cls, objective: Objective, view: View, queries: Tokens, passages: Tokens) -> "Task":
        """Set the lists aside that have no term of the loss."""
        good = usable(view.train, objective, get(objective.loss))
        return cls(objective, view, queries, passages, np.flatnonzero(good), int(np.count_nonzero(~good)))

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps in which every list is seen once."""
        return -(-len(self.train) // self.objective.lists)

    def drawn(self, seed: int, stage: int, step: int) -> tuple[Ints, Draw]:
        """The lists of a step (from 0), and the passages drawn from them."""
        epoch, at = divmod(step, self.steps_per_epoch)
        key = stream_key(self.view.view_hash, seed, epoch, f"{stage}:{self.objective.name}")
        order = _order(len(self.train), key)
        chosen = self.train[order[at * self.objective.lists : (at + 1) * self.objective.lists]]
        return chosen, draw(self.view.train, chosen, self.objective, key)

    def lengths(self, lists: ViewLists, rows: Ints) -> tuple[Ints, Ints]:
        """Tokens of the pairs in some rows of the lists, before any cut: of the queries, and of the passages."""
        return self.queries.lengths[lists.query_of(rows)], self.passages.lengths[lists.passage[rows]]


@lru_cache(maxsize=4)
def _order(n: int, key: int) -> Ints:
    """An epoch's order, kept for its steps."""
    return epoch_order(n, key)


@dataclass(frozen=True)
class Cells:
    """Where drawn pairs stand in a (lists, longest list) matrix."""

    index: torch.Tensor  # (n,) flat, int64
    shape: tuple[int, int]

    def matrix(self, scores: torch.Tensor) -> torch.Tensor:
        """The pairs' scores as that matrix, 0 elsewhere."""
        flat = scores.new_zeros(self.shape[0] * self.shape[1])
        return flat.index_put((self.index,), scores).view(self.shape)

    def to(self, device: torch.device) -> "Cells":
        """The same on a device."""
        return Cells(self.index.to(device, non_blocking=True), self.shape)


@dataclass(frozen=True)
class Part:
    """What a micro-batch holds of one objective: some of the step's lists."""

    objective: Objective
    number: int  # of the objective in the stage
    cells: Cells  # of the pairs in the pieces' order
    targets: Targets

    @property
    def n_pairs(self) -> int:
        """Pairs of this part; they follow the parts before in the micro-batch."""
        return len(self.cells.index)


@dataclass(frozen=True)
class MicroBatch:
    """Whole lists whose pairs are scored together, in pieces that are one forward each, longest pairs first."""

    parts: list[Part]
    pieces: list[PairBatch]
    n_tokens: int

    def loss(self, scores: torch.Tensor, denominators: list[float]) -> torch.Tensor:
        """This micro-batch's share of the step's loss, given scores in the pieces' order.

        Args:
            denominators: per objective, the loss's denominator over the whole step.
        """
        value = scores.new_zeros(())
        first = 0
        for part in self.parts:
            own = scores[first : first + part.n_pairs]
            first += part.n_pairs
            objective, device = part.objective, scores.device
            loss = get(objective.loss)
            terms = loss(part.cells.to(device).matrix(own), part.targets.to(device), **objective.parameters)
            value = value + objective.weight * total(terms, objective.reduction) / denominators[part.number]
        return value

    def pin(self) -> "MicroBatch":
        """The same with its pieces in page-locked memory."""
        return MicroBatch(self.parts, [piece.pin() for piece in self.pieces], self.n_tokens)


def collate_rows(encoder: CrossEncoder, task: Task, lists: ViewLists, rows: Ints) -> PairBatch:
    """The pairs in some rows of the lists as a batch."""
    return encoder.collate(task.queries, task.passages, lists.query_of(rows), lists.passage[rows])


def targets_of(lists: ViewLists, drawn: Draw, n_lists: int) -> tuple[Cells, Targets]:
    """Where drawn rows stand in a (lists, longest) matrix, and their targets in that form."""
    sizes = np.bincount(drawn.local, minlength=n_lists)
    column = np.arange(len(drawn.local)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    shape = (n_lists, int(sizes.max(initial=1)))
    index = drawn.local * shape[1] + column

    def matrix(values: NDArray[Any], fill: Any, dtype: Any) -> torch.Tensor:
        filled = np.full(shape[0] * shape[1], fill, dtype=dtype)
        filled[index] = values
        return torch.from_numpy(filled).view(shape)

    targets = Targets.of(
        labels=matrix(lists.labels[drawn.rows], 0, np.float32),
        mask=matrix(np.ones(len(drawn.rows), dtype=bool), False, bool),
        scores=matrix(lists.scores[drawn.rows], np.nan, np.float32),
        weights=matrix(lists.weights[drawn.rows], 1, np.float32),
        tiebreak=matrix((drawn.tiebreak >> np.uint64(1)).astype(np.int64), 0, np.int64),
    )
    return Cells(torch.from_numpy(index), shape), targets


@dataclass(frozen=True)
class Step:
    """One process's share of one optimiser step; the figures are those of all processes together."""

    micro_batches: list[MicroBatch]
    denominators: list[float]  # per objective
    n_pairs: int
    n_tokens: int
    n_truncated: int  # pairs that max_length cuts
    n_skipped: int  # lists without a term in this draw

    @property
    def empty(self) -> bool:
        """Whether no list of the step has a term of its loss."""
        return all(d <= 0 for d in self.denominators)


@dataclass(frozen=True)
class _Drawn:
    """What a step draws for one objective."""

    task: Task
    draw: Draw
    lengths: Ints  # tokens of each pair, as the model sees it
    tokens: Ints  # of each list; 0 where it has no term


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
    """What this process does in a step: the same plan, split, on every process.

    Lists go to the process with the fewest tokens so far, longest first; within a process whole lists are joined to
    micro-batches of at most ``memory_tokens``.

    Args:
        batch_tokens: of a piece, padding counted.
        workers: threads that share a micro-batch's pieces: these are then as many for each, of about one size.
    """
    drawn, denominators = [], []
    n_pairs = n_tokens = n_truncated = n_skipped = 0
    for task in tasks:
        chosen, rows = task.drawn(seed, stage.number, step)
        of_queries, of_passages = task.lengths(task.view.train, rows.rows)
        lengths = encoder.form.lengths(of_queries, of_passages)
        cells, targets = targets_of(task.view.train, rows, len(chosen))
        terms = get(task.objective.loss)(torch.zeros(cells.shape), targets, **task.objective.parameters)
        denominators.append(float(normaliser(terms.counts, task.objective.reduction)))
        teaches = (terms.counts > 0).numpy()
        tokens = np.bincount(rows.local, weights=lengths, minlength=len(chosen)).astype(np.int64) * teaches
        drawn.append(_Drawn(task, rows, lengths, tokens))
        used = teaches[rows.local]
        n_pairs += int(used.sum())
        n_tokens += int(tokens.sum())
        n_truncated += int(np.count_nonzero(of_queries[used] + of_passages[used] > encoder.form.room))
        n_skipped += int(np.count_nonzero(~teaches))
    units = [(int(n), k, i) for k, one in enumerate(drawn) for i, n in enumerate(one.tokens) if n]
    micro_batches = [
        _micro_batch(drawn, group, encoder, batch_tokens, workers)
        for group in _grouped(_share(units, rank, processes), memory_tokens)
    ]
    return Step(micro_batches, denominators, n_pairs, n_tokens, n_truncated, n_skipped)


def _share(units: list[tuple[int, int, int]], rank: int, processes: int) -> list[tuple[int, int, int]]:
    """The (tokens, objective, list) that are one process's."""
    loads = [0] * processes
    mine = []
    for unit in sorted(units, key=lambda u: (-u[0], u[1], u[2])):
        lightest = loads.index(min(loads))
        loads[lightest] += unit[0]
        if lightest == rank:
            mine.append(unit)
    return mine


def _grouped(units: list[tuple[int, int, int]], memory_tokens: int) -> list[list[tuple[int, int, int]]]:
    """Lists, longest first, in groups of at most ``memory_tokens``; a list that alone is more stands alone."""
    groups: list[list[tuple[int, int, int]]] = []
    held = 0
    for unit in units:
        if not groups or held + unit[0] > memory_tokens:
            groups.append([])
            held = 0
        groups[-1].append(unit)
        held += unit[0]
    return groups


def _even(lengths: Ints, batch_tokens: int, workers: int) -> int:
    """The largest budget within ``batch_tokens`` that gives every worker as many pieces, with a little room for padding."""
    if workers == 1:
        return batch_tokens
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
        mine = Draw(local, one.draw.rows[inside], one.draw.tiebreak[inside])
        lengths = one.lengths[inside]
        batches = budget_batches(
            lengths,
            _even(lengths, batch_tokens, workers),
            multiple=encoder.multiple,
            padded=encoder.layout == "padded",
        )
        lists = one.task.view.train
        pieces += [collate_rows(encoder, one.task, lists, mine.rows[batch]) for batch in batches]
        cells, targets = targets_of(lists, mine, len(chosen))
        in_order = Cells(cells.index[torch.from_numpy(np.concatenate(batches))], cells.shape)
        parts.append(Part(one.task.objective, number, in_order, targets))
        n_tokens += int(lengths.sum())
    return MicroBatch(parts, pieces, n_tokens)
