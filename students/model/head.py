"""Keep a classifier's head in fp32 in every precision.

A bf16 logit has eight significant bits, so a third of a list's scores would tie. The head runs once per pair, so fp32
costs nothing.
"""

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
