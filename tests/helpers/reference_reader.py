"""A slow reader of replies, written from the forms and statuses that docs/guides/teachers.md names.

It uses no regular expression, and shares no code and no table with the parser. Of errors and refusals it knows those
phrases that the tests use.
"""

from collections.abc import Callable

NONE = "none"
BRACKETS = {"【": "[", "】": "]", "［": "[", "］": "]", "＞": ">", "≻": ">"}
ARROWS = ("&amp;gt;", "&gt;", "&#62;", "\\u003e", "->", "=>", "→", "⇒", "»", "\\succ")
MARKS = "\\*_`\"'$~"
WORDS = ("passage", "document", "candidate", "result", "item", "text", "doc", "no", "id")
ERRORS = ("error code: 500", "rate limit", "connection refused")
REFUSALS = ("i'm sorry", "i cannot")

Found = tuple[list[str], int, int]  # names, beginning, end


def read(reply: str, n: int, letters: bool, cut: bool, wanted: int) -> tuple[str, list[int] | None]:
    """(status, order) of a reply; the status is ok, repaired, truncated, engine_error, refused or wrong_format."""
    answer = reply.split("</think>")[-1]
    if "<think>" in answer:
        return "truncated", None
    answer = answer.strip()
    if len(answer) > 50_000:
        return ("truncated" if cut else "wrong_format"), None
    for theirs, ours in BRACKETS.items():
        answer = answer.replace(theirs, ours)
    alone = strict(answer, letters)
    if alone is not None:
        return judged(alone, n, letters, wanted, broken=cut, alone=True)
    plain = plainly(answer)
    complete = last_complete(plain, n, letters, wanted)
    if complete is not None and not has(plain[: complete[1]], ERRORS):
        return judged(complete[0], n, letters, wanted, broken=False, alone=False)
    if has(answer, ERRORS):
        return "engine_error", None
    longest = longest_stretch(answer, letters)
    if longest is None:
        return ("truncated" if cut else "refused" if has(answer, REFUSALS) else "wrong_format"), None
    broken = cut or dangles(answer[longest[2] :])
    return judged(longest[0], n, letters, wanted, broken=broken, alone=False)


def has(text: str, phrases: tuple[str, ...]) -> bool:
    return any(phrase in text.lower() for phrase in phrases)


def judged(
    names: list[str], n: int, letters: bool, wanted: int, *, broken: bool, alone: bool
) -> tuple[str, list[int] | None]:
    """The order of a list's names: where it counts from, what is dropped, what is appended, whether it is enough."""
    places = [ord(name) - ord("A") if letters else int(name) - 1 for name in names]
    faults = 0
    if -1 in places:
        if n - 1 in places:
            return ("truncated" if alone and broken else "wrong_format"), None
        places = [place + 1 for place in places]
        faults += 1
    order: list[int] = []
    for place in places:
        if 0 <= place < n and place not in order:
            order.append(place)
        else:
            faults += 1
    missing = max(wanted - len(order), 0)
    if not order and not alone:
        return "wrong_format", None
    if missing and broken:
        return "truncated", None
    if 2 * (wanted - missing) < wanted or not order:
        return "wrong_format", None
    order += [place for place in range(n) if place not in order]
    return ("ok" if alone and not faults and not missing else "repaired"), order


# ------------------------------------------------------------------------------------------------ the reply alone
def strict(answer: str, letters: bool) -> list[str] | None:
    """The names of ``[2] > [1]``, whose first bracket may be missing; None where anything else stands there."""
    names = []
    for k, part in enumerate(answer.split(">")):
        part = part.strip()
        if k == 0 and not part.startswith("["):
            part = "[" + part
        if not (part.startswith("[") and part.endswith("]")):
            return None
        name = part[1:-1]
        if not (is_letter(name) if letters else name.isdigit()):
            return None
        names.append(name)
    return names


def is_letter(text: str) -> bool:
    return len(text) == 1 and "A" <= text <= "Z"


# ----------------------------------------------------------------------------------------- complete lists, any form
def plainly(answer: str) -> str:
    """Escapes and arrows as they are meant, marks of emphasis as spaces, one white space at a time."""
    text = answer.replace("\\n", "\n").replace("\\u005b", "[").replace("\\u005d", "]")
    for arrow in ARROWS:
        text = text.replace(arrow, ">")
    for mark in MARKS:
        text = text.replace(mark, " ")
    plain = ""
    for character in text:
        if character.isspace() and plain[-1:].isspace():
            plain = plain[:-1] + ("\n" if "\n" in (plain[-1], character) else " ")
        else:
            plain += character if not character.isspace() else "\n" if character == "\n" else " "
    return plain


