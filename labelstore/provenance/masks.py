"""Mask secrets: the keys in the environment, and credentials in URLs."""

import os
import re

SHORTEST = 6  # a shorter value (EMPTY, none) is a placeholder
_NAME = re.compile(r"(MSFT|OPENAI|HF|HUGGING_?FACE)_.*(KEY|TOKEN)$")
_NAMED = re.compile(r"(?i)((?:key|token|secret|password)[=\s:]+)([^\s@]+)")
_URL = re.compile(r"(?i)\b(https?://)([^\s'\"<>]*)")


def masked(text: str) -> str:
    """Mask the values of MSFT_API_KEY and similar variables, and everything but host and path in URLs."""
    return _URL.sub(_masked_url, _without_keys(text))


def masked_command(words: list[str]) -> str:
    """Join a command line, with every argument masked that may be a secret by its name or as part of a URL."""
    named = _NAMED.sub(r"\1***", " ".join(_masked_word(word) for word in words))
    return _without_keys(named)


def _masked_word(word: str) -> str:
    """Mask one argument; everything before an @ in a URL counts as a credential."""
    head, scheme, rest = word.partition("://")
    return head + scheme + _masked_rest(rest) if scheme else word


def _masked_url(found: re.Match[str]) -> str:
    return found[1] + _masked_rest(found[2])


def _masked_rest(rest: str) -> str:
    _, at, after = rest.rpartition("@")
    place, sign, _ = (after if at else rest).partition("?")
    return ("***@" if at else "") + place + ("?***" if sign else "")


def _without_keys(text: str) -> str:
    values = {value.strip() for name, value in os.environ.items() if _NAME.search(name)}
    for value in sorted(values, key=len, reverse=True):
        if len(value) >= SHORTEST:
            text = text.replace(value, "***")
    return text
