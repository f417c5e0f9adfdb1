"""Attention without padding: all pairs of a batch in one row, and each pair attends only to itself.

Stock transformers layers run unchanged. The attention function is registered through transformers' interface, and the
boundaries between pairs are forward arguments. A decoder's score is read at each pair's last token. An encoder's score needs only the first token of the last layer. BERT, ELECTRA and
RoBERTa therefore compute keys and values of all tokens there, and everything else for one token per pair.

On CUDA, attention uses PyTorch's variable-length kernel. flash-attn replaces it if PyTorch's is missing or lacks a
feature (such as dropout). On other devices a loop calls SDPA for each group of equally long pairs. The loop is exact,
and tests compare it with the padded forward.
"""

import inspect
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any, cast

import torch
from torch.nn import functional

from students.errors import ExitCode, StudentError
from students.text.batches import PairBatch

NAME = "packed_varlen"
ENCODERS = ("electra", "roberta", "xlm-roberta", "camembert", "bert", "modernbert")
DECODERS = ("qwen3", "qwen2", "llama", "mistral", "gemma")
SUPPORTED = (*ENCODERS, *DECODERS)
Span = tuple[int, int]  # the tokens that a token sees before and after itself; -1 is all of them


@dataclass(frozen=True)
class _Segments:
    """The positions of the pairs in the rows of queries and keys.

    ``queries`` and ``keys`` are (segments + 1,) int32 boundaries. ``longest_query`` and ``longest_key`` are lengths.
    """

    queries: torch.Tensor
    keys: torch.Tensor
    longest_query: int
    longest_key: int


def register() -> None:
    """Register ``attn_implementation="packed_varlen"`` with transformers. Repeated calls are safe."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, packed_attention)


def supports(architecture: str) -> bool:
    """Return True if a model type runs packed."""
    return architecture in SUPPORTED


def has_kernel(*, dropout: bool = False) -> bool:
    """Return True if a CUDA kernel is installed; with `dropout`, one that supports attention dropout."""
    return _FLASH_ATTN is not None or (not dropout and _TORCH_VARLEN is not None)


def check_kernel(dropout: float) -> None:
    """Raise a StudentError (exit code 2) if no CUDA kernel supports the attention dropout."""
    if not has_kernel(dropout=dropout > 0):
        raise _no_kernel(dropout)


def _no_kernel(dropout: float) -> StudentError:
    with_dropout = f" that supports attention dropout ({dropout} is set)" if dropout else ""
    other = "set attention_dropout = 0.0" if dropout else "install torch 2.11 or later"
    return StudentError(
        f"no kernel for packed attention is installed{with_dropout}",
        hint=f"{other}, pip install flash-attn, or set layout = 'padded'",
        exit_code=ExitCode.USAGE,
    )


def _torch_varlen() -> Any | None:
    """Return PyTorch's kernel (without dropout); None before 2.11, where it is missing or lacks scale and window."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    known = inspect.signature(varlen_attn).parameters
    return varlen_attn if "scale" in known and "window_size" in known else None


def _flash_attn() -> Any | None:
    """Return flash-attn's kernel; None if it is not installed or was built for another PyTorch."""
    try:
        from flash_attn import flash_attn_varlen_func
    except ImportError:
        return None
    return flash_attn_varlen_func


