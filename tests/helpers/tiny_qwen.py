"""A tiny random Qwen3 with a byte-level tokenizer: a pointwise teacher whose scores another library can compute too."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>")
ANSWERS = ("yes", "no", "Yes", "No", " yes", "0", "1", "2", "3", "4")
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "<|im_start|>assistant\n{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
)


def tokenizer(answers: Sequence[str] = ANSWERS) -> Any:
    """Bytes, special tokens, and the answers as single tokens (digits are bytes)."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    merges: dict[tuple[str, str], None] = {}
    for word in (answer.replace(" ", "\u0120") for answer in answers):
        for end in range(1, len(word)):
            merges[word[:end], word[end]] = None
    merges["?", "\u010a"] = None  # as Qwen's: a mark and the line break after it are one token
    pieces = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), *(a + b for a, b in merges)]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    own = Tokenizer(models.BPE(vocab=vocabulary, merges=list(merges)))
    own.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    own.decoder = decoders.ByteLevel()
    own.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    made = PreTrainedTokenizerFast(
        tokenizer_object=own, eos_token="<|im_end|>", pad_token="<|endoftext|>", model_max_length=4096,
        additional_special_tokens=list(SPECIAL), clean_up_tokenization_spaces=False,
    )  # fmt: skip
    made.chat_template = CHAT
    return made


def make(folder: Path, *, hidden: int = 64, layers: int = 2, seed: int = 0) -> Path:
    """Write model and tokenizer. A constant channel lifts the answers' logits, so that they are among the likeliest."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    fast = tokenizer()
    fast.save_pretrained(folder)
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=len(fast), hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=layers,
        num_attention_heads=hidden // 32, num_key_value_heads=hidden // 32, head_dim=32, max_position_embeddings=4096,
        eos_token_id=fast.eos_token_id, tie_word_embeddings=False, initializer_range=0.2,
    )  # fmt: skip
    model = Qwen3ForCausalLM(config).to(torch.float32)
    with torch.no_grad():
        model.model.embed_tokens.weight[:, 0] = 4.0
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight[0] = layer.mlp.down_proj.weight[0] = 0.0
        answers = [fast.convert_tokens_to_ids(fast.tokenize(answer))[0] for answer in ANSWERS]
        model.lm_head.weight[:, 0] = 0.0
        model.lm_head.weight[answers, 0] = 20.0
        model.lm_head.weight[answers, 1:] *= 2.0
    model.save_pretrained(folder)
    return folder
