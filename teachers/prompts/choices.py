"""Parse a reply that names the best of a few passages: ``B``, ``Passage B``, ``[2]``.

A reply that is such a label and nothing else is ``ok``. A label inside other words is ``repaired`` if it is the only one that
the reply names; if the reply names several, it does not say which is meant, and it is ``wrong_format``.
"""

import re
from string import ascii_uppercase

from teachers.prompts.replies import (
    OK,
    REPAIRED,
    TRUNCATED,
    WRONG_FORMAT,
    Parsed,
    after_thinking,
    without_answer,
)

_LABEL = {"letters": "[A-Z]", "numbers": r"\d{1,6}"}
_TITLE = r"(?i:passage|document|doc|text)"
_OPEN, _CLOSE = r"[\[(\"'*`\s]{0,4}", r"[\])\"'*`\s]{0,4}"
_ONLY = {
    kind: re.compile(rf"[\s\"'*`]*(?:{_TITLE}\s*:?\s*)?{_OPEN}({label}){_CLOSE}[.:]?[\s\"'*`]*")
    for kind, label in _LABEL.items()
}
_NAMED = {
    kind: re.compile(rf"{_TITLE}\s*:?{_OPEN}({label})(?![\w'’])|\[\s*({label})\s*\]")
    for kind, label in _LABEL.items()
}


def parse_choice(
    text: str, n: int, *, identifiers: str = "letters", finish_reason: str | None = None
) -> Parsed:
    """Parse the choice of one of `n` passages; the order has it first and the others as they were shown.

    Args:
        identifiers: ``numbers`` or ``letters``, the kind in the prompt's template.
        finish_reason: the engine's finish reason; with ``length`` a reply without a label is ``truncated``.
    """
    answer = after_thinking(text)
    if answer is None:
        return Parsed(None, TRUNCATED)
    if only := _ONLY[identifiers].fullmatch(answer):
        return _chosen(only[1], n, identifiers, OK)
    named = {one or other for one, other in _NAMED[identifiers].findall(answer)}
    if len(named) == 1:
        return _chosen(named.pop(), n, identifiers, REPAIRED)
    status = WRONG_FORMAT if named else without_answer(answer, finish_reason)
    return Parsed(None, status)


def _chosen(label: str, n: int, identifiers: str, status: str) -> Parsed:
    place = ascii_uppercase.index(label) if identifiers == "letters" else int(label) - 1
    if not 0 <= place < n:
        return Parsed(None, WRONG_FORMAT, n_out_of_range=1)
    others = (k for k in range(n) if k != place)
    return Parsed((place, *others), status, settled=1 if n > 1 else None)
