"""The operations that take most of a cross-encoder's time, in their fastest form for a CPU.

Measured on a Zen 5 core with torch 2.13. oneDNN's fp32 products are twice as fast as the BLAS behind ``F.linear``. The
backward pass of bf16 SDPA takes five to nine times as long as two products and a softmax. ``F.dropout`` draws a random
number per element, while 64 random bits are enough for four elements.
"""

import functools
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional as F

from students.cpu.capabilities import cpu_capabilities, has_onednn, onednn_linear, onednn_weight

Product = Callable[[torch.Tensor], torch.Tensor]  # (…, in) -> (…, out)

ACTIVATIONS: dict[str, Product] = {"gelu": F.gelu, "relu": F.relu}  # by transformers' names


# ------------------------------------------------------------------------------------------------- products
def frozen_product(
    linears: Sequence[nn.Linear], dtype: torch.dtype, *, gelu: bool = False, rows: int = 2048
) -> Product:
    """Join the linear maps of one input into one product with fixed weights and no gradients. Outputs are side by side.

    Args:
        dtype: type of the computation and of the outputs; inputs are converted.
        gelu: apply the (exact) GELU to the outputs.
        rows: expected number of input rows. It only decides the weights' layout in memory.
    """
    weight = torch.cat([linear.weight.detach() for linear in linears]).to(dtype)
    bias = torch.cat([linear.bias.detach() for linear in linears]).to(dtype)
    if not has_onednn(dtype):
        if gelu:
            return lambda x: F.gelu(F.linear(x.to(dtype), weight, bias))
        return lambda x: F.linear(x.to(dtype), weight, bias)
    packed = onednn_weight(weight, rows)
    return lambda x: onednn_linear(x.to(dtype), packed, bias, gelu=gelu)


