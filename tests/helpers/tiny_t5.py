"""A tiny random T5 whose tokenizer has `true` and `false` as single tokens, as monoT5's has."""

from pathlib import Path
from typing import Any

WORDS = (
    "true", "false", "Query:", "Document:", "Document0:", "Document1:", "Relevant:", "lake", "deep", "how", "is", "the",
    "of", "river", "stone", "engine", "market", "cell", "protein", "treaty", "harvest", "copper", "signal", "orbit",
)  # fmt: skip


def tokenizer() -> Any:
    """Pieces that begin with a space, as T5's; every other character is a piece of its own."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = [chr(code) for code in range(33, 127)]
    pieces = ["<pad>", "</s>", "<unk>", "▁", *(f"▁{word}" for word in WORDS), *letters]
    own = Tokenizer(models.Unigram([(piece, -float(k)) for k, piece in enumerate(pieces)], unk_id=2))
    own.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    own.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    return PreTrainedTokenizerFast(
        tokenizer_object=own, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=512,
        clean_up_tokenization_spaces=False,
    )  # fmt: skip


def make(folder: Path, *, seed: int = 0) -> Path:
    """Write model and tokenizer. Scores of two passages differ by far more than the tolerance of a test."""
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    fast = tokenizer()
    fast.save_pretrained(folder)
    torch.manual_seed(seed)
    config = T5Config(
        vocab_size=len(fast), d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2, initializer_factor=4.0,
        pad_token_id=0, eos_token_id=1, decoder_start_token_id=0,
    )  # fmt: skip
    T5ForConditionalGeneration(config).save_pretrained(folder)
    return folder
