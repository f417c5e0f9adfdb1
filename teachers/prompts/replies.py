"""Parse a reply into an order, with a status and the number of repairs.

The grammar is ``[2] > [1] > [3]``: every identifier of the window once, best first. A reply is ``ok`` only if it is a
complete list in this grammar and nothing else (the first ``[`` may be missing, since some prompts supply it). A list
inside prose, or with repeats, gaps or foreign numbers, is ``repaired``, and the repairs are counted. A complete list
in another common form is also ``repaired``: a JSON array, bullets, numbering, arrows, ``Passage 2``, escapes. A list
of numbers with a 0 counts from 0. If it also contains n, it is ambiguous and yields no order. A list that names fewer
than half of the requested passages is no ranking (:func:`is_ranking`, which also applies to imported permutations). An
error message, a refusal or a reply that broke off yields no order, even if it contains numbers.
"""

import html
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import repeat
from string import ascii_uppercase, digits

OK = "ok"
REPAIRED = "repaired"
WRONG_FORMAT = "wrong_format"
TRUNCATED = "truncated"
REFUSED = "refused"
ENGINE_ERROR = "engine_error"

STATUSES = (OK, REPAIRED, WRONG_FORMAT, TRUNCATED, REFUSED, ENGINE_ERROR)  # from best to worst
USABLE = (OK, REPAIRED)
MAX_ANSWER = 50_000  # characters after the thinking; a list of 1,000 passages takes 8,000


