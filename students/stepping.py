"""One optimiser step as data: the lists it takes, split over processes by tokens and into pieces that fit in memory.

The loss's denominator is known from the targets before anything is scored, so pieces, gradient accumulation and
processes all add up to exactly the loss of the whole step.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from students.batches import PairBatch, budget_batches
from students.encoder import CrossEncoder
from students.lists import Draw, Lists, View, draw, epoch_order, stream_key, usable
from students.losses import Targets, get, normaliser, total
from students.regime import Objective, Stage
from students.tokens import Ints, Tokens


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
        order = self.train[epoch_order(len(self.train), key)]
        chosen = order[at * self.objective.lists : (at + 1) * self.objective.lists]
        return chosen, draw(self.view.train, chosen, self.objective, key)


@dataclass(frozen=True)
class Part:
    """What one process takes of one objective in one micro-batch: some of the step's lists."""

    task: Task
    drawn: Draw
    n_lists: int


@dataclass(frozen=True)
class MicroBatch:
    """Whole lists whose pairs are scored together; ``pieces`` are bounded forwards, longest pairs first."""

    parts: list[Part]
    pieces: list[list[NDArray[np.intp]]]  # per part, indices into its drawn pairs
    n_tokens: int
    n_pairs: int

    def batches(self, encoder: CrossEncoder) -> list[PairBatch]:
        """The pieces collated."""
        return [
            collate_rows(encoder, part.task, part.task.view.train, part.drawn.rows[piece])
            for part, pieces in zip(self.parts, self.pieces, strict=True)
            for piece in pieces
        ]

    def loss(self, scores: torch.Tensor, denominators: list[torch.Tensor]) -> torch.Tensor:
        """This micro-batch's share of the step's loss, given scores in the pieces' order.

        Args:
            denominators: per part, the loss's denominator over the whole step.
        """
        value = scores.new_zeros(())
        first = 0
        for part, pieces, denominator in zip(self.parts, self.pieces, denominators, strict=True):
            n = len(part.drawn.rows)
            if n == 0:
                continue
            order = torch.as_tensor(np.concatenate(pieces), device=scores.device)
            own = torch.empty_like(scores[:n]).index_put((order,), scores[first : first + n])
            first += n
            matrix, targets = targets_of(part.task.view.train, part.drawn, part.n_lists, own)
            objective = part.task.objective
            terms = get(objective.loss)(matrix, targets, **objective.parameters)
            value = value + objective.weight * total(terms, objective.reduction) / denominator.to(value)
        return value


def collate_rows(encoder: CrossEncoder, task: Task, lists: Lists, rows: Ints) -> PairBatch:
    """The pairs in some rows of the lists as a batch."""
    return encoder.collate(task.queries, task.passages, lists.query_of(rows), lists.passage[rows])


def targets_of(lists: Lists, drawn: Draw, n_lists: int, scores: torch.Tensor) -> tuple[torch.Tensor, Targets]:
    """Scores of drawn rows as a (lists, longest) matrix, and the targets beside them."""
    sizes = np.bincount(drawn.local, minlength=n_lists)
    column = np.arange(len(drawn.local)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    where = (torch.as_tensor(drawn.local), torch.as_tensor(column))
    shape = (n_lists, int(sizes.max(initial=1)))
    device = scores.device

    def matrix(values: Any, fill: float, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.full(shape, fill, dtype=dtype).index_put(where, torch.as_tensor(values).to(dtype))

    targets = Targets.of(
        labels=matrix(lists.labels[drawn.rows], 0.0),
        mask=matrix(np.ones(len(drawn.rows), dtype=bool), 0, torch.bool),
        scores=matrix(lists.scores[drawn.rows], float("nan")),
        weights=matrix(lists.weights[drawn.rows], 1.0),
        tiebreak=matrix((drawn.tiebreak >> np.uint64(1)).astype(np.int64), 0, torch.int64),
    ).to(device)
    there = tuple(index.to(device) for index in where)
    return torch.zeros(shape, dtype=scores.dtype, device=device).index_put(there, scores), targets


@dataclass(frozen=True)
class Step:
    """One process's share of one optimiser step."""

    micro_batches: list[MicroBatch]
    denominators: list[torch.Tensor]  # per objective, over all processes
    n_pairs: int  # over all processes
    n_skipped: int  # lists without a term in this draw, over all processes
    filler: MicroBatch | None  # one pair for a process that has none, so that it takes part in the exchange

    @property
    def empty(self) -> bool:
        """Whether no list of the step has a term of its loss."""
        return all(float(d) <= 0 for d in self.denominators)


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
) -> Step:
    """What this process does in a step: the same plan, split, on every process.

    Lists go to the process with the fewest tokens so far, longest first; within a process whole lists are joined to
    micro-batches of at most ``memory_tokens``.
    """
    units: list[tuple[int, int, int]] = []  # (tokens, objective, list) of every list of the step
    drawn_of, lengths_of, denominators = [], [], []
    n_skipped = 0
    for number, task in enumerate(tasks):
        chosen, drawn = task.drawn(seed, stage.number, step)
        lists = task.view.train
        query = lists.query_of(drawn.rows)
        lengths = encoder.form.lengths(
            task.queries.lengths[query], task.passages.lengths[lists.passage[drawn.rows]]
        )
        zeros = torch.zeros(len(drawn.rows))
        matrix, targets = targets_of(lists, drawn, len(chosen), zeros)
        counts = get(task.objective.loss)(matrix, targets, **task.objective.parameters).counts
        denominators.append(normaliser(counts, task.objective.reduction))
        n_skipped += int((counts <= 0).sum())
        tokens = np.bincount(drawn.local, weights=lengths, minlength=len(chosen)).astype(int)
        units += [(int(tokens[i]), number, i) for i in range(len(chosen)) if counts[i] > 0]
        drawn_of.append(drawn)
        lengths_of.append(lengths)
    mine = _share(units, rank, processes)
    micro_batches = [
        _micro_batch(tasks, drawn_of, lengths_of, group, encoder, batch_tokens)
        for group in _grouped(mine, memory_tokens)
    ]
    filler = None
    if not micro_batches and units:
        shortest = min(units)
        filler = _micro_batch(tasks, drawn_of, lengths_of, [shortest], encoder, batch_tokens)
    n_pairs = sum(int(np.count_nonzero(drawn_of[k].local == i)) for _, k, i in units)
    return Step(micro_batches, denominators, n_pairs, n_skipped, filler)


def _share(units: list[tuple[int, int, int]], rank: int, processes: int) -> list[tuple[int, int, int]]:
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


def _micro_batch(
    tasks: list[Task],
    drawn_of: list[Draw],
    lengths_of: list[Ints],
    units: list[tuple[int, int, int]],
    encoder: CrossEncoder,
    batch_tokens: int,
) -> MicroBatch:
    parts, pieces, n_tokens = [], [], 0
    for number, task in enumerate(tasks):
        chosen = np.array(sorted(i for _, k, i in units if k == number), dtype=np.int64)
        drawn = drawn_of[number]
        inside = np.isin(drawn.local, chosen)
        local = np.searchsorted(chosen, drawn.local[inside])
        parts.append(Part(task, Draw(local, drawn.rows[inside], drawn.tiebreak[inside]), len(chosen)))
        lengths = lengths_of[number][inside]
        pieces.append(budget_batches(lengths, batch_tokens, padded=encoder.layout == "padded"))
        n_tokens += int(lengths.sum())
    return MicroBatch(parts, pieces, n_tokens, sum(len(part.drawn.rows) for part in parts))
