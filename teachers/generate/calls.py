"""Handle the calls of windows: render the request, compute its key, read the reply, record the call.

This module connects the prompt (teachers.prompts), the journal and the recorded answers. It does not use the store, so
Ray's workers run it too.
"""

import hashlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from labelstore.store import keys
from teachers.engines.base import Completion, Request
from teachers.errors import TeacherError
from teachers.generate.calling import examples
from teachers.generate.calling.fusing import Fusion
from teachers.generate.calling.reading import read
from teachers.generate.calling.records import answered, call_record, permutation_record
from teachers.generate.calling.teacher import Teacher
from teachers.generate.worklist import Answers, Task
from teachers.journal.segments import Journal
from teachers.prompts import passages as texts
from teachers.prompts import template as prompts
from teachers.prompts import thoughts
from teachers.scheduling.job import Answer, Result
from teachers.strategies.by_name import Steps, Strategy, Window

_PARTS = 256  # parts of prompts whose tokens are remembered
CHOICE_TOKENS = 16  # of a reply that names one passage, with a few words around it


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
        direct = {"enable_thinking": False} if teacher.reading in ("answers", "labels") else {}
        self._chat = prompts.chat_renderer(tokenizer, **direct) if tokenizer is not None else None
        self._fast = tokenizer.backend_tokenizer if getattr(tokenizer, "is_fast", False) else None
        if self._fast is not None:  # as in a call without options: no truncation, no padding
            self._fast.no_truncation()
            self._fast.no_padding()
        self._choice = teacher.template is not None and teacher.template.reads == "choice"
        self._examples: list[tuple[int, list[prompts.Message]]] = []
        if teacher.template is not None and teacher.examples:
            fix = texts.without_labels if self._choice else str
            written = examples.messages(teacher.template, teacher.examples, self._neutralise, fix)
            self._examples = [
                (example.normal_hash, turns) for example, turns in zip(teacher.examples, written, strict=True)
            ]
        self._max_tokens: dict[int, int] = {}
        # The calls of a query differ in the passage alone.
        self._part = lru_cache(_PARTS)(lambda text: self._ids(text, False))
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
        scores = _first_stage_scores(template, task, window)
        messages = self._question(task, shown, scores)
        text, ids = self._encode(messages)
        n_tokens, words = _length(text, ids), None
        if self.context is not None and n_tokens + max_tokens > self.context:
            fitted = self._fit(task, shown, scores, self.context - max_tokens)
            words = fitted.words
            messages = self._question(task, fitted.passages, scores)
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
            spelling=self._spelling(template),
            after=self._after(template),
        )
        return request, words

    def _spelling(self, template: prompts.Template) -> str:
        """Return how the tokens spell what the score is read from; empty for other readings."""
        if template.answers:
            return template.spelling
        return "cased" if self.teacher.reading == "labels" else ""

    def _after(self, template: prompts.Template) -> tuple[str, ...]:
        """Return the marks after which a constrained reply begins: those that end the thought, and begin the answer."""
        if self.teacher.sampling.constraint is None or not template.thinks:
            return ()
        return (thoughts.CLOSE, thoughts.ANSWER) if template.thinks == "answer" else (thoughts.CLOSE,)

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
                prepared[index] = texts.without_labels(text) if self._choice else text
        return [prepared[index] for index in window]

    def _budget(self, n: int) -> int:
        if n not in self._max_tokens:
            template = self.teacher.template
            if template is None or self.teacher.reading in ("first", "answers", "labels"):
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
            ids += self._part(message["content"])
        last = self.tokenizer.eos_token_id
        return [*ids, last] if template is not None and template.ends and last is not None else ids

    def _question(self, task: Task, shown: Sequence[str], scores: Sequence[float]) -> list[prompts.Message]:
        """Render the question about these passages, after the examples if there are any."""
        template = self.teacher.template
        if template is None or task.query_text is None:
            raise RuntimeError("only prompts are rendered, with a query that is prepared")
        asked = template.render(task.query_text, shown, scores)
        if not self._examples:
            return asked
        own = keys.normal_hash(task.text)
        others = [turns for normal_hash, turns in self._examples if normal_hash != own]
        system = [turn for turn in asked if turn["role"] == "system"]
        before = [turn for turns in others[: len(self._examples) - 1] for turn in turns]
        return [*system, *before, *asked[len(system) :]]

    def _fit(self, task: Task, shown: Sequence[str], scores: Sequence[float], limit: int) -> texts.Fitted:
        def count(passages: Sequence[str]) -> int:
            return _length(*self._encode(self._question(task, passages, scores)))

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


def _first_stage_scores(template: prompts.Template, task: Task, window: Window) -> list[float]:
    """Return the scores of a window's candidates for a prompt that shows them; none for others."""
    found = (task.candidates[index].score for index in window) if template.scored else ()
    return [score for score in found if score is not None]


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
        fusion: how the teacher's order is fused with the run's; None: not at all.
    """

    job_key: str
    rendering: Rendering
    strategy: Strategy
    journal: Journal
    work: Answers
    fusion: Fusion | None = None
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
        parsed, found = read(self.rendering.teacher, request, completion, len(window))
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

    def _final(self, task: Task, result: Result) -> Sequence[int]:
        """Return the query's order, fused with the run's if requested; fused scores then replace the teacher's."""
        order = result.ranked.order
        if self.fusion is None:
            return order
        fused = self.fusion.scores(task, result)
        result.scores = list(fused)
        return sorted(order, key=lambda index: -fused[index])