@dataclass(frozen=True)
class Parsed:
    """A parsed reply.

    Attributes:
        order: all positions 0..n-1, best first; None unless the status is ok or repaired.
        status: one of :data:`STATUSES`.
        n_missing: identifiers missing in the reply; they are appended in their prior order.
        n_repeated: repeats that were dropped (the first occurrence counts).
        n_out_of_range: dropped numbers outside the window.
        settled: number of first places that the reply decided; None: all.
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
        """Return the number of missing, repeated and out-of-range identifiers together."""
        return self.n_missing + self.n_repeated + self.n_out_of_range


# Variants of [ and ]. The module passages neutralises the same characters.
OPENING, CLOSING = "［【〔〚⟦﹇", "］】〕〛⟧﹈"
_FOLD = str.maketrans(
    {
        **dict.fromkeys(OPENING, "["),
        **dict.fromkeys(CLOSING, "]"),
        **dict.fromkeys("＞﹥≻", ">"),
        "\u00a0": " ",
    }
)

_STRICT = {
    "numbers": re.compile(r"\[?(?:\d+)\](?:\s*>\s*\[\d+\])*"),
    "letters": re.compile(r"\[?(?:[A-Z])\](?:\s*>\s*\[[A-Z]\])*"),
}
# A list inside other words: bracketed items joined by `>`, commas or spaces; bare items only if joined by `>`.
_ITEM = {"numbers": r"\[\s*(?:No\.?\s*|Passage\s*)?\d+\s*\]", "letters": r"\[\s*(?:Passage\s*)?[A-Z]\s*\]"}
_BARE = {"numbers": r"\d+\]?", "letters": r"[A-Z]\]?"}
_NAME = {"numbers": re.compile(r"\d+"), "letters": re.compile(r"[A-Z](?=\s*\]|\s*>|\s*$)")}
_SPAN = {
    kind: re.compile(
        rf"(?<!\w)(?:{_ITEM[kind]}|{_BARE[kind]}(?=\s*>))"
        rf"(?:\s*>\s*(?:{_ITEM[kind]}|{_BARE[kind]}(?!\w|\.\d))|[\s,;=]*{_ITEM[kind]})*",
        re.I if kind == "numbers" else 0,
    )
    for kind in ("numbers", "letters")
}
# The wide grammar applies only to complete lists, in :func:`_plain` text, which has no two white spaces in a row.
_TITLES = ("passage", "document", "doc", "text", "item", "result", "candidate", "no", "id")
_WORD = rf"(?i:(?:{'|'.join(_TITLES)})\.?\s?#?|#)"
_BULLET = r"(?:[-•·–]\s)?(?:(?i:rank\s)?\d{1,4}[.):]\s)?(?:[-•·–]\s)?"


def _wide(name: str) -> tuple[tuple[re.Pattern[str], re.Pattern[str]], ...]:
    """Return (list, name) patterns: bracketed or named items, bare items joined by ``>``, arrays in brackets."""
    item = rf"(?:\[{{1,3}}\s?(?:{_WORD})?{name}\s?\]{{1,3}}|(?<!\w){_WORD}{name}(?!\w|\.\d))"
    named = re.compile(rf"(?:\[\s?(?:{_WORD})?|(?<!\w){_WORD})({name})(?!\w)")
    bare = rf"{name}\s?\]{{0,3}}(?!\w|\.\d)"
    single = re.compile(rf"(?<!\w){name}(?!\w)")
    return (
        (re.compile(rf"{item}(?:\s?[>,;=|]{{0,2}}\s?{_BULLET}{item})*"), named),
        (re.compile(rf"(?<![\w.])\[{{0,3}}\s?{bare}(?:\s?>{{1,2}}\s?\[{{0,3}}\s?{bare})+"), single),
        (re.compile(rf"\[\s?{name}(?:\s?[,;\s]\s?{name})+\s?\]"), single),
    )


_WIDE = {"numbers": _wide(r"\d{1,6}"), "letters": _wide("[A-Z]")}
_ESCAPES = re.compile(
    r"\\u00(?:3[eE]|5[bBdD])|\\(?:succ|gt|rightarrow|to)(?![a-z])|\\[nrt]|[-=~]{1,3}>|[\\*_`\"'$~]"
)
_ESCAPED = {"\\u005b": "[", "\\u005d": "]", "\\n": "\n", "\\r": "\n", "\\t": " "}
_ARROWS = str.maketrans(dict.fromkeys("≽≥›»→⟶⇒➔➜➝➞⟹↦", ">"))
_SPACES = re.compile(r"\s+")
# Signs that a match is part of a longer list. Such a part is not the reply's list.
_GOES_ON_BEFORE = re.compile(r"[>\],;]\s?$")
_GOES_ON_AFTER = re.compile(r"\s?[>,;]{0,2}\s?\[\s?\w{1,9}\s?\]|\s?[>,;]{1,2}\s?\[?\s?(?:\d|[A-Z]\b)")

# The same for a passage, in unchanged text: marks and escapes that :func:`_plain` turns into spaces may be anywhere.
_AROUND = r"(?:\\[nrt]|[\s*_`\"'$~\\]){0,9}"
_OPEN = rf"(?:\\{{0,4}}[\[{OPENING}]|\\{{1,4}}u005[bB])"
_CLOSE = rf"(?:\\{{0,4}}[\]{CLOSING}]|\\{{1,4}}u005[dD])"
_BEGINS, _ENDS = r"(?<![^\W_])", r"(?![^\W_]|\.\d)"
_ANY = r"(?:(?:\d{1,9}\.){0,3}\d{1,40}|[A-Z])"
_TITLED = rf"(?i:(?:{'|'.join(_TITLES)})\.?{_AROUND}\#?|\#){_AROUND}"
_TO = r"(?:[-=~]{1,3}>|[>＞﹥≻≽≥›»→⟶⇒➔➜➝➞⟹↦]|\\{1,4}(?:u003[eE]|(?:succ|gt|rightarrow|to)(?![a-z])))"
_LINE_HEAD = rf"(?:[-•·–]{_AROUND})?(?:(?i:rank\s)?\d{{1,4}}[.):]{_AROUND})?(?:[-•·–]{_AROUND})?"
_LONG_AROUND = re.compile(r"(?:\\[nrt]|[\s*_`\"'$~\\]){9,}")
# A quick look at the bytes of an ASCII text: marks become spaces, capitals and digits 0, what needs a closer look NUL.
# Then nine spaces are _LONG_AROUND; what _MAYBE_LISTED finds starts at a 0, before marks, a word (a capital in it is a 0
# too) and a 0.
_SHAPE = bytes.maketrans(
    b"[>&\\<:" + b"\t\n\v\f\r\x1c\x1d\x1e\x1f*_`\"'$~;=|" + (ascii_uppercase + digits).encode(),
    b"\0" * 6 + b" " * 16 + b"," * 3 + b"0" * 36,
)
_NINE_SPACES = b" " * 9


def _in_any_case(word: str) -> str:
    return "".join(f"[{letter}0]" for letter in word)


_LISTED_SHAPE = re.compile(
    rf"0(?=[ ,\-]{{0,30}}+(?:(?:{_in_any_case('rank')} )?0{{1,4}}[.)] {{0,9}})?[- ]{{0,10}}+"
    rf"(?:(?:{'|'.join(map(_in_any_case, _TITLES))})\.? {{0,9}}+#?|#) {{0,18}}+0)".encode()
)
# One identifier, or an array of identifiers, in any brackets that :func:`_fold` turns into [ and ].
_IN_BRACKETS = re.compile(
    rf"(?:{_OPEN}{_AROUND}){{1,3}}((?:{_TITLED})?(?:\d{{1,40}}|[A-Z])"
    rf"(?:(?:\\[nrt]|[\s*_`\"'$~\\,;>]){{1,19}}(?:\d{{1,6}}|[A-Z])){{0,1000}}){_AROUND}{_CLOSE}(?:{_AROUND}{_CLOSE}){{0,2}}"
)
_CLOSED = rf"{_ANY}(?:{_AROUND}{_CLOSE}{{1,3}})?"
_CHAIN = re.compile(
    rf"{_BEGINS}{_CLOSED}(?:{_AROUND}(?:{_TO}{_AROUND}){{1,2}}(?:{_OPEN}{{1,3}}{_AROUND})?(?:{_TITLED})?{_CLOSED}{_ENDS})+"
)
_LISTED = re.compile(
    rf"{_BEGINS}{_TITLED}{_CLOSED}(?:{_AROUND}(?:{_TO}|[,;=|]){{0,2}}{_AROUND}{_LINE_HEAD}{_TITLED}{_CLOSED}{_ENDS})+"
)
_MAYBE_LISTED = re.compile(
    rf"[\dA-Z]{_AROUND}(?:{_TO}|[,;=|]){{0,2}}{_AROUND}{_LINE_HEAD}{_TITLED}{_AROUND}[\dA-Z]"
)
_WHOLE_NAME = re.compile(rf"{_BEGINS}{_ANY}{_ENDS}")

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
      |抱歉|对不起|對不起|无法|無法|申し訳|できません|죄송|извините|к\ сожалению|не\ могу|lo\ siento|no\ puedo|desculpe
      |n[ãa]o\ posso|d[ée]sol[ée]|je\ ne\ peux|tut\ mir\ leid|ich\ kann|leider|mi\ dispiace|non\ posso
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
    """Parse a reply into an order of a window of `n` passages. Never raises, whatever the text.

    Args:
        text: the reply alone, without the prompt.
        identifiers: ``numbers`` or ``letters``, the kind in the prompt's template.
        finish_reason: the engine's finish reason; with ``length`` an incomplete list is ``truncated``.
        top: number of identifiers requested if decoding stops early; the rest keeps its prior order and does not count
            as a repair.
    """
    answer = after_thinking(text)
    if answer is None:
        return Parsed(None, TRUNCATED)
    answer = answer.strip()
    if len(answer) > MAX_ANSWER:
        return Parsed(None, TRUNCATED if finish_reason == "length" else WRONG_FORMAT)
    answer = _fold(answer)
    wanted = n if top is None else min(top, n)
    if _STRICT[identifiers].fullmatch(answer):
        parsed = _read(_NAME[identifiers].findall(answer), n, identifiers, wanted)
        if parsed.status != OK and parsed.n_missing and finish_reason == "length":
            return _without_order(parsed, TRUNCATED)
        return _most_named(parsed, wanted)
    complete = _complete(_plain(answer), n, identifiers, wanted)
    if complete is not None:
        return complete
    span = _longest_span(answer, identifiers) if not _ERROR.search(answer) else None
    if span is None:
        return Parsed(None, without_answer(answer, finish_reason))
    parsed = _read(_NAME[identifiers].findall(span[0]), n, identifiers, wanted)
    if parsed.order is None:
        return parsed
    if parsed.n_missing and (finish_reason == "length" or _DANGLING.match(answer, span[1])):
        return _without_order(parsed, TRUNCATED)
    return _most_named(replace(parsed, status=REPAIRED), wanted)


def without_answer(answer: str, finish_reason: str | None) -> str:
    """Return the status of a reply in which no answer was found."""
    if _ERROR.search(answer):
        return ENGINE_ERROR
    if finish_reason == "length":
        return TRUNCATED
    return REFUSED if finish_reason == "content_filter" or _REFUSAL.search(answer) else WRONG_FORMAT


def is_ranking(named: int, wanted: int) -> bool:
    """Return whether a list names at least half of the wanted passages. Replies and imports share this rule."""
    return 2 * named >= wanted


def _most_named(parsed: Parsed, wanted: int) -> Parsed:
    """Return `parsed`, or the same without an order if it names too few passages."""
    if parsed.order is None or is_ranking(wanted - parsed.n_missing, wanted):
        return parsed
    return _without_order(parsed, WRONG_FORMAT)


def _plain(answer: str) -> str:
    """Decode entities and escapes in `answer`, turn emphasis marks and quotes into spaces, fold white space."""
    if "&" in answer:
        answer = _fold(html.unescape(html.unescape(answer)))
    answer = answer.translate(_ARROWS) if not answer.isascii() else answer
    answer = _ESCAPES.sub(lambda m: _ESCAPED.get(m[0].lower(), " " if len(m[0]) == 1 else ">"), answer)
    return _SPACES.sub(lambda m: "\n" if "\n" in m[0] else " ", answer)


def _complete(plain: str, n: int, identifiers: str, wanted: int) -> Parsed | None:
    """Return the last complete list in any usual form; None without a list, or if an error message comes before it."""
    best: tuple[int, int, list[str]] | None = None
    longest = 0
    for pattern, name in _WIDE[identifiers]:
        for match in pattern.finditer(plain):
            names = name.findall(match[0])
            longest = max(longest, len(names))
            if _is_complete(names, n, identifiers, wanted) and _is_whole(plain, match):
                best = max(best or (-1, 0, []), (match.end(), -match.start(), names))
    if best is None or _ERROR.search(plain[: -best[1]]):
        return None
    # The list has enough identifiers for the request, but it is only a part of the reply's list.
    if len(best[2]) < min(longest, n):
        return None
    return replace(_read(best[2], n, identifiers, wanted), status=REPAIRED)


def _is_whole(plain: str, match: re.Match[str]) -> bool:
    before = plain[max(match.start() - 2, 0) : match.start()]
    return not (_GOES_ON_BEFORE.search(before) or _GOES_ON_AFTER.match(plain, match.end()))


def _is_complete(names: Sequence[str], n: int, identifiers: str, wanted: int) -> bool:
    """Return whether the names are at least `wanted` different ones of the window, counted from 1 or from 0."""
    if not max(wanted, 2) <= len(names) <= n:
        return False
    positions = {_position(name, identifiers) for name in names}
    first = -1 if identifiers == "numbers" and -1 in positions else 0
    return len(positions) == len(names) and first <= min(positions) and max(positions) < n + first


def after_thinking(text: str) -> str | None:
    """Return the text after the last ``</think>``; None if the thinking did not end."""
    head, end, tail = text.rpartition("</think>")
    answer = tail if end else head + tail
    return None if "<think>" in answer else answer


def _fold(text: str) -> str:
    """Turn Unicode digits into ASCII digits and full-width brackets into brackets (superscripts are not digits)."""
    if text.isascii():
        return text
    text = text.translate(_FOLD)
    return "".join(
        c if c.isascii() or not c.isdecimal() else str(unicodedata.decimal(c)) for c in text
    )  # int() would accept mixed scripts


def identifiers_neutralised(text: str) -> str:
    """Put everything in parentheses that :func:`parse` would read as identifiers, because passages must not show them.

    This covers identifiers in brackets, and lists in other forms: ``2 > 1``, ``Passage 2, Passage 1``.
    """
    if "&" in text:
        decoded = html.unescape(html.unescape(text))
        if decoded != text and (broken := _broken_up(decoded)) != decoded:
            return broken  # entities that do not hide an identifier stay unchanged
    return _broken_up(text)


def _broken_up(text: str) -> str:
    """Break up identifiers in `text`; the result may need another call."""
    broken = _LONG_AROUND.sub(" ", text)
    broken = _IN_BRACKETS.sub(lambda m: f"({m[1]})", broken)
    broken = _CHAIN.sub(_names_in_parentheses, broken)
    if _MAYBE_LISTED.search(broken):
        broken = _LISTED.sub(_names_in_parentheses, broken)
    return broken


def may_name_passages(text: str) -> bool:
    """Return whether an ASCII text has a < or :, or might be changed by :func:`identifiers_neutralised`: a quick check."""
    shape = text.encode().translate(_SHAPE)
    if b"\0" in shape or _NINE_SPACES in shape:
        return True
    if _LISTED_SHAPE.search(shape) is None:
        return False
    return any(_MAYBE_LISTED.match(text, found.start()) for found in _LISTED_SHAPE.finditer(shape))


def _names_in_parentheses(found: re.Match[str]) -> str:
    return _WHOLE_NAME.sub(lambda m: f"({m[0]})", found[0])


def _longest_span(answer: str, identifiers: str) -> tuple[str, int] | None:
    """Return the stretch with the most identifiers, and its end; of equals the last, as examples precede answers."""
    best: tuple[int, str, int] | None = None
    for match in _SPAN[identifiers].finditer(answer):
        found = len(_NAME[identifiers].findall(match[0]))
        if found >= 2 and (best is None or found >= best[0]):
            best = (found, match[0], match.end())
    return None if best is None else (best[1], best[2])


def _read(names: Sequence[str], n: int, identifiers: str, wanted: int) -> Parsed:
    """Turn a stretch's identifiers into an order, with the usual repairs of listwise reranking."""
    if len(names) == n:  # nearly every reply is a permutation
        order = list(map(_POSITIONS[identifiers].get, names, repeat(n)))
        if len(set(order)) == n and max(order) < n:
            return Parsed(tuple(order), OK)
    order = []
    seen: set[int] = set()
    repeated = out_of_range = 0
    positions = [_position(name, identifiers) for name in names]
    from_0 = identifiers == "numbers" and -1 in positions
    if from_0 and n - 1 in positions:  # with both 0 and n it may count from 0 or from 1
        return Parsed(None, WRONG_FORMAT, n)
    for position in (p + 1 for p in positions) if from_0 else positions:
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
    status = REPAIRED if missing or repeated or out_of_range or from_0 else OK
    return Parsed(tuple(order), status, missing, repeated, out_of_range, named if named < n else None)


