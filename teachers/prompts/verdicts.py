"""Read verdicts on a query's negatives: which of them are as good as the positive, or relevant at all.

The prompts ask in RLHN's form: ``<better>[Doc (2)]</better>`` and ``<worse>[Doc (1)]</worse>`` inside ``<verdict>``. A reply is
``ok`` if it ends with exactly this, and ``repaired`` if the lists are written in another unambiguous way. Whatever leaves a
doubt which documents are meant is no verdict: a list in prose, a range, a number that was not shown, a document in both lists.
"""

import re
from dataclasses import dataclass

from teachers.prompts.replies import (
    MAX_ANSWER,
    OK,
    REPAIRED,
    TRUNCATED,
    WRONG_FORMAT,
    after_thinking,
    without_answer,
)

IRRELEVANT, WORSE, BETTER = 0.0, 1.0, 2.0  # as they stand in a call's scores
NAMES = {IRRELEVANT: "irrelevant", WORSE: "worse", BETTER: "better"}

_VERDICT = re.compile(r"<verdict>(.*?)</verdict>", re.I | re.S)
_LISTS = {name: re.compile(rf"<{name}>(.*?)</{name}>", re.I | re.S) for name in ("better", "worse")}
_STRICT = re.compile(
    r"\s*<better>\s*\[(?:Doc \(\d+\)(?:, Doc \(\d+\))*)?\]\s*</better>,?\s*"
    r"<worse>\s*\[(?:Doc \(\d+\)(?:, Doc \(\d+\))*)?\]\s*</worse>\s*"
)
_DOC = re.compile(r"(?:\bdoc(?:ument)?s?\b[.\s]*)?[(\[{#\"']*(\d+)[)\]}\"']*", re.I)
_LABEL = re.compile(r"^[^\[\]\d:]*:")  # e.g. "Preferred over or equally as ground truth:"
_BULLET = re.compile(r"^\s*[-*•]\s+", re.M)
_EMPTY = re.compile(r"[\s\[\](){},.;&*`\"'-]*(?:(?:none|no documents?|n/?a|empty)[\s\].]*)?", re.I)
_BETWEEN = re.compile(r"(?:[\s\[\](){},;&*`\"'.]|\band\b)*", re.I)


@dataclass(frozen=True)
class Verdict:
    """A verdict on each document shown, in order; None unless the status is ok or repaired."""

    values: list[float] | None
    status: str


def read_verdict(reply: str, n: int, finish_reason: str | None = None) -> Verdict:
    """Find the verdict of a reply about n documents. Never raises."""
    answer = after_thinking(reply)
    if answer is None:
        return Verdict(None, TRUNCATED)
    answer = answer.strip()
    if len(answer) > MAX_ANSWER:
        return Verdict(None, TRUNCATED if finish_reason == "length" else WRONG_FORMAT)
    found = _VERDICT.findall(answer)
    if not found:
        return Verdict(None, without_answer(answer, finish_reason))
    inner = found[-1]
    lists = {name: pattern.findall(inner) for name, pattern in _LISTS.items()}
    if any(len(texts) != 1 for texts in lists.values()):
        return Verdict(None, WRONG_FORMAT)
    better, worse = _named(lists["better"][0], n), _named(lists["worse"][0], n)
    if better is None or worse is None or better & worse:
        return Verdict(None, WRONG_FORMAT)
    values = [BETTER if k in better else WORSE if k in worse else IRRELEVANT for k in range(1, n + 1)]
    strict = len(found) == 1 and _STRICT.fullmatch(inner) and answer.endswith("</verdict>")
    return Verdict(values, OK if strict else REPAIRED)


def _named(text: str, n: int) -> set[int] | None:
    """Return the numbers that a list names; None if it can be read in more than one way."""
    text = _BULLET.sub("", _LABEL.sub("", text.strip(), count=1))
    if _EMPTY.fullmatch(text):
        return set()
    numbers = [int(number) for number in _DOC.findall(text) if len(number) < 6]
    if (
        not numbers
        or not _BETWEEN.fullmatch(_DOC.sub(" ", text))
        or not all(1 <= number <= n for number in numbers)
    ):
        return None
    return set(numbers)
