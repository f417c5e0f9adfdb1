"""Compute a batch's gradients in pieces, so its activations need not fit in memory at once.

*Direct*: all pieces' graphs are kept until the loss is known. *Cached* (Gao et al. 2021, here on scores): the pieces are
first scored without a graph. The loss then gives each score its gradient. Each piece is run again, with the same
dropout, to pass its scores' gradients to the parameters. Any loss works, and memory is that of one piece. The cost is one
more forward pass.
"""

from collections.abc import Callable, Sequence

import torch

from students.text.batches import PairBatch

Score = Callable[[PairBatch], torch.Tensor]
LossOf = Callable[[torch.Tensor], torch.Tensor]


def backward(
    score: Score,
    pieces: Sequence[PairBatch],
    loss_of: LossOf,
    *,
    cached: bool,
    device: torch.device,
    before_last: Callable[[], object] | None = None,
) -> torch.Tensor:
    """Add the gradient of ``loss_of(scores of all pieces, in order)`` to the parameters; returns the detached loss.

    Args:
        score: the model, a function from a batch to (n_pairs,) scores.
        loss_of: (total pairs,) scores -> a scalar.
        cached: save memory at the cost of one more forward pass.
        before_last: called before the last pass that adds gradients.
    """
    if not cached:
        loss = loss_of(torch.cat([score(piece.to(device)) for piece in pieces]))
        if before_last is not None:
            before_last()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()
    states, without_graph = [], []
    with torch.no_grad():
        for piece in pieces:
            states.append(_random_state(device))
            without_graph.append(score(piece.to(device)))
    after = _random_state(device)
    leaf = torch.cat(without_graph).requires_grad_()
    loss = loss_of(leaf)
    (gradient,) = torch.autograd.grad(loss, leaf)
    first = 0
    for piece, state in zip(pieces, states, strict=True):
        _set_random_state(device, state)
        part = gradient[first : first + piece.n_pairs]
        first += piece.n_pairs
        scores = score(piece.to(device))
        if first == len(gradient) and before_last is not None:
            before_last()
        torch.dot(scores, part).backward()  # type: ignore[no-untyped-call]
    _set_random_state(device, after)
    return loss.detach()


def _random_state(device: torch.device) -> torch.Tensor:
    """Return the state of the generator that dropout on this device draws from."""
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def _set_random_state(device: torch.device, state: torch.Tensor) -> None:
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.set_rng_state(state)
