"""What a self-contained HTML page is made of: data that no text can leave, and a policy that allows one script alone."""

import base64
import hashlib
import json
from importlib.resources import files
from typing import Any


def asset(room: str, name: str) -> str:
    """Read a style or script that lies in a room of labelstore, e.g. ``report/templates``."""
    return files("labelstore").joinpath(room, name).read_text("utf-8").strip()


def policy(script: str) -> str:
    """Write the content security policy of a page that runs this script alone and requests nothing."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; base-uri 'none';"
        " form-action 'none'"
    )


def embedded(data: Any) -> str:
    """Write JSON that is safe in a script element, whatever its texts."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
