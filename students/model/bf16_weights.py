"""Compute forward and backward with bf16 weights, while the optimiser changes them in fp32.

Autocast casts each weight in each forward, and its norms and residual sums are fp32. Here the weights are cast once a
step, and all states between the layers are bf16, which halves the memory that they pass through. The head stays fp32.
Gradients of several pieces are added up in fp32.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from students.model.head import head_parts


class Bf16Weights:
    """The bf16 copies of a model's weights. Outside of `lowered` the model has its fp32 weights, which are the real ones.

    Args:
        model: the classifier; weights that are not fp32 or belong to the head are left alone.
    """

    def __init__(self, model: Any) -> None:
        head = {id(p) for part in head_parts(model).values() for p in part.parameters()}
        self._parameters = [p for p in model.parameters() if id(p) not in head and p.dtype is torch.float32]
        self._low = [p.data.to(torch.bfloat16) for p in self._parameters]
        self._gradients: dict[nn.Parameter, torch.Tensor] = {}
        self._lowered = False
        learning = [p for p in self._parameters if p.requires_grad]
        self._hooks = [p.register_post_accumulate_grad_hook(self._add) for p in learning]

    @contextmanager
    def lowered(self) -> Iterator[None]:
        """Give the model its weights in bf16; afterwards it has those in fp32, with gradients in fp32."""
        full = [p.data for p in self._parameters]
        for low, data in zip(self._low, full, strict=True):
            low.copy_(data)
        self._gradients = {p: p.grad for p in self._parameters if p.grad is not None}
        for parameter, low in zip(self._parameters, self._low, strict=True):
            parameter.grad = None
            parameter.data = low
        self._lowered = True
        try:
            yield
        finally:
            self._lowered = False
            for parameter, data in zip(self._parameters, full, strict=True):
                parameter.grad = None
                parameter.data = data
                parameter.grad = self._gradients.get(parameter)
            self._gradients = {}

    def gradient(self, parameter: nn.Parameter) -> torch.Tensor | None:
        """Return the gradient of a parameter so far, in fp32."""
        return self._gradients.get(parameter, parameter.grad) if self._lowered else parameter.grad

    def close(self) -> None:
        """Take the hooks off the model."""
        for hook in self._hooks:
            hook.remove()

    def _add(self, parameter: torch.Tensor) -> None:
        """Add what a backward pass has left in a parameter to its fp32 gradient."""
        if not self._lowered or parameter.grad is None:
            return
        held = self._gradients.get(parameter)  # type: ignore[call-overload]
        if held is None:
            self._gradients[parameter] = parameter.grad.float()  # type: ignore[index]
        else:
            held.add_(parameter.grad)
        parameter.grad = None
