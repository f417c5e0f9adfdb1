"""Load lightning-ir as a peer with the installed transformers, although it was written for an older version."""

import logging
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file


class _Pairs:
    """transformers' table of tokenizers in the form of version 4: a slow and a fast class for each config."""

    def __init__(self, table: Any) -> None:
        self._table = table

    def __getitem__(self, config: Any) -> Any:
        found = self._table[config]
        return found if isinstance(found, tuple) else (found, found)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._table, name)


def module(
    folder: Path, max_length: int, *, query_length: int = 64, same_head: bool = False, **options: Any
) -> Any:
    """Make lightning-ir's cross-encoder module from a model's folder, with its linear head.

    Args:
        max_length: tokens per pair, special tokens counted.
        query_length: tokens of the pair for the query, as lightning-ir cuts them.
        same_head: copy the folder's head weights if the head is BERT's (a pooler and a linear map).
        options: other arguments of the module, such as ``loss_functions``.
    """
    from lightning_ir import CrossEncoderModule
    from lightning_ir.base import class_factory, tokenizer
    from lightning_ir.models import MonoConfig

    for place in (tokenizer, class_factory):
        if not isinstance(place.TOKENIZER_MAPPING, _Pairs):
            place.TOKENIZER_MAPPING = _Pairs(place.TOKENIZER_MAPPING)  # type: ignore[attr-defined]
    logging.getLogger("transformers").setLevel(logging.ERROR)
    weights = load_file(Path(folder) / "model.safetensors") if same_head else {}
    has_pooler = "bert.pooler.dense.weight" in weights
    head: dict[str, Any] = {"pooling_strategy": "bert_pool", "linear_bias": True} if has_pooler else {}
    config = MonoConfig(query_length=query_length, doc_length=max_length - query_length - 3, **head)
    made = CrossEncoderModule(model_name_or_path=str(folder), config=config, **options)
    if not has_pooler:
        return made
    with torch.no_grad():
        for theirs, ours in (
            (made.model.bert_pool[0], "bert.pooler.dense"),
            (made.model.linear, "classifier"),
        ):
            theirs.weight.copy_(weights[f"{ours}.weight"])
            theirs.bias.copy_(weights[f"{ours}.bias"])
    return made


def scorer(folder: Path, max_length: int, dtype: torch.dtype) -> Any:
    """Make a function of (query, passages) that scores by lightning-ir's module, in fp32 or under bf16 autocast."""
    scoring = module(folder, max_length).eval()

    def score(query: str, passages: list[str]) -> torch.Tensor:
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            return scoring.score(query, passages).scores

    return score
