"""A reply to an order: what the model said, whether it can be trusted, and how much had to be repaired.

The grammar is ``[2] > [1] > [3]``: every identifier of the window once, best first. Only a reply that is nothing but a
complete list in this grammar is ``ok`` (its first ``[`` may be missing: some prompts supply it). A list inside prose,
with repeats, gaps or foreign numbers is ``repaired`` and carries the counts. An error message, a refusal or a reply
that broke off yields no order at all, whatever numbers stand in it.
"""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from string import ascii_uppercase

OK = "ok"
REPAIRED = "repaired"
WRONG_FORMAT = "wrong_format"
TRUNCATED = "truncated"
REFUSED = "refused"
ENGINE_ERROR = "engine_error"

STATUSES = (OK, REPAIRED, WRONG_FORMAT, TRUNCATED, REFUSED, ENGINE_ERROR)  # from best to worst
USABLE = (OK, REPAIRED)


@dataclass(frozen=True)
class Parsed:
    """What a reply says.

    Attributes:
        order: all positions 0..n-1, best first; None unless the status is ok or repaired.
        status: one of :data:`STATUSES`.
        n_missing: identifiers that the reply left out, appended in their prior order.
        n_repeated: repeats dropped (the first counts).
        n_out_of_range: numbers outside the window dropped.
        settled: how many of the first places the reply itself decided; None: all.
    """

    order: tuple[int, ...] | None
    status: str
    n_missing: int = 0
    n_repeated: int = 0
    n_out_of_range: int = 0
    settled: int | None = None

    @property
    def usable(self) -> bool:
        return self.order is not None

    @property
    def repairs(self) -> int:
        """Missing, repeated and out-of-range identifiers together."""
        return self.n_missing + self.n_repeated + self.n_out_of_range


_FOLD = str.maketrans(
    {"［": "[", "］": "]", "【": "[", "】": "]", "＞": ">", "﹥": ">", "≻": ">", "\u00a0": " "}
)

_STRICT = {
    "numbers": re.compile(r"\[?(?:\d+)\](?:\s*>\s*\[\d+\])*"),
    "letters": re.compile(r"\[?(?:[A-Z])\](?:\s*>\s*\[[A-Z]\])*"),
}
# A list inside other words: bracketed items joined by `>`, commas or space; bare ones only when joined by `>`.
_ITEM = {"numbers": r"\[\s*(?:No\.?\s*|Passage\s*)?\d+\s*\]", "letters": r"\[\s*(?:Passage\s*)?[A-Z]\s*\]"}
_BARE = {"numbers": r"\d+\]?", "letters": r"[A-Z]\]?"}
_NAME = {"numbers": re.compile(r"\d+"), "letters": re.compile(r"[A-Z](?=\s*\]|\s*>|\s*$)")}
_SPAN = {
    kind: re.compile(
        rf"(?<![\w\[])(?:{_ITEM[kind]}|{_BARE[kind]}(?=\s*>))"
        rf"(?:\s*>\s*(?:{_ITEM[kind]}|{_BARE[kind]}(?![\w.]))|[\s,;=]*{_ITEM[kind]})*",
        re.I if kind == "numbers" else 0,
    )
    for kind in ("numbers", "letters")
}
_DANGLING = re.compile(r"\s*(?:>\s*\[?\s*\w{0,4}|[,;]?\s*\[\s*\w{0,4})\s*$")

_ERROR = re.compile(
    r"""^\s*(?:\W*error\b|error::|traceback\ \(most\ recent|exception\b|http(?:\s+error)?\s*\d{3}|\{\s*"(?:error|detail)"
        |<!doctype|<html|[a-z_.]*(?:error|exception|timeout)\b\s*[:(]|status[\ _]code\b|request\ (?:failed|timed\ out))
      | error\ code:\s*\d{3} | maximum\ context\ length | context\ length\ exceeded | context_length_exceeded
      | rate\ limit | too\ many\ requests | connection\ (?:refused|reset|error|aborted|timed\ out)
      | internal\ server\ error | bad\ gateway | service\ unavailable | gateway\ time-?out | invalid_request_error
      | insufficient_quota | invalid\ api\ key | cuda\ (?:error|out\ of\ memory) | content\ management\ policy
      | the\ server\ (?:had\ an\ error|is\ overloaded) | max\ retries\ exceeded | read\ timed\ out""",
    re.I | re.X,
)
_REFUSAL = re.compile(
    r"""\b(?:i(?:'|’)?m\ (?:sorry|unable|not\ able)|i\ am\ (?:sorry|unable|not\ able)|i\ apologi[sz]e|my\ apologies
      |i\ (?:can(?:'|’)?t|cannot|can\ not|could\ not|won(?:'|’)?t|will\ not|do\ not|don(?:'|’)?t)\b
      |as\ an?\ (?:ai|language)\ |(?:un)?able\ to\ (?:rank|determine|provide|assist)
      |(?:no|none\ of\ the|not\ enough|insufficient|cannot|none)\b[^.\[\]]{0,60}\b
        (?:passages?|information|results?|content|relevant|relevance|ranking|answer|provided|found|match)
      |please\ (?:provide|try|clarify|rephrase|check)|(?:passages?|query)[^.]{0,40}\b(?:not|n(?:'|’)t)\b)""",
    re.I | re.X,
)  # fmt: skip


