"""Passages inside a training prompt: ``[1] text`` lines between the header and the closing search query."""

import re

from labelstore.keys import text_hash

_QUERY = re.compile(r"relevance to (?:the search )?query: (.*?)\.?\s*\n", re.S)
_CLOSING = re.compile(r"\n\s*Search Query: ", re.S)
_PASSAGE = re.compile(r"^\[(\d+)\] ?", re.M)


def split(prompt: str) -> tuple[str | None, list[tuple[str, str]]]:
    """(query, [(doc_id, passage)]) of a prompt; a passage without an id gets one from its text's hash.

    Identifiers must run 1, 2, 3 …: a line inside a passage that begins with another ``[n]`` belongs to the passage.
    """
    found = _QUERY.search(prompt)
    if found is None:
        return None, []
    closing = _CLOSING.search(prompt, found.end() - 1)
    body = prompt[found.end() : closing.start() if closing else len(prompt)]
    starts: list[re.Match[str]] = []
    for mark in _PASSAGE.finditer(body):
        if int(mark[1]) == len(starts) + 1:
            starts.append(mark)
    ends = [mark.start() for mark in starts[1:]] + [len(body)]
    passages = []
    for mark, end in zip(starts, ends, strict=True):
        text = body[mark.end() : end].strip()
        passages.append((f"{text_hash(None, text):016x}", text))
    return found[1].strip(), passages
