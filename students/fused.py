"""BERT's forward for scoring on a CPU: the same numbers as transformers' from fewer and larger operations.

BERT, ELECTRA and RoBERTa are one encoder under three names. Scoring needs only the first token of the last layer, so
there the queries, the output projection and the feed-forward run for one token per pair instead of all; query, key and
value are one matrix product; no mask is made where all pairs of a batch have one length. Weights are brought into the
precision of the products once, not at every call.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional as F

from students.batches import PairBatch
from students.errors import StudentError

ARCHITECTURES = ("bert", "electra", "roberta")
Precision = Literal["fp32", "bf16", "int8"]
Product = Callable[[torch.Tensor], torch.Tensor]  # (…, in) -> (…, out)
Norm = tuple[torch.Tensor, torch.Tensor, float]  # weight, bias, eps

_ACTIVATIONS: dict[str, Product] = {"gelu": F.gelu, "relu": F.relu}


@dataclass(frozen=True)
class _Layer:
    """One layer's products: query, key and value as one, or, where only the first token is wanted, queries apart."""

    projections: tuple[Product, ...]
    attended: Product
    attended_norm: Norm
    inner: Product
    outer: Product
    outer_norm: Norm


class FusedEncoder:
    """Scores batches with the weights of a loaded model; holds no gradients, changes nothing in the model.

    Args:
        model: a ForSequenceClassification of one of `ARCHITECTURES` with one output, in eval mode, on the CPU.
        precision: of the matrix products. int8 quantises weights per output channel, once, and activations as they
            come, over the batch: scores depend on the batch a little more than by rounding.
        every_token: run the last layer for all tokens, for `states`; there are no scores then, and the model may be
            a bare encoder.

    Raises:
        StudentError: int8 is asked of a torch that has no such products.
    """

    def __init__(self, model: Any, precision: Precision = "fp32", *, every_token: bool = False) -> None:
        config = model.config
        self._model = model
        self._dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self._heads = int(config.num_attention_heads)
        self._activation = _ACTIVATIONS[config.hidden_act]
        base = model.base_model
        self._embeddings = base.embeddings
        self._project = getattr(base, "embeddings_project", None)
        *body, last = base.encoder.layer
        self._layers = [_layer(layer, precision, last=False) for layer in body]
        self._last = _layer(last, precision, last=not every_token)

    @staticmethod
    def supports(model: Any) -> bool:
        """Whether this model is one that this forward reproduces."""
        config = model.config
        return (
            config.model_type in ARCHITECTURES
            and not getattr(config, "is_decoder", False)
            and getattr(config, "position_embedding_type", "absolute") in (None, "absolute")
            and config.hidden_act in _ACTIVATIONS
            and len(model.base_model.encoder.layer) > 0
        )

    @torch.inference_mode()
    def __call__(self, batch: PairBatch) -> torch.Tensor:
        """Raw logits of a padded batch, (n_pairs,) fp32."""
        n, width = batch.ids.shape
        types = {} if batch.types is None else {"token_type_ids": batch.types}
        mask = None
        if batch.mask is not None and batch.n_tokens != n * width:
            mask = batch.mask.bool()[:, None, None, :]
        x = self._embed(batch.ids, **types)
        for layer in self._layers:
            x = self._whole(layer, x, mask)
        first = x[:, :1]
        (q,) = self._split(self._last.projections[0](first), 1)
        k, v = self._split(self._last.projections[1](x), 2)
        first = self._finish(self._last, first, F.scaled_dot_product_attention(q, k, v, attn_mask=mask))
        return self._head(first)

    @torch.inference_mode()
    def states(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """The last layer's states of all tokens, (n, width, hidden), in the precision of the products.

        Args:
            ids: (n, width) token ids, padded.
            mask: (n, width), true where there is a token. It always takes part, so that what a row's neighbours hold
                changes nothing in it.
        """
        x = self._embed(ids)
        for layer in (*self._layers, self._last):
            x = self._whole(layer, x, mask[:, None, None, :])
        return x

    def _embed(self, ids: torch.Tensor, **types: torch.Tensor) -> torch.Tensor:
        x: torch.Tensor = self._embeddings(input_ids=ids, **types)
        if self._project is not None:
            x = self._project(x)
        return x.to(self._dtype)

    def _whole(self, layer: _Layer, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """A layer for all tokens."""
        q, k, v = self._split(layer.projections[0](x), 3)
        return self._finish(layer, x, F.scaled_dot_product_attention(q, k, v, attn_mask=mask))

    def _finish(self, layer: _Layer, x: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        attended = attended.transpose(1, 2).reshape(x.shape)
        x = _norm(x + layer.attended(attended), layer.attended_norm)
        return _norm(x + layer.outer(self._activation(layer.inner(x))), layer.outer_norm)

    def _split(self, x: torch.Tensor, parts: int) -> tuple[torch.Tensor, ...]:
        n, width, _ = x.shape
        return x.view(n, width, parts, self._heads, -1).permute(2, 0, 3, 1, 4).unbind(0)

    def _head(self, first: torch.Tensor) -> torch.Tensor:
        first = first.float()
        pooler = getattr(self._model.base_model, "pooler", None)
        logits: torch.Tensor = self._model.classifier(first if pooler is None else pooler(first))
        return logits.reshape(-1).float()


def _norm(x: torch.Tensor, norm: Norm) -> torch.Tensor:
    weight, bias, eps = norm
    return F.layer_norm(x, weight.shape, weight, bias, eps)


def _layer(layer: Any, precision: Precision, *, last: bool) -> _Layer:
    def norm(module: nn.LayerNorm) -> Norm:
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        return module.weight.detach().to(dtype), module.bias.detach().to(dtype), float(module.eps)

    q, k, v = (getattr(layer.attention.self, name) for name in ("query", "key", "value"))
    return _Layer(
        projections=(_product(precision, q), _product(precision, k, v))
        if last
        else (_product(precision, q, k, v),),
        attended=_product(precision, layer.attention.output.dense),
        attended_norm=norm(layer.attention.output.LayerNorm),
        inner=_product(precision, layer.intermediate.dense),
        outer=_product(precision, layer.output.dense),
        outer_norm=norm(layer.output.LayerNorm),
    )


def _product(precision: Precision, *linears: nn.Linear) -> Product:
    """The linear maps of one input as one product, their outputs side by side."""
    weight = torch.cat([linear.weight.detach() for linear in linears])
    bias = torch.cat([linear.bias.detach() for linear in linears])
    if precision == "int8":
        return _int8_product(weight, bias)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    weight, bias = weight.to(dtype), bias.to(dtype)
    return lambda x: F.linear(x, weight, bias)


def _int8_product(weight: torch.Tensor, bias: torch.Tensor) -> Product:
    """Weights as int8 with a scale per output channel; activations as 8 bits with a scale per call."""
    if not has_int8():
        raise StudentError(
            "this torch has no int8 products on the CPU",
            hint="--precision fp32, or `msft students export --format int8`",
        )
    scales = weight.abs().amax(1).clamp_min(1e-12).double() / 127
    zeros = torch.zeros(len(weight), dtype=torch.long)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch means to move these functions, not to end them
        quantised = torch.quantize_per_channel(weight, scales, zeros, 0, torch.qint8)
        packed = torch.ops.quantized.linear_prepack(quantised, bias)
    # without VNNI the products of 8 by 8 bits are summed in 16 bits, which 7-bit activations cannot overflow
    seven_bits = not _has_vnni()

    def product(x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = torch.ops.quantized.linear_dynamic(x, packed, seven_bits)
        return result

    return product


def has_int8() -> bool:
    """Whether this torch multiplies int8 on this CPU."""
    return torch.backends.quantized.engine in ("x86", "fbgemm", "onednn") and hasattr(
        torch.ops.quantized, "linear_dynamic"
    )


def _has_vnni() -> bool:
    if hasattr(torch.cpu, "get_capabilities"):
        found = torch.cpu.get_capabilities()
        return bool(found.get("avx512_vnni") or found.get("avx_vnni"))
    return bool(getattr(torch.cpu, "_is_vnni_supported", lambda: False)())
