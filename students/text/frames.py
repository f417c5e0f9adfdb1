"""Put a query and a passage into the text frame that a decoder was trained with.

A decoder reads no ``[CLS] query [SEP] passage [SEP]`` but a prompt around the two texts. A frame's texts are tokenised
apart from the query and the passage, so a text's tokens do not depend on its pair. `framed` writes the frame into the
tokenizer: ``tokenizer(query, passage)`` then gives the whole prompt. So a saved student needs no other code, neither in
transformers nor in sentence-transformers nor in vLLM.
"""

import json
import tomllib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from students.errors import ExitCode, StudentError

QUERY, PASSAGE, INSTRUCTION, CUT = "{query}", "{passage}", "{instruction}", "{cut}"
OWN = "own"  # name of a frame that the user wrote
_KEPT = "msft_frame"  # key of the frame in tokenizer_config.json
_PARTS = ("<frame: before>", "<frame: between>", "<frame: after>")


@dataclass(frozen=True)
class Framing:
    """The settings of a frame that a recipe or a command gives; empty ones are chosen by the base.

    Attributes:
        frame: a name of ``frames.toml``, or a text with ``{query}`` and ``{passage}``.
        instruction: replaces the frame's instruction.
        answers: replace the frame's answers.
        instructions: (dataset, instruction) pairs; see `Frame`.
    """

    frame: str = ""
    instruction: str = ""
    answers: tuple[str, ...] = ()
    instructions: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Frame:
    """A text frame; `frames.toml` describes the fields.

    Attributes:
        instructions: (dataset, instruction) pairs, for datasets with an instruction of their own.
    """

    name: str
    text: str
    instruct: str = INSTRUCTION
    instruction: str = ""
    answers: tuple[str, ...] = ()
    instructions: tuple[tuple[str, str], ...] = ()

    @property
    def parts(self) -> tuple[str, str, str]:
        """The texts before the query, between query and passage, and after the passage."""
        before, _, rest = self.text.partition(QUERY)
        between, _, after = rest.partition(PASSAGE)
        told = self.instruct.replace(INSTRUCTION, self.instruction) if self.instruction else ""
        return (
            before.replace(INSTRUCTION, told),
            between.replace(INSTRUCTION, told),
            after.replace(INSTRUCTION, told),
        )

    def changed(self, wanted: Framing) -> "Frame":
        """Return the frame with the instruction and the answers of the settings.

        Raises:
            StudentError: the frame has no place for an instruction, or there are more than two answers (exit code 2).
        """
        given = [wanted.instruction, *(text for _, text in wanted.instructions)]
        if any(given) and INSTRUCTION not in self.text:
            raise StudentError(
                f"frame {self.name!r} takes no instruction, given {next(filter(None, given))!r}",
                hint=f"leave instruction out, or give a frame with {INSTRUCTION}: --frame '…'",
                exit_code=ExitCode.USAGE,
            )
        answers = wanted.answers or self.answers
        if len(answers) > 2 or not all(answers) or len(set(answers)) < len(answers):
            raise StudentError(
                f"answers are {', '.join(map(repr, answers))}: expected one or two different words",
                hint="""set answers = ["yes", "no"]""",
                exit_code=ExitCode.USAGE,
            )
        return replace(
            self,
            instruction=wanted.instruction or self.instruction,
            answers=answers,
            instructions=wanted.instructions or self.instructions,
        )

    def for_datasets(self, datasets: Sequence[str]) -> "Frame":
        """Return the frame with the instruction of some datasets. A name serves the datasets below it: ``x`` for ``x/train``.

        Raises:
            StudentError: the datasets have several instructions (exit code 2).
        """
        own = dict(self.instructions)
        found = {own.get(name, own.get(name.partition("/")[0], self.instruction)) for name in datasets}
        if len(found) > 1:
            raise StudentError(
                f"one view has datasets with {len(found)} instructions: {', '.join(datasets)}",
                hint="train on one of them in each stage, or give them one instruction",
                exit_code=ExitCode.USAGE,
            )
        return replace(self, instruction=found.pop()) if found else self


