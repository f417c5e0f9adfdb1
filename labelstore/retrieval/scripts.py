"""Scripts that put no space between words: what they are written in needs an analyser of its own."""

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
    """The code of the language that a text seems to be in, if its script puts no space between words."""
    return next((code for code, letters in _SCRIPTS if letters.search(text)), None)