def last_complete(text: str, n: int, letters: bool, wanted: int) -> Found | None:
    best: Found | None = None
    longest = 0
    for shape in (items, chain, array):
        at = 0
        while at < len(text):
            found = shape(text, at, letters)
            if found is None:
                at += 1
                continue
            names, begin, end = found
            at = max(end, at + 1)
            longest = max(longest, len(names))
            if complete(names, n, letters, wanted) and whole(text, begin, end):
                best = found if best is None or (end, -begin) >= (best[2], -best[1]) else best
    return best if best is not None and len(best[0]) >= min(longest, n) else None


def complete(names: list[str], n: int, letters: bool, wanted: int) -> bool:
    places = [ord(name) - ord("A") if letters else int(name) for name in names]
    window = range(n) if letters or 0 in places else range(1, n + 1)
    return (
        max(wanted, 2) <= len(names) <= n
        and len(set(places)) == len(places)
        and all(p in window for p in places)
    )


def whole(text: str, begin: int, end: int) -> bool:
    """Tell whether a list stands alone: a longer list does not contain it."""
    before = text[max(begin - 2, 0) : begin]
    if before.rstrip(" \n")[-1:] in tuple(">],;") and len(before) - len(before.rstrip(" \n")) <= 1:
        return False
    at = space(text, end)
    joiners = 0
    while joiners < 2 and text[at : at + 1] in tuple(">,;"):
        at, joiners = at + 1, joiners + 1
    at = space(text, at)
    if text[at : at + 1] == "[":
        at = space(text, at + 1)
        inner = at
        while inner < len(text) and inner - at < 9 and (text[inner].isalnum() or text[inner] == "_"):
            inner += 1
        if inner > at and text[space(text, inner) : space(text, inner) + 1] == "]":
            return False
    after = text[at : at + 1]
    if joiners and after.isdigit():
        return False
    return not (joiners and is_letter(after) and not wordy(text, at + 1))


def space(text: str, at: int) -> int:
    return at + 1 if text[at : at + 1].isspace() else at


def wordy(text: str, at: int) -> bool:
    return 0 <= at < len(text) and (text[at].isalnum() or text[at] == "_")


def ended(text: str, at: int) -> bool:
    """Whether a bare name may end here: neither a word nor a decimal goes on."""
    return not wordy(text, at) and not (text[at : at + 1] == "." and text[at + 1 : at + 2].isdigit())


def name(text: str, at: int, letters: bool) -> int | None:
    """The end of a name that begins here: a capital, or at most six digits."""
    if letters:
        return at + 1 if is_letter(text[at : at + 1]) else None
    end = at
    while end < len(text) and text[end].isdigit() and end - at < 6:
        end += 1
    return end if end > at else None


def word(text: str, at: int) -> int | None:
    """The end of ``Passage ``, ``No. ``, ``#`` and the like."""
    for known in WORDS:
        if text[at : at + len(known)].lower() == known:
            end = at + len(known)
            end += text[end : end + 1] == "."
            end = space(text, end)
            return end + (text[end : end + 1] == "#")
    return at + 1 if text[at : at + 1] == "#" else None


def run_of(text: str, at: int, character: str, most: int) -> int:
    end = at
    while end - at < most and text[end : end + 1] == character:
        end += 1
    return end


def item(text: str, at: int, letters: bool) -> tuple[str, int] | None:
    """``[2]``, ``[[2]]``, ``[Passage 2]`` or ``Passage 2``."""
    opened = run_of(text, at, "[", 3)
    begin = space(text, opened) if opened > at else at
    if opened == at and wordy(text, at - 1):
        return None
    named = word(text, begin)
    if opened == at and named is None:
        return None
    for start in {named, begin} - {None} if opened > at else {named}:
        end = name(text, start or 0, letters)
        if end is None:
            continue
        found = text[start:end]
        if opened == at:
            if ended(text, end):
                return found, end
            continue
        end = space(text, end)
        closed = run_of(text, end, "]", 3)
        if closed > end:
            return found, closed
    return None


def bullet(text: str, at: int) -> int:
    """The end of ``- ``, ``2. ``, ``Rank 2: - `` …"""
    for _ in range(2):
        if text[at : at + 1] in tuple("-•·–") and text[at + 1 : at + 2].isspace():
            at += 2
        begin = at + 5 if text[at : at + 5].lower() == "rank " else at
        end = begin
        while end - begin < 4 and text[end : end + 1].isdigit():
            end += 1
        if end > begin and text[end : end + 1] in tuple(".):") and text[end + 1 : end + 2].isspace():
            at = end + 2
    return at


def items(text: str, at: int, letters: bool) -> Found | None:
    first = item(text, at, letters)
    if first is None:
        return None
    names, end = [first[0]], first[1]
    while True:
        next_at = space(text, end)
        for _ in range(2):
            next_at += text[next_at : next_at + 1] in tuple(">,;=|")
        more = item(text, bullet(text, space(text, next_at)), letters)
        if more is None:
            return names, at, end
        names.append(more[0])
        end = more[1]