_TORCH_VARLEN, _FLASH_ATTN = (
    _torch_varlen(),
    _flash_attn(),
)  # found once, outside the code that torch.compile traces


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
    """Compute attention of each segment over itself. (1, heads, T, dim) inputs give (1, T, heads, dim).

    Args:
        module: the layer's attention; a causal one sees no token after itself.
        sliding_window: one more than the tokens seen before a token, and in ModernBERT on either side.
        cu_seq_lens_q: (segments + 1,) int32 boundaries in the row.

    Raises:
        RuntimeError: the boundaries are missing, so all pairs would attend to each other.
    """
    if cu_seq_lens_q is None or max_length_q is None:
        raise RuntimeError("packed attention was called without the boundaries of its segments")
    before = -1 if sliding_window is None else sliding_window - 1
    span = (before, 0 if getattr(module, "is_causal", False) else before)
    segments = _Segments(cu_seq_lens_q, cu_seq_lens_q, max_length_q, max_length_q)
    q, k, v = (x.squeeze(0).transpose(0, 1) for x in (query, key, value))
    return _attend(q, k, v, segments, dropout, scaling, span).unsqueeze(0), None


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    segments: _Segments,
    dropout: float,
    scaling: float | None = None,
    span: Span = (-1, -1),
) -> torch.Tensor:
    """Compute attention of each segment's queries over its keys, (tokens, heads, dim) each, in the queries' shape.

    Several heads of the queries may share one of the keys and values.
    """
    way = _kernel if query.device.type == "cuda" else _loop
    return cast(torch.Tensor, way(query, key, value, segments, dropout, scaling, span))


def _kernel(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    segments: _Segments,
    dropout: float,
    scaling: float | None,
    span: Span,
) -> torch.Tensor:
    """Call a variable-length kernel for fp16 and bf16: PyTorch's, or flash-attn's for dropout or if PyTorch has none."""
    q, k, v = (x.contiguous() for x in (query, key, value))
    at = (segments.queries, segments.keys, segments.longest_query, segments.longest_key)
    options: dict[str, Any] = {"window_size": span} if span != (-1, -1) else {}
    if _TORCH_VARLEN is not None and not dropout:
        shared = {"enable_gqa": True} if q.shape[1] != k.shape[1] else {}
        return cast(torch.Tensor, _TORCH_VARLEN(q, k, v, *at, scale=scaling, **options, **shared))
    if _FLASH_ATTN is None:
        raise _no_kernel(dropout)
    return cast(torch.Tensor, _FLASH_ATTN(q, k, v, *at, dropout_p=dropout, softmax_scale=scaling, **options))


