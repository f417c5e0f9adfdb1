"""BERT's forward on a CPU: transformers' numbers from fewer and larger operations, for scoring and for training.

BERT, ELECTRA and RoBERTa are one encoder under three names. A score needs only the first token of the last layer, so
there the queries, the output projection and the feed-forward run for one token per pair instead of all, and scoring makes
no keys and values either; query, key and value are one matrix product; no mask is made where all pairs of a batch have one
length. The operations themselves are those of `students.cpu.operations`.
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

ARCHITECTURES = ("bert", "electra", "roberta")
Precision = Literal["fp32", "bf16"]

Attend = Callable[[torch.Tensor, "torch.Tensor | None", float], torch.Tensor]
"""States (n, width, hidden), mask (n, 1, 1, width) and dropout to what was attended to, (n, width or 1, hidden)."""

FeedForward = Callable[[torch.Tensor, float], torch.Tensor]
"""States and dropout to the states with what the feed-forward makes of them added, not yet normalised."""


@dataclass(frozen=True)
class _Layer:
    """One layer's maps."""

    attend: Attend
    attended: Product
    attended_norm: Product
    feed_forward: FeedForward
    outer_norm: Product


class _Forward:
    """The way of a padded batch through embeddings, layers and head.

    What runs along the layers stays fp32 whatever the products compute in: in bf16 it would cost a fifth more error in
    the scores and three times the error in the gradients, and save no time.
    """

    def __init__(self, model: Any, layers: Sequence[_Layer]) -> None:
        self._embeddings = _with_own_dropout(model.base_model.embeddings, model)
        self._project = getattr(model.base_model, "embeddings_project", None)
        self._pooler = getattr(model.base_model, "pooler", None)  # BERT's
        if (classifier := getattr(model, "classifier", None)) is not None:  # a bare encoder has none
            self._classifier = _with_own_dropout(classifier, model)
        if self._pooler is not None and hasattr(model, "dropout"):
            self._dropout = ModelsDropout(model.dropout.p, model)
        *self._layers, self._last = layers

    def logits(self, batch: PairBatch, dropout: float = 0.0, attention_dropout: float = 0.0) -> torch.Tensor:
        """Raw logits, (n_pairs,) fp32."""
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
        """The last layer's states of all tokens; its layers were made for every token."""
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
        """A layer for all tokens."""
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
    """Scores batches with the weights that a loaded model has now; holds no gradients, changes nothing in the model.

    Args:
        model: a ForSequenceClassification of one of `ARCHITECTURES` with one output, in eval mode, on the CPU.
        precision: of the matrix products; the last layer's attention is fp32 in all.
        every_token: run the last layer for all tokens, for `states`; there are no scores then, and the model may be
            a bare encoder.
        any_size: batches of all sizes come, over and over: memory stays bounded then (`cpu_ops.of_few_sizes`).
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
        """Whether this model is one that this forward reproduces."""
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
        """Raw logits of a padded batch, (n_pairs,) fp32."""
        return self._forward.logits(batch)

    @torch.inference_mode()
    def states(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """The last layer's states of all tokens, (n, width, hidden) fp32.

        Args:
            ids: (n, width) token ids, padded.
            mask: (n, width), true where there is a token. It always takes part, so that what a row's neighbours hold
                changes nothing in it.
        """
        return self._forward.states(ids, mask)


class LearningEncoder:
    """The same forward with weights that learn, their gradients, and the model's own dropout.

    It holds copies of the weights: `refresh` must follow each change of the model.

    Args:
        model: as for `FusedEncoder`, in any mode.
        precision: of the products; weights and their gradients stay fp32.
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
        """Take the model's weights as they are now."""
        for product in self._products:
            product.refresh()

    def __call__(self, batch: PairBatch) -> torch.Tensor:
        """Raw logits of a padded batch, (n_pairs,) fp32."""
        if not self._model.training:
            return self._forward.logits(batch)
        config = self._model.config
        return self._forward.logits(
            batch, float(config.hidden_dropout_prob), float(config.attention_probs_dropout_prob)
        )


def _with_own_dropout(module: nn.Module, model: Any) -> nn.Module:
    """The same module, its parameters shared, that drops by `students.cpu.operations.drop`; the model stays as it is."""
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
    """A model's layers; ``first`` makes the last one's attention of first tokens alone, without it all tokens attend."""
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
    """x + y of fp32 and what a product gives: torch adds two types at a fifth to three quarters of this speed."""
    if torch.is_inference_mode_enabled() and y.dtype != x.dtype:
        return y.to(x.dtype).add_(x)
    return x + y


def _frozen(
    dtype: torch.dtype, activation: str
) -> tuple[Callable[..., Product], Callable[[nn.Linear, nn.Linear], Product]]:
    """What makes products with fixed weights in ``dtype``, and what makes x + feed-forward(x) of them."""

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
