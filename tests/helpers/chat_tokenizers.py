"""Tiny byte-level tokenizers with the special tokens and chat templates of real model families, built offline."""

from functools import cache
from typing import Any

_ROLES = "{% for m in messages %}"
CHATS: dict[str, tuple[list[str], str]] = {
    "zephyr": (
        ["<unk>", "<s>", "</s>", "<|system|>", "<|user|>", "<|assistant|>"],
        _ROLES + "<|{{ m['role'] }}|>\n{{ m['content'] }}</s>\n{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
    ),
    "chatml": (
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"],
        _ROLES + "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n",
    ),
    "llama3": (
        ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|python_tag|>"],
        "<|begin_of_text|>" + _ROLES
        + "<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n{{ m['content'] }}<|eot_id|>{% endfor %}"
        + "<|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
    "mistral": (
        ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]"],
        "<s>{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turn') }}{% endif %}" + _ROLES
        + "{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]{% else %}{{ m['content'] }}</s>{% endif %}{% endfor %}",
    ),
    "gemma": (
        ["<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"],
        "<bos>" + _ROLES + "{% if m['role'] != 'system' %}<start_of_turn>{{ m['role'] }}\n{{ m['content'] }}<end_of_turn>\n"
        + "{% endif %}{% endfor %}<start_of_turn>model\n",
    ),
    "deepseek": (
        ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"],
        "<｜begin▁of▁sentence｜>" + _ROLES
        + "{% if m['role'] == 'user' %}<｜User｜>{% elif m['role'] == 'assistant' %}<｜Assistant｜>{% endif %}{{ m['content'] }}"
        + "{% endfor %}<｜Assistant｜>",
    ),
    "odd": (["EOT", "<<<>>>", "[gMASK]", "sop"], _ROLES + "[gMASK]sop{{ m['role'] }}: {{ m['content'] }}EOT{% endfor %}"),
}  # fmt: skip


@cache
def tiny_tokenizer(chat: str) -> Any:
    """A byte-level BPE without merges: every text has a tokenisation, special tokens are taken whole."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special, template = CHATS[chat]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*special, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, additional_special_tokens=special, model_max_length=4096
    )
    made.chat_template = template
    return made
