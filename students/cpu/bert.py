"""BERT's forward on a CPU, for scoring and for training: the results of transformers from fewer and larger operations.

BERT, ELECTRA, RoBERTa, XLM-R and CamemBERT share one encoder. It saves work in three places. A score needs only the first token of the
last layer, so the last layer computes one token per pair (scoring also skips its keys and values). Query, key and value
are one matrix product. A batch whose pairs have equal lengths needs no mask. `students.cpu.operations` holds the
operations.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from students.cpu.operations import (
    ACTIVATIONS,
    FirstTokenAttention,
    LiveProduct,
    ModelsDropout,
    Product,
    attention,
    drop,
    frozen_product,
    of_few_sizes,
)
from students.text.batches import PairBatch

ARCHITECTURES = ("bert", "electra", "roberta", "xlm-roberta", "camembert")
Precision = Literal["fp32", "bf16"]

Attend = Callable[[torch.Tensor, "torch.Tensor | None", float], torch.Tensor]
"""Map states (n, width, hidden), mask (n, 1, 1, width) and dropout rate to attention, (n, width or 1, hidden)."""

FeedForward = Callable[[torch.Tensor, float], torch.Tensor]
"""Map states and dropout rate to the sum of states and feed-forward output, before the norm."""


@dataclass(frozen=True)
class _Layer:
    """The operations of one layer."""

    attend: Attend
    attended: Product
    attended_norm: Product
    feed_forward: FeedForward
    outer_norm: Product


class _Forward:
    """Embeddings, layers and head over a padded batch.

    The sums between layers stay fp32 in every precision. In bf16 the scores' error grows by a fifth and the gradients'
    error triples, and no time is saved.
    """

    def __init__(self, model: Any, layers: Sequence[_Layer]) -> None:
        self._embeddings = _with_own_dropout(model.base_model.embeddings, model)
        self._project = getattr(model.base_model, "embeddings_project", None)
        self._pooler = getattr(model.base_model, "pooler", None)  # BERT's
        if (classifier := getattr(model, "classifier", None)) is not None:
            self._classifier = _with_own_dropout(classifier, model)
        if self._pooler is not None and hasattr(model, "dropout"):
            self._dropout = ModelsDropout(model.dropout.p, model)
        *self._layers, self._last = layers

    def logits(self, batch: PairBatch, dropout: float = 0.0, attention_dropout: float = 0.0) -> torch.Tensor:
        """Compute raw logits, (n_pairs,) fp32."""
        n, width = batch.ids.shape
        types = {} if batch.types is None else {"token_type_ids": batch.types}
        mask = None
        if batch.mask is not None and batch.n_tokens != n * width:
            mask = batch.mask.bool()[:, None, None, :]
        x = self._embed(batch.ids, **types)
        for layer in self._layers:
            x = self._whole(layer, x, mask, dropout, attention_dropout)
        first = self._last.attend(x, mask, attention_dropout)
        return self._head(self._finish(self._last, x[:, :1], first, dropout))

    def states(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Compute the last layer's states of all tokens. Needs layers that were made for every token."""
        x = self._embed(ids)
        for layer in (*self._layers, self._last):
            x = self._whole(layer, x, mask[:, None, None, :])
        return x

    def _embed(self, ids: torch.Tensor, **types: torch.Tensor) -> torch.Tensor:
        x: torch.Tensor = self._embeddings(input_ids=ids, **types)
        if self._project is not None:
            x = self._project(x)
        return x

    def _whole(
        self,
        layer: _Layer,
        x: torch.Tensor,
        mask: torch.Tensor | None,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
    ) -> torch.Tensor:
        """Run a layer for all tokens."""
        return self._finish(layer, x, layer.attend(x, mask, attention_dropout), dropout)

    def _finish(self, layer: _Layer, x: torch.Tensor, attended: torch.Tensor, dropout: float) -> torch.Tensor:
        x = layer.attended_norm(_sum(x, drop(layer.attended(attended), dropout)))
        return layer.outer_norm(layer.feed_forward(x, dropout))

    def _head(self, first: torch.Tensor) -> torch.Tensor:
        if self._pooler is not None:
            first = self._dropout(self._pooler(first))
        logits: torch.Tensor = self._classifier(first)
        return logits.reshape(-1).float()


