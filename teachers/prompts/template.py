"""Prompts: named, versioned templates read from ``templates/NAME@VERSION.txt``, each with a hash of its bytes.

A template file is a sequence of turns. A line ``--- ROLE`` begins a turn. A line ``--- ROLE, each passage`` begins a
turn that is repeated for each passage; adjacent ones alternate, as in RankGPT. The newline before the next marker is
not part of a turn. Placeholders: ``{num}``, ``{query}``, ``{passages}`` (a line ``[identifier] text`` for each
passage), and in repeated turns ``{identifier}`` and ``{passage}``. They are filled in one pass, so a passage that
contains ``{query}`` stays unchanged.

A model depends on the wording: one published ranker loses 3.7 points of nDCG with the wrong prompt. So a released file
never changes; a better wording is a new version.
"""

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.resources import files
from string import ascii_uppercase
from typing import Any

from teachers.errors import ExitCode, TeacherError
from teachers.prompts import chats

Message = dict[str, str]  # {"role": "system" | "user" | "assistant", "content": text}

_MARKER = re.compile(r"^--- (system|user|assistant)(, each passage)?$", re.M)
_PLACEHOLDER = re.compile(r"\{(num|query|passages|identifier|passage|examples)\}")

# Formats that turn messages into text, for templates that do not use the model's chat template.
_CHATS: Mapping[str, Mapping[str, str]] = {
    "model": {},
    "vicuna": {"system": "{content} ", "user": "USER: {content} ", "assistant": "ASSISTANT: {content}</s>"},
    "plain": {
        "system": "{content}\n\n",
        "user": "USER: {content}\n\n",
        "assistant": "ASSISTANT: {content}\n\n",
    },
}
_OPENING = {"vicuna": "ASSISTANT:", "plain": "ASSISTANT:"}


@dataclass(frozen=True)
class Turn:
    """A turn of a template: its role, its text with placeholders, and whether it is repeated for each passage."""

    role: str
    text: str
    each_passage: bool = False

    @cached_property
    def _pieces(self) -> list[str]:
        return _PLACEHOLDER.split(self.text)  # text, name, text, name … text

    def fill(self, values: Mapping[str, str]) -> str:
        """Return the text with its placeholders filled in one pass."""
        pieces = self._pieces.copy()
        pieces[1::2] = [values[name] for name in pieces[1::2]]
        return "".join(pieces)


@dataclass(frozen=True)
class Template:
    """A prompt for a window of passages.

    Attributes:
        identifiers: ``numbers`` (``[1]`` …) or ``letters`` (``[A]`` … ``[Z]``, 26 passages at most).
        chat: ``model`` (the model's own chat template) or ``vicuna`` (``{system} USER: {user} ASSISTANT:``).
        prefill: text after the rendered prompt, with which the reply would begin (FIRST's ``[``); the reply lacks it.
        hash: hash of the file's bytes together with `identifiers`, `chat` and `prefill`.
        reply_tokens: most tokens of a reply that is no ranking (:mod:`teachers.prompts.single`).
        examples: what stands for ``{examples}``.
    """

    name: str
    version: int
    turns: tuple[Turn, ...]
    identifiers: str
    chat: str
    prefill: str
    hash: str
    reply_tokens: int | None = None
    examples: str = ""

    @property
    def ident(self) -> str:
        """Return ``NAME@VERSION``, as in the store's ``teachers.prompt``."""
        return f"{self.name}@{self.version}"

    def identifier(self, position: int) -> str:
        """Return the identifier of the passage at `position` (from 1).

        Raises:
            TeacherError: if there are more passages than letters.
        """
        if self.identifiers == "numbers":
            return str(position)
        if position > len(ascii_uppercase):
            raise TeacherError(
                f"the prompt {self.ident} names passages by letters: 26 at most, not {position}",
                hint="--window 20",
                exit_code=ExitCode.USAGE,
            )
        return ascii_uppercase[position - 1]

    def names(self, n: int) -> tuple[str, ...]:
        """Return the identifiers of n passages, in order.

        Raises:
            TeacherError: if there are more passages than letters.
        """
        known = self._names.get(n)
        if known is None:
            known = self._names[n] = tuple(self.identifier(position) for position in range(1, n + 1))
        return known

    @cached_property
    def _names(self) -> dict[int, tuple[str, ...]]:
        return {}

    def render(self, query: str, passages: Sequence[str]) -> list[Message]:
        """Return the messages for one window; prepare the texts with :mod:`teachers.prompts.passages` first.

        Raises:
            TeacherError: if there are no passages, or more than there are identifiers.
        """
        if not passages:
            raise TeacherError("a window without passages cannot be asked")
        names = self.names(len(passages))
        common = {
            "num": str(len(passages)),
            "query": query,
            "passages": "\n".join(f"[{name}] {text}" for name, text in zip(names, passages, strict=True)),
            "passage": passages[0],  # of a prompt that shows one
            "examples": self.examples,
        }
        messages: list[Message] = []
        k = 0
        while k < len(self.turns):
            if not self.turns[k].each_passage:
                messages.append({"role": self.turns[k].role, "content": self.turns[k].fill(common)})
                k += 1
                continue
            repeated = []
            while k < len(self.turns) and self.turns[k].each_passage:
                repeated.append(self.turns[k])
                k += 1
            for name, text in zip(names, passages, strict=True):
                values = {**common, "identifier": name, "passage": text}
                messages += [{"role": t.role, "content": t.fill(values)} for t in repeated]
        return messages

    def text(
        self, messages: Sequence[Message], chat_template: Callable[[list[Message]], str] | None = None
    ) -> str:
        """Return the prompt as one text, with `prefill` at its end.

        Args:
            chat_template: renders messages with the model's chat template, the assistant's turn opened (see
                :func:`chat_renderer`). None: for a model without one; plain ``USER:``/``ASSISTANT:`` turns are used.
        """
        if self.chat == "model" and chat_template is not None:
            return chat_template(list(messages)) + self.prefill
        kind = "plain" if self.chat == "model" else self.chat
        forms = _CHATS[kind]
        turns = "".join(forms[m["role"]].replace("{content}", m["content"]) for m in messages)
        return turns + _OPENING[kind] + self.prefill

    def ranking(self, order: Sequence[int]) -> str:
        """Return the reply for this order of positions (from 0): ``[2] > [1]``."""
        return " > ".join(f"[{self.identifier(i + 1)}]" for i in order)


