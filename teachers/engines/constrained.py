"""Replies that are valid by construction: a vLLM logits processor that allows only unused identifiers and the separator.

The language is ``[a] > [b] > …`` with each identifier at most once, then the end. An identifier is spelt by the tokens
that the tokenizer itself gives it at that place, so the model sees token sequences as in its training; as no spelling
is the beginning of another's, a list of the identifiers still possible is all the state there is. Each request brings
its own spellings, so windows of any size and both kinds of identifiers share one batch.

A server loads it by name, ``--logits-processors teachers.engines.constrained:IdentifierConstraint``, and takes each
request's spellings from its field ``vllm_xargs`` (as JSON text: that field holds no nested values). It needs no tokenizer.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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
class State:
    """Where one reply stands.

    Attributes:
        first, later: token ids of each identifier as the first and as a later one (separator included).
        end: the token that ends the reply.
        output: the reply so far, a live list of vLLM's.
    """

    first: Sequence[Sequence[int]]
    later: Sequence[Sequence[int]]
    end: int
    top: int
    output: Sequence[int]
    unused: list[int] = field(default_factory=list)
    possible: list[int] = field(default_factory=list)
    depth: int = 0  # tokens of the current identifier already there
    named: int = 0
    read: int = 0  # tokens of `output` taken in

    def __post_init__(self) -> None:
        self.unused = list(range(len(self.first)))
        self.possible = list(self.unused)

    def allowed(self) -> set[int]:
        """Tokens that may come next."""
        spellings = self.later if self.named else self.first
        for token in self.output[self.read :]:
            spellings = self.later if self.named else self.first
            self.read += 1
            self.possible = [
                i
                for i in self.possible
                if self.depth < len(spellings[i]) and spellings[i][self.depth] == token
            ]
            self.depth += 1
            if len(self.possible) == 1 and len(spellings[self.possible[0]]) == self.depth:
                self.unused.remove(self.possible[0])
                self.named += 1
                self.possible, self.depth = list(self.unused), 0
        if self.named >= self.top or not self.possible:
            return {self.end}
        spellings = self.later if self.named else self.first
        return {spellings[i][self.depth] for i in self.possible}


class IdentifierConstraint(LogitsProcessor):
    """Masks every token but the allowed ones, in the rows of constrained requests."""

    @classmethod
    def validate_params(cls, sampling_params: "SamplingParams") -> None:
        given = given_in(sampling_params)
        if given is not None and not {"first", "later", "end", "top"} <= set(given):
            raise ValueError(f"{ARGUMENT} needs first, later, end and top")

    def __init__(self, vllm_config: "VllmConfig", device: torch.device, is_pin_memory: bool) -> None:
        self._rows: dict[int, State] = {}

    def given(self, params: "SamplingParams") -> Mapping[str, Any] | None:
        """A request's spellings; None where it is free."""
        return given_in(params)

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: "BatchUpdate | None") -> None:
        if batch_update is None:
            return
        rows = self._rows
        for row in batch_update.removed:
            rows.pop(row, None)
        for row, params, _, output in batch_update.added:
            given = self.given(params)
            if given is None:
                rows.pop(row, None)
            else:
                rows[row] = State(given["first"], given["later"], given["end"], given["top"], output)
        for source, target, direction in batch_update.moved:
            moving, staying = rows.pop(source, None), rows.pop(target, None)
            if moving is not None:
                rows[target] = moving
            if direction == MoveDirectionality.SWAP and staying is not None:
                rows[source] = staying

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        if not self._rows:
            return logits
        rows: list[int] = []
        at: list[int] = []
        tokens: list[int] = []
        for row, state in self._rows.items():
            allowed = state.allowed()
            rows.append(row)
            at.extend([row] * len(allowed))
            tokens.extend(allowed)
        kept = logits[at, tokens]
        logits[rows] = float("-inf")
        logits[at, tokens] = kept
        return logits


def given_in(params: "SamplingParams") -> Mapping[str, Any] | None:
    """The constraint in a request's arguments, from within this process or by a server's API."""
    given = (params.extra_args or {}).get(ARGUMENT)
    if isinstance(given, str):
        given = json.loads(given)
    return given
