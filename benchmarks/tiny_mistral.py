"""Make a tiny random Mistral and train its tokenizer: a real model for vLLM without access to the hub."""

from collections.abc import Iterable
from pathlib import Path

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}{{ eos_token }}\n"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
TEXT = (
    "I will provide you with 20 passages, each indicated by a numerical identifier []. Rank the passages based on"
    " their relevance to the search query. All the passages should be included and listed using identifiers, in"
    " descending order of relevance. The output format should be [] > [], e.g., [2] > [1], Answer concisely and"
    " directly and only respond with the ranking results, do not say any word or explain."
)


def make(
    folder: Path,
    texts: Iterable[str] = (),
    *,
    context: int = 4096,
    vocabulary: int = 2000,
    hidden: int = 64,
    layers: int = 2,
    seed: int = 0,
) -> Path:
    """Write model and tokenizer to a folder and return it.

    Args:
        texts: training texts of the byte-level BPE, beside a prompt.
        hidden: width; heads have size 32, as vLLM's CPU attention requires.
    """
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import MistralConfig, MistralForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<unk>", "<s>", "</s>", "<|system|>", "<|user|>", "<|assistant|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT, *texts], trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=special[3:],
        model_max_length=context,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder)
    torch.manual_seed(seed)
    config = MistralConfig(
        vocab_size=len(fast),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 32,
        num_key_value_heads=hidden // 32,
        head_dim=32,
        max_position_embeddings=context,
        sliding_window=None,
        bos_token_id=fast.bos_token_id,
        eos_token_id=fast.eos_token_id,
        initializer_range=0.2,
    )
    model = MistralForCausalLM(config).to(torch.float32)
    model.save_pretrained(folder)
    return folder