class FusedEncoder:
    """Score batches with copies of a model's weights, without gradients. The model is unchanged.

    Args:
        model: a ForSequenceClassification of one of `ARCHITECTURES` with one output, in eval mode, on the CPU.
        precision: precision of the matrix products. The last layer's attention is always fp32.
        every_token: run the last layer for all tokens. Then only `states` works, and the model may be a bare encoder.
        any_size: keep memory bounded for callers that send batches of ever new sizes (`operations.of_few_sizes`).
    """

    def __init__(
        self,
        model: Any,
        precision: Precision = "fp32",
        *,
        every_token: bool = False,
        any_size: bool = False,
    ) -> None:
        activation = str(model.config.hidden_act)
        product, feed_forward = _frozen(torch.bfloat16 if precision == "bf16" else torch.float32, activation)
        if any_size:
            product, feed_forward = _of_few_sizes(product), _of_few_sizes(feed_forward)

        def added(inner: nn.Linear, outer: nn.Linear) -> FeedForward:
            made = feed_forward(inner, outer)
            return lambda x, _dropout: made(x)

        first = None if every_token else FirstTokenAttention
        self._forward = _Forward(model, _layers(model, product, added, first))

    @staticmethod
    def supports(model: Any) -> bool:
        """Return True if this forward reproduces the model."""
        config = model.config
        return (
            config.model_type in ARCHITECTURES
            and not getattr(config, "is_decoder", False)
            and getattr(config, "position_embedding_type", "absolute") in (None, "absolute")
            and config.hidden_act in ACTIVATIONS
            and len(model.base_model.encoder.layer) > 0
        )

    @torch.inference_mode()
    def __call__(self, batch: PairBatch) -> torch.Tensor:
        """Compute raw logits of a padded batch, (n_pairs,) fp32."""
        return self._forward.logits(batch)

    @torch.inference_mode()
    def states(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Compute the last layer's states of all tokens, (n, width, hidden) fp32.

        Args:
            ids: (n, width) token ids, padded.
            mask: (n, width), True at tokens. It is always applied, so that a row's result does not depend on its
                neighbours.
        """
        return self._forward.states(ids, mask)


class LearningEncoder:
    """The same forward for training, with gradients and the model's dropout.

    It holds copies of the weights. Call `refresh` after each change of the model.

    Args:
        model: as for `FusedEncoder`, in any mode.
        precision: precision of the products. Weights and their gradients stay fp32.
    """

    def __init__(self, model: Any, precision: Literal["fp32", "bf16"]) -> None:
        self._model = model
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        activation = ACTIVATIONS[str(model.config.hidden_act)]

        self._products: list[LiveProduct] = []

        def product(*linears: nn.Linear) -> Product:
            self._products.append(LiveProduct(linears, dtype))
            return self._products[-1]

        def feed_forward(inner: nn.Linear, outer: nn.Linear) -> FeedForward:
            first, second = product(inner), product(outer)
            return lambda x, dropout: _sum(x, drop(second(activation(first(x))), dropout))

        def first(query: nn.Linear, key: nn.Linear, value: nn.Linear, heads: int) -> Attend:
            return _attend_first(product(query), product(key, value), heads)

        self._forward = _Forward(model, _layers(model, product, feed_forward, first))

    def refresh(self) -> None:
        """Copy the model's current weights."""
        for product in self._products:
            product.refresh()

    def __call__(self, batch: PairBatch) -> torch.Tensor:
        """Compute raw logits of a padded batch, (n_pairs,) fp32."""
        if not self._model.training:
            return self._forward.logits(batch)
        config = self._model.config
        return self._forward.logits(
            batch, float(config.hidden_dropout_prob), float(config.attention_probs_dropout_prob)
        )


def _with_own_dropout(module: nn.Module, model: Any) -> nn.Module:
    """Copy the module with the dropout of `students.cpu.operations.drop`. The parameters are shared."""
    if not isinstance(dropout := getattr(module, "dropout", None), nn.Dropout):
        return module
    twin = copy.copy(module)
    twin._modules = dict(module._modules, dropout=ModelsDropout(dropout.p, model))
    return twin


def _layers(
    model: Any,
    product: Callable[..., Product],
    feed_forward: Callable[[nn.Linear, nn.Linear], FeedForward],
    first: Callable[[nn.Linear, nn.Linear, nn.Linear, int], Attend] | None,
) -> list[_Layer]:
    """Collect a model's layers. ``first`` makes the last layer's attention; if it is None, all tokens attend there too."""
    layers = []
    heads = int(model.config.num_attention_heads)
    of_model = model.base_model.encoder.layer
    for number, layer in enumerate(of_model, 1):
        q, k, v = (getattr(layer.attention.self, name) for name in ("query", "key", "value"))
        if number == len(of_model) and first is not None:
            attend = first(q, k, v, heads)
        else:
            attend = _attend_all(product(q, k, v), heads)
        layers.append(
            _Layer(
                attend=attend,
                attended=product(layer.attention.output.dense),
                attended_norm=layer.attention.output.LayerNorm,
                feed_forward=feed_forward(layer.intermediate.dense, layer.output.dense),
                outer_norm=layer.output.LayerNorm,
            )
        )
    return layers


def _attend_all(projection: Product, heads: int) -> Attend:
    def attend(x: torch.Tensor, mask: torch.Tensor | None, dropout: float) -> torch.Tensor:
        q, k, v = _by_head(projection(x), 3, heads)
        return attention(q, k, v, mask, dropout).transpose(1, 2).reshape(x.shape)

    return attend


def _attend_first(query: Product, key_value: Product, heads: int) -> Attend:
    def attend(x: torch.Tensor, mask: torch.Tensor | None, dropout: float) -> torch.Tensor:
        (q,) = _by_head(query(x[:, :1]), 1, heads)
        k, v = _by_head(key_value(x), 2, heads)
        return attention(q, k, v, mask, dropout).reshape(len(x), 1, -1)

    return attend


def _by_head(x: torch.Tensor, parts: int, heads: int) -> tuple[torch.Tensor, ...]:
    n, width, _ = x.shape
    return x.view(n, width, parts, heads, -1).permute(2, 0, 3, 1, 4).unbind(0)


def _sum(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Add a product's output to fp32 states. torch takes 1.3 to 5 times as long to add two different types."""
    if torch.is_inference_mode_enabled() and y.dtype != x.dtype:
        return y.to(x.dtype).add_(x)
    return x + y


def _frozen(
    dtype: torch.dtype, activation: str
) -> tuple[Callable[..., Product], Callable[[nn.Linear, nn.Linear], Product]]:
    """Return two functions: one makes products with fixed weights in ``dtype``, the other makes x + feed-forward(x)."""

    def product(*linears: nn.Linear) -> Product:
        return frozen_product(linears, dtype)

    def feed_forward(inner: nn.Linear, outer: nn.Linear) -> Product:
        second = product(outer)
        if activation == "gelu":
            first = frozen_product([inner], dtype, gelu=True)
            return lambda x: _sum(x, second(first(x)))
        plain, after = product(inner), ACTIVATIONS[activation]
        return lambda x: _sum(x, second(after(plain(x))))

    return product, feed_forward


def _of_few_sizes(make: Callable[..., Product]) -> Callable[..., Product]:
    return lambda *linears: of_few_sizes(make(*linears))
