"""Make content keys: tagged hashes of canonical JSON, the same on every machine and in every store.

Surrogate keys and times never enter a content key, so equal content has equal keys in two stores.
"""

import hashlib
import json
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_MASK64 = (1 << 64) - 1
_CANONICAL = json.JSONEncoder(
    sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
).encode  # json.dumps would make a new encoder for each call


def canonical_json(value: Any) -> str:
    """Write JSON with sorted keys, without spaces and NaN, so that a value always has the same text.

    Raises:
        ValueError: ``value`` holds NaN or an infinity.
    """
    return _CANONICAL(value)


def content_key(tag: str, value: Any) -> str:
    """Hash ``value`` to 128-bit hex under ``tag`` (request, call, teacher, view …), so that kinds never collide."""
    return hashlib.blake2b(f"msft:{tag}:{canonical_json(value)}".encode(), digest_size=16).hexdigest()


def text_hash(title: str | None, text: str) -> int:
    """Hash a passage's title and text to an unsigned 64-bit number (a query: ``text_hash(None, text)``)."""
    data = ((title or "") + "\x00" + text).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little") & _MASK64


def normalise_query(text: str) -> str:
    """Normalise a query as the leakage guard compares it: NFKC, case folded, letters and digits alone."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join("".join(c if c.isalnum() else " " for c in folded).split())


def normal_hash(text: str) -> int:
    """Hash :func:`normalise_query` to an unsigned 64-bit number."""
    return text_hash(None, normalise_query(text))


def file_hash(path: Path) -> str:
    """Hash a file's bytes to 128-bit hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def rows_key(tag: str, rows: Iterable[Any]) -> str:
    """Hash a sequence of rows one by one to 128-bit hex, for rows that are too long for one JSON text."""
    digest = hashlib.blake2b(f"msft:{tag}:".encode(), digest_size=16)
    for row in rows:
        digest.update(canonical_json(row).encode())
        digest.update(b"\n")
    return digest.hexdigest()
