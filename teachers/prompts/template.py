"""Prompts: named, versioned templates read from ``templates/NAME@VERSION.txt``, each with a hash of its bytes.

A template file is a sequence of turns. A line ``--- ROLE`` begins a turn. A file of ``--- part`` turns is the whole prompt,
byte for byte; each part becomes tokens alone, so that no token reaches from one part into the next. A line ``--- ROLE, each passage`` begins a
turn that is repeated for each passage; adjacent ones alternate, as in RankGPT. The newline before the next marker is
not part of a turn. Placeholders: ``{num}``, ``{query}``, ``{passages}`` (a line ``[identifier] text`` for each
passage), ``{passage}`` if one passage is shown (and ``{second}`` beside it in a pair), and in repeated turns ``{identifier}`` and ``{passage}``. They are filled in one pass, so a passage that
contains ``{query}`` stays unchanged.

A model depends on the wording: one published ranker loses 3.7 points of nDCG with the wrong prompt. So a released file
never changes; a better wording is a new version.
"""

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from importlib.resources import files
from string import ascii_uppercase
from typing import Any

from teachers.errors import ExitCode, TeacherError
from teachers.prompts import chats

Message = dict[str, str]  # {"role": "system" | "user" | "assistant", "content": text}

_MARKER = re.compile(r"^--- (system|user|assistant|part)(, each passage)?$", re.M)
_MARKS = re.compile(r"</?\|?\w+\|?>")
_PLACEHOLDER = re.compile(r"\{(num|query|passages|identifier|passage|second|examples)\}")

_ENTRY = re.compile(r"\{(identifier|passage|score)\}")
_BRACKETED = re.compile(r"\[[a-z]+(?:start|end)\]")  # marks such as APEER's [querystart]

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
class _Form:
    """The properties of a prompt that its file does not contain; `Template` explains them."""

    identifiers: str = "numbers"
    chat: str = "model"
    prefill: str = ""
    folder: str = ""  # within templates/
    reads: str = "list"
    answers: tuple[str, ...] = ()
    spelling: str = "any"
    begins: bool = False
    entry: str = "[{identifier}] {passage}"
    joint: str = "\n"
    most: int | None = None
    thinks: str = ""
    ends: bool = False
    wrapped: tuple[str, str] | None = None
    beside: bool = False

    def tag(self) -> str:
        """Return what the template's hash covers beside the file."""
        tag = f"msft:prompt:{self.identifiers}:{self.chat}:{self.prefill}:"
        if self.reads != "list":
            tag += f"{self.reads}:{','.join(self.answers)}:{self.spelling}:{self.begins}:{self.entry}:{self.joint}:"
        elif self.entry != _Form.entry:
            tag += f"{self.entry}:"
        tag += "ends:" if self.ends else ""
        return tag + (f"{self.thinks}:" if self.thinks else "")


