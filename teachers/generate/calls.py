"""Handle the calls of windows: render the request, compute its key, read the reply, record the call.

This module connects the prompt (teachers.prompts), the journal and the recorded answers. It does not use the store, so
Ray's workers run it too.
"""

import hashlib
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from labelstore.store import keys
from teachers.engines.base import Completion, Request, Sampling
from teachers.errors import ExitCode, TeacherError
from teachers.generate.worklist import Answers, Task
from teachers.journal.exact_json import clean
from teachers.journal.segments import Journal, Record
from teachers.prompts import passages as texts
from teachers.prompts import replies
from teachers.prompts import template as prompts
from teachers.scheduling.job import Answer, Result
from teachers.strategies.by_name import Steps, Strategy, Window


@dataclass(frozen=True)
class Teacher:
    """A model with its prompt and sampling: together with the passages, they determine a reply.

    Attributes:
        key: content key (the store's ``teacher_key``).
        revision: revision of the weights; enters every request key.
        template: the prompt's template; None for engines that score pairs without a prompt.
        context: most tokens of prompt and reply together; None if unknown.
        renders: whether the prompt's token ids are made here (and keyed); a server may use another chat template.
        reading: ``text`` (a list in the grammar), ``first`` (letters ranked by the first token's log-probabilities)
            or ``scores`` (a score per passage).
    """

    key: str
    revision: str
    template: prompts.Template | None
    sampling: Sampling
    context: int | None = None
    reading: str = "text"
    renders: bool = True


