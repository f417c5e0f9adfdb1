"""What an OpenAI-compatible server is asked, and what its answer says: the same for calls and for batches of them."""

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from teachers.engines.base import Completion, Request, Sampling
from teachers.engines.openai_answer import MAX_REASON, Answer, BadAnswer, as_text, load, plausible_count, read
from teachers.engines.openai_server import Mask, Server
from teachers.engines.spelling import ARGUMENT, constraint
from teachers.prompts.answers import by_answer

_SLACK_IN, _SLACK_OUT = 4096, 32_768  # a server's extra tokens in a prompt, and of thinking in a reply


class Chat:
    """Requests for one model by its name, and completions from answers.

    Args:
        tokenizer: the model's tokenizer, for counts that a server does not send; None if it is not known.
    """

    def __init__(self, model: str, sampling: Sampling, tokenizer: Any = None) -> None:
        self._model, self._sampling, self.tokenizer = model, sampling, tokenizer
        self._constraints: dict[tuple[Any, ...], dict[str, Any]] = {}

    def body(self, official: bool, request: Request) -> dict[str, Any]:
        """Return the request's body; `official` is OpenAI's own service."""
        sampling = self._sampling
        body: dict[str, Any] = {"model": self._model, "temperature": sampling.temperature}
        body["max_completion_tokens" if official else "max_tokens"] = request.max_tokens
        if sampling.top_p != 1.0:
            body["top_p"] = sampling.top_p
        if sampling.seed is not None:
            body["seed"] = sampling.seed + request.sample
        if sampling.constraint is not None:
            body |= self._constraint(request)
        if request.raw:
            body["prompt"] = request.text if request.token_ids is None else list(request.token_ids)
            if sampling.logprobs:
                body["logprobs"] = sampling.logprobs
            return body
        body["messages"] = [dict(message) for message in request.messages]
        if request.prefix:  # vLLM and SGLang continue a last assistant message with these fields
            body["messages"].append({"role": "assistant", "content": request.prefix})
            body |= {"continue_final_message": True, "add_generation_prompt": False}
        if sampling.logprobs:
            body |= {"logprobs": True, "top_logprobs": sampling.logprobs}
        elif sampling.mean_logprob:
            body["logprobs"] = True
        if request.spelling and not official:  # a thought would be the first token
            body["chat_template_kwargs"] = {"enable_thinking": False}
        return body

    def _constraint(self, request: Request) -> dict[str, Any]:
        """Return the request fields for a vLLM server with the logits processor of teachers.engines.constrained."""
        shown = (tuple(request.identifiers), request.prefix, request.after)
        if shown not in self._constraints:
            given = constraint(
                self.tokenizer, request.identifiers, request.prefix, self._sampling.top, request.after
            )
            self._constraints[shown] = {
                "vllm_xargs": {ARGUMENT: json.dumps(given)},
                "stop_token_ids": [given["end"]],
            }
        return self._constraints[shown]

    def completion(self, request: Request, submitted: float, server: Server, content: bytes) -> Completion:
        """Make the completion of a request from the body of an answer.

        Raises:
            BadAnswer: if it is no completion.
        """
        answer = read(content, request.raw)
        prompt = request.text or "".join(message["content"] for message in request.messages)
        most_in = max(len(prompt.encode("utf-8", "surrogatepass")), request.n_prompt_tokens) + _SLACK_IN
        most_out = max(request.max_tokens, len(answer.text.encode())) + _SLACK_OUT
        tokens_in = plausible_count(answer.tokens_in, prompt, most_in)
        tokens_out = plausible_count(answer.tokens_out, answer.text, most_out)
        reason = server.mask.reply(answer.finish_reason or "")[:MAX_REASON] or None
        logprobs, floor = _read_logprobs(answer.logprobs, request)
        text = _with_thought(answer) if self._sampling.think else answer.text
        return Completion(
            ticket=request.ticket,
            text=server.mask.reply(text),
            finish_reason=reason,
            tokens_in=request.n_prompt_tokens if tokens_in is None else tokens_in,
            tokens_out=self._n_tokens(text) if tokens_out is None else tokens_out,
            own_counts=tokens_in is None or tokens_out is None,
            seconds=time.monotonic() - submitted,
            server=server.label,
            thought_tokens=answer.thought_tokens if self._sampling.think else None,
            logprobs=logprobs,
            floor=floor,
            mean_logprob=answer.mean_logprob,
        )

    def _n_tokens(self, text: str) -> int:
        """Count a reply's tokens if the server sent no count: by the tokenizer, otherwise four bytes a token."""
        if self.tokenizer is not None:
            return len(self.tokenizer.encode(text, add_special_tokens=False))
        return -(-len(text.encode("utf-8", "replace")) // 4)


def failure(request: Request, submitted: float, server: Server, message: str) -> Completion:
    """Make the completion of a request that failed, with secrets masked."""
    return Completion(
        ticket=request.ticket,
        error=server.mask.message(message),
        seconds=time.monotonic() - submitted,
        server=server.label,
    )


def error_message(mask: Mask, content: bytes) -> str:
    """Return the message of an error response, with secrets masked."""
    try:
        sent = load(content)
    except BadAnswer:
        sent = content.decode("utf-8", "replace")
    error = sent.get("error", sent) if isinstance(sent, dict) else sent
    code = error.get("code") if isinstance(error, dict) else None
    message = (error.get("message") or error) if isinstance(error, dict) else error
    said = [" ".join(mask.message(as_text(part)).split()) for part in (message, code or "")]
    return said[0][:500] + (f" ({said[1][:100]})" if said[1] else "")


def _with_thought(answer: Answer) -> str:
    """Return a reply with the thought that the server kept apart; a reply that was cut within it has no end of it."""
    if answer.thought is None:
        return answer.text
    cut = answer.finish_reason == "length" and not answer.text
    return f"<think>{answer.thought}" + ("" if cut else f"</think>{answer.text}")


def _read_logprobs(
    logprobs: Mapping[str, float] | None, request: Request
) -> tuple[dict[str, float] | None, float | None]:
    """Return log-probabilities by identifier or answer, and the bound for answers that are not among them."""
    if not logprobs:
        return None, None
    if request.spelling:
        return by_answer(logprobs, request.identifiers, request.spelling)
    return _by_identifier(logprobs, request.identifiers), None


def _by_identifier(logprobs: Mapping[str, float], identifiers: Sequence[str]) -> dict[str, float]:
    """Return log-probabilities by identifier.

    A number that begins another number is left out, because its token may be only a first digit.
    """
    plain: dict[str, float] = {}
    for token, value in logprobs.items():
        name = token.replace("▁", " ").replace("Ġ", " ").strip()
        plain[name] = max(value, plain.get(name, -float("inf")))
    whole = [
        name
        for name in identifiers
        if not any(other != name and other.startswith(name) for other in identifiers)
    ]
    return {name: plain[name] for name in whole if name in plain}
