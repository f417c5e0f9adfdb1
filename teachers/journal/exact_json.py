"""JSON as fast as it goes for what labelling writes with each call, without losing what orjson would.

orjson writes a float that is not finite as null and refuses lone surrogates (a model can emit half a character). The
standard library writes both, as ``NaN`` and ``\\ud800``, and reads them back; so that is the way for those.
"""

import json
from typing import Any

import orjson

_JSON = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode


def dumps(value: Any, *, finite: bool) -> bytes:
    """`value` as UTF-8 without spaces and line breaks.

    Args:
        finite: whether its floats are known to be finite numbers.
    """
    if finite:
        try:
            return orjson.dumps(value)
        except orjson.JSONEncodeError:
            pass
    return _JSON(value).encode("ascii")


def clean(text: str) -> str:
    """Replace what no database text holds, half surrogate pairs and NUL, by U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").replace("\0", "\ufffd")


def loads(data: bytes) -> Any:
    """The value that :func:`dumps` wrote."""
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        return json.loads(data)
