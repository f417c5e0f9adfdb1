"""Handle the calls of windows: render the request, compute its key, read the reply, record the call.

This module connects the prompt (teachers.prompts), the journal and the recorded answers. It does not use the store, so
Ray's workers run it too.
"""

import hashlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from labelstore.store import keys
from teachers.engines.base import Completion, Request, Sampling
from teachers.errors import TeacherError
from teachers.generate.worklist import Answers, Task
from teachers.journal.exact_json import clean
from teachers.journal.segments import Journal, Record
from teachers.prompts import answers as scores
from teachers.prompts import choices, replies, thoughts
from teachers.prompts import passages as texts
from teachers.prompts import template as prompts
from teachers.scheduling.job import Answer, Result
from teachers.strategies.by_name import Steps, Strategy, Window

Scores = list[float | None] | None

CHOICE_TOKENS = 16  # of a reply that names one passage, with a few words around it


@dataclass(frozen=True)
class Teacher:
    """A model with its prompt and sampling: together with the passages, they determine a reply.

    Attributes:
        key: content key (the store's ``teacher_key``).
        revision: revision of the weights; enters every request key.
        template: the prompt's template; None for engines that score pairs without a prompt.
        context: most tokens of prompt and reply together; None if unknown.
        keep_thoughts: whether a thinking model's thoughts are stored with its replies.
        renders: whether the prompt's token ids are made here (and keyed); a server may use another chat template.
        reading: ``text`` (a list in the grammar), ``choice`` (the best passage), ``first`` (letters ranked by the first
            token's log-probabilities), ``answers`` (a passage's score by them) or ``scores`` (a score per passage).
    """

    key: str
    revision: str
    template: prompts.Template | None
    sampling: Sampling
    context: int | None = None
    reading: str = "text"
    renders: bool = True
    keep_thoughts: bool = False


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
        marks = teacher.template.markers if teacher.template is not None else frozenset()
        self._neutralise = texts.neutraliser(special | marks)
        # A thought before the answer would be the first token, from which the score is read.
        direct = {"enable_thinking": False} if teacher.reading == "answers" else {}
        self._chat = prompts.chat_renderer(tokenizer, **direct) if tokenizer is not None else None
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
            token_ids=ids if self.teacher.renders or template.chat == "parts" else None,
            n_prompt_tokens=n_tokens,
            max_tokens=max_tokens,
            identifiers=template.answers or template.names(len(window)),
            spelling=template.spelling if template.pointwise else "",
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
                text = texts.passage(candidate.title, candidate.text, self._neutralise)
                prepared[index] = texts.without_labels(text) if self.teacher.reading == "choice" else text
        return [prepared[index] for index in window]

    def _budget(self, n: int) -> int:
        if n not in self._max_tokens:
            template = self.teacher.template
            if template is None or self.teacher.reading in ("first", "answers"):
                self._max_tokens[n] = 1
            elif self.teacher.reading == "choice":
                self._max_tokens[n] = CHOICE_TOKENS + self.teacher.sampling.think
            else:
                count = self.count if self.tokenizer is not None else _rough_tokens
                top = self.teacher.sampling.top
                answer = max(prompts.output_budget(template, n, count, top=top), 8)
                self._max_tokens[n] = answer + self.teacher.sampling.think
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
        if template.chat == "parts":
            return text, self._part_ids(messages)
        own = template.chat == "model" and self._chat is not None  # the chat template writes the first token
        return text, self._ids(text, not own)

    def _ids(self, text: str, special: bool) -> list[int]:
        """Return ``tokenizer(text)["input_ids"]``; a fast tokenizer saves a third of the time (no offsets, masks)."""
        if self._fast is None:
            ids: list[int] = self.tokenizer(text, add_special_tokens=special)["input_ids"]
            return ids
        (encoded,) = self._fast.encode_batch_fast([text], add_special_tokens=special)
        return list(encoded.ids)

    def _part_ids(self, messages: Sequence[prompts.Message]) -> list[int]:
        """Return the tokens of a prompt's parts, each encoded alone."""
        template, first = self.teacher.template, self.tokenizer.bos_token_id
        begins = template is not None and template.begins and first not in (None, self.tokenizer.pad_token_id)
        ids: list[int] = [first] if begins else []
        for message in messages:
            ids += self._ids(message["content"], False)
        return ids

    def _fit(self, query: str, shown: Sequence[str], limit: int) -> texts.Fitted:
        template = self.teacher.template
        if template is None:
            raise RuntimeError("only prompts are fitted")

        def count(passages: Sequence[str]) -> int:
            return _length(*self._encode(template.render(query, passages)))

        try:
            return texts.fit(shown, count, limit)
        except TeacherError:  # a text without spaces is one word, so cut by characters
            return texts.fit_characters(shown, count, limit)

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


def _length(text: str, ids: Sequence[int] | None) -> int:
    """Return a prompt's length in tokens; without a tokenizer a cautious estimate: English has 4 characters a token."""
    return len(ids) if ids is not None else 2 * len(text) // 7 + 1


