"""Tiny decoders with random weights, and a byte-level tokenizer that splits as Qwen's does.

``make("qwen3", folder)`` writes a causal model; with ``causal=False`` a sequence classifier with one output.
"""

from pathlib import Path
from typing import Any

import tiny_models
import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GemmaTokenizer,
    PreTrainedTokenizerFast,
)
from transformers.models.gemma.configuration_gemma import GemmaConfig
from transformers.models.llama.configuration_llama import LlamaConfig
from transformers.models.mistral.configuration_mistral import MistralConfig
from transformers.models.qwen3.configuration_qwen3 import Qwen3Config

CONFIGS = {
    "qwen3": Qwen3Config, "llama": LlamaConfig, "mistral": MistralConfig, "gemma": GemmaConfig,
}  # fmt: skip
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"]
SPLIT = (  # of Qwen2 and Qwen3
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Words of the frames; all of them, and those of `tiny_models`, are tokens with and without a space before them.
_WORDS = (
    "system user assistant Judge whether the Document meets requirements based on Query and Instruct provided Note that"
    " answer can only be yes no Given a web search query retrieve relevant passages Yes No document passage"
)
WORDS = _WORDS.split()


def tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer in Qwen's style: no token before or after a text, a pair is two texts in a row."""
    words = [*WORDS, *(word for word in tiny_models.WORDS if len(word) > 1)]
    runs = [
        *words,
        *(f"\u0120{word}" for word in [*words, "a"]),
        "\u010a\u010a",
        ".\u010a",
        "?\u010a",
        ">:",
        "<Instruct",
        "<Query",
        "<Document",
    ]
    pieces = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), *runs]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    made.normalizer = normalizers.NFC()
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_max_length=4096,
        model_input_names=["input_ids", "attention_mask"],
    )


def gemma_tokenizer() -> GemmaTokenizer:
    """A tokenizer of Gemma's class: BPE over characters with ▁ for a space, and a BOS before every text."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    merges = [("Y", "e"), ("Ye", "s"), ("y", "e"), ("ye", "s"), ("N", "o"), ("n", "o"), ("\u2581", "a")]
    letters = [chr(code) for code in range(33, 127)]
    pieces = [
        *special,
        *(f"<0x{i:02X}>" for i in range(256)),
        "\n",
        "\u2581",
        *letters,
        *(a + b for a, b in merges),
    ]
    made = GemmaTokenizer(
        vocab={piece: i for i, piece in enumerate(pieces)}, merges=merges, add_bos_token=True
    )
    made.model_max_length = 4096
    return made


def tokenizer_of(kind: str) -> Any:
    """The tokenizer of a kind of decoder."""
    return gemma_tokenizer() if kind == "gemma" else tokenizer()


def config(kind: str, tokenizer: Any, **settings: Any) -> Any:
    """The config of a tiny decoder."""
    return CONFIGS[kind](
        **{
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "intermediate_size": 64,
            "max_position_embeddings": 1024,
            "pad_token_id": None,
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
            "num_labels": 1,
        }
        | settings
    )


def make(
    kind: str, folder: Path, *, causal: bool = True, seed: int = 0, of: Any = None, **settings: Any
) -> Path:
    """Write a tiny decoder and its tokenizer (by default that of `tokenizer_of`) to ``folder``."""
    of = of or tokenizer_of(kind)
    torch.manual_seed(seed)
    auto = AutoModelForCausalLM if causal else AutoModelForSequenceClassification
    model = auto.from_config(config(kind, of, **settings), dtype=torch.float32)
    with torch.no_grad():  # the usual initialisation is so small that all scores look alike
        for weights in model.parameters():
            if weights.ndim == 2:
                weights.mul_(4.0)
    model.save_pretrained(folder, safe_serialization=True)
    of.save_pretrained(folder)
    return folder
