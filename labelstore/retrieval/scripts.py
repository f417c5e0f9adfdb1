"""Detect scripts without spaces between words, which need their own analyser."""

import re

_SCRIPTS = (
    ("ja", re.compile("[\u3040-\u30ff]")),  # kana; Han characters stand beside them
    ("ko", re.compile("[\u1100-\u11ff\uac00-\ud7af]")),
    ("th", re.compile("[\u0e00-\u0e7f]")),
    ("zh", re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f]")),
)
NAMES = {"chinese": "zh", "japanese": "ja", "korean": "ko", "thai": "th"} | {
    code: code for code, _ in _SCRIPTS
}


def language(text: str) -> str | None:
    """Guess the language code of a text whose script has no spaces between words; None for others."""
    return next((code for code, letters in _SCRIPTS if letters.search(text)), None)