def output_budget(
    template: Template, n: int, count_tokens: Callable[[str], int], margin: int = 2, top: int | None = None
) -> int:
    """Return the tokens of a full reply for `n` passages, by the model's tokenizer, plus its end-of-text.

    This is the token count of ``[1] > [2] > … > [n]``: about 90 for 20 passages and 491 for 100 (field notes,
    section 2). With tokenizers that split digits the order does not change the count; `margin` is for the others. A reply that
    stops after `top` identifiers may name the longest ones, which are the last: ``[11] > … > [20]``.
    """
    if template.reply_tokens is not None:
        return template.reply_tokens
    return count_tokens(template.ranking(range(n - min(n, top or n), n))) + margin


def chat_renderer(tokenizer: Any, **options: Any) -> Callable[[list[Message]], str] | None:
    """Return a tokenizer's chat template as a function for :meth:`Template.text`; None if it has none.

    If the chat template refuses a system turn (Gemma, early Mistral), the system text begins the first user turn.
    """
    if not getattr(tokenizer, "chat_template", None):
        return None
    chat = chats.Chat(tokenizer, options)
    refuses = _refuses_system(chat)

    def render(messages: list[Message]) -> str:
        return chat.render(merge_system(messages) if refuses else messages)

    return render


def _refuses_system(chat: chats.Chat) -> bool:
    probe = [{"role": "system", "content": "probe-of-system"}, {"role": "user", "content": "probe-of-user"}]
    try:
        text = chat.render(probe)
    except chats.Refused:
        return True
    return "probe-of-system" not in text  # some templates drop the system text silently


def merge_system(messages: Sequence[Message]) -> list[Message]:
    """Move the system text to the beginning of the first user turn."""
    system = [m["content"] for m in messages if m["role"] == "system"]
    rest = [dict(m) for m in messages if m["role"] != "system"]
    if system and rest:
        rest[0]["content"] = "\n\n".join([*system, rest[0]["content"]])
    return rest


@dataclass(frozen=True)
class _Form:
    identifiers: str = "numbers"
    chat: str = "model"
    prefill: str = ""


# Properties that a template file does not contain; the newest version of a name comes last.
_TEMPLATES: Mapping[str, _Form] = {
    "rankzephyr@1": _Form(),
    "rankzephyr-train-variable@1": _Form(),
    "rankzephyr-train-fixed20@1": _Form(),
    "rankvicuna@1": _Form(chat="vicuna"),
    "first@1": _Form(identifiers="letters", prefill="["),
    "rankgpt@1": _Form(),
    "listwise@1": _Form(),
}


def names() -> list[str]:
    """List all templates as ``NAME@VERSION``."""
    return list(_TEMPLATES)


@cache
def template(ident: str) -> Template:
    """Look up a template by ``NAME@VERSION``, or by ``NAME`` for its newest version.

    Raises:
        TeacherError: if the template is not found.
    """
    found = [full for full in _TEMPLATES if full == ident or full.rpartition("@")[0] == ident]
    if not found:
        raise TeacherError(
            f"no prompt named {ident!r}", hint=f"known: {', '.join(_TEMPLATES)}", exit_code=ExitCode.USAGE
        )
    full = found[-1]
    form = _TEMPLATES[full]
    name, _, version = full.rpartition("@")
    data = files("teachers").joinpath("templates", f"{full}.txt").read_bytes()
    tagged = f"msft:prompt:{form.identifiers}:{form.chat}:{form.prefill}:".encode() + data
    return Template(
        name=name,
        version=int(version),
        turns=parse_template(data.decode("utf-8")),
        identifiers=form.identifiers,
        chat=form.chat,
        prefill=form.prefill,
        hash=hashlib.blake2b(tagged, digest_size=16).hexdigest(),
    )


def parse_template(text: str) -> tuple[Turn, ...]:
    """Parse a template file into turns.

    Raises:
        TeacherError: if the file does not begin with a marker.
    """
    marks = list(_MARKER.finditer(text))
    if not marks or marks[0].start() != 0:
        raise TeacherError("a template begins with a line `--- system` or `--- user`")
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    turns = []
    for mark, end in zip(marks, ends, strict=True):
        body = text[mark.end() + 1 : end].removesuffix("\n")
        turns.append(Turn(mark[1], body, each_passage=mark[2] is not None))
    return tuple(turns)
