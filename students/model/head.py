"""Keep a classifier's head in fp32 in every precision.

A bf16 logit has eight significant bits, so a third of a list's scores would tie. The head runs once per pair, so fp32
costs nothing.
"""

from collections.abc import Set
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import nn


def head_parts(model: Any) -> dict[str, nn.Module]:
    """Find a classifier's head: all modules with weights after the encoder, and a pooler within it, by name."""
    base = model.base_model
    after = {name: child for name, child in model.named_children() if child is not base}
    if base is model:  # the encoder is not a separate module: the last part is the head
        after = dict(list(after.items())[-1:])
    pooler = getattr(base, "pooler", None)
    if isinstance(pooler, nn.Module):
        prefix = "" if base is model else f"{model.base_model_prefix}."
        after[f"{prefix}pooler"] = pooler
    return {name: module for name, module in after.items() if next(module.parameters(), None) is not None}


@dataclass(frozen=True)
class HeadStart:
    """The first weights of a new head.

    Attributes:
        scale: factor on the output weights.
        identity: begin square layers as the identity if the model's file lacks them, or if they have a bias that is zero
            throughout, as that of a pooler that was never trained. A drawn layer mixes the encoder's states and makes
            them small, which a short training has to undo.
    """

    scale: float = 1.0
    identity: bool = False


def start_head(model: Any, new: Set[str], start: HeadStart) -> None:
    """Set the first weights of a new head; a head that was trained stays as it is.

    Args:
        new: names of the weights that the model's file lacks.
    """
    outputs = [
        weight
        for name, weight in model.named_parameters()
        if name in new and weight.ndim == 2 and len(weight) == 1
    ]
    with torch.no_grad():
        for weight in outputs:
            weight.mul_(start.scale)
        for prefix, part in head_parts(model).items() if start.identity and outputs else ():
            for name, layer in part.named_modules(prefix=prefix):
                if isinstance(layer, nn.Linear) and layer.in_features == layer.out_features > 1:
                    untrained = layer.bias is not None and not layer.bias.any()
                    if untrained or f"{name}.weight" in new:
                        nn.init.eye_(layer.weight)
                        if layer.bias is not None:
                            nn.init.zeros_(layer.bias)


def keep_fp32(model: Any) -> None:
    """Exclude the head from autocast. Weights keep their names."""
    for module in head_parts(model).values():
        kind: Any = type(module)
        module.__class__ = _in_fp32(kind)


@cache
def _in_fp32(kind: Any) -> Any:
    class InFp32(kind):  # type: ignore[misc]
        def forward(self, *inputs: Any, **options: Any) -> Any:
            device = next(self.parameters()).device.type
            with torch.autocast(device, enabled=False):
                named = {name: _widened(value) for name, value in options.items()}
                return super().forward(*map(_widened, inputs), **named)

    InFp32.__name__ = InFp32.__qualname__ = kind.__name__
    return InFp32


def _widened(value: Any) -> Any:
    return value.float() if isinstance(value, torch.Tensor) and value.is_floating_point() else value
