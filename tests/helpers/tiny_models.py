"""Tiny models with random weights and small tokenizers, the same in every process: real architectures without a hub.

``make("bert", folder)`` writes a Hugging Face folder that `CrossEncoder.load` takes.
"""

import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    ElectraConfig,
    ModernBertConfig,
    PreTrainedTokenizerFast,
    RobertaConfig,
)

ARCHITECTURES = ("bert", "electra", "roberta", "modernbert")

WORDS = [
    "rank",
    "query",
    "passage",
    "neural",
    "index",
    "search",
    "document",
    "retrieval",
    "model",
    "token",
    "layer",
    "weight",
    "train",
    "learn",
    "water",
    "energy",
    "volcano",
    "protein",
    "vitamin",
    "patient",
    "study",
    "disease",
    "cell",
    "city",
    "river",
    "mountain",
    "history",
    "music",
    "the",
    "a",
    "of",
    "and",
    "in",
    "to",
    "what",
    "is",
    "how",
    "why",
    "does",
    "cause",
    "effect",
    "high",
    "low",
    "long",
    "short",
    "first",
    "second",
    "between",
    "under",
    "above",
    "many",
    "few",
    "red",
    "green",
    "blue",
]


def sentences(n: int, seed: int = 0, longest: int = 40) -> list[str]:
    """n sentences of 1 to ``longest`` words."""
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randint(1, longest))) for _ in range(n)]


def wordpiece() -> PreTrainedTokenizerFast:
    """A BERT-style tokenizer: [CLS] a [SEP] b [SEP] with token types."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = [chr(c) for c in range(33, 127)]
    pieces = [*special, *letters, *(f"##{c}" for c in letters), *(w for w in WORDS if len(w) > 1)]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.WordPiece(vocab=vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=512,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def byte_level(roberta: bool) -> PreTrainedTokenizerFast:
    """A byte-level BPE: RoBERTa's <s> a </s></s> b </s>, or ModernBERT's [CLS] a [SEP] b [SEP]."""
    names = (
        ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
        if roberta
        else ["[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]"]
    )
    merges: dict[tuple[str, str], None] = {}  # every word from left to right, after a space or not
    for word in [*(f"\u0120{w}" for w in WORDS), *WORDS]:
        for end in range(1, len(word)):
            merges[word[:end], word[end]] = None
    pieces = [*names, *sorted(pre_tokenizers.ByteLevel.alphabet()), *(a + b for a, b in merges)]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=list(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if roberta:
        tokenizer.post_processor = processors.RobertaProcessing(
            ("</s>", 2), ("<s>", 0), add_prefix_space=False
        )
    else:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B [SEP]",
            special_tokens=[("[CLS]", 0), ("[SEP]", 2)],
        )
    first, pad, last, unknown, mask = names
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=unknown,
        pad_token=pad,
        cls_token=first,
        sep_token=last,
        mask_token=mask,
        model_max_length=512,
        model_input_names=["input_ids", "attention_mask"],
    )


def tokenizer_for(architecture: str) -> PreTrainedTokenizerFast:
    """The tokenizer in the style of an architecture."""
    return (
        wordpiece() if architecture in ("bert", "electra") else byte_level(roberta=architecture == "roberta")
    )


def make(architecture: str, folder: Path, *, seed: int = 0, layers: int = 2, hidden: int = 32) -> Path:
    """Write a tiny sequence classifier with one output and its tokenizer to ``folder``."""
    tokenizer = tokenizer_for(architecture)
    common = {
        "vocab_size": len(tokenizer),
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "intermediate_size": 2 * hidden,
        "pad_token_id": tokenizer.pad_token_id,
        "num_labels": 1,
    }
    if architecture == "bert":
        config = BertConfig(**common, max_position_embeddings=512)
    elif architecture == "electra":
        config = ElectraConfig(**common, max_position_embeddings=512, embedding_size=hidden)
    elif architecture == "roberta":
        config = RobertaConfig(**common, max_position_embeddings=514, type_vocab_size=1)
    elif architecture == "modernbert":
        config = ModernBertConfig(
            **common,
            max_position_embeddings=512,
            local_attention=16,
            global_attn_every_n_layers=2,
            cls_token_id=tokenizer.cls_token_id,
            sep_token_id=tokenizer.sep_token_id,
            bos_token_id=tokenizer.cls_token_id,
            eos_token_id=tokenizer.sep_token_id,
        )
    else:
        raise ValueError(architecture)
    torch.manual_seed(seed)
    model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
    with torch.no_grad():  # the usual initialisation is so small that all scores look alike
        for name, weights in model.named_parameters():
            if weights.ndim == 2 and "embeddings" not in name:
                weights.mul_(4.0)
    model.save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)
    return folder
