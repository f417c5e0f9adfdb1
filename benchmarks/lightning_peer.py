"""lightning-ir as a peer: loaded with the transformers that is here, of which it knows an older one."""

import logging
from pathlib import Path
from typing import Any

import torch


class _Pairs:
    """transformers' table of tokenizers as it was up to version 4: a slow and a fast class for each config."""

    def __init__(self, table: Any) -> None:
        self._table = table

    def __getitem__(self, config: Any) -> Any:
        found = self._table[config]
        return found if isinstance(found, tuple) else (found, found)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._table, name)


def module(folder: Path, max_length: int, **options: Any) -> Any:
    """Its cross-encoder module over a model's folder, with a linear head of its own.

    Args:
        max_length: tokens per pair, special tokens counted.
        options: e.g. ``loss_functions``, or ``config`` settings such as dropout in ``model_kwargs``.
    """
    from lightning_ir import CrossEncoderModule
    from lightning_ir.base import class_factory, tokenizer
    from lightning_ir.models import MonoConfig

    for place in (tokenizer, class_factory):
        if not isinstance(place.TOKENIZER_MAPPING, _Pairs):
            place.TOKENIZER_MAPPING = _Pairs(place.TOKENIZER_MAPPING)  # type: ignore[attr-defined]
    logging.getLogger("transformers").setLevel(logging.ERROR)
    config = MonoConfig(query_length=64, doc_length=max_length - 64 - 3)
    return CrossEncoderModule(model_name_or_path=str(folder), config=config, **options)


def scorer(folder: Path, max_length: int, dtype: torch.dtype) -> Any:
    """A function of (query, passages) that scores as a user of its module would, in fp32 or under bf16 autocast."""
    scoring = module(folder, max_length).eval()

    def score(query: str, passages: list[str]) -> torch.Tensor:
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            return scoring.score(query, passages).scores

    return score
