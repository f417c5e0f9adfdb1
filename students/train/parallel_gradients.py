"""Compute a step's gradients on parallel CPU threads, each with a share of the pieces and of the cores.

Torch does some work in one thread only (random numbers, Python between the operations). Here this work runs in all
threads at once, and a layer's values stay in one core's cache. The result does not depend on which thread is first:
the pieces' sizes determine the shares, every piece draws its dropout from its own generator, and the shares are added up
in order.
"""

from collections.abc import Sequence

import torch

from students.cpu.operations import drawing_from
from students.cpu.workers import worker_pool
from students.text.batches import PairBatch
from students.train.gradient_cache import LossOf, Score

Gradients = list[torch.Tensor | None]


class ParallelGradients:
    """Adds gradients to parameters, as `students.train.gradient_cache.backward` does, but on several threads.

    Args:
        score: a function from a batch to (n_pairs,) scores, safe to call from several threads. Its only dropout is
            `students.cpu.operations.drop`.
        parameters: the parameters that learn.
        workers: number of threads, at least 2.
    """

    def __init__(self, score: Score, parameters: Sequence[torch.nn.Parameter], workers: int) -> None:
        self._score, self._parameters, self._workers = score, list(parameters), workers
        self._pool = worker_pool(workers, "train")

    def backward(self, pieces: Sequence[PairBatch], loss_of: LossOf, *, cached: bool) -> torch.Tensor:
        """Add the gradient of ``loss_of(scores of all pieces, in order)``; returns the detached loss.

        Args:
            cached: score without graphs first, then again for the gradients, so that a thread holds only one piece's
                activations.
        """
        seeds = torch.randint(1 << 62, (len(pieces),)).tolist()
        shares = even_shares([piece.ids.numel() for piece in pieces], self._workers)
        learning = [p for p in self._parameters if p.requires_grad]

        def score(i: int) -> torch.Tensor:
            with drawing_from(torch.Generator().manual_seed(seeds[i])):
                return self._score(pieces[i])

        def forward(share: list[int]) -> list[torch.Tensor]:
            with torch.set_grad_enabled(not cached):
                return [score(i) for i in share]

        scored = list(self._pool.map(forward, shares))
        in_order = {
            i: s.detach()
            for share, of in zip(shares, scored, strict=True)
            for i, s in zip(share, of, strict=True)
        }
        leaf = torch.cat([in_order[i] for i in range(len(pieces))]).requires_grad_()
        loss = loss_of(leaf)
        (gradient,) = torch.autograd.grad(loss, leaf)
        parts = gradient.split([piece.n_pairs for piece in pieces])

        def back(share: list[int], of: list[torch.Tensor]) -> Gradients:
            if not cached:
                return _gradients(of, learning, [parts[i] for i in share])
            total: Gradients = [None] * len(learning)
            for i in share:
                _add(total, _gradients([score(i)], learning, [parts[i]]))
            return total

        total: Gradients = [p.grad for p in learning]
        for found in self._pool.map(back, shares, scored):
            _add(total, found)
        for parameter, value in zip(learning, total, strict=True):
            parameter.grad = value
        return loss.detach()

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()


def even_shares(sizes: Sequence[int], workers: int) -> list[list[int]]:
    """Divide pieces among workers; gives the indices of each worker's pieces.

    The largest piece goes first, each to the worker with the least so far. No share is empty.
    """
    shares: list[list[int]] = [[] for _ in range(min(workers, len(sizes)))]
    loads = [0] * len(shares)
    for i in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        lightest = loads.index(min(loads))
        loads[lightest] += sizes[i]
        shares[lightest].append(i)
    return shares


def _gradients(
    scores: list[torch.Tensor], learning: list[torch.nn.Parameter], of_scores: list[torch.Tensor]
) -> Gradients:
    return list(torch.autograd.grad(torch.cat(scores), learning, torch.cat(of_scores), allow_unused=True))


def _add(total: Gradients, found: Gradients) -> None:
    for i, value in enumerate(found):
        mine = total[i]
        total[i] = value if mine is None else mine if value is None else mine.add_(value)
