"""Attention without padding: all pairs of a batch in one row, each attending to itself alone.

Stock transformers models run so unchanged: an attention function is registered with transformers' own interface, the
boundaries between pairs travel to it as forward arguments, and the head reads the first token of every pair. On CUDA it
is PyTorch's variable-length kernel; elsewhere a loop over runs of equally long pairs with SDPA, which is exact and is
what tests compare against the padded forward.
"""

from typing import Any, cast

import torch
from torch.nn import functional

from students.batches import PairBatch
from students.errors import StudentError

NAME = "packed_varlen"
SUPPORTED = ("electra", "roberta", "xlm-roberta", "camembert", "bert", "modernbert")


def register() -> None:
    """Make ``attn_implementation="packed_varlen"`` known to transformers; repeatable."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, packed_attention)


def supports(architecture: str) -> bool:
    """Whether a model type runs packed."""
    return architecture in SUPPORTED


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of each segment over itself. query, key, value: (1, heads, T, dim); gives (1, T, heads, dim).

    Args:
        sliding_window: ModernBERT's, one more than the tokens seen on either side.
        cu_seq_lens_q: (segments + 1,) int32 boundaries in the row.

    Raises:
        RuntimeError: without boundaries all pairs would attend to each other.
    """
    if cu_seq_lens_q is None or max_length_q is None:
        raise RuntimeError("packed attention was called without the boundaries of its segments")
    window = -1 if sliding_window is None else sliding_window - 1
    if query.device.type == "cuda":
        return _kernel(query, key, value, cu_seq_lens_q, max_length_q, dropout, scaling, window), None
    return _loop(query, key, value, cu_seq_lens_q, dropout, scaling, window), None


def _kernel(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    boundaries: torch.Tensor,
    longest: int,
    dropout: float,
    scaling: float | None,
    window: int,
) -> torch.Tensor:
    """PyTorch's variable-length kernel: fp16 and bf16, no dropout."""
    from torch.nn.attention.varlen import varlen_attn

    if dropout > 0:
        raise StudentError(
            f"the packed kernel has no attention dropout, and {dropout} is asked for",
            hint="set attention_dropout = 0.0, or layout = 'padded'",
        )
    q, k, v = (x.squeeze(0).transpose(0, 1).contiguous() for x in (query, key, value))
    options: dict[str, Any] = {"scale": scaling}
    if window >= 0:
        options["window_size"] = (window, window)
    mixed = varlen_attn(q, k, v, boundaries, boundaries, longest, longest, **options)
    return cast(torch.Tensor, mixed).unsqueeze(0)


@torch.compiler.disable  # type: ignore[misc]  # which segments are equally long is another program for each batch
def _loop(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    boundaries: torch.Tensor,
    dropout: float,
    scaling: float | None,
    window: int,
) -> torch.Tensor:
    """One SDPA call per run of equally long segments (batches are sorted by length, so runs are few)."""
    ends = boundaries.tolist()
    heads, dim = query.shape[1], query.shape[3]
    outputs, first = [], 0
    while first < len(ends) - 1:
        length = ends[first + 1] - ends[first]
        last = first + 1
        while last < len(ends) - 1 and ends[last + 1] - ends[last] == length:
            last += 1
        part = slice(ends[first], ends[last])
        q, k, v = (
            x[0, :, part].reshape(heads, last - first, length, dim).transpose(0, 1)
            for x in (query, key, value)
        )
        mask = None
        if 0 <= window < length - 1:
            at = torch.arange(length, device=query.device)
            mask = (at[:, None] - at[None, :]).abs() <= window
        mixed = functional.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, dropout_p=dropout, scale=scaling
        )
        outputs.append(mixed.transpose(1, 2).reshape((last - first) * length, heads, dim))
        first = last
    return torch.cat(outputs).unsqueeze(0)


def forward(model: Any, batch: PairBatch) -> torch.Tensor:
    """Raw logits (n_pairs,) of a packed batch from a stock sequence classifier with one output."""
    if batch.boundaries is None or batch.positions is None:
        raise StudentError("a packed forward needs a packed batch")
    architecture = str(model.config.model_type)
    inputs: dict[str, Any] = {
        "input_ids": batch.ids,
        "position_ids": batch.positions,
        "cu_seq_lens_q": batch.boundaries,
        "cu_seq_lens_k": batch.boundaries,
        "max_length_q": batch.longest,
        "max_length_k": batch.longest,
    }
    if batch.types is not None:
        inputs["token_type_ids"] = batch.types
    hidden = model.base_model(**inputs)[0][0]  # (T, width)
    first = hidden[batch.boundaries[:-1].long()]
    if architecture == "bert":
        logits = model.classifier(model.dropout(model.bert.pooler(first.unsqueeze(1))))
    elif architecture == "modernbert":
        pooled = (
            _segment_mean(hidden, batch.boundaries) if model.config.classifier_pooling == "mean" else first
        )
        logits = model.classifier(model.drop(model.head(pooled)))
    elif architecture in SUPPORTED:  # ELECTRA, RoBERTa: the head takes the first token of (n, length, width)
        logits = model.classifier(first.unsqueeze(1))
    else:
        raise StudentError(
            f"{architecture} does not run packed",
            hint=f"set layout = 'padded'; packed run {', '.join(SUPPORTED)}",
        )
    scores: torch.Tensor = logits.reshape(-1)[: batch.n_pairs]
    return scores


def _segment_mean(hidden: torch.Tensor, boundaries: torch.Tensor) -> torch.Tensor:
    lengths = (boundaries[1:] - boundaries[:-1]).long()
    segment = torch.repeat_interleave(torch.arange(len(lengths), device=hidden.device), lengths)
    total = torch.zeros(len(lengths), hidden.shape[1], device=hidden.device, dtype=hidden.dtype)
    return total.index_add(0, segment, hidden) / lengths.unsqueeze(1)
