"""Find the answer after a model's thought; an unfinished thought has none.

A thought stands between ``<think>`` and ``</think>``. A model may nest thoughts, or repeat the first tag if the prompt has opened
the thought already. The answer follows the thought; some prompts also want it between ``<answer>`` and ``</answer>``. Whatever
stands inside a thought is never the answer.
"""

import re
from dataclasses import dataclass

OPEN, CLOSE = "<think>", "</think>"
ANSWER = "<answer>"
_TAG = re.compile(r"</?think>")
_OPENED_TWICE = re.compile(r"^\s*<think>\s*<think>")


@dataclass(frozen=True)
class Thought:
    """A reply in two parts.

    Attributes:
        text: the thought without its outer tags; None if the reply has none.
        answer: what follows it; None if the thought, or the answer in its tags, did not end.
    """

    text: str | None
    answer: str | None

    @property
    def unfinished(self) -> bool:
        return self.answer is None

    def without_it(self) -> str:
        """Return the reply with an empty thought, which is read as the whole reply is."""
        if self.text is None:
            return self.answer or ""
        return OPEN + (CLOSE + self.answer if self.answer is not None else "")


def split(reply: str) -> Thought:
    """Split a reply into its thought and its answer."""
    reply = _OPENED_TWICE.sub(OPEN, reply, count=1)
    depth, end, first = 0, None, None
    for tag in _TAG.finditer(reply):
        if tag[0] == OPEN:
            first = tag.start() if first is None else first
            depth += 1
        else:
            depth = max(depth - 1, 0)
            first = 0 if first is None else first
            end = tag.end()
    if first is None:
        return Thought(None, reply)
    if depth or end is None:
        return Thought(reply[first:].removeprefix(OPEN), None)
    return Thought(reply[first:end].removeprefix(OPEN).removesuffix(CLOSE), reply[end:])


def tagged(answer: str, finish_reason: str | None) -> str | None:
    """Return the text of the last ``<answer>``, or the whole text without such a tag; None if it was cut off."""
    start = answer.rfind(ANSWER)
    if start < 0:
        return answer
    text, closed, _ = answer[start + len(ANSWER) :].partition("</answer>")
    return text if closed or finish_reason != "length" else None
