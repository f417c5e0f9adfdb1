"""Apply a recipe's settings to the config of a base: padding, dropout, layers, the length of a pair."""

from pathlib import Path
from typing import Any

from students.errors import ExitCode, StudentError
from students.model.decoder import is_decoder

DEFAULT_MAX_LENGTH = 512


def max_length(wanted: int | None, tokenizer: Any, config: Any, model: str | Path) -> int:
    """Return the tokens per pair: the wanted number, by default the tokenizer's limit within the model's positions.

    Raises:
        StudentError: the wanted number exceeds the model's positions (exit code 2).
    """
    limit = _position_limit(config)
    if wanted is None:
        return min(int(tokenizer.model_max_length), limit, DEFAULT_MAX_LENGTH)
    if wanted > limit:
        raise StudentError(
            f"max_length {wanted} is more than the {limit} positions of {model}",
            hint=f"set max_length to at most {limit}",
            exit_code=ExitCode.USAGE,
        )
    return wanted


def set_padding(config: Any, tokenizer: Any, model: str | Path) -> None:
    """Give a config without a padding id, and every decoder's, that of its tokenizer.

    A decoder finds each pair's last token by it.

    Raises:
        StudentError: the tokenizer has no token to pad with.
    """
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise StudentError(
                f"the tokenizer of {model} has neither a padding token nor an end token",
                hint="set pad_token in its tokenizer_config.json",
                exit_code=ExitCode.USAGE,
            )
        tokenizer.pad_token = tokenizer.eos_token
    if getattr(config, "pad_token_id", None) is None or is_decoder(config):
        config.pad_token_id = tokenizer.pad_token_id


def set_dropout(config: Any, attention: float | None, hidden: float | None) -> None:
    """Set the dropout rates under the names that the architectures give them."""
    for names, value in (
        (("attention_probs_dropout_prob", "attention_dropout"), attention),
        (("hidden_dropout_prob", "embedding_dropout", "mlp_dropout", "classifier_dropout"), hidden),
    ):
        for name in names:
            if value is not None and hasattr(config, name):
                setattr(config, name, value)


def cut_layers(config: Any, layers: int, model: str | Path) -> None:
    """Cut a config to its first layers. The weights of the others are then not read."""
    there = getattr(config, "num_hidden_layers", None)
    if not isinstance(there, int) or getattr(config, "is_encoder_decoder", False):
        raise StudentError(
            f"{model}: layers = {layers} keeps the first layers of one stack,"
            f" but {config.model_type} has another structure",
            hint="leave layers out",
            exit_code=ExitCode.USAGE,
        )
    if not 1 <= layers <= there:
        raise StudentError(
            f"{model} has {config.num_hidden_layers} layers, not {layers}",
            hint=f"set layers to 1 to {config.num_hidden_layers}, or leave it out",
            exit_code=ExitCode.USAGE,
        )
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:layers]
    config.num_hidden_layers = layers


def _position_limit(config: Any) -> int:
    """Return the longest pair that the position embeddings allow."""
    positions = int(getattr(config, "max_position_embeddings", 0) or 1 << 20)
    if config.model_type in ("roberta", "xlm-roberta", "camembert", "xlm-roberta-xl", "mpnet", "longformer"):
        positions -= int(config.pad_token_id or 0) + 1
    return positions
