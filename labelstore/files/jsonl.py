"""Readers of documents and queries: JSONL and tables of two columns."""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from labelstore.errors import BadInput
from labelstore.files.lines import decode, lines

T = TypeVar("T")
Bad = Callable[[BadInput], None]
DOC_KEYS = ("doc_id", "_id", "docid", "docno", "id", "pid")
QUERY_KEYS = ("query_id", "_id", "qid", "id")
# Names of the first and the second column in a header, ignoring white space and marks.
_ID_HEADER = re.compile(
    r"(query|q|topic|question|doc|document|p|passage|corpus)?(id|no|num|number)|query|topic|question"
)
_TEXT_HEADER = re.compile(
    r"(query|topic|question|doc|document|passage)?(text|title|contents?|body)"
    r"|query|topic|question|passage|document|description|utterance"
)


@dataclass(frozen=True)
class Document:
    line: int
    doc_id: str
    title: str | None
    text: str


@dataclass(frozen=True)
class Query:
    line: int
    query_id: str
    text: str


def _id(path: Path, number: int, value: Any, what: str) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value:
        raise BadInput(
            f"{path}:{number}: {what} is missing or no text",
            hint=f'write each line as {{"{what}": "…", "text": "…"}}',
        )
    if len(value.split(None, 1)) != 1 or value != value.strip() or "\x00" in value:
        raise BadInput(
            f"{path}:{number}: {what} {value!r} holds white space",
            hint="remove the white space, because TREC files cannot hold it",
        )
    return value


def read_documents(path: Path, bad: Bad | None = None) -> Iterator[Document]:
    """Read documents of a JSONL file.

    Empty texts are yielded too; the caller counts them.

    Names: ``doc_id`` (or ``_id``, ``docid``, ``docno``, ``id``), ``text`` (or ``contents``), ``title``.

    Args:
        bad: called with the error of a line that is not such an object, which is then left out.

    Raises:
        BadInput: a line is not such an object; the message names it. Not with `bad`, unless that raises it.
    """
    yield from _each(((number, _document, line) for number, line in lines(path) if line.strip()), path, bad)


def _document(path: Path, number: int, line: bytes) -> Document:
    row = _object(path, number, line)
    doc_id = _id(path, number, next((row[k] for k in DOC_KEYS if k in row), None), "doc_id")
    text, title = row.get("text", row.get("contents")), row.get("title")
    for name, value in (("text", text), ("title", title)):
        if value is not None and not isinstance(value, str):
            raise BadInput(f"{path}:{number}: {name} is not text", hint="write it as a JSON string")
    if text is None and "text" not in row and "contents" not in row:
        raise BadInput(
            f"{path}:{number}: no field text", hint='write each line as {"doc_id": "…", "text": "…"}'
        )
    return Document(
        number, doc_id, _sound(path, number, title or "") or None, _sound(path, number, text or "")
    )


def _each(
    found: Iterable[tuple[int, Callable[[Path, int, bytes], T], bytes]], path: Path, bad: Bad | None
) -> Iterator[T]:
    """Read each line; give the error of one that cannot be read to `bad`, if there is one."""
    for number, read, line in found:
        try:
            row = read(path, number, line)
        except BadInput as error:
            if bad is None:
                raise
            bad(error)
            continue
        yield row


def _sound(path: Path, number: int, text: str) -> str:
    """Check a text: no NUL, and no half of a surrogate pair (JSON's escapes can write both)."""
    if "\x00" in text or (not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text)):
        raise BadInput(
            f"{path}:{number}: the text holds a NUL or a lone surrogate escape", hint="repair the passage"
        )
    return text


def _object(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(decode(path, number, line))
    except (json.JSONDecodeError, RecursionError) as error:
        raise BadInput(
            f"{path}:{number}: not JSON: {error}", hint="write one JSON object per line"
        ) from error
    if not isinstance(row, dict):
        raise BadInput(f"{path}:{number}: not a JSON object", hint="write one JSON object per line")
    return row


def read_queries(path: Path, bad: Bad | None = None) -> Iterator[Query]:
    """Read queries of a TSV (``query_id<TAB>text``; further tabs belong to the text) or JSONL file, by the file's name.

    Text is stripped of white space around it; an empty one is yielded too; the caller counts it.

    Args:
        bad: as in :func:`read_documents`.

    Raises:
        BadInput: a line has neither form; the message names it.
    """
    if ".jsonl" in path.name:
        yield from _each(((number, _query, line) for number, line in lines(path) if line.strip()), path, bad)
        return
    for number, query_id, text in _table(path, "query_id", bad):
        yield Query(number, query_id, text)


def _query(path: Path, number: int, line: bytes) -> Query:
    row = _object(path, number, line)
    query_id = _id(path, number, next((row[k] for k in QUERY_KEYS if k in row), None), "query_id")
    text = row.get("text", row.get("query"))
    if not isinstance(text, str):
        raise BadInput(
            f"{path}:{number}: no field text", hint='write each line as {"query_id": "…", "text": "…"}'
        )
    return Query(number, query_id, _sound(path, number, text).strip())


def read_document_table(path: Path, bad: Bad | None = None) -> Iterator[Document]:
    """Read documents of a TSV like MS MARCO's ``collection.tsv``: ``doc_id<TAB>text``; further tabs belong to the text.

    Args:
        bad: as in :func:`read_documents`.

    Raises:
        BadInput: a line has another form; the message names it.
    """
    for number, doc_id, text in _table(path, "doc_id", bad):
        yield Document(number, doc_id, None, text)


def _table(path: Path, id_name: str, bad: Bad | None) -> Iterator[tuple[int, str, str]]:
    """Yield (line, id, text) of a TSV; skip a header in its first line."""

    def row(path: Path, number: int, line: bytes) -> tuple[int, str, str] | None:
        id_, tab, text = decode(path, number, line).partition("\t")
        if not tab:
            raise BadInput(
                f"{path}:{number}: no tab between {id_name} and text",
                hint=f"write each line as {id_name}<TAB>text",
            )
        if number == first and _is_header(id_, text):
            return None
        return number, _id(path, number, id_.strip(), id_name), text.strip()

    first = 0

    def numbered() -> Iterator[tuple[int, Callable[[Path, int, bytes], tuple[int, str, str] | None], bytes]]:
        nonlocal first
        for number, line in lines(path):
            if line.strip():
                first = first or number
                yield number, row, line

    yield from (found for found in _each(numbered(), path, bad) if found is not None)


def _is_header(id_: str, text: str) -> bool:
    first, second = (re.sub(r"[\W_]", "", name.lower()) for name in (id_, text.partition("\t")[0]))
    return bool(_ID_HEADER.fullmatch(first) and _TEXT_HEADER.fullmatch(second))
