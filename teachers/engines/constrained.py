"""A vLLM logits processor that makes replies valid: it allows only unused identifiers and the separator.

The language is ``[a] > [b] > …`` with each identifier at most once, then the end. The allowed tokens of an identifier
are the tokens that the tokenizer gives it at that place, so the model sees token sequences as in its training. The
spellings form a trie. Each node stores the identifiers below it as bits. The allowed next tokens lead to the children
above an unused identifier. No spelling is the beginning of another, so an identifier is complete where its branch
ends.

Each request brings its spellings as JSON text, so one batch can mix window sizes and both kinds of identifiers. Text
is used because vLLM copies a request's arguments and inspects them, which takes longer than parsing the text here
once.

Load it in a server with ``--logits-processors teachers.engines.constrained:IdentifierConstraint``. It reads each
request's spellings from the field ``vllm_xargs``. It needs no tokenizer.

A model that thinks first is free until the mark that ends its thought (``</think>``), and the one that begins its answer.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from vllm.v1.sample.logits_processor import LogitsProcessor
from vllm.v1.sample.logits_processor.interface import MoveDirectionality

from teachers.engines.spelling import ARGUMENT

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.config import VllmConfig
    from vllm.v1.sample.logits_processor import BatchUpdate


@dataclass(slots=True)
class Node:
    """A node in the trie of spellings.

    Attributes:
        below: bit k is set if the spelling of identifier k passes through this node.
        children: next nodes by token; empty where an identifier ends.
    """

    below: int = 0
    children: "dict[int, Node]" = field(default_factory=dict)


NOWHERE = Node()


@dataclass(frozen=True, slots=True)
class Language:
    """The language of replies to one kind of window.

    Attributes:
        n: number of identifiers.
        first, later: spellings of the first identifier in a reply and of later ones (separator included).
        end: the token that ends the reply.
        top: number of identifiers before the reply ends.
        after: for each mark before the reply, and each number of its characters that were read, how many a token reads on to
            (`teachers.engines.spelling.steps_to`).
    """

    n: int
    first: Node
    later: Node
    end: int
    top: int
    after: tuple[tuple[Mapping[int, int], ...], ...] = ()

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> "Language":
        """Build from the output of `teachers.engines.spelling.constraint`.

        Raises:
            ValueError: if a field is missing.
        """
        if not isinstance(given, Mapping) or not {"first", "later", "end", "top"} <= set(given):
            raise ValueError(f"{ARGUMENT} needs first, later, end and top")
        first, later = (trie(given[place]) for place in ("first", "later"))
        after = tuple(
            tuple({int(token): read for token, read in step.items()} for step in steps)
            for steps in given.get("after", ())
        )
        return cls(len(given["first"]), first, later, given["end"], given["top"], after)


def trie(spellings: Sequence[Sequence[int]]) -> Node:
    """Build the trie of the spellings of identifiers 0, 1 … and return its root."""
    root = Node()
    for number, tokens in enumerate(spellings):
        node = root
        node.below |= 1 << number
        for token in tokens:
            node = node.children.setdefault(token, Node())
            node.below |= 1 << number
    return root


class State:
    """The position of one reply in the trie; ``output`` is the reply so far, a live list that vLLM extends."""

    __slots__ = ("_known", "_language", "_mark", "_named", "_node", "_output", "_read", "_unused")

    def __init__(self, language: Language, output: Sequence[int]) -> None:
        self._language, self._output = language, output
        self._node = language.first
        self._unused = (1 << language.n) - 1  # bit k: identifier k
        self._named = self._read = 0
        self._mark = self._known = 0  # marks that were read, and characters of the next one

    def allowed(self) -> list[int] | None:
        """Return the tokens that may come next; None before the last mark, where all may."""
        marks = self._language.after
        for token in self._output[self._read :]:
            self._read += 1
            if self._mark < len(marks):
                steps = marks[self._mark]
                self._known = steps[self._known].get(token, 0)
                if self._known == len(steps):
                    self._mark, self._known = self._mark + 1, 0
                continue
            self._node = self._node.children.get(token, NOWHERE)
            if self._node.below and not self._node.children:
                self._unused &= ~self._node.below
                self._named += 1
                self._node = self._language.later
        if self._mark < len(marks):
            return None
        if self._named < self._language.top:
            unused = self._unused
            tokens = [token for token, child in self._node.children.items() if child.below & unused]
            if tokens:
                return tokens
        return [self._language.end]


class IdentifierConstraint(LogitsProcessor):
    """Mask all tokens but the allowed ones, in the rows of constrained requests."""

    @classmethod
    def validate_params(cls, sampling_params: "SamplingParams") -> None:
        language(sampling_params)

    def __init__(self, vllm_config: "VllmConfig", device: torch.device, is_pin_memory: bool) -> None:
        self._rows: dict[int, State] = {}

    def language(self, params: "SamplingParams") -> Language | None:
        """Return the language of the reply to a request; None if it is not constrained."""
        return language(params)

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: "BatchUpdate | None") -> None:
        if batch_update is None:
            return
        rows = self._rows
        for row in batch_update.removed:
            rows.pop(row, None)
        for row, params, _, output in batch_update.added:
            may_say = self.language(params)
            if may_say is None:
                rows.pop(row, None)
            else:
                rows[row] = State(may_say, output)
        for source, target, direction in batch_update.moved:
            moving, staying = rows.pop(source, None), rows.pop(target, None)
            if moving is not None:
                rows[target] = moving
            if direction == MoveDirectionality.SWAP and staying is not None:
                rows[source] = staying

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        if not self._rows:
            return logits
        at: list[int] = []
        tokens: list[int] = []
        bound: list[int] = []
        for row, state in self._rows.items():
            allowed = state.allowed()
            if allowed is not None:
                bound.append(row)
                at.extend([row] * len(allowed))
                tokens.extend(allowed)
        if not bound:
            return logits
        rows = torch.tensor(bound, device=logits.device)
        row_of, token_of = torch.tensor((at, tokens), device=logits.device)
        kept = logits[row_of, token_of]
        logits.index_fill_(0, rows, float("-inf"))
        logits[row_of, token_of] = kept
        return logits


def language(params: "SamplingParams") -> Language | None:
    """Return the language given in a request's arguments; None if they do not contain one.

    Raises:
        ValueError: if a field is missing, or the argument is not JSON text.
    """
    text = (params.extra_args or {}).get(ARGUMENT)
    if text is None:
        return None
    if not isinstance(text, str):
        raise ValueError(f"{ARGUMENT} is JSON text, not {type(text).__name__}")
    return _language(text)


@lru_cache(maxsize=256)  # one entry per window size, prefix and top
def _language(text: str) -> Language:
    return Language.of(json.loads(text))