def bare(text: str, at: int, letters: bool) -> tuple[str, int] | None:
    """A name with or without brackets around it."""
    begin = space(text, run_of(text, at, "[", 3))
    end = name(text, begin, letters)
    if end is None:
        return None
    closed = run_of(text, space(text, end), "]", 3)
    if text[closed - 1] != "]":
        closed = end  # the space after a bare name is not its own
    return (text[begin:end], closed) if ended(text, closed) else None


def chain(text: str, at: int, letters: bool) -> Found | None:
    """Names joined by ``>``, with or without brackets."""
    if wordy(text, at - 1) or text[at - 1 : at] == ".":
        return None
    first = bare(text, at, letters)
    names: list[str] = []
    end = at
    while first is not None:
        names.append(first[0])
        end = first[1]
        after = space(text, end)
        joined = run_of(text, after, ">", 2)
        first = bare(text, space(text, joined), letters) if joined > after else None
    return (names, at, end) if len(names) > 1 else None


def array(text: str, at: int, letters: bool) -> Found | None:
    """``[2, 1, 3]``, ``[2 1 3]``."""
    if text[at : at + 1] != "[":
        return None
    names: list[str] = []
    begin = space(text, at + 1)
    while (end := name(text, begin, letters)) is not None:
        names.append(text[begin:end])
        after = space(text, end)
        if text[after : after + 1] == "]":
            return (names, at, after + 1) if len(names) > 1 else None
        if text[after : after + 1] in tuple(",;"):
            after = space(text, after + 1)
        if after == end:
            return None
        begin = after
    return None


# ------------------------------------------------------------------------------------------------ incomplete lists
def longest_stretch(text: str, letters: bool) -> Found | None:
    best: Found | None = None
    at = 0
    while at < len(text):
        found = stretch(text, at, letters)
        if found is None:
            at += 1
            continue
        at = found[2]
        if len(found[0]) >= 2 and (best is None or len(found[0]) >= len(best[0])):
            best = found
    return best


def spaces(text: str, at: int, others: str = "") -> int:
    while at < len(text) and (text[at].isspace() or text[at] in others):
        at += 1
    return at


def stretch(text: str, at: int, letters: bool) -> Found | None:
    """Names in single brackets, or bare ones beside a ``>``; joined by ``>``, commas, semicolons, ``=`` or white space."""
    if wordy(text, at - 1):
        return None
    first = single(text, at, letters)
    if first is None:
        first = naked(text, at, letters)
        if first is None or text[spaces(text, first[1]) :][:1] != ">":
            return None
    names, end = [first[0]], first[1]
    while True:
        after = spaces(text, end)
        more = None
        if text[after : after + 1] == ">":
            begin = spaces(text, after + 1)
            more = single(text, begin, letters)
            if more is None:
                more = naked(text, begin, letters)
                more = more if more is not None and ended(text, more[1]) else None
        if more is None:
            more = single(text, spaces(text, end, ",;="), letters)
        if more is None:
            return names, at, end
        names.append(more[0])
        end = more[1]


def single(text: str, at: int, letters: bool) -> tuple[str, int] | None:
    """``[2]``, ``[No. 2]``, ``[Passage 2]``."""
    if text[at : at + 1] != "[":
        return None
    begin = spaces(text, at + 1)
    for known in ("Passage",) if letters else ("No.", "No", "Passage"):
        if text[begin : begin + len(known)].lower() == known.lower() and (
            not letters or text[begin:].startswith(known)
        ):
            begin = spaces(text, begin + len(known))
            break
    end = digits_or_capital(text, begin, letters)
    closed = spaces(text, end)
    return (text[begin:end], closed + 1) if end > begin and text[closed : closed + 1] == "]" else None


def naked(text: str, at: int, letters: bool) -> tuple[str, int] | None:
    end = digits_or_capital(text, at, letters)
    return (text[at:end], end + (text[end : end + 1] == "]")) if end > at else None


def digits_or_capital(text: str, at: int, letters: bool) -> int:
    if letters:
        return at + is_letter(text[at : at + 1])
    end = at
    while end < len(text) and text[end].isdigit():
        end += 1
    return end


def dangles(rest: str) -> bool:
    """Whether the reply ends in the middle of its list: after ``>``, or within an open bracket."""
    rest = rest.strip()
    if rest.startswith(">"):
        rest = rest[1:].strip()
        rest = rest[1:].strip() if rest.startswith("[") else rest
    elif rest.lstrip(",;").strip().startswith("[") and len(rest) - len(rest.lstrip(",;")) <= 1:
        rest = rest.lstrip(",;").strip()[1:].strip()
    else:
        return False
    return len(rest) <= 4 and all(c.isalnum() or c == "_" for c in rest)


Shape = Callable[[str, int, bool], Found | None]