@cache
def shipped() -> dict[str, tuple[Frame, tuple[str, ...]]]:
    """Read the frames that come with msft: by name, each with the names of its bases."""
    read = tomllib.loads(Path(__file__).with_name("frames.toml").read_text(encoding="utf-8"))
    found = {}
    for name, table in read.items():
        bases = tuple(table.pop("bases", ()))
        found[name] = (Frame(name, **{**table, "answers": tuple(table.get("answers", ()))}), bases)
    return found


def named(frame: str) -> Frame:
    """Return a frame by its name, or make one of a text with ``{query}`` and ``{passage}``.

    Raises:
        StudentError: the name is not known, or a placeholder is missing, repeated or in the wrong order (exit code 2).
    """
    if frame in shipped():
        return shipped()[frame][0]
    places = [frame.find(QUERY), frame.find(PASSAGE)]
    if places == [-1, -1]:
        raise StudentError(
            f"frame {frame!r} is not known",
            hint=f"set frame to one of {', '.join(shipped())}, or to a text with {QUERY} and {PASSAGE}",
            exit_code=ExitCode.USAGE,
        )
    if -1 in places or places[0] > places[1] or frame.count(QUERY) + frame.count(PASSAGE) > 2:
        raise StudentError(
            f"frame {frame!r}: expected {QUERY} once, and then {PASSAGE} once",
            hint="set frame to such a text: 'query: {query} passage: {passage}'",
            exit_code=ExitCode.USAGE,
        )
    return Frame(OWN, frame)


def of_base(base: str) -> Frame | None:
    """Return the frame that a base's name says; None if no frame has such a base."""
    name = Path(base.rstrip("/")).name.lower()
    return next((frame for frame, bases in shipped().values() if any(b in name for b in bases)), None)


# ------------------------------------------------------------------------------------------------ tokenizers
def frame_of(tokenizer: Any) -> Frame | None:
    """Return the frame that a tokenizer puts around a pair; None if it has its own separators."""
    kept = getattr(tokenizer, "init_kwargs", {}).get(_KEPT)
    if kept is None:
        return None
    pairs = tuple((name, text) for name, text in kept.get("instructions", ()))
    return Frame(**{**kept, "answers": tuple(kept["answers"]), "instructions": pairs})


def framed(tokenizer: Any, frame: Frame) -> Any:
    """Return a copy of a tokenizer that puts a frame around each pair. An earlier frame is taken off.

    A space before both texts becomes a part of them, as in the model's training: " capital" is another token than
    "capital". A token that the tokenizer puts before every text, such as a BOS, stays in front.

    Raises:
        StudentError: the tokenizer is not a fast one, or the frame ends with its padding token (exit code 2).
    """
    backend = _bare(tokenizer)
    before, between, after = frame.parts
    lead = _lead(backend, before, between)
    if lead is not None:
        before, between = before[:-1], between[:-1]
    own = _own_prefix(backend)
    parts = [_ids(backend, text) for text in (before, between, after)]
    if parts[0][: len(own)] != own:
        parts[0] = own + parts[0]
    if parts[2] and parts[2][-1] == tokenizer.pad_token_id:
        raise StudentError(
            f"frame {frame.name!r} ends with the padding token {tokenizer.pad_token!r}, so the last token is not found",
            hint="leave the end token out of the frame, or set another pad_token in tokenizer_config.json",
            exit_code=ExitCode.USAGE,
        )
    state = json.loads(backend.to_str())
    if lead:
        inner = [] if state["normalizer"] is None else [state["normalizer"]]
        state["normalizer"] = {
            "type": "Sequence",
            "normalizers": [{"type": "Prepend", "prepend": lead}, *inner],
        }
    state["post_processor"] = _template(backend, own, parts)
    return _wrapped(tokenizer, state, frame)


def answer_ids(tokenizer: Any, frame: Frame) -> list[int]:
    """Return the token of each of the frame's answers.

    Raises:
        StudentError: an answer is not one token of this tokenizer (exit code 2).
    """
    backend = _bare(tokenizer)
    found = []
    for answer in frame.answers:
        ids = _ids(backend, answer)
        if len(ids) != 1:
            raise StudentError(
                f"answer {answer!r} of frame {frame.name!r} is {len(ids)} tokens, expected 1",
                hint="""give words that are one token each: answers = ["yes", "no"]""",
                exit_code=ExitCode.USAGE,
            )
        found += ids
    return found