_POSITIONS = {
    "numbers": {str(k + 1): k for k in range(1000)},
    "letters": {letter: k for k, letter in enumerate(ascii_uppercase)},
}


def _position(name: str, identifiers: str) -> int:
    if identifiers == "letters":
        return ascii_uppercase.index(name)
    return int(name) - 1 if len(name) <= 6 else MAX_ANSWER  # longer numbers are not identifiers


def _without_order(parsed: Parsed, status: str) -> Parsed:
    return Parsed(None, status, parsed.n_missing, parsed.n_repeated, parsed.n_out_of_range)


def from_logprobs(logprobs: Mapping[str, float], n: int) -> tuple[Parsed, tuple[float | None, ...]]:
    """Read the order and scores from the log-probabilities of the first generated token (FIRST, arXiv 2406.15657).

    Single letters within the window count, with the maximum over the tokens that spell them (with and without a
    leading space); absent letters follow in their prior order.

    Args:
        logprobs: token text -> log-probability.
        n: passages in the window, at most 26.

    Returns:
        The parsed order (``wrong_format`` if fewer than half of the letters are present; absent letters count as
        missing) and each position's log-probability, None for an absent letter.
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
    parsed = Parsed((*ranked, *missing), status, n_missing=len(missing), settled=settled)
    return _most_named(parsed, n), tuple(scores)


def _known(value: float | None) -> float:
    return float("-inf") if value is None else value


def worst(statuses: Sequence[str]) -> str:
    """Return the worst status of several calls: a permutation is only as good as its worst call."""
    return max(statuses, key=STATUSES.index, default=OK)
