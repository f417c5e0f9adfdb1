"""What every engine speaks: requests in, completions out, in any order. No async: submit, then poll.

An engine knows nothing of queries, windows, retries of a call or the store; the scheduler knows nothing of HTTP or
vLLM. An engine that answers with scores alone (cross-encoder, bi-encoder) sets ``Completion.scores``.
"""

import queue
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from teachers.errors import TeacherError

Message = Mapping[str, str]


@dataclass(frozen=True)
class Sampling:
    """How replies are drawn; part of the request's content key.

    ``logprobs`` is how many alternatives to report at the first generated position (0: none). ``constraint`` is
    ``"identifiers"`` when only unused identifiers and the separator may be generated, ``top`` then stops after that
    many.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    logprobs: int = 0
    constraint: str | None = None
    top: int | None = None

    def key(self) -> dict[str, Any]:
        """What enters content keys: only what differs from a plain greedy reply."""
        plain = Sampling()
        return {
            name: value
            for name, value in self.__dict__.items()
            if name == "temperature" or value != getattr(plain, name)
        }


@dataclass(slots=True)
class Request:
    """One question to a model.

    Attributes:
        ticket: the scheduler's number for it; the completion carries it back.
        key: content key over token ids (or the chat's text where no tokenizer is known), model revision, sampling.
        messages: the chat; empty for engines that score.
        text: the chat as one text, where the engine has the tokenizer (else the messages as JSON).
        prefix: what the text ends with beyond the chat, from which the reply continues.
        raw: whether the prompt is the text as it stands, not a chat that the server's template would render.
        token_ids: the rendered chat, where the engine has the tokenizer.
        n_prompt_tokens: its length in tokens (in words where no tokenizer is known).
        max_tokens: most tokens to generate.
        identifiers: what the prompt calls its passages, in order ("1", "2" … or "A", "B" …).
        query, passages: what pointwise engines read.
    """

    key: str
    messages: Sequence[Message] = ()
    text: str = ""
    prefix: str = ""
    raw: bool = False
    token_ids: Sequence[int] | None = None
    n_prompt_tokens: int = 0
    max_tokens: int = 0
    identifiers: Sequence[str] = ()
    query: str = ""
    passages: Sequence[str] = ()
    sample: int = 0
    ticket: int = -1


@dataclass(slots=True)
class Completion:
    """One answer, or the failure to get one.

    Attributes:
        text: the raw reply; None after a failure.
        finish_reason: as the engine says it: stop, length …
        own_counts: whether a count of tokens was made here, because the server sent none that can be true.
        seconds: from submission to answer.
        server: host:port without credentials, or in-process.
        error: what went wrong; then ``retryable`` says whether asking again can help.
        retry_after: seconds that the server asked to wait.
        logprobs: the first position's alternatives, token text to log-probability, where asked for.
        scores: a score per passage shown, from engines that score.
    """

    ticket: int
    text: str | None = None
    finish_reason: str | None = None
    tokens_in: int = 0
    tokens_out: int = 0
    own_counts: bool = False
    seconds: float = 0.0
    server: str = "in-process"
    error: str | None = None
    retryable: bool = True
    retry_after: float | None = None
    logprobs: Mapping[str, float] | None = None
    scores: Sequence[float] | None = None


class Engine(Protocol):
    """A model that answers requests.

    Attributes:
        name: as ``--engine`` calls it.
        concurrent: whether it works on while nobody polls; else it works in `submit` and `poll` alone.
        capacity: requests it wants in flight to stay busy.
        tokenizer: the model's Hugging Face tokenizer; None where it is not known.
        context: most tokens of prompt and reply together; None where it is not known.
    """

    name: str
    concurrent: bool
    capacity: int
    tokenizer: Any
    context: int | None

    def submit(self, requests: Sequence[Request]) -> None:
        """Take requests; never blocks for an answer."""

    def poll(self, timeout: float) -> list[Completion]:
        """Completions since the last poll; waits up to ``timeout`` seconds for the first.

        Raises:
            TeacherError: (exit code 5) when no request can succeed any more: no server answers, the model is gone.
        """

    def close(self) -> None:
        """Give back what the engine holds; requests in flight are dropped."""


def completed(done: "queue.SimpleQueue[Completion | TeacherError]", timeout: float) -> list[Completion]:
    """What an engine's threads have put there, waiting up to ``timeout`` seconds for the first: its `poll`.

    Raises:
        TeacherError: one that a thread put there, once the completions before it have been handed out.
    """
    found: list[Completion] = []
    try:
        item = done.get(timeout=timeout) if timeout > 0 else done.get_nowait()
        while not isinstance(item, TeacherError):
            found.append(item)
            item = done.get_nowait()
    except queue.Empty:
        return found
    if not found:
        raise item
    done.put(item)  # the calls that were completed are recorded first
    return found