def _rough_tokens(text: str) -> int:
    """Return an upper bound on a ranking's tokens if the tokenizer is not known: a token per digit and mark."""
    return sum(1 for c in text if not c.isspace())


def answered(key: str, done: Completion, attempt: int, parsed: replies.Parsed, found: Scores) -> Answer:
    """Make the answer that the scheduler takes from a completed call."""
    return Answer(
        call_key=key,
        status=parsed.status,
        order=list(parsed.order) if parsed.order is not None else None,
        scores=found,
        repairs=parsed.repairs,
        tokens_in=done.tokens_in,
        tokens_out=done.tokens_out,
        attempt=attempt,
        retryable=done.error is None or done.retryable,
        retry_after=done.retry_after,
        detail=clean(done.error or done.text or "")[:2000],
    )


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
        template = self.rendering.teacher.template
        if template is not None and template.thinks and completion.text is not None:
            self._part_from_thought(request, completion, completion.text)
        parsed, found = self.read(request, completion, len(window))
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
                scores=found,
                job_key=self.job_key,
                words=self._words.pop(request.key, None),
            )
        )
        answer = answered(call_key, completion, attempt, parsed, found)
        self.work.learn(request.key, answer)
        return answer

    def _part_from_thought(self, request: Request, completion: Completion, text: str) -> None:
        """Count the thought of a reply, and take it out unless thoughts are kept."""
        if request.text.rstrip().endswith(thoughts.OPEN):  # the prompt has opened the thought
            text = thoughts.OPEN + text
        thought = thoughts.split(text)
        if thought.text and completion.thought_tokens is None:
            completion.thought_tokens = self.rendering.count(thought.text)
        completion.text = text if self.rendering.teacher.keep_thoughts else thought.without_it()

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

    def read(self, request: Request, completion: Completion, n: int) -> tuple[replies.Parsed, Scores]:
        """Read a completion for a window of n passages: its order, and scores if the teacher gives scores."""
        if completion.error is not None:
            return replies.Parsed(None, replies.ENGINE_ERROR), None
        reading = self.rendering.teacher.reading
        if reading == "scores":
            return scores.read_scores(completion.scores, n)
        template = self.rendering.teacher.template
        if reading == "answers" and template is not None:
            return scores.read_answers(
                completion.logprobs, completion.floor, template.answers, template.reads
            )
        if reading == "first":
            parsed, by_letter = replies.from_logprobs(completion.logprobs or {}, n)
            return parsed, list(by_letter)
        sampling = self.rendering.teacher.sampling
        parsed = read_text(self.rendering.teacher, completion.text or "", completion.finish_reason, n)
        found = scores.identifier_scores(completion.logprobs, request.identifiers)
        return parsed, found if sampling.logprobs else None

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
    if not teacher.template.thinks:
        return _read_answer(teacher, teacher.template, text, finish_reason, n)
    thought = thoughts.split(text)
    answer = thought.answer
    if answer is not None and teacher.template.thinks == "answer":
        answer = thoughts.tagged(answer, finish_reason)
    if answer is None:
        return replies.Parsed(None, replies.TRUNCATED)
    parsed = _read_answer(teacher, teacher.template, answer, finish_reason, n)
    if thought.text is None and parsed.status == replies.REPAIRED:  # words without tags may be a thought
        cut = finish_reason == "length"
        return replies.Parsed(None, replies.TRUNCATED if cut else replies.WRONG_FORMAT)
    return parsed


def _read_answer(
    teacher: Teacher, template: prompts.Template, text: str, finish_reason: str | None, n: int
) -> replies.Parsed:
    names = template.identifiers
    if template.reads == "choice":
        return choices.parse_choice(text, n, identifiers=names, finish_reason=finish_reason)
    return replies.parse(text, n, identifiers=names, finish_reason=finish_reason, top=teacher.sampling.top)


def call_record(
    *,
    call_key: str,
    task: Task,
    window: Window,
    request: Request,
    completion: Completion,
    attempt: int,
    parsed: replies.Parsed,
    scores: Scores,
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


# Added to a row's finish reason.
OWN_COUNTS = "tokens counted here"
THOUGHT = "thought of "


def _finish(completion: Completion) -> str | None:
    """Return the engine's finish reason, with marks for a thought, and for token counts that are not the server's."""
    thought = f"{THOUGHT}{completion.thought_tokens} tokens" if completion.thought_tokens else None
    marks = (completion.finish_reason, thought, OWN_COUNTS if completion.own_counts else None)
    return "; ".join(filter(None, marks)) or None


def engine_reason(finish: str | None) -> str | None:
    """Return the engine's finish reason from a row's."""
    parts = (finish or "").split("; ")
    return "; ".join(p for p in parts if p != OWN_COUNTS and not p.startswith(THOUGHT)) or None


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
