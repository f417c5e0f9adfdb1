"""Decoders as students: their text frame, and a head made of the words that a causal model answers with.

A decoder such as Qwen3-Reranker scores a pair by ``logit(yes) - logit(no)`` at the last token. A head with one output,
whose weights are the two rows' difference, gives the same score without the other logits.
"""

import json
from pathlib import Path
from typing import Any

import torch

from students.errors import ExitCode, StudentError
from students.model.hub import model_file
from students.text.frames import Frame, Framing, answer_ids, frame_of, framed, named, of_base, shipped


def is_decoder(config: Any) -> bool:
    """Return True if models of this type read from left to right: transformers has a causal one and no masked one."""
    from transformers.models.auto import modeling_auto as auto

    kind = config.model_type
    return (
        kind in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and kind not in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    )


def framed_tokenizer(tokenizer: Any, config: Any, base: str, wanted: Framing) -> Any:
    """Return a base's tokenizer with its text frame, or as it is if the base needs none.

    Args:
        wanted: the user's choice; by default the student's frame, then the one that the base's name says.

    Raises:
        StudentError: a decoder has no frame, or an encoder is given one (exit code 2).
    """
    if not is_decoder(config):
        if wanted != Framing():
            told = bool(wanted.instruction or wanted.instructions)
            what = "instruction" if told else "frame" if wanted.frame else "answers"
            raise StudentError(
                f"{base} is an encoder ({config.model_type}), and {what} is a setting of decoders",
                hint=f"leave {what} out, or give a decoder: `msft students bases`",
                exit_code=ExitCode.USAGE,
            )
        return tokenizer
    frame = _frame(tokenizer, base, wanted)
    if frame is None:
        return tokenizer
    frame = frame.changed(wanted)
    return tokenizer if frame == frame_of(tokenizer) else framed(tokenizer, frame)


def _frame(tokenizer: Any, base: str, wanted: Framing) -> Frame | None:
    """Choose a decoder's frame; None if its tokenizer has separators for pairs."""
    if wanted.frame:
        return named(wanted.frame)
    frame = frame_of(tokenizer) or of_base(base)
    if frame is not None:
        return frame
    if tokenizer.sep_token_id is not None and wanted == Framing():
        return None
    raise StudentError(
        f"{base} is a decoder without a text frame, and its name says none",
        hint=f"give the frame that it was trained with, such as --frame {next(iter(shipped()))} (recipe: frame):"
        f" one of {', '.join(shipped())}, or a text with {{query}} and {{passage}}",
        exit_code=ExitCode.USAGE,
    )


def head_from_answers(model: Any, tokenizer: Any, source: str, local_only: bool) -> bool:
    """Set a new head to the causal model's rows: the first answer's minus the second's. False without such a frame.

    Raises:
        StudentError: an answer is not one token, or the causal model's rows do not fit the head (exit code 2).
    """
    frame = frame_of(tokenizer)
    if frame is None or not frame.answers:
        return False
    ids = answer_ids(tokenizer, frame)
    head = getattr(model, "score", None)
    if not isinstance(head, torch.nn.Linear) or head.bias is not None:
        raise StudentError(
            f"{source}: a {model.config.model_type} has no head of one linear map, so answers cannot fill it",
            hint="give the frame as a text without answers; the head is then new",
            exit_code=ExitCode.USAGE,
        )
    rows = _output_rows(model, source, ids, local_only)
    with torch.no_grad():
        head.weight.copy_(rows[:1] - rows[1:] if len(ids) == 2 else rows)
    return True


def _output_rows(model: Any, source: str, ids: list[int], local_only: bool) -> torch.Tensor:
    """Read the output weights of some tokens, (len(ids), width) fp32."""
    if model.config.get_text_config().tie_word_embeddings:
        return model.get_input_embeddings().weight[ids].detach().float()
    from safetensors import safe_open

    path, bias = (_file_with(source, f"lm_head.{part}", local_only) for part in ("weight", "bias"))
    if path is None or bias is not None:
        raise StudentError(
            f"{source}: its output weights {'are missing' if path is None else 'have a bias'}, so answers cannot fill"
            " the head",
            hint="give the frame as a text without answers; the head is then new",
            exit_code=ExitCode.USAGE,
        )
    with safe_open(path, framework="pt") as weights:
        rows = weights.get_slice("lm_head.weight")
        return torch.cat([rows[i : i + 1] for i in ids]).float()


def _file_with(source: str, tensor: str, local_only: bool) -> Path | None:
    """Find the safetensors file that has a tensor: one of several with an index, or the only one."""
    from safetensors import safe_open

    index = model_file(source, "model.safetensors.index.json", local_only)
    if index is not None:
        shard = json.loads(index.read_text("utf-8"))["weight_map"].get(tensor)
        return None if shard is None else model_file(source, shard, local_only)
    whole = model_file(source, "model.safetensors", local_only)
    if whole is None:
        return None
    with safe_open(whole, framework="pt") as weights:
        return whole if tensor in weights.keys() else None  # noqa: SIM118 - it is no mapping
