"""int8 matrix products on a CPU that keep a student's order, and the calibration that they need.

A few channels of a transformer's states are ten times as large as the others, whatever the text (Dettmers et al. 2022,
LLM.int8(), arXiv 2208.07339). One scale for all leaves the others a tenth of the 256 steps. So

- an input channel that is large counts as several with a part of it each, which changes nothing but the range (Zhao et
  al. 2019, outlier channel splitting, arXiv 1901.09504);
- a token has a scale of its own;
- in a feed-forward all tokens have one that calibration set, because then the hidden units go from one product to the next in
  8 bits, through the activation, and never exist in fp32; the few units that grow large are computed beside them, in fp32.

No scale is of a batch, so a pair's score does not depend on what it is scored with but for rounding.

Weights have a scale per output channel. Which channels are large is the model's doing, so pairs of random tokens tell.
`Int8Products` is for `students.fused`; `split_maps` prepares any model for onnxruntime, which has no such feed-forward.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from students.cpu_ops import ACTIVATIONS, Product, cpu_capabilities, multiplies_bf16
from students.errors import StudentError
from students.tokens import Tokens, id_type

if TYPE_CHECKING:
    from students.encoder import CrossEncoder

Largest = Mapping[nn.Linear, torch.Tensor]
"""The largest absolute value of each input channel of a linear map, (in_features,) fp32."""

# Copies of large channels that a product takes beside its own; instructions take 32 at once.
EXTRA_CHANNELS = 32
UNITS_APART = 16  # hidden units of a feed-forward that fp32 computes
# What feed-forwards take and hold may be this much larger than in calibration before it is cut off: on real passages scores
# are off by about as much with 1 to 2, so it is for what is unlike them.
HEADROOM = 1.3
LEAST = 1e-9  # what counts as the largest value where all are 0
CALIBRATION_PAIRS, QUERY_TOKENS, PASSAGE_TOKENS = 32, 8, 112

_BELOW = {"gelu": 0.17, "relu": 0.0}  # how far below zero an activation goes


# ---------------------------------------------------------------------------------------------- calibration
@torch.inference_mode()
def largest_inputs(encoder: "CrossEncoder") -> dict[nn.Linear, torch.Tensor]:
    """What goes into each linear map of a student when it scores pairs of random tokens, always the same ones.

    Args:
        encoder: in eval mode; its own forward is run, so that every architecture will do.

    Returns:
        `Largest` of the maps that were called.

    Raises:
        StudentError: the model computes what is no number.
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
            "the student computes infinite values or NaN", hint="look at its weights; train it again"
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
    """Input channels as a product takes them: a large one several times, with an equal part of it each time.

    Args:
        largest: (in_features,) as in `Largest`. The channel whose part is the largest is given one more, ``extra`` times.
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
        """(…, in_features) as (…, in_features + extra): all channels, then the further copies."""
        again = x.index_select(-1, self.source[self._n :])
        return torch.cat([x * self.part[: self._n], again * self.part[self._n :]], -1)

    def times(self, x: torch.Tensor, factor: float = 1.0, plus: torch.Tensor | None = None) -> torch.Tensor:
        """`forward` times a factor plus (in_features + extra,), in half the time; of fp32 x, for no export and no gradients."""
        part = self.part * factor
        rows = x.new_empty(*x.shape[:-1], len(part))
        again = x.index_select(-1, self.source[self._n :])
        for values, these in ((x, slice(self._n)), (again, slice(self._n, None))):
            if plus is None:
                torch.mul(values, part[these], out=rows[..., these])
            else:
                torch.addcmul(plus[these], values, part[these], out=rows[..., these])
        return rows

    def weight(self, weight: torch.Tensor) -> torch.Tensor:
        """(out, in_features) as the (out, in_features + extra) that give the same with what `forward` gives."""
        return weight[:, self.source]


class SplitLinear(nn.Module):
    """A linear map whose product int8 can take well: its inputs split, their scale per token taken off and put back."""

    def __init__(self, linear: nn.Linear, largest: torch.Tensor) -> None:
        super().__init__()
        self.split = Split(largest)
        self.weight = nn.Parameter(self.split.weight(linear.weight.detach()))
        self.bias = linear.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """What the linear map gives."""
        parts = self.split(x)
        scale = parts.abs().amax(-1, keepdim=True).clamp_min(LEAST)
        y = F.linear(parts / scale, self.weight) * scale
        return y if self.bias is None else y + self.bias


def split_maps(encoder: "CrossEncoder") -> None:
    """Put a `SplitLinear` for each linear map that scoring calls; scores stay what they are but for rounding."""
    largest = largest_inputs(encoder)
    for module in list(encoder.model.modules()):
        for name, linear in list(module.named_children()):
            if isinstance(linear, nn.Linear) and linear in largest:
                setattr(module, name, SplitLinear(linear, largest[linear]))


# ------------------------------------------------------------------------------------------------- products
class Int8Products:
    """Makes a fused forward's products, `Product` each, from linear maps that share an input; no gradients.

    Args:
        largest: of every linear map that will be asked for.
        activation: ``gelu`` or ``relu``.

    Raises:
        StudentError: this torch has no such products on this CPU.
    """

    def __init__(self, largest: Largest, activation: str) -> None:
        if not has_int8():
            raise StudentError(
                "this torch has no int8 products on the CPU",
                hint="--precision fp32, or `msft students export --format int8`",
            )
        self._largest = largest
        self._activation = activation
        # without VNNI two products of 8 by 8 bits are summed in 16 bits, which 7-bit inputs cannot overflow
        has = cpu_capabilities()
        self._steps = 255 if has.get("avx512_vnni") or has.get("avx_vnni") else 127
        self._half = self._steps // 2
        self._zero = self._half + 1  # the byte that stands for 0

    def product(self, *linears: nn.Linear) -> Product:
        """The maps' outputs side by side; bf16 where the next to compute with them is faster in it, else fp32."""
        weight, bias = _joined(linears)
        split = Split(self._largest[linears[0]])
        multiply = _Multiply(split.weight(weight), None)
        dtype = torch.bfloat16 if len(linears) > 1 and multiplies_bf16() else torch.float32
        bias = bias.to(dtype)
        zero = self._rounding(split)

        def product(x: torch.Tensor) -> torch.Tensor:
            rows = split.times(x.reshape(-1, x.shape[-1]).float())
            most = torch.maximum(rows.amax(-1, keepdim=True), rows.amin(-1, keepdim=True).neg_())
            scale = most.clamp_min_(LEAST).div_(self._half)
            taken = _cut_off(torch.addcmul(zero, rows, 1 / scale, out=rows))
            y = multiply(taken, 1.0, self._zero, dtype=dtype)
            return torch.addcmul(bias, y, scale.to(dtype)).view(*x.shape[:-1], -1)

        return product

    def feed_forward(self, inner: nn.Linear, outer: nn.Linear) -> Product:
        """x + both maps of a feed-forward with the activation between them, fp32."""
        split = Split(self._largest[inner])
        first = _Multiply(split.weight(inner.weight.detach()), inner.bias.detach())
        scale = max(float(split(self._largest[inner]).max()) * HEADROOM, LEAST) / self._half
        hidden = self._largest[outer]
        apart = hidden.topk(min(UNITS_APART, len(hidden) // 2)).indices.sort().values
        together = torch.ones_like(hidden).index_fill_(0, apart, 0.0)
        second = _Multiply(outer.weight.detach() * together, outer.bias.detach())
        below, activation = _BELOW[self._activation], ACTIVATIONS[self._activation]
        most = float((hidden * together).max()) * HEADROOM
        hidden_scale = max(most + below, LEAST) / self._steps
        hidden_zero = round(below / hidden_scale)
        inner_apart, bias_apart = inner.weight.detach()[apart].t().contiguous(), inner.bias.detach()[apart]
        outer_apart = outer.weight.detach()[:, apart].t().contiguous()
        zero = self._rounding(split)

        def feed_forward(x: torch.Tensor) -> torch.Tensor:
            rows = x.reshape(-1, x.shape[-1])
            taken = _cut_off(split.times(rows, 1 / scale, plus=zero).clamp_(0, self._steps))
            after = (self._activation, hidden_scale, hidden_zero)
            units = first(taken, scale, self._zero, torch.uint8, *after)
            y = torch.addmm(rows, activation(torch.addmm(bias_apart, rows, inner_apart)), outer_apart)
            return second.added_to(y, units, hidden_scale, hidden_zero).view(x.shape)

        return feed_forward

    def _rounding(self, split: Split) -> torch.Tensor:
        """What makes a rounded byte of a scaled input once it is cut off; of its shape, as addcmul takes seven times as
        long with one number."""
        return torch.full_like(split.part, self._zero + 0.5)


def _cut_off(x: torch.Tensor) -> torch.Tensor:
    """The whole parts of x, which is from 0 to 256, as bytes."""
    return x.to(torch.int16).to(torch.uint8)  # torch takes five times as long straight


class _Multiply:
    """A weight matrix in int8, a scale per output channel, laid out for oneDNN; x comes as unsigned 8 bits."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self._scales = weight.abs().amax(1).clamp_min(1e-12) / 127
        self._zeros = torch.zeros(len(weight), dtype=torch.int32)
        self._bias = bias
        rounded = (weight / self._scales[:, None]).round().to(torch.int8)
        self._packed = torch.ops.onednn.qlinear_prepack(rounded, [1024, weight.shape[1]])

    def __call__(
        self,
        x: torch.Tensor,
        scale: float,
        zero: int,
        dtype: torch.dtype = torch.float32,
        activation: str = "none",
        out_scale: float = 1.0,
        out_zero: int = 0,
    ) -> torch.Tensor:
        # unsigned x alone: for signed ones oneDNN 3.11 takes its reference code, a thousand times slower
        multiply = torch.ops.onednn.qlinear_pointwise
        weight = self._packed, self._scales, self._zeros, self._bias
        y = multiply(x, scale, zero, *weight, out_scale, out_zero, dtype, activation, [], "none")
        return cast(torch.Tensor, y)

    def added_to(self, y: torch.Tensor, x: torch.Tensor, scale: float, zero: int) -> torch.Tensor:
        """y, fp32 and changed, with what the product gives, which then is never written on its own."""
        multiply = torch.ops.onednn.qlinear_pointwise.binary
        added = multiply(
            *(x, scale, zero, self._packed, self._scales, self._zeros),
            other=y,
            bias=self._bias,
            output_scale=1.0,
            output_zero_point=0,
            output_dtype=torch.float32,
            other_scale=1.0,
            other_zp=0,
            binary_post_op="sum",
            binary_alpha=1.0,
            unary_post_op="none",
            unary_post_op_args=[],
            unary_post_op_algorithm="none",
        )
        return cast(torch.Tensor, added)


def _joined(linears: Sequence[nn.Linear]) -> tuple[torch.Tensor, torch.Tensor]:
    weights, biases = zip(*((one.weight.detach(), one.bias.detach()) for one in linears), strict=True)
    return torch.cat(weights), torch.cat(biases)


@functools.cache
def has_int8() -> bool:
    """Whether this torch multiplies int8 on this CPU, and gives what it should."""
    ops: Any = torch.ops.onednn
    if not (hasattr(getattr(ops, "qlinear_pointwise", None), "binary") and hasattr(ops, "qlinear_prepack")):
        return False
    try:
        with torch.inference_mode():
            weight = torch.arange(512.0).view(32, 16) / 512 - 0.5
            x = torch.arange(64.0).view(4, 16) / 64
            multiply, taken = _Multiply(weight, None), (x * 127).round().to(torch.uint8)
            made, added = multiply(taken, 1 / 127, 0), multiply.added_to(torch.ones(4, 32), taken, 1 / 127, 0)
            exact = x @ weight.t()
            return torch.allclose(made, exact, atol=0.1) and torch.allclose(added, exact + 1, atol=0.1)
    except (RuntimeError, NotImplementedError):
        return False