@dataclass(frozen=True, kw_only=True)
class Template(_Form):
    """A prompt for a window of passages, or for one passage.

    Attributes:
        identifiers: ``numbers`` (``[1]`` …) or ``letters`` (``[A]`` … ``[Z]``, 26 passages at most).
        chat: ``model`` (the model's own chat template), ``vicuna`` (``{system} USER: {user} ASSISTANT:``), or ``parts`` (the
            file is the whole prompt).
        prefill: text after the rendered prompt, with which the reply would begin (FIRST's ``[``); the reply lacks it.
        folder: within ``templates/``.
        hash: hash of the file's bytes together with the other properties.
        reads: ``list`` (the reply is an order), ``choice`` (it names the best passage), or how a passage's score is read off
            the first token's probabilities: ``log-odds`` (of the first answer against the second), ``logit`` (of the only
            answer) or ``expected`` (the mean of the answers as numbers).
        answers: the answers that the score is read from; of a choice, one for each passage, if they are not its identifiers.
        spelling: ``exact`` (an answer is one token, as written), ``any`` (every token that spells it, in any case and with a
            space before it) or ``cased`` (as written, and with a space before it).
        begins, ends: whether the prompt begins with the tokenizer's first token, and ends with its last one.
        entry, joint: how ``{passages}`` shows a passage, and what stands between two. ``{score}`` is its first-stage score.
        most: most passages that it can show; None: as many as it has identifiers.
        thinks: whether the model writes a thought first: empty, ``think`` (the answer follows it) or ``answer`` (it stands between
            ``<answer>`` and ``</answer>``).
        wrapped: the marks between which the reply's list may stand.
        beside: whether the first passage is the one that all others are compared with: it stands for ``{passage}``, and
            ``{passages}`` shows the others.
        reply_tokens: most tokens of a reply that is no ranking (:mod:`teachers.prompts.single`).
        examples: what stands for ``{examples}``.
    """

    name: str
    version: int
    turns: tuple[Turn, ...]
    hash: str
    reply_tokens: int | None = None
    examples: str = ""

    @property
    def pointwise(self) -> bool:
        """Tell whether each passage is asked for alone, and gets a score."""
        return bool(self.answers) and self.reads != "choice"

    @cached_property
    def markers(self) -> frozenset[str]:
        """Return the marks of the prompt or its answers (``<Query>``, ``<answer>``) that its texts must not contain."""
        if self.thinks == "answer":
            return frozenset({"<answer>", "</answer>"})
        text = "".join(turn.text for turn in self.turns)
        marked = self.chat == "parts" or self.beside
        return frozenset(_BRACKETED.findall(text)) | frozenset(_MARKS.findall(text) if marked else ())

    @property
    def scored(self) -> bool:
        """Tell whether the prompt shows first-stage scores."""
        return "{score}" in self.entry

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

    def render(self, query: str, passages: Sequence[str], scores: Sequence[float] = ()) -> list[Message]:
        """Return the messages for one window; prepare the texts with :mod:`teachers.prompts.passages` first.

        Args:
            scores: the passages' first-stage scores, only for a prompt that shows them.

        Raises:
            TeacherError: if there are no passages, or more than the prompt can show.
        """
        if not passages:
            raise TeacherError("a window without passages cannot be asked")
        if self.most is not None and len(passages) > self.most:
            shown = "one passage" if self.most == 1 else f"{self.most} passages"
            raise TeacherError(f"the prompt {self.ident} shows {shown}, not {len(passages)}")
        if self.scored and len(scores) != len(passages):
            raise TeacherError(
                f"the prompt {self.ident} shows first-stage scores: {len(scores)} for {len(passages)}"
            )
        names = self.names(len(passages))
        listed = passages[1:] if self.beside else passages
        common = {
            "num": str(len(listed)),
            "query": query,
            "passages": self.joint.join(self._entries(names, listed, scores)),
            "passage": passages[0],
            "second": passages[1] if len(passages) > 1 else "",
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

    def _entries(self, names: Sequence[str], passages: Sequence[str], scores: Sequence[float]) -> list[str]:
        """Return the passages as ``{passages}`` shows them; `scores` belong to the last ones if there are more."""
        if self.entry == _Form.entry:  # as most prompts show them; filling in takes ten times as long
            return [f"[{name}] {text}" for name, text in zip(names, passages, strict=False)]
        written = [f"{score:.2f}" for score in scores][-len(passages) :] or [""] * len(passages)
        shown = zip(names, passages, written, strict=False)
        return [
            _filled(self.entry, {"identifier": name, "passage": text, "score": score})
            for name, text, score in shown
        ]

    def text(
        self, messages: Sequence[Message], chat_template: Callable[[list[Message]], str] | None = None
    ) -> str:
        """Return the prompt as one text, with `prefill` at its end.

        Args:
            chat_template: renders messages with the model's chat template, the assistant's turn opened (see
                :func:`chat_renderer`). None: for a model without one; plain ``USER:``/``ASSISTANT:`` turns are used.
        """
        if self.chat == "parts":
            return "".join(message["content"] for message in messages)
        if self.chat == "model" and chat_template is not None:
            return chat_template(list(messages)) + self.prefill
        kind = "plain" if self.chat == "model" else self.chat
        forms = _CHATS[kind]
        turns = "".join(forms[m["role"]].replace("{content}", m["content"]) for m in messages)
        return turns + _OPENING[kind] + self.prefill

    def ranking(self, order: Sequence[int]) -> str:
        """Return the reply for this order of positions (from 0): ``[2] > [1]``."""
        return " > ".join(f"[{self.identifier(i + 1)}]" for i in order)


def _filled(entry: str, values: Mapping[str, str]) -> str:
    return _ENTRY.sub(lambda m: values[m[1]], entry)


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


def _frame(reads: str, *answers: str, begins: bool = False, ends: bool = False) -> _Form:
    """Describe the prompt of a model that was trained to score a passage by these answers."""
    return _Form("numbers", "parts", "", "pointwise", reads, answers, "exact", begins, most=1, ends=ends)


_QUOTED = _Form(
    "letters", folder="choices", reads="choice", entry='Passage {identifier}: "{passage}"', joint="\n\n"
)


# Properties that a template file does not contain; the newest version of a name comes last.
_TEMPLATES: Mapping[str, _Form] = {
    "rankzephyr@1": _Form(),
    "rankzephyr-train-variable@1": _Form(),
    "rankzephyr-train-fixed20@1": _Form(),
    "rankvicuna@1": _Form(chat="vicuna"),
    "first@1": _Form(identifiers="letters", prefill="["),
    "rankgpt@1": _Form(),
    "listwise@1": _Form(),
    "apeer@1": _Form(wrapped=("[rankstart]", "[rankend]")),
    "insertrank@1": _Form(
        entry="[{identifier}] {passage}\nBM25 score for passge [{identifier}]: {score}"  # the typing error is RankLLM's
    ),
    "qwen3-reranker@1": _frame("log-odds", "yes", "no"),
    "mxbai-rerank@1": _frame("log-odds", "1", "0"),
    "bge-gemma@1": _frame("logit", "Yes", begins=True),
    "monot5@1": _frame("log-odds", "true", "false", ends=True),
    "yes-no@1": _Form(folder="pointwise", reads="log-odds", answers=("yes", "no"), most=1),
    "rating@1": _Form(folder="pointwise", reads="expected", answers=("0", "1", "2", "3", "4"), most=1),
    "setwise@1": _QUOTED,
    "pairwise@1": replace(_QUOTED, most=2),
    "duot5@1": _Form(
        chat="parts",
        folder="choices",
        reads="choice",
        answers=("true", "false"),
        spelling="exact",
        most=2,
        ends=True,
    ),
    "rank-r1@1": _Form(
        folder="thinking", reads="choice", entry="[{identifier}]: {passage}", most=20, thinks="answer"
    ),
    "reasonrank@1": _Form(folder="thinking", thinks="answer"),
    "qwen3-thinking@1": _Form(folder="thinking", thinks="think"),
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
    data = files("teachers").joinpath("templates", form.folder, f"{full}.txt").read_bytes()
    tagged = form.tag().encode() + data
    return Template(
        **vars(form),
        name=name,
        version=int(version),
        turns=parse_template(data.decode("utf-8")),
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
