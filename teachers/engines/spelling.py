"""Token spellings of identifiers, for constrained decoding and for reading log-probabilities."""

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from teachers.errors import ExitCode, TeacherError
from teachers.prompts.answers import answer_of

ARGUMENT = "msft_identifiers"  # request argument for the logits processor


def constraint(
    tokenizer: Any,
    identifiers: Sequence[str],
    prefix: str = "",
    top: int | None = None,
    after: Sequence[str] = (),
) -> dict[str, Any]:
    """Return a request's constraint for teachers.engines.constrained: {"first", "later", "end", "top"}, and "after".

    Args:
        after: marks after which the constraint begins, one after another.

    Raises:
        TeacherError: as for :func:`spellings`.
    """
    first, later = spellings(tokenizer, identifiers, prefix)
    n = len(identifiers)
    found = {"first": first, "later": later, "end": int(tokenizer.eos_token_id), "top": min(top or n, n)}
    return found | ({"after": [steps_to(tokenizer, mark) for mark in after]} if after else {})


def steps_to(tokenizer: Any, mark: str) -> list[dict[int, int]]:
    """Return, for each number of a mark's characters that were read, the tokens that read more of it.

    A model may write a mark in many tokens, and a token may hold the mark's beginning after other text, or other text after its
    end. ``steps[k][token]`` is how many characters are read after the token; a token that is not there reads none, and
    ``len(mark)`` ends the search.
    """
    texts = {
        token: text.replace("▁", " ").replace("Ġ", " ").replace("Ċ", "\n")
        for text, token in tokenizer.get_vocab().items()
    }
    hold = {token: text for token, text in texts.items() if set(text) & set(mark)}
    return [
        {token: reached for token, text in hold.items() if (reached := _read_on(mark, mark[:known] + text))}
        for known in range(len(mark))
    ]


def _read_on(mark: str, text: str) -> int:
    """Return how many characters of the mark are read at the end of a text; all if the text holds it."""
    if mark in text:
        return len(mark)
    return next((n for n in range(min(len(mark) - 1, len(text)), 0, -1) if text.endswith(mark[:n])), 0)


def spellings(
    tokenizer: Any, identifiers: Sequence[str], prefix: str = ""
) -> tuple[list[list[int]], list[list[int]]]:
    """Return token ids of each identifier as the first one of a ranking and as a later one, separator included.

    The ids are those of the tokenizer's encoding of ``[1] > [2]`` if it composes (the text after ``[1]`` does not
    change the encoding of ``[1]``). Otherwise the parts are encoded separately.

    Args:
        prefix: the beginning of the ranking that the prompt already contains (``[``).

    Raises:
        TeacherError: if the tokens of a ranking do not decode to it, or one spelling begins another.
    """
    for make in (_in_place, _in_parts):
        first, later = make(tokenizer, identifiers, prefix)
        if (
            _reads_back(tokenizer, identifiers, prefix, first, later)
            and _prefix_free(first)
            and _prefix_free(later)
        ):
            return first, later
    raise TeacherError(
        "this tokenizer does not spell identifiers one by one, so replies cannot be constrained",
        hint="ask without constraint: --free",
        exit_code=ExitCode.TEACHER_ENGINE,
    )


def first_tokens(tokenizer: Any, identifiers: Sequence[str], prefix: str) -> dict[int, str]:
    """Return token id -> identifier, for first tokens after the prefix that fit one identifier only.

    For letters, each token that is the letter, with or without a leading space, counts. If the tokenizer splits
    digits, 1 and 10 share a token, and both are left out.
    """
    if all(identifier.isalpha() for identifier in identifiers):
        wanted = set(identifiers)
        plain = {
            token: text.lstrip("▁Ġ ").strip()
            for text, token in tokenizer.get_vocab().items()
            if len(text) <= 4
        }
        return {token: text for token, text in plain.items() if text in wanted}
    first, _ = spellings(tokenizer, identifiers, prefix)
    shared = Counter(tokens[0] for tokens in first)
    return {
        tokens[0]: identifier
        for tokens, identifier in zip(first, identifiers, strict=True)
        if shared[tokens[0]] == 1
    }


def answer_tokens(tokenizer: Any, answers: Sequence[str], spelling: str) -> dict[int, str]:
    """Return token id -> answer, for every token that spells an answer.

    Args:
        spelling: as in :class:`teachers.prompts.template.Template`.

    Raises:
        TeacherError: if no single token spells an answer.
    """
    if spelling == "exact":
        spelt = {answer: _encode(tokenizer, answer) for answer in answers}
        found = {tokens[0]: answer for answer, tokens in spelt.items() if len(tokens) == 1}
    else:
        named = ((token, answer_of(text, answers, spelling)) for text, token in tokenizer.get_vocab().items())
        found = {token: answer for token, answer in named if answer is not None}
    if lacking := [answer for answer in answers if answer not in found.values()]:
        raise TeacherError(
            f"the answer {lacking[0]!r} is not one token of this model's tokenizer, so its probability cannot be read",
            hint="choose a prompt whose answers are single tokens: --prompt yes-no@1 or rating@1",
            exit_code=ExitCode.TEACHER_ENGINE,
        )
    return found


def _encode(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def _after(tokenizer: Any, head: str, tail: str) -> list[int]:
    """Return the tokens that `tail` adds to `head`; empty if `tail` changes the encoding of `head`."""
    before, both = _encode(tokenizer, head), _encode(tokenizer, head + tail)
    return both[len(before) :] if both[: len(before)] == before else []


def _in_place(
    tokenizer: Any, identifiers: Sequence[str], prefix: str
) -> tuple[list[list[int]], list[list[int]]]:
    first = [
        _after(tokenizer, prefix, f"[{name}]"[len(prefix) :]) if prefix else _encode(tokenizer, f"[{name}]")
        for name in identifiers
    ]
    others = [*identifiers[1:], *identifiers[:1]]
    later = [
        _after(tokenizer, f"[{other}]", f" > [{name}]")
        for name, other in zip(identifiers, others, strict=True)
    ]
    return first, later


def _in_parts(
    tokenizer: Any, identifiers: Sequence[str], prefix: str
) -> tuple[list[list[int]], list[list[int]]]:
    first = [_encode(tokenizer, f"[{name}]"[len(prefix) :]) for name in identifiers]
    later = [
        _encode(tokenizer, " > ")
        + _encode(tokenizer, "[")
        + _encode(tokenizer, name)
        + _encode(tokenizer, "]")
        for name in identifiers
    ]
    return first, later


def _reads_back(
    tokenizer: Any,
    identifiers: Sequence[str],
    prefix: str,
    first: Sequence[Sequence[int]],
    later: Sequence[Sequence[int]],
) -> bool:
    if not all(first) or not all(later):
        return False
    for start in range(len(identifiers)):
        order = [*range(start, len(identifiers)), *range(start)]
        ids = [*first[order[0]], *(token for i in order[1:] for token in later[i])]
        written = "".join(tokenizer.decode(ids, clean_up_tokenization_spaces=False).split())
        if written != "".join(" > ".join(f"[{identifiers[i]}]" for i in order).split())[len(prefix) :]:
            return False
    return True


def _prefix_free(spelt: Sequence[Sequence[int]]) -> bool:
    whole = sorted(tuple(tokens) for tokens in spelt)
    return all(b[: len(a)] != a for a, b in pairwise(whole))