@torch.compiler.disable  # type: ignore[misc]  # each batch's lengths would compile to another program
def _loop(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    segments: _Segments,
    dropout: float,
    scaling: float | None,
    span: Span,
) -> torch.Tensor:
    """Call SDPA once per run of segments of one shape. Batches are sorted by length, so there are few runs."""
    ends = list(zip(segments.queries.tolist(), segments.keys.tolist(), strict=True))
    forms = [(q - p, k - j) for (p, j), (q, k) in pairwise(ends)]
    heads, dim = query.shape[1:]
    key, value = (x.repeat_interleave(heads // x.shape[1], dim=1) for x in (key, value))
    outputs, first = [], 0
    for (rows, length), run in groupby(forms):
        last = first + len(list(run))
        parts = (slice(ends[first][side], ends[last][side]) for side in (0, 1, 1))
        q, k, v = (
            x[part].view(last - first, -1, heads, dim).transpose(1, 2)
            for x, part in zip((query, key, value), parts, strict=True)
        )
        mask = _mask(span, length, query.device)
        mixed = functional.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, dropout_p=dropout, scale=scaling
        )
        outputs.append(mixed.transpose(1, 2).reshape((last - first) * rows, heads, dim))
        first = last
    return torch.cat(outputs)


def _mask(span: Span, length: int, device: torch.device) -> torch.Tensor | None:
    """Return which keys (columns) a segment's tokens (rows) see; None if all see all."""
    before, after = (length if seen < 0 else seen for seen in span)
    if min(before, after) >= length - 1:
        return None
    at = torch.arange(length, device=device)
    distance = at[:, None] - at[None, :]
    return (distance <= before) & (-distance <= after)


def forward(model: Any, batch: PairBatch) -> torch.Tensor:
    """Compute raw logits (n_pairs,) of a packed batch with a stock sequence classifier with one output."""
    if batch.boundaries is None or batch.positions is None:
        raise StudentError("a packed forward needs a packed batch")
    architecture = str(model.config.model_type)
    if architecture == "modernbert":
        logits = _modernbert(model, batch, batch.boundaries)
    elif architecture in DECODERS:
        logits = _last_tokens(model, batch, batch.boundaries)
    elif architecture in SUPPORTED:
        first = _first_tokens(model.base_model, batch, batch.boundaries)  # (n, width)
        if architecture == "bert":
            logits = model.classifier(model.dropout(model.bert.pooler(first.unsqueeze(1))))
        else:  # ELECTRA, RoBERTa: the head takes the first token of (n, length, width)
            logits = model.classifier(first.unsqueeze(1))
    else:
        raise StudentError(
            f"{architecture} does not run packed",
            hint=f"set layout = 'padded'; packed run {', '.join(SUPPORTED)}",
        )
    scores: torch.Tensor = logits.reshape(-1)[: batch.n_pairs]
    return scores


def _boundaries(batch: PairBatch) -> dict[str, Any]:
    """Return the boundaries as forward arguments for `packed_attention`."""
    return {
        "cu_seq_lens_q": batch.boundaries,
        "cu_seq_lens_k": batch.boundaries,
        "max_length_q": batch.longest,
        "max_length_k": batch.longest,
    }


def _first_tokens(base: Any, batch: PairBatch, boundaries: torch.Tensor) -> torch.Tensor:
    """Compute the last states of each pair's first token, (n, width), with BERT, ELECTRA or RoBERTa without its head."""
    types = {} if batch.types is None else {"token_type_ids": batch.types}
    x = base.embeddings(input_ids=batch.ids, position_ids=batch.positions, **types)
    if hasattr(base, "embeddings_project"):
        x = base.embeddings_project(x)
    *layers, last = base.encoder.layer
    for layer in layers:
        x = layer(x, **_boundaries(batch))
    x = x.squeeze(0)
    first = x[boundaries[:-1].long()]
    attend = last.attention.self
    q, k, v = (
        project(of).view(len(of), -1, attend.attention_head_size)
        for project, of in ((attend.query, first), (attend.key, x), (attend.value, x))
    )
    each = torch.arange(len(first) + 1, dtype=torch.int32, device=x.device)
    segments = _Segments(each, boundaries, 1, batch.longest)
    mixed = _attend(q, k, v, segments, attend.dropout.p if attend.training else 0.0)
    states: torch.Tensor = last.feed_forward_chunk(last.attention.output(mixed.flatten(1), first))
    return states


def _last_tokens(model: Any, batch: PairBatch, boundaries: torch.Tensor) -> torch.Tensor:
    """Compute a decoder's logits, (n, 1), from the last states of each pair's last token."""
    hidden = model.model(
        input_ids=batch.ids, position_ids=batch.positions, use_cache=False, **_boundaries(batch)
    )[0][0]
    logits: torch.Tensor = model.score(hidden[boundaries[1:].long() - 1])
    return logits


def _modernbert(model: Any, batch: PairBatch, boundaries: torch.Tensor) -> torch.Tensor:
    """Compute ModernBERT's logits, (n, 1)."""
    hidden = model.model(input_ids=batch.ids, position_ids=batch.positions, **_boundaries(batch))[0][0]
    if model.config.classifier_pooling == "mean":
        pooled = _segment_mean(hidden, boundaries)
    else:
        pooled = hidden[boundaries[:-1].long()]
    logits: torch.Tensor = model.classifier(model.drop(model.head(pooled)))
    return logits


def _segment_mean(hidden: torch.Tensor, boundaries: torch.Tensor) -> torch.Tensor:
    lengths = (boundaries[1:] - boundaries[:-1]).long()
    segment = torch.repeat_interleave(torch.arange(len(lengths), device=hidden.device), lengths)
    total = torch.zeros(len(lengths), hidden.shape[1], device=hidden.device, dtype=hidden.dtype)
    return total.index_add(0, segment, hidden) / lengths.unsqueeze(1)
