"""Tiny encoders of further families, each with a tokenizer of its own class and kind: WordPiece, BPE or Unigram."""

from pathlib import Path
from typing import Any

import tiny_models
import torch
from tokenizers import processors
from transformers import (
    AlbertConfig,
    AlbertTokenizer,
    AutoModelForSequenceClassification,
    CamembertConfig,
    CamembertTokenizer,
    DebertaV2Config,
    DebertaV2Tokenizer,
    DistilBertConfig,
    DistilBertTokenizer,
    EuroBertConfig,
    MPNetConfig,
    MPNetTokenizer,
    XLMRobertaConfig,
    XLMRobertaTokenizer,
)

LETTERS = [chr(code) for code in range(33, 127)]


def _unigram(*special: str) -> list[tuple[str, float]]:
    """A SentencePiece vocabulary: every word whole after a space, and letters."""
    words = [(f"\u2581{word}", -4.0) for word in tiny_models.WORDS]
    return [*((token, 0.0) for token in special), ("\u2581", -8.0), *words, *((c, -10.0) for c in LETTERS)]


def _wordpiece(*special: str) -> dict[str, int]:
    words = [word for word in tiny_models.WORDS if len(word) > 1]
    pieces = [*special, *LETTERS, *(f"##{c}" for c in LETTERS), *words]
    return {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}


def _euro() -> Any:
    """EuroBERT's tokenizer is Llama 3's: a BOS before and an EOS after each text."""
    made = tiny_models.byte_level(roberta=False)
    made.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] [CLS] $B [SEP]",
        special_tokens=[("[CLS]", 0), ("[SEP]", 2)],
    )
    return made


def _albert() -> Any:
    """ALBERT's tokenizer with the separators that its tokenizer.json has."""
    made = AlbertTokenizer(_unigram("<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"))
    made.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return made


TOKENIZERS = {
    "deberta-v2": lambda: DebertaV2Tokenizer(_unigram("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")),
    "xlm-roberta": lambda: XLMRobertaTokenizer(_unigram("<s>", "<pad>", "</s>", "<unk>", "<mask>")),
    "camembert": lambda: CamembertTokenizer(vocab=_unigram("<s>", "<pad>", "</s>", "<unk>", "<mask>")),
    "albert": _albert,
    "mpnet": lambda: MPNetTokenizer(_wordpiece("<s>", "<pad>", "</s>", "[UNK]", "<mask>")),
    "distilbert": lambda: DistilBertTokenizer(_wordpiece("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")),
    "eurobert": _euro,
}
_SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
CONFIGS = {
    "deberta-v2": lambda: DebertaV2Config(
        **_SMALL, relative_attention=True, pos_att_type=["p2c", "c2p"], position_buckets=16, norm_rel_ebd="layer_norm",
        share_att_key=True, position_biased_input=False, max_relative_positions=-1, type_vocab_size=0,
        max_position_embeddings=512, pooler_hidden_size=32,
    ),
    "xlm-roberta": lambda: XLMRobertaConfig(**_SMALL, max_position_embeddings=514, type_vocab_size=1),
    "camembert": lambda: CamembertConfig(**_SMALL, max_position_embeddings=514, type_vocab_size=1),
    "albert": lambda: AlbertConfig(**_SMALL, embedding_size=16, max_position_embeddings=512),
    "mpnet": lambda: MPNetConfig(**_SMALL, max_position_embeddings=514, relative_attention_num_buckets=32),
    "distilbert": lambda: DistilBertConfig(dim=32, n_layers=2, n_heads=4, hidden_dim=64, max_position_embeddings=512),
    "eurobert": lambda: EuroBertConfig(**_SMALL, max_position_embeddings=512, num_key_value_heads=2),
}  # fmt: skip


def make(family: str, folder: Path, seed: int = 0) -> Path:
    """Write a tiny sequence classifier with one output and its tokenizer to ``folder``."""
    if family in tiny_models.ARCHITECTURES:
        return tiny_models.make(family, folder, seed=seed)
    tokenizer, config = TOKENIZERS[family](), CONFIGS[family]()
    tokenizer.model_max_length = 512
    config.vocab_size, config.pad_token_id, config.num_labels = len(tokenizer), tokenizer.pad_token_id, 1
    torch.manual_seed(seed)
    model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
    with torch.no_grad():  # the usual initialisation is so small that all scores look alike
        for name, weights in model.named_parameters():
            if weights.ndim == 2 and "embeddings" not in name:
                weights.mul_(4.0)
    model.save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)
    return folder
