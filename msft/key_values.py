"""Read options of the form KEY=VALUE, in the same way for every command."""

import json
import tomllib
from collections.abc import Callable, Iterable
from typing import Any

from msft.errors import ExitCode, MsftError


def key_values(
    option: str, given: Iterable[str], example: str, read: Callable[[str], Any] = str
) -> dict[str, Any]:
    """Split each text at its first ``=``. If a key is given twice, the last value counts.

    Args:
        option: the option's name, for the error.
        example: a valid value of the option, for the hint.
        read: a function that turns the text after ``=`` into a value.

    Raises:
        MsftError: a text without ``=`` or without a key (exit code 2).
    """
    found = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise MsftError(
                f"{option} {text}: expected KEY=VALUE",
                hint=f"write {option} {example}",
                exit_code=ExitCode.USAGE,
            )
        found[key.strip()] = read(value)
    return found


def toml_value(text: str) -> Any:
    """Read a TOML value: ``10``, ``0.5``, ``true``, ``"cosine"``, ``[1, 2]``; other text stays text."""
    try:
        return tomllib.loads(f"value = {text}")["value"] if "\n" not in text else text
    except tomllib.TOMLDecodeError:
        return text


def json_value(text: str) -> Any:
    """Read a JSON value: ``2``, ``true``, ``null``, ``{"a": 1}``; other text stays text."""
    try:
        return json.loads(text)
    except ValueError:
        return text
