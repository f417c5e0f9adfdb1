"""Read replies about one passage: a query, or a grade from 0 to 3.

A reply is ``ok`` if it is only what the prompt asks for, ``repaired`` if that stands inside other words. Without it there is
no query and no grade: never an empty query, never a 0.
"""

import re
from dataclasses import dataclass, replace

from teachers.prompts.passages import clean
from teachers.prompts.replies import (
    ENGINE_ERROR,
    MAX_ANSWER,
    OK,
    REFUSED,
    REPAIRED,
    TRUNCATED,
    WRONG_FORMAT,
    after_thinking,
    without_answer,
)

GRADES = range(4)
MAX_QUERY_WORDS = 100

_LABEL = re.compile(
    r"^(?:[-*•>#\s]|\d{1,2}[.)]\s)*(?:\*\*)?(?:(?:relevant|search|good|possible|generated|sample)\s+)?(?:query|question)"
    r"(?:\s*\d{1,2})?(?:\*\*)?\s*[:：]\s*(?:\*\*)?",
    re.I,
)
_BULLET = re.compile(r"^(?:[-*•>#]\s+|\d{1,2}[.)]\s+)+")
_QUOTES = "\"'“”‘’`*_«»"
_FENCE = re.compile(r"^\s*```")

# A line that is no query. Only its beginning tells: people do search for "connection refused" or "what if I can't sleep".
_REFUSES = re.compile(
    r"(?:(?:i(?:'|’)?m|i am|we(?:'|’)?re) (?:sorry|unable|not able)|sorry[,.!]|i (?:can(?:'|’)?t|cannot|can not|won(?:'|’)?t)\b"
    r"|i apologi[sz]e|my apologies|as an? (?:ai|language)\b|unfortunately[, ])",
    re.I,
)
_FAILS = re.compile(r"(?:error\b\s*[:\d]|http(?: error)? \d{3}|traceback \(|\{|<!doctype|<html)", re.I)

# UMBRELA's patterns, from the strictest on; the last match of the first pattern that matches counts.
_N = r"[\s*_:=\"'`(\[]{0,9}(?:is\b|of\b|as\b)?[\s*_:=\"'`(\[]{0,9}(-?\d+(?:\.\d+)?)"
_STRICT_GRADE = re.compile(r"#*\s*final score\s*:\s*([0-3])\s*\.?", re.I)
_GRADES = tuple(
    re.compile(pattern, re.I)
    for pattern in (
        rf"final[\s_-]+(?:relevance[\s_-]+)?(?:score|grade|category|answer|rating)(?:\s*\(O\))?{_N}",
        rf"(?<![\w'])\"?O\"?\)?\s*[:=]{_N}",
        r"(?:\A|\n)[ \t*_`\"'(#]*(-?\d+(?:\.\d+)?)[\s*_`\"').]*\Z",  # alone on the last line
        rf"(?:relevance|overall)[\s_-]+(?:score|grade|category|level|rating){_N}",
        rf"\b(?:score|category|grade|rating|relevance){_N}",
    )
)


@dataclass(frozen=True)
class Query:
    """A query in a reply; the text is None unless the status is ok or repaired."""

    text: str | None
    status: str


@dataclass(frozen=True)
class Grade:
    """A grade in a reply; None unless the status is ok or repaired."""

    grade: int | None
    status: str


@dataclass(frozen=True)
class Queries:
    """The different queries of a reply; none unless the status is ok or repaired."""

    texts: tuple[str, ...]
    status: str


def read_queries(reply: str, wanted: int, finish_reason: str | None = None) -> Queries:
    """Find up to `wanted` queries of a reply, a line each; fewer make it ``repaired``. Never raises."""
    first = read_query(reply, finish_reason)
    if wanted == 1 or first.text is None:
        return Queries(() if first.text is None else (first.text,), first.status)
    found: dict[str, None] = {}
    lines = _lines(after_thinking(reply[:MAX_ANSWER]) or "")
    for k in range(len(lines)):
        one = _first(lines[k:], finish_reason, alone=True)
        if one is not None and one.text is not None:
            found.setdefault(one.text)
    texts = tuple(found)[:wanted]
    return Queries(texts, OK if list(texts) == lines and len(texts) == wanted else REPAIRED)


def read_query(reply: str, finish_reason: str | None = None) -> Query:
    """Find the query of a reply: its first line that is neither a label nor an introduction. Never raises."""
    answer = after_thinking(reply[:MAX_ANSWER])
    if answer is None:
        return Query(None, TRUNCATED)
    found = _first(_lines(answer), finish_reason)
    if found is None:
        return Query(None, without_answer(answer, finish_reason))
    return replace(found, status=OK) if found.text == answer.strip() else found


def _lines(answer: str) -> list[str]:
    return [line.strip() for line in answer.strip().splitlines() if line.strip() and not _FENCE.match(line)]


def _first(lines: list[str], finish_reason: str | None, *, alone: bool = False) -> Query | None:
    """Read the first line that is neither a label nor an introduction; `alone`: the first line, if it is none of these."""
    for k, line in enumerate(lines[:1] if alone else lines):
        text = _bare(line)
        if not text or (text.endswith((":", "：")) and k + 1 < len(lines)):
            continue
        if finish_reason == "length" and k + 1 == len(lines):
            return Query(None, TRUNCATED)
        if _REFUSES.match(text) or _FAILS.match(text):
            return Query(None, REFUSED if _REFUSES.match(text) else ENGINE_ERROR)
        if len(text.split()) > MAX_QUERY_WORDS or not any(c.isalnum() for c in text):
            return Query(None, WRONG_FORMAT)
        return Query(text, REPAIRED)
    return None


def _bare(line: str) -> str:
    """Take labels, bullets and quotes off a line, and clean it."""
    text = clean(_LABEL.sub("", line), MAX_QUERY_WORDS + 1)
    text = _BULLET.sub("", text).strip()
    while len(text) > 1 and text[0] in _QUOTES and text[-1] in _QUOTES:
        text = text[1:-1].strip()
    return text


def read_grade(reply: str, finish_reason: str | None = None) -> Grade:
    """Find the grade of a reply. Never raises; a number outside the scale is no grade."""
    answer = after_thinking(reply)
    if answer is None:
        return Grade(None, TRUNCATED)
    answer = answer.strip()
    if len(answer) > MAX_ANSWER:
        return Grade(None, TRUNCATED if finish_reason == "length" else WRONG_FORMAT)
    if found := _STRICT_GRADE.fullmatch(answer):
        return Grade(int(found[1]), OK)
    for pattern in _GRADES:
        if values := pattern.findall(answer):
            return _in_scale(values[-1])
    return Grade(None, without_answer(answer, finish_reason))


def _in_scale(value: str) -> Grade:
    number = float(value)
    if number.is_integer() and int(number) in GRADES:
        return Grade(int(number), REPAIRED)
    return Grade(None, WRONG_FORMAT)