def _bare(tokenizer: Any) -> Any:
    """Copy the tokenizer's backend without a frame, truncation and padding.

    Raises:
        StudentError: the tokenizer has no such backend (exit code 2).
    """
    from tokenizers import Tokenizer

    if not getattr(tokenizer, "is_fast", False):
        raise StudentError(
            f"{type(tokenizer).__name__} is not a fast tokenizer, and a frame needs one",
            hint="save the model with a tokenizer.json",
            exit_code=ExitCode.USAGE,
        )
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state["truncation"] = state["padding"] = None
    if frame_of(tokenizer) is not None:
        single = state["post_processor"]["single"]
        state["post_processor"] |= {"pair": [*single, {"Sequence": {"id": "B", "type_id": 0}}]}
        if _starts_with_lead(state["normalizer"]):
            inner = state["normalizer"]["normalizers"][1:]
            state["normalizer"] = inner[0] if inner else None
    return Tokenizer.from_str(json.dumps(state))


def _starts_with_lead(normalizer: Any) -> bool:
    first = ((normalizer or {}).get("normalizers") or [{}])[0]
    return first == {"type": "Prepend", "prepend": " "}


def _ids(backend: Any, text: str) -> list[int]:
    return [i for part in text.split(CUT) for i in backend.encode(part, add_special_tokens=False).ids]


def _lead(backend: Any, before: str, between: str) -> str | None:
    """Return what stands for the space before both texts when a text is tokenised alone.

    It is the space itself, or nothing if the tokenizer puts one before every text. None leaves the space in the frame.
    """
    if not (before.endswith(" ") and between.endswith(" ")):
        return None
    for lead in (" ", ""):
        apart = _ids(backend, "said:") + _ids(backend, f"{lead}word")
        if _ids(backend, "said: word") == apart:
            return lead
    return None


def _own_prefix(backend: Any) -> list[int]:
    """Return the special tokens that the tokenizer puts before a single text."""
    alone, whole = (backend.encode("a", add_special_tokens=special).ids for special in (False, True))
    for at in range(len(whole) - len(alone) + 1):
        if whole[at : at + len(alone)] == alone:
            return list(whole[:at])
    return []


def _template(backend: Any, own: list[int], parts: list[list[int]]) -> dict[str, Any]:
    """Make the post-processor that puts the parts around a pair, and the tokenizer's own tokens before a single text."""

    def special(name: str) -> dict[str, Any]:
        return {"SpecialToken": {"id": name, "type_id": 0}}

    def text(name: str) -> dict[str, Any]:
        return {"Sequence": {"id": name, "type_id": 0}}

    runs = {"<frame: own>": own, **dict(zip(_PARTS, parts, strict=True))}
    has = {name for name, ids in runs.items() if ids}
    order = [_PARTS[0], "A", _PARTS[1], "B", _PARTS[2]]
    pair = [
        text(name) if len(name) == 1 else special(name) for name in order if len(name) == 1 or name in has
    ]
    return {
        "type": "TemplateProcessing",
        "single": [*([special("<frame: own>")] if own else []), text("A")],
        "pair": pair,
        "special_tokens": {
            name: {"id": name, "ids": runs[name], "tokens": [backend.id_to_token(i) for i in runs[name]]}
            for name in sorted(has)
        },
    }


def _wrapped(tokenizer: Any, state: dict[str, Any], frame: Frame) -> Any:
    """Make a transformers tokenizer of a backend's state, with the special tokens and the limit of another.

    It has no chat template: the frame takes its place. A class of a model would build its backend anew, without the frame.
    """
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    names = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)),
        model_max_length=tokenizer.model_max_length,
        model_input_names=["input_ids", "attention_mask"],
        padding_side=tokenizer.padding_side,
        clean_up_tokenization_spaces=False,
        **{name: token for name in names if (token := getattr(tokenizer, name, None)) is not None},
        **{_KEPT: asdict(frame)},
    )
