"""Prepare a student's linear maps for int8 products in onnxruntime.

A few channels of a transformer's states are ten times as large as the others in every text (Dettmers et al. 2022,
LLM.int8(), arXiv 2208.07339). One scale for all channels leaves the others a tenth of the 256 steps. So a large input
channel is split into several equal parts (Zhao et al. 2019, outlier channel splitting, arXiv 1901.09504), and each
token has its own scale. Pairs of random tokens show which channels are large.
"""

from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from students.errors import StudentError
from students.text.tokens import Tokens, id_type

if TYPE_CHECKING:
    from students.model.encoder import CrossEncoder

EXTRA_CHANNELS = 32  # additional copies of large channels; CPU instructions process 32 at once
LEAST = 1e-9  # replaces a largest value of 0
CALIBRATION_PAIRS, QUERY_TOKENS, PASSAGE_TOKENS = 32, 8, 112


# ---------------------------------------------------------------------------------------------- calibration
@torch.inference_mode()
def largest_inputs(encoder: "CrossEncoder") -> dict[nn.Linear, torch.Tensor]:
    """Measure the inputs of each linear map while a student scores pairs of random tokens (always the same ones).

    Args:
        encoder: a student in eval mode. Its own forward runs, so every architecture works.

    Returns:
        The largest absolute value of each input channel, (in_features,) fp32, for each map that was called.

    Raises:
        StudentError: the model computes infinite values or NaN.
    """
    largest: dict[nn.Linear, torch.Tensor] = {}

    def see(module: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        seen = given[0].detach().float().abs().flatten(0, -2).amax(0)
        linear = cast(nn.Linear, module)
        largest[linear] = torch.maximum(largest[linear], seen) if linear in largest else seen

    maps = [module for module in encoder.model.modules() if isinstance(module, nn.Linear)]
    hooks = [linear.register_forward_pre_hook(see) for linear in maps]
    try:
        each = np.arange(CALIBRATION_PAIRS)
        queries, passages = _random_texts(encoder, QUERY_TOKENS, 0), _random_texts(encoder, PASSAGE_TOKENS, 1)
        encoder(encoder.collate(queries, passages, each, each))
    finally:
        for hook in hooks:
            hook.remove()
    if not all(bool(seen.isfinite().all()) for seen in largest.values()):
        raise StudentError(
            "the student computes infinite values or NaN", hint="check its weights, or train it again"
        )
    return largest


def _random_texts(encoder: "CrossEncoder", length: int, seed: int) -> Tokens:
    tokenizer = encoder.tokenizer
    known = min(len(tokenizer), int(encoder.model.config.vocab_size))
    plain = np.setdiff1d(np.arange(known), tokenizer.all_special_ids)
    ids = np.random.default_rng(seed).choice(plain, CALIBRATION_PAIRS * length).astype(id_type(tokenizer))
    starts = np.arange(CALIBRATION_PAIRS) * length
    return Tokens(ids, starts, np.full(CALIBRATION_PAIRS, length))


class Split(nn.Module):
    """Split large input channels of a product into several equal parts.

    Args:
        largest: (in_features,) of `largest_inputs`. The channel with the largest part is split once more, ``extra``
            times.
    """

    source: torch.Tensor  # (in_features + extra,) int64
    part: torch.Tensor  # (in_features + extra,) fp32

    def __init__(self, largest: torch.Tensor, extra: int = EXTRA_CHANNELS) -> None:
        super().__init__()
        copies = torch.ones_like(largest)
        for _ in range(extra):
            copies[(largest / copies).argmax()] += 1
        every = torch.arange(len(largest))
        again = torch.repeat_interleave(every, copies.long() - 1)
        self.register_buffer("source", torch.cat([every, again]))
        self.register_buffer("part", (1 / copies)[self.source])
        self._n = len(largest)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (…, in_features) to (…, in_features + extra): all channels, then the additional copies."""
        again = x.index_select(-1, self.source[self._n :])
        return torch.cat([x * self.part[: self._n], again * self.part[self._n :]], -1)

    def weight(self, weight: torch.Tensor) -> torch.Tensor:
        """Expand a weight (out, in_features) to (out, in_features + extra), with the same product after `forward`."""
        return weight[:, self.source]


class SplitLinear(nn.Module):
    """A linear map that suits int8: its inputs are split, and each token's scale is removed before and restored after."""

    def __init__(self, linear: nn.Linear, largest: torch.Tensor) -> None:
        super().__init__()
        self.split = Split(largest)
        self.weight = nn.Parameter(self.split.weight(linear.weight.detach()))
        self.bias = linear.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute the linear map."""
        parts = self.split(x)
        scale = parts.abs().amax(-1, keepdim=True).clamp_min(LEAST)
        y = F.linear(parts / scale, self.weight) * scale
        return y if self.bias is None else y + self.bias


def split_maps(encoder: "CrossEncoder") -> None:
    """Replace each linear map that scoring calls by a `SplitLinear`. Scores change by rounding only."""
    largest = largest_inputs(encoder)
    for module in list(encoder.model.modules()):
        for name, linear in list(module.named_children()):
            if isinstance(linear, nn.Linear) and linear in largest:
                setattr(module, name, SplitLinear(linear, largest[linear]))
