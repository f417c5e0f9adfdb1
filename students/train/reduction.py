"""Add up gradients over processes, in buckets, while the backward pass still computes the rest.

A bucket is sent when all its gradients are there, the last layers first. Every process sends the same buckets in the same
order, also a process without lists, whose gradients are zeros.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import distributed, nn

BUCKET = 16 << 20  # numbers exchanged at once

Gradient = Callable[[nn.Parameter], torch.Tensor | None]


class GradientSum:
    """The sum over all processes of one step's gradients.

    Args:
        parameters: those that learn, the same in every process.
        gradient: a parameter's gradient so far.
        bucket: most numbers in a bucket, unless one parameter has more.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], gradient: Gradient, bucket: int = BUCKET) -> None:
        self._gradient = gradient
        self._buckets = _buckets(list(reversed(parameters)), bucket)
        self._of = {p: number for number, held in enumerate(self._buckets) for p in held}
        self._hooks = [p.register_post_accumulate_grad_hook(self._ready) for p in self._of]
        self._missing: list[int] = []
        self._sent: list[tuple[torch.Tensor, Any]] = []
        self._armed = False

    def arm(self) -> None:
        """Send buckets from now on: the next backward pass is the step's last."""
        self._armed = True
        self._missing = [len(held) for held in self._buckets]

    def finish(self, figures: torch.Tensor) -> tuple[torch.Tensor, dict[nn.Parameter, torch.Tensor]]:
        """Send the rest and wait for all of it; returns the sums of the figures, and each parameter's summed gradient."""
        self._armed = False
        while len(self._sent) < len(self._buckets):
            self._send()
        distributed.all_reduce(figures)
        found: dict[nn.Parameter, torch.Tensor] = {}
        for held, (flat, work) in zip(self._buckets, self._sent, strict=True):
            work.wait()
            parts = flat.split([p.numel() for p in held])
            found |= {p: part.view(p.shape) for p, part in zip(held, parts, strict=True)}
        self._sent = []
        return figures, found

    def close(self) -> None:
        """Take the hooks off the model."""
        for hook in self._hooks:
            hook.remove()

    def _ready(self, parameter: torch.Tensor) -> None:
        if not self._armed:
            return
        self._missing[self._of[parameter]] -= 1  # type: ignore[index]
        while len(self._sent) < len(self._buckets) and self._missing[len(self._sent)] <= 0:
            self._send()

    def _send(self) -> None:
        parts = []
        for parameter in self._buckets[len(self._sent)]:
            found = self._gradient(parameter)
            parts.append(
                (torch.zeros_like(parameter, dtype=torch.float32) if found is None else found).flatten()
            )
        flat = torch.cat(parts)
        self._sent.append((flat, distributed.all_reduce(flat, async_op=True)))


def _buckets(parameters: list[nn.Parameter], most: int) -> list[list[nn.Parameter]]:
    buckets: list[list[nn.Parameter]] = []
    size = 0
    for parameter in parameters:
        if not buckets or size + parameter.numel() > most:
            buckets.append([])
            size = 0
        buckets[-1].append(parameter)
        size += parameter.numel()
    return buckets