def parse(
    text: str,
    n: int,
    *,
    identifiers: str = "numbers",
    finish_reason: str | None = None,
    top: int | None = None,
) -> Parsed:
    """The order that a reply states for a window of `n` passages. Never raises on any text.

    Args:
        text: the reply alone, without the prompt.
        identifiers: ``numbers`` or ``letters``, as the prompt's template names passages.
        finish_reason: as the engine says; ``length`` makes an incomplete list ``truncated``.
        top: identifiers that were asked for where decoding stops early; the rest keeps its prior order and counts as
            no repair.
    """
    answer = after_thinking(text)
    if answer is None:
        return Parsed(None, TRUNCATED)
    answer = _fold(answer).strip()
    wanted = n if top is None else min(top, n)
    if _STRICT[identifiers].fullmatch(answer):
        parsed = _read(answer, n, identifiers, wanted)
        if parsed.status != OK and parsed.n_missing and finish_reason == "length":
            return _without_order(parsed, TRUNCATED)
        return parsed
    if _ERROR.search(answer):
        return Parsed(None, ENGINE_ERROR)
    span = _longest_span(answer, identifiers)
    if span is None:
        if finish_reason == "length":
            return Parsed(None, TRUNCATED)
        return Parsed(None, REFUSED if _REFUSAL.search(answer) else WRONG_FORMAT)
    parsed = _read(span[0], n, identifiers, wanted)
    if parsed.order is None:
        return parsed
    if parsed.n_missing and (finish_reason == "length" or _DANGLING.match(answer, span[1])):
        return _without_order(parsed, TRUNCATED)
    return Parsed(
        parsed.order, REPAIRED, parsed.n_missing, parsed.n_repeated, parsed.n_out_of_range, parsed.settled
    )


def after_thinking(text: str) -> str | None:
    """What follows the last ``</think>``; None for a thought that never ended."""
    head, end, tail = text.rpartition("</think>")
    answer = tail if end else head + tail
    return None if "<think>" in answer else answer


def _fold(text: str) -> str:
    """Unicode digits as ASCII digits, full-width brackets as brackets (superscripts are no digits)."""
    if text.isascii():
        return text
    text = text.translate(_FOLD)
    return "".join(
        c if c.isascii() or not c.isdecimal() else str(unicodedata.decimal(c)) for c in text
    )  # int() would take mixed scripts


def _longest_span(answer: str, identifiers: str) -> tuple[str, int] | None:
    """The stretch that lists the most identifiers (of equals the last: examples come before answers) and its end."""
    best: tuple[int, str, int] | None = None
    for match in _SPAN[identifiers].finditer(answer):
        found = len(_NAME[identifiers].findall(match[0]))
        if found >= 2 and (best is None or found >= best[0]):
            best = (found, match[0], match.end())
    return None if best is None else (best[1], best[2])


def _read(span: str, n: int, identifiers: str, wanted: int) -> Parsed:
    """Identifiers of a stretch -> order, by the repairs that the field agrees on."""
    names = _NAME[identifiers].findall(span)
    if len(names) == n:  # nearly every reply is a permutation
        order = list(map(_POSITIONS[identifiers].get, names, repeat(n)))
        if len(set(order)) == n and max(order) < n:
            return Parsed(tuple(order), OK)
    order = []
    seen: set[int] = set()
    repeated = out_of_range = 0
    for name in names:
        position = _position(name, identifiers)
        if not 0 <= position < n:
            out_of_range += 1
        elif position in seen:
            repeated += 1
        else:
            seen.add(position)
            order.append(position)
    if not order:
        return Parsed(None, WRONG_FORMAT, n, repeated, out_of_range)
    named = len(order)
    missing = max(wanted - named, 0)
    order += [i for i in range(n) if i not in seen]
    status = REPAIRED if missing or repeated or out_of_range else OK
    return Parsed(tuple(order), status, missing, repeated, out_of_range, named if named < n else None)


_POSITIONS = {
    "numbers": {str(k + 1): k for k in range(1000)},
    "letters": {letter: k for k, letter in enumerate(ascii_uppercase)},
}


def _position(name: str, identifiers: str) -> int:
    if identifiers == "letters":
        return ascii_uppercase.index(name)
    return int(name) - 1 if len(name) <= 6 else -1  # longer numbers are no identifiers


def _without_order(parsed: Parsed, status: str) -> Parsed:
    return Parsed(None, status, parsed.n_missing, parsed.n_repeated, parsed.n_out_of_range)


def from_logprobs(logprobs: Mapping[str, float], n: int) -> tuple[Parsed, tuple[float | None, ...]]:
    """FIRST: the order and scores from the log-probabilities of the first generated token.

    Single letters within the window count, with the maximum over the tokens that spell them (with and without a
    leading space); letters that are absent follow in their prior order (FIRST, arXiv 2406.15657).

    Args:
        logprobs: token text -> log-probability.
        n: passages in the window, at most 26.

    Returns:
        The parsed order (``wrong_format`` if no letter is there; missing letters are counted as missing) and each
        position's log-probability, None for an absent letter.
    """
    scores: list[float | None] = [None] * n
    for token, value in logprobs.items():
        letter = token.replace("▁", " ").replace("Ġ", " ").strip()
        if len(letter) != 1 or letter not in ascii_uppercase[:n] or value != value:
            continue
        position = ascii_uppercase.index(letter)
        known = scores[position]
        scores[position] = value if known is None else max(known, value)
    present = [i for i in range(n) if scores[i] is not None]
    if not present:
        return Parsed(None, WRONG_FORMAT, n_missing=n), tuple(scores)
    ranked = sorted(present, key=lambda i: (-_known(scores[i]), i))
    missing = [i for i in range(n) if scores[i] is None]
    status = REPAIRED if missing else OK
    settled = len(ranked) if missing else None
    return Parsed((*ranked, *missing), status, n_missing=len(missing), settled=settled), tuple(scores)


def _known(value: float | None) -> float:
    return float("-inf") if value is None else value


def worst(statuses: Sequence[str]) -> str:
    """The worst of several calls' statuses: a permutation is only as good as its worst call."""
    return max(statuses, key=STATUSES.index, default=OK)
