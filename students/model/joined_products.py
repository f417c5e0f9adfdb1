"""Compute query, key and value of an attention as one matrix product, which uses a GPU better than three narrow ones.

The weights stay three parameters with their names, so checkpoints and folders do not change. They are put side by side in
each forward, which costs nothing beside the product over all tokens of a batch.
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional

NAMES = (("query", "key", "value"), ("q_proj", "k_proj", "v_proj"))


def join_products(model: Any, *, first_tokens: bool) -> int:
    """Join the three maps of each attention whose maps are plain and take the same states; returns their number.

    Args:
        first_tokens: the last layer's query takes other states than its key and value (packed encoders), so it is left
            as it is.
    """
    found: list[list[Any]] = [
        maps
        for module in model.modules()
        for names in NAMES
        if _joinable(maps := [getattr(module, name, None) for name in names])
    ]
    if first_tokens:
        found = found[:-1]
    for maps in found:
        _join(*maps)
    return len(found)


def _joinable(maps: list[Any]) -> bool:
    """Return True for three plain linear maps, all with a bias or all without."""
    return all(type(one) is nn.Linear for one in maps) and len({one.bias is None for one in maps}) == 1


def _join(query: nn.Linear, key: nn.Linear, value: nn.Linear) -> None:
    """Let the query's map compute all three; key and value then take their parts, in this order."""
    maps = (query, key, value)
    sizes = [one.out_features for one in maps]
    held: list[torch.Tensor] = []

    def all_three(states: torch.Tensor) -> torch.Tensor:
        bias = None if query.bias is None else torch.cat([one.bias for one in maps])
        product = functional.linear(states, torch.cat([one.weight for one in maps]), bias)
        first, *others = product.split(sizes, dim=-1)
        held[:] = others
        return first

    def following(_: torch.Tensor) -> torch.Tensor:
        return held.pop(0)

    query.forward = all_three  # type: ignore[method-assign,assignment]
    key.forward = value.forward = following  # type: ignore[method-assign,assignment]
