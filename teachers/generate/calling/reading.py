"""Read a completion: its order, and scores if the teacher gives them."""

from teachers.engines.base import Completion, Request
from teachers.generate.calling.records import Scores
from teachers.generate.calling.teacher import Teacher
from teachers.prompts import answers as scores
from teachers.prompts import choices, replies, thoughts
from teachers.prompts import template as prompts


def read(teacher: Teacher, request: Request, completion: Completion, n: int) -> tuple[replies.Parsed, Scores]:
    """Read a completion for a window of n passages: its order, and scores if the teacher gives scores."""
    if completion.error is not None:
        return replies.Parsed(None, replies.ENGINE_ERROR), None
    reading = teacher.reading
    if reading == "scores":
        return scores.read_scores(completion.scores, n)
    template = teacher.template
    if reading == "answers" and template is not None:
        return scores.read_answers(completion.logprobs, completion.floor, template.answers, template.reads)
    if reading == "labels":
        return scores.read_labels(completion.logprobs, completion.floor, request.identifiers)
    if reading == "first":
        parsed, by_letter = replies.from_logprobs(completion.logprobs or {}, n)
        return parsed, list(by_letter)
    sampling = teacher.sampling
    parsed = read_text(teacher, completion.text or "", completion.finish_reason, n)
    found = scores.identifier_scores(completion.logprobs, request.identifiers)
    return parsed, found if sampling.logprobs else None


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
    if template.wrapped is not None:
        text = text.strip().removeprefix(template.wrapped[0]).removesuffix(template.wrapped[1])
    return replies.parse(text, n, identifiers=names, finish_reason=finish_reason, top=teacher.sampling.top)
