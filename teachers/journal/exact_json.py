"""Fast JSON for call records that keeps the values that orjson would lose.

orjson writes a float that is not finite as null and refuses lone surrogates (a model can emit half a character). The
standard library writes both, as ``NaN`` and ``\\ud800``, and reads them back, so it is used for these values.
"""

import json
from typing import Any

import orjson

_JSON = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode


def dumps(value: Any, *, finite: bool) -> bytes:
    """Encode `value` as UTF-8 JSON without spaces and line breaks.

    Args:
        finite: whether all floats in `value` are known to be finite.
    """
    if finite:
        try:
            return orjson.dumps(value)
        except orjson.JSONEncodeError:
            pass
    return _JSON(value).encode("ascii")


def clean(text: str) -> str:
    """Replace half surrogate pairs and NUL, which a database text cannot hold, by U+FFFD."""
    if text.isascii() and "\0" not in text:
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").replace("\0", "\ufffd")


def loads(data: bytes) -> Any:
    """Decode the output of :func:`dumps`."""
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        return json.loads(data)
