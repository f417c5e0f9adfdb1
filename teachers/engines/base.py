"""The engine interface: take requests, return completions in any order. No async: submit, then poll.

An engine has no access to queries, windows, retries or the store. The scheduler has no access to HTTP or vLLM. An
engine that returns only scores (cross-encoder, bi-encoder) sets ``Completion.scores``.
"""

import queue
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from teachers.errors import TeacherError

Message = Mapping[str, str]


@dataclass(frozen=True)
class Sampling:
    """Sampling settings of replies; part of the request's content key.

    ``logprobs`` is how many alternatives to report at the first generated position (0: none); with ``logits`` as logits, not
    as log-probabilities. With ``constraint``
    ``"identifiers"``, only unused identifiers and the separator may be generated, and the reply ends after ``top``
    identifiers. ``mean_logprob`` asks for the mean log-probability of the reply's tokens. ``think`` is how many tokens a thought
    may take before the answer.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    logprobs: int = 0
    logits: bool = False
    constraint: str | None = None
    top: int | None = None
    mean_logprob: bool = False
    think: int = 0

    def key(self) -> dict[str, Any]:
        """Return the part for content keys: only the settings that differ from a plain greedy reply."""
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
        ticket: number given by the scheduler; the completion returns it.
        attempt: how many times it is asked with this one, over all jobs.
        key: content key over token ids (or the chat's text if no tokenizer is known), model revision and sampling.
        messages: the chat; empty for engines that score.
        text: the chat as one text if the engine has the tokenizer, otherwise the messages as JSON.
        prefix: text after the rendered chat; the reply continues from it.
        raw: whether to send `text` as the prompt, without the server's chat template.
        token_ids: token ids of the rendered chat, if the engine has the tokenizer.
        n_prompt_tokens: length of the prompt in tokens (in words if no tokenizer is known).
        max_tokens: most tokens to generate.
        identifiers: the passages' identifiers in the prompt, in order ("1", "2" … or "A", "B" …), or the answers from which
            the score of a passage is read.
        spelling: ``exact`` or ``any`` for such answers (see `teachers.prompts.template`); empty for identifiers.
        after: marks after which a constrained reply begins, one after another (``</think>``); before them it is free.
        query, passages: texts for pointwise engines.
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
    spelling: str = ""
    after: tuple[str, ...] = ()
    query: str = ""
    passages: Sequence[str] = ()
    sample: int = 0
    ticket: int = -1
    attempt: int = 1


@dataclass(slots=True)
class Completion:
    """One answer, or the failure to get one.

    Attributes:
        text: the raw reply; None after a failure.
        finish_reason: the engine's finish reason: stop, length …
        own_counts: whether a token count was made here, because the server sent none or an impossible one.
        seconds: from submission to answer.
        server: host:port without credentials, or in-process.
        error: the failure's message; ``retryable`` then tells whether a retry can help.
        retry_after: seconds that the server asked to wait.
        thought_tokens: tokens of the thought before the answer, if the server counts them.
        logprobs: the first position's alternatives, identifier or answer to log-probability, only if requested.
        floor: the highest log-probability that an answer can have that `logprobs` lacks; None if not known.
        scores: a score per passage shown, from engines that score.
        mean_logprob: mean log-probability of the reply's tokens, where the engine gives it.
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
    thought_tokens: int | None = None
    logprobs: Mapping[str, float] | None = None
    floor: float | None = None
    scores: Sequence[float] | None = None
    mean_logprob: float | None = None


class Engine(Protocol):
    """A model that answers requests.

    Attributes:
        name: the engine's name on the command line (``--engine``).
        concurrent: whether the engine works between polls; otherwise it works only in `submit` and `poll`.
        capacity: requests in flight that keep the engine busy.
        tokenizer: the model's Hugging Face tokenizer; None if not known.
        context: most tokens of prompt and reply together; None if not known.
    """

    name: str
    concurrent: bool
    capacity: int
    tokenizer: Any
    context: int | None

    def submit(self, requests: Sequence[Request]) -> None:
        """Accept requests without waiting for an answer."""

    def poll(self, timeout: float) -> list[Completion]:
        """Return the completions since the last poll; wait up to ``timeout`` seconds for the first one.

        Raises:
            TeacherError: if no further request can succeed: no server answers, or the model failed (exit code 5).
        """

    def close(self) -> None:
        """Release the engine's resources; requests in flight are dropped."""


def completed(done: "queue.SimpleQueue[Completion | TeacherError]", timeout: float) -> list[Completion]:
    """Collect the completions of an engine's threads; wait up to ``timeout`` seconds for the first one.

    Raises:
        TeacherError: an error from a thread, raised after the completions before it have been returned.
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
    done.put(item)  # return the completed calls before the error, so that they are recorded
    return found