def of_few_sizes(product: Product) -> Product:
    """Call a product with few different numbers of rows: pad the input with zeros and cut off their outputs.

    oneDNN compiles once for each number of rows and keeps the result. A server meets every size, which took 500 MB. The
    copy costs large batches time (a quarter if all are full), so the caller decides.
    """

    def rounded(x: torch.Tensor) -> torch.Tensor:
        n = x.numel() // x.shape[-1]
        step = 16 if n <= 128 else 64 if n <= 1024 else 128
        rows = -(-n // step) * step
        if rows == n:
            return product(x.reshape(1, n, -1)).view(*x.shape[:-1], -1)
        padded = x.new_zeros(1, rows, x.shape[-1])
        padded[0, :n] = x.reshape(n, -1)
        return product(padded)[0, :n].view(*x.shape[:-1], -1)

    return rounded


class LiveProduct:
    """Join the linear maps of one input into one product that learns. It computes and returns ``dtype``.

    `refresh` converts the weights to ``dtype``; calls do not. Gradients come back in fp32. Call `refresh` after each
    change of the linear maps; until then the product uses the old weights.
    """

    def __init__(self, linears: Sequence[nn.Linear], dtype: torch.dtype) -> None:
        self._parameters = [p for linear in linears for p in (linear.weight, linear.bias)]
        self.sizes = [linear.out_features for linear in linears]
        self._dtype = dtype
        self.refresh()

    def refresh(self) -> None:
        """Copy the current weights and biases."""
        self.weight, self.bias = (
            torch.cat([p.detach().to(self._dtype) for p in self._parameters[kind::2]]) for kind in (0, 1)
        )

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return cast(torch.Tensor, _Linear.apply(x, self, *self._parameters))


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, product: LiveProduct, *_: torch.Tensor) -> torch.Tensor:
        weight, bias = product.weight, product.bias
        ctx.dtype, ctx.weight, ctx.sizes = x.dtype, weight, product.sizes
        x = x.to(weight.dtype)
        ctx.save_for_backward(x)
        return _times(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        (x,) = ctx.saved_tensors
        g = gradients[0].reshape(-1, gradients[0].shape[-1])
        flat = x.reshape(-1, x.shape[-1])
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = _matmul(g, ctx.weight).view(x.shape).to(ctx.dtype)
        needed = ctx.needs_input_grad[2:]
        of_parameters: list[torch.Tensor | None] = [None] * len(needed)
        if any(needed[::2]):
            of_parameters[::2] = _matmul(g.t(), flat).float().split(ctx.sizes)
        if any(needed[1::2]):
            of_parameters[1::2] = g.sum(0, dtype=torch.float32).split(ctx.sizes)
        wanted = [value if need else None for value, need in zip(of_parameters, needed, strict=True)]
        return of_x, None, *wanted


@functools.cache
def _onednn_learns_faster() -> bool:
    """Return True if oneDNN's fp32 products beat the BLAS in training.

    They do with AVX-512. With AVX2 both reach the peak, and oneDNN needs a transposed copy for a weight's gradient,
    which costs a third more time.
    """
    return has_onednn() and cpu_capabilities().get("avx512_f", True)


def _times(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Compute x · weightᵀ + bias."""
    if x.dtype == torch.float32 and _onednn_learns_faster():
        return onednn_linear(x, weight, bias)
    return F.linear(x, weight, bias)


def _matmul(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Multiply two matrices."""
    if a.dtype == torch.float32 and _onednn_learns_faster():
        return _times(a.contiguous(), b.t().contiguous())
    return a @ b


# ------------------------------------------------------------------------------------------------ attention
def attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, dropout: float = 0.0
) -> torch.Tensor:
    """Compute attention of (n, heads, length, dim); mask (n, 1, 1, length) is True at tokens."""
    # only in inference mode: gradient caching must score a piece as its backward pass will
    scoring = not dropout and torch.is_inference_mode_enabled()
    if not dropout and (q.dtype == torch.float32 or (scoring and _sdpa_is_fast())):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    n, heads, rows, dim = q.shape
    q, k, v = (x.reshape(n * heads, x.shape[2], dim) for x in (q, k, v))
    away = None if mask is None else ~mask.view(n, 1, -1)
    mixed = _by_exponentials(q, k, v, away) if scoring else _by_softmax(q, k, v, away, dropout)
    return mixed.view(n, heads, rows, dim)


def _by_softmax(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, away: torch.Tensor | None, dropout: float = 0.0
) -> torch.Tensor:
    """Compute attention of (n · heads, length, dim); away (n, 1, length) is True at padding."""
    scale = 1 / math.sqrt(q.shape[-1])
    if away is None:
        scores = torch.baddbmm(q.new_zeros(1, 1, 1), q, k.transpose(1, 2), beta=0, alpha=scale)
    else:
        added = torch.zeros(away.shape, dtype=q.dtype).masked_fill(away, -math.inf)
        heads = len(q) // len(away)
        scores = torch.baddbmm(added.repeat_interleave(heads, 0), q, k.transpose(1, 2), alpha=scale)
    return torch.bmm(drop(torch.softmax(scores, -1), dropout), v)


def _sdpa_is_fast() -> bool:
    """Return True if SDPA is the fastest bf16 attention without gradients. It is with AMX.

    It takes a third of the time at 256 tokens, .8 to 1 at 48 to 96. The CPU's instructions decide, not a measurement,
    so that scores do not change from day to day.
    """
    return cpu_capabilities().get("amx_bf16", False)


# Bounds of a row's sum of exponentials. Between them no weight that matters is rounded to 0 or to infinity.
_LEAST_SUM, _LARGEST_SUM = 2.0**-60, 2.0**100
_SCORES_AT_ONCE = 1 << 20  # 2 MB: takes a fifth less time at 256 tokens than a whole batch at once


def _by_exponentials(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, away: torch.Tensor | None
) -> torch.Tensor:
    """Compute `_by_softmax` in half the time, without gradients.

    softmax(s) v = (2^t v) / Σ 2^t with t = s log₂e. The exponentials are computed in place, without subtracting a row's
    largest score, for some pairs at a time. The division follows the product, which has dim columns instead of length.
    A head whose sums are out of bounds goes through the softmax alone, so that no pair's score depends on its
    neighbours.
    """
    n_pairs = len(q) if away is None else len(away)
    heads, (rows, columns) = len(q) // n_pairs, (q.shape[1], k.shape[1])
    # padding comes after the tokens
    first = columns if away is None else int(away.any(0).int().argmax())
    scale = math.log2(math.e) / math.sqrt(q.shape[-1])
    step = max(1, _SCORES_AT_ONCE // (heads * rows * columns))
    space = q.new_empty(min(step, n_pairs) * heads, rows, columns)
    sums, mixed, nothing = q.new_empty(len(q), rows, 1), torch.empty_like(q), q.new_zeros(1, 1, 1)
    for pair in range(0, n_pairs, step):
        part = slice(pair * heads, min(pair + step, n_pairs) * heads)
        scores = space[: len(q[part])]
        torch.baddbmm(nothing, q[part], k[part].transpose(1, 2), beta=0, alpha=scale, out=scores)
        if away is not None:
            beyond = scores.view(-1, heads, rows, columns)[..., first:]
            beyond.masked_fill_(away[pair : pair + step, None, :, first:], -math.inf)
        torch.sum(scores.exp2_(), -1, keepdim=True, out=sums[part])
        torch.bmm(scores, v[part], out=mixed[part])
    mixed.div_(sums)
    moderate = ((sums >= _LEAST_SUM) & (sums <= _LARGEST_SUM)).flatten(1).all(1)  # False for NaN
    if not moderate.all():
        (again,) = (~moderate).nonzero(as_tuple=True)
        theirs = None if away is None else away[again // heads]
        mixed[again] = _by_softmax(q[again], k[again], v[again], theirs)
    return mixed


class FirstTokenAttention:
    """Self-attention of each pair's first token alone, in fp32, straight from the states; no gradients.

    Keys and values are not computed: q · (W_k x) = (W_kᵀ q) · x, and Σ p (W_v x) = W_v Σ p x. A head then costs 2 ·
    hidden operations per token instead of 2 · hidden · dim. The keys' bias adds the same number to all scores of a row,
    so the softmax cancels it.
    """

    def __init__(self, query: nn.Linear, key: nn.Linear, value: nn.Linear, heads: int) -> None:
        dim = query.out_features // heads
        # copies, as in `frozen_product`: later changes of the model do not change scores
        self._query, self._query_bias = (
            p.detach().float() / math.sqrt(dim) for p in (query.weight, query.bias)
        )
        self._key, self._value = (
            linear.weight.detach().float().clone().view(heads, dim, -1) for linear in (key, value)
        )
        self._value_bias = value.bias.detach().float().clone().view(heads, 1, dim)

    def __call__(self, x: torch.Tensor, mask: torch.Tensor | None, _dropout: float = 0.0) -> torch.Tensor:
        """Map states (n, length, hidden) fp32 to (n, 1, hidden); mask (n, 1, 1, length) is True at tokens."""
        n, heads = len(x), len(self._key)
        q = F.linear(x[:, 0], self._query, self._query_bias).view(n, heads, -1).transpose(0, 1)
        scores = torch.bmm(q, self._key).transpose(0, 1) @ x.transpose(1, 2)  # (n, heads, length)
        if mask is not None:
            scores.masked_fill_(~mask.view(n, 1, -1), -math.inf)
        mixed = torch.softmax(scores, -1) @ x
        return (
            torch.baddbmm(self._value_bias, mixed.transpose(0, 1), self._value.transpose(1, 2))
            .transpose(0, 1)
            .reshape(n, 1, -1)
        )


# -------------------------------------------------------------------------------------------------- dropout
_drawing = threading.local()


@contextmanager
def drawing_from(generator: torch.Generator) -> Iterator[None]:
    """Let `drop` in this thread draw from a generator instead of torch's own, which all threads share."""
    _drawing.generator = generator
    try:
        yield
    finally:
        _drawing.generator = None


def drop(x: torch.Tensor, p: float) -> torch.Tensor:
    """Apply dropout with probability p (to 1/65,536); 0 returns x itself. `drawing_from` chooses the generator."""
    return cast(torch.Tensor, _Drop.apply(x, p)) if p else x


class ModelsDropout(nn.Module):
    """Replace a model's nn.Dropout by `drop`; active while the model is in training mode."""

    def __init__(self, p: float, model: nn.Module) -> None:
        super().__init__()
        self._p = p
        self._trains = lambda: model.training

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the dropout."""
        return drop(x, self._p if self._trains() else 0.0)


_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


class _Drop(torch.autograd.Function):
    """Dropout with sixteen random bits per element. An integer mask clears (0) or keeps (-1) the element's bits."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, p: float) -> torch.Tensor:
        n, generator = x.numel(), getattr(_drawing, "generator", None)
        random = torch.empty(-(-n // 4), dtype=torch.int64).random_(-(1 << 63), None, generator=generator)
        random = random.view(torch.int16)[:n]
        mask = torch.ge(random, round(p * 65536) - 32768, out=torch.empty(n, dtype=torch.int16)).neg_()
        ctx.save_for_backward(mask.view(x.shape))
        ctx.scale = 1 / (1 - p)
        return _masked(x, mask.view(x.shape), ctx.scale)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        (mask,) = ctx.saved_tensors
        return _masked(gradients[0], mask, ctx.scale), None


def _masked(x: torch.Tensor, mask: torch.Tensor, scale: float) -> torch.Tensor:
    bits = _BITS[x.element_size()]
    return (x.view(bits) & mask.to(bits)).view(x.dtype).mul_(scale)