class Rendering:
    """Render windows into requests, with the model's tokenizer if it is known.

    Args:
        tokenizer: a Hugging Face tokenizer. None: lengths are estimated from the text, and the key is over the text.
        context: the engine's limit of prompt and reply; the lower of it and the teacher's limit applies.
    """

    def __init__(self, teacher: Teacher, tokenizer: Any = None, context: int | None = None) -> None:
        self.teacher = teacher
        known = [limit for limit in (teacher.context, context) if limit is not None]
        self.context = min(known, default=None)
        self.tokenizer = tokenizer
        special = texts.special_tokens(tokenizer) if tokenizer is not None else frozenset()
        self._neutralise = texts.neutraliser(special)
        self._chat = prompts.chat_renderer(tokenizer) if tokenizer is not None else None
        self._fast = tokenizer.backend_tokenizer if getattr(tokenizer, "is_fast", False) else None
        if self._fast is not None:  # as in a call without options: no truncation, no padding
            self._fast.no_truncation()
            self._fast.no_padding()
        self._max_tokens: dict[int, int] = {}
        self._key_head = keys.canonical_json(
            {"revision": teacher.revision, "sampling": teacher.sampling.key(), "reading": teacher.reading}
        ).encode()

    def request(self, task: Task, window: Window) -> tuple[Request, int | None]:
        """Return the request for these candidates, and the words kept per passage if the context forced a cut.

        Raises:
            TeacherError: if even shortened passages do not fit the context.
        """
        template = self.teacher.template
        if template is None:
            return self._pair_request(task, window), None
        if task.query_text is None:
            task.query_text = texts.query(task.text, self._neutralise)
        shown = self._prepared(task, window)
        max_tokens = self._budget(len(window))
        messages = template.render(task.query_text, shown)
        text, ids = self._encode(messages)
        n_tokens, words = _length(text, ids), None
        if self.context is not None and n_tokens + max_tokens > self.context:
            fitted = self._fit(task.query_text, shown, self.context - max_tokens)
            words = fitted.words
            messages = template.render(task.query_text, fitted.passages)
            text, ids = self._encode(messages)
            n_tokens = _length(text, ids)
        request = Request(
            key=self._key(ids, messages, max_tokens),
            messages=messages,
            text=text,
            prefix=template.prefill,
            raw=template.chat != "model",
            token_ids=ids if self.teacher.renders else None,
            n_prompt_tokens=n_tokens,
            max_tokens=max_tokens,
            identifiers=self._identifiers(len(window)),
        )
        return request, words

    def count(self, text: str) -> int:
        """Count the tokens of a text (an estimate without a tokenizer)."""
        if self.tokenizer is None:
            return _length(text, None)
        return len(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def max_tokens(self, n: int) -> int:
        """Return the tokens reserved for the reply to a window of n passages."""
        return self._budget(n) if self.teacher.template is not None else 0

    def _prepared(self, task: Task, window: Window) -> list[str]:
        prepared = task.prepared
        for index in window:
            if index not in prepared:
                candidate = task.candidates[index]
                prepared[index] = texts.passage(candidate.title, candidate.text, self._neutralise)
        return [prepared[index] for index in window]

    def _identifiers(self, n: int) -> Sequence[str]:
        template = self.teacher.template
        return () if template is None else template.names(n)

    def _budget(self, n: int) -> int:
        if n not in self._max_tokens:
            template = self.teacher.template
            if template is None or self.teacher.reading == "first":
                self._max_tokens[n] = 1
            else:
                count = self.count if self.tokenizer is not None else _rough_tokens
                top = self.teacher.sampling.top
                self._max_tokens[n] = max(prompts.output_budget(template, n, count, top=top), 8)
        return self._max_tokens[n]

    def _encode(self, messages: Sequence[prompts.Message]) -> tuple[str, list[int] | None]:
        template = self.teacher.template
        if template is None:
            raise RuntimeError("only prompts are encoded")
        if self.tokenizer is None:
            if template.chat != "model":
                return template.text(messages), None
            return "\n".join(message["content"] for message in messages) + template.prefill, None
        text = template.text(messages, self._chat)
        own = template.chat == "model" and self._chat is not None  # the chat template writes the first token
        return text, self._ids(text, not own)

    def _ids(self, text: str, special: bool) -> list[int]:
        """Return ``tokenizer(text)["input_ids"]``; a fast tokenizer saves a third of the time (no offsets, masks)."""
        if self._fast is None:
            ids: list[int] = self.tokenizer(text, add_special_tokens=special)["input_ids"]
            return ids
        (encoded,) = self._fast.encode_batch_fast([text], add_special_tokens=special)
        return list(encoded.ids)

    def _fit(self, query: str, shown: Sequence[str], limit: int) -> texts.Fitted:
        template = self.teacher.template
        if template is None:
            raise RuntimeError("only prompts are fitted")

        def count(passages: Sequence[str]) -> int:
            return _length(*self._encode(template.render(query, passages)))

        try:
            return texts.fit(shown, count, limit)
        except TeacherError:  # a text without spaces is one word, so cut by characters
            return fit_characters(shown, count, limit)

    def _key(self, ids: list[int] | None, messages: Sequence[prompts.Message], max_tokens: int) -> str:
        digest = hashlib.blake2b(b"msft:request:", digest_size=16)
        digest.update(self._key_head)
        if ids is not None and self.teacher.renders:
            digest.update(f":{max_tokens}:ids:".encode() + array("I", ids).tobytes())
            return digest.hexdigest()
        digest.update(
            f":{max_tokens}:chat:".encode()
        )  # the server renders the chat, so the key is over the messages
        for message in messages:
            content = message["content"].encode("utf-8", "surrogatepass")
            digest.update(f"{message['role']}:{len(content)}:".encode() + content)
        return digest.hexdigest()

    def _pair_request(self, task: Task, window: Window) -> Request:
        shown = []
        for index in window:
            candidate = task.candidates[index]
            title = (candidate.title or "").strip()
            shown.append(f"{title} {candidate.text}" if title else candidate.text)
        digest = hashlib.blake2b(b"msft:request:", digest_size=16)
        digest.update(self._key_head)
        for text in (task.text, *shown):
            digest.update(b"\x00" + text.encode("utf-8", "surrogatepass"))
        words = sum(len(text.split()) for text in shown)
        return Request(
            key=digest.hexdigest(),
            query=task.text,
            passages=shown,
            n_prompt_tokens=words + len(shown) * len(task.text.split()),
        )


FLOOR_CHARACTERS = 40


def fit_characters(
    passages: Sequence[str], count_prompt_tokens: Callable[[Sequence[str]], int], limit: int
) -> texts.Fitted:
    """Cut passages to the largest number of characters that fits; for texts that have no word boundaries.

    Raises:
        TeacherError: if the prompt does not fit with 40 characters each.
    """
    low, high = FLOOR_CHARACTERS, max(map(len, passages))
    best = [text[:low] for text in passages]
    tokens = count_prompt_tokens(best)
    if tokens > limit:
        raise TeacherError(
            f"{len(passages)} passages of {low} characters take {tokens} tokens, and {limit} are left of the context",
            hint="give a smaller --window, or a model with a longer context",
            exit_code=ExitCode.TEACHER_ENGINE,
        )
    while low < high - 1:
        middle = (low + high) // 2
        shorter = [text[:middle] for text in passages]
        n_tokens = count_prompt_tokens(shorter)
        if n_tokens <= limit:
            low, best, tokens = middle, shorter, n_tokens
        else:
            high = middle
    words = max(len(text.split(" ")) for text in best)
    return texts.Fitted(tuple(best), words, tokens)


def _length(text: str, ids: Sequence[int] | None) -> int:
    """Return a prompt's length in tokens; without a tokenizer a cautious estimate: English has 4 characters a token."""
    return len(ids) if ids is not None else 2 * len(text) // 7 + 1


def _rough_tokens(text: str) -> int:
    """Return an upper bound on a ranking's tokens if the tokenizer is not known: a token per digit and mark."""
    return sum(1 for c in text if not c.isspace())


@dataclass
class Labelling:
    """The scheduler's job: render with the model's prompt, read replies, record every call in the journal.

    Attributes:
        strategy: the strategy that selects the windows.
        fuse: whether to order by the summed reciprocal ranks of the teacher's order and the run's order.
        fuse_weight: weight of the teacher in that sum; the run has the rest.
    """

    job_key: str
    rendering: Rendering
    strategy: Strategy
    journal: Journal
    work: Answers
    fuse: bool = False
    fuse_weight: float = 0.5
    # Words per passage, for shortened requests in flight.
    _words: dict[str, int] = field(default_factory=dict)

    def start(self, task: Task) -> Steps:
        return self.strategy.steps(len(task.candidates))

    def calls(self, task: Task) -> int:
        return self.strategy.calls(len(task.candidates)).most

    def render(self, task: Task, window: Window) -> Request:
        request, words = self.rendering.request(task, window)
        if words is not None:
            self._words[request.key] = words
        return request

    def known(self, request: Request) -> Answer | None:
        return self.work.known(request.key)

    def receive(
        self, task: Task, step: int, window: Window, request: Request, completion: Completion, attempt: int
    ) -> Answer:
        parsed, scores = self.read(request, completion, len(window))
        call_key = keys.content_key("call", [request.key, self.job_key, attempt, 0])
        self.journal.append(
            call_record(
                call_key=call_key,
                task=task,
                window=window,
                request=request,
                completion=completion,
                attempt=attempt,
                parsed=parsed,
                scores=scores,
                job_key=self.job_key,
                words=self._words.pop(request.key, None),
            )
        )
        answer = Answer(
            call_key=call_key,
            status=parsed.status,
            order=list(parsed.order) if parsed.order is not None else None,
            scores=scores,
            repairs=parsed.repairs,
            tokens_in=completion.tokens_in,
            tokens_out=completion.tokens_out,
            attempt=attempt,
            retryable=completion.error is None or completion.retryable,
            retry_after=completion.retry_after,
            detail=clean(completion.error or completion.text or "")[:2000],
        )
        self.work.learn(request.key, answer)
        return answer

    def finish(self, task: Task, result: Result) -> None:
        self.journal.append(
            permutation_record(task, result, self._final(task, result), self.rendering.teacher)
        )

    def quarantine(self, task: Task, step: int, answer: Answer) -> None:
        self.journal.append(
            {
                "t": "quarantine",
                "query_id": task.query_id,
                "step": step,
                "reason": answer.status,
                "detail": answer.detail,
                "attempts": answer.attempt,
            }
        )

    def read(
        self, request: Request, completion: Completion, n: int
    ) -> tuple[replies.Parsed, list[float | None] | None]:
        """Read a completion for a window of n passages: its order, and scores if the teacher gives scores."""
        if completion.error is not None:
            return replies.Parsed(None, replies.ENGINE_ERROR), None
        reading = self.rendering.teacher.reading
        if reading == "scores":
            return read_scores(completion.scores, n)
        if reading == "first":
            parsed, by_letter = replies.from_logprobs(completion.logprobs or {}, n)
            return parsed, list(by_letter)
        sampling = self.rendering.teacher.sampling
        parsed = read_text(self.rendering.teacher, completion.text or "", completion.finish_reason, n)
        scores = identifier_scores(completion.logprobs, request.identifiers) if sampling.logprobs else None
        return parsed, scores

    def _final(self, task: Task, result: Result) -> Sequence[int]:
        """Return the query's order, fused with the run's if requested; fused scores then replace the teacher's."""
        order = result.ranked.order
        if not self.fuse:
            return order
        own = self.fuse_weight  # doubled below, so that 0.5 gives the plain sum
        fused = {
            index: 2 * (own / (60 + rank) + (1 - own) / (60 + task.candidates[index].initial_rank))
            for rank, index in enumerate(order, start=1)
        }
        result.scores = [fused[index] for index in range(len(task.candidates))]
        return sorted(order, key=lambda index: -fused[index])


def read_text(teacher: Teacher, text: str, finish_reason: str | None, n: int) -> replies.Parsed:
    """Parse a text reply to a window of n passages."""
    if teacher.template is None:
        raise RuntimeError("replies in text need a template")
    return replies.parse(
        text,
        n,
        identifiers=teacher.template.identifiers,
        finish_reason=finish_reason,
        top=teacher.sampling.top,
    )


def read_scores(scores: Sequence[float] | None, n: int) -> tuple[replies.Parsed, list[float | None] | None]:
    """Turn a score per passage into an order; ties keep the prior order, a NaN makes the call unusable."""
    if scores is None or len(scores) != n or any(score != score for score in scores):
        return replies.Parsed(None, replies.WRONG_FORMAT), None
    order = sorted(range(n), key=lambda position: -scores[position])
    return replies.Parsed(tuple(order), replies.OK), [float(score) for score in scores]


def identifier_scores(
    logprobs: Mapping[str, float] | None, identifiers: Sequence[str]
) -> list[float | None] | None:
    """Return each identifier's log-probability at the first generated position.

    The engine reports the alternatives by identifier. If identifiers share a first token (1 and 10 with split digits),
    the engine reports neither of them.
    """
    if not logprobs:
        return None
    return [logprobs.get(identifier) for identifier in identifiers]


def call_record(
    *,
    call_key: str,
    task: Task,
    window: Window,
    request: Request,
    completion: Completion,
    attempt: int,
    parsed: replies.Parsed,
    scores: list[float | None] | None,
    job_key: str,
    words: int | None,
) -> Record:
    """Make the journal record of a completed call, with text ids and content keys, so that any store can merge it."""
    doc_ids, _, _, hashes, _ = zip(*map(task.candidates.__getitem__, window), strict=True)
    return {
        "t": "call",
        "key": call_key,
        "request": request.key,
        "job": job_key,
        "query_id": task.query_id,
        "docs": doc_ids,
        "hashes": hashes,
        "prompt_tokens": request.n_prompt_tokens,
        "words": words,
        "attempt": attempt,
        "sample": 0,
        "status": parsed.status,
        "reply": _clean(completion.error if completion.error is not None else completion.text),
        "parsed": [position + 1 for position in parsed.order] if parsed.order is not None else None,
        "scores": scores,
        "missing": parsed.n_missing,
        "repeated": parsed.n_repeated,
        "out_of_range": parsed.n_out_of_range,
        "finish": _finish(completion),
        "in": completion.tokens_in,
        "out": completion.tokens_out,
        "seconds": round(completion.seconds, 6),
        "server": completion.server,
        "retryable": completion.error is None or completion.retryable,
        "at": datetime.now(UTC).isoformat(),
    }


def _clean(text: str | None) -> str | None:
    return None if text is None else clean(text)


OWN_COUNTS = "tokens counted here"  # added to a row's finish reason


def _finish(completion: Completion) -> str | None:
    """Return the engine's finish reason, with a mark if the token counts are not the server's."""
    if not completion.own_counts:
        return completion.finish_reason
    return "; ".join(filter(None, (completion.finish_reason, OWN_COUNTS)))


def permutation_record(task: Task, result: Result, order: Sequence[int], teacher: Teacher) -> Record:
    """Make the journal record of a query's merged order."""
    doc_ids, _, _, hashes, initial = zip(*map(task.candidates.__getitem__, order), strict=True)
    return {
        "t": "permutation",
        "query_id": task.query_id,
        "docs": doc_ids,
        "hashes": hashes,
        "initial": initial,
        "scores": None if result.scores is None else [result.scores[index] for index in order],
        "status": result.status,
        "repairs": result.repairs,
        "calls": result.calls,
        "in": result.tokens_in,
        "out": result.tokens_out,
        "disagreement": result.ranked.disagreement,
        "settled": settled(result, teacher.sampling.top),
    }


def settled(result: Result, top: int | None) -> int | None:
    """Return how many first places the teacher decided: the strategy's settled places, at most `top`."""
    known = [places for places in (result.ranked.settled, top) if places is not None]
    least = min(known, default=None)
    return least if least is not None and least < len(result.ranked.order) else None


def check_reading(template: prompts.Template, reading: str, window: int) -> None:
    """Refuse a reading that the prompt does not support.

    Raises:
        TeacherError: if single-token scoring is requested with numbered passages, or with a window beyond 26 letters.
    """
    if reading == "first" and (template.identifiers != "letters" or window > 26):
        raise TeacherError(
            f"single-token scoring needs passages named by letters, at most 26; {template.ident} has"
            f" {template.identifiers} and the window {window}",
            hint="--model first, or --window 20",
            exit_code=ExitCode.USAGE,
        )
