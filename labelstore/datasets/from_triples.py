"""Add a dataset from lines of triples: a query with the texts of its positives and negatives.

One JSON object a line (plain, .gz or .zst). Known names: ``query``, ``anchor`` or ``question``; ``positives``, ``pos``,
``positive`` or ``positive_passages``; ``negatives``, ``neg``, ``negative`` or ``negative_passages``; each a text, or a
list of texts or of objects with ``text`` and perhaps ``title`` and an id. So the files of FlagEmbedding, Tevatron and
sentence-transformers, and those of tool benchmarks, can be read as they are.

Texts without an id get one from their content. The positives are judgments of grade 1. All passages of a line are the
candidates of its query in a run `triples`, so that `negatives mine --run triples` takes the given negatives.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from labelstore.errors import BadInput, DataMissing
from labelstore.files import lines
from labelstore.store import keys

RUN = "triples"
QUERY = ("query", "anchor", "question")
POSITIVES = ("positives", "pos", "positive", "positive_passages")
NEGATIVES = ("negatives", "neg", "negative", "negative_passages")
_FORM = 'write each line as {"query": "…", "positives": ["…"], "negatives": ["…"]}'
_IDS = ("doc_id", "docid", "_id", "id", "pid")


@dataclass(frozen=True)
class Passage:
    """A passage with its given id, or with one from its content."""

    doc_id: str
    title: str | None
    text: str


@dataclass
class Triples:
    """What a file holds, and what was left out.

    Attributes:
        candidates: query_id -> doc_id -> whether it is a positive, in the file's order.
        documents: doc_id -> hash of its text.
        n_both: passages that a query has as positive and as negative; they are taken as positive.
    """

    queries: dict[str, str] = field(default_factory=dict)
    candidates: dict[str, dict[str, bool]] = field(default_factory=dict)
    documents: dict[str, int] = field(default_factory=dict)
    n_both: int = 0

    @property
    def n_negatives(self) -> int:
        """Count the given negatives, over all queries."""
        return sum(not positive for own in self.candidates.values() for positive in own.values())


def split(file: Path, folder: Path) -> Triples:
    """Write documents, queries and judgments into a folder, as a dataset's folder has them, and the run as run.trec.

    Raises:
        DataMissing: the file is not found.
        BadInput: a line is not a triple, with file:line.
    """
    if not file.is_file():
        raise DataMissing(f"file not found: {file}", hint="--from FILE with one JSON object a line")
    read = Triples()
    with ExitStack() as stack:
        documents = stack.enter_context((folder / "docs.jsonl").open("w", encoding="utf-8"))
        for number, line in lines.lines(file):
            if line.strip():
                _take(file, number, line, read, documents)
        if not read.queries:
            raise BadInput(
                f"{file} holds no line", hint='{"query": "…", "positives": ["…"], "negatives": ["…"]}'
            )
        queries = stack.enter_context((folder / "queries.jsonl").open("w", encoding="utf-8"))
        qrels = stack.enter_context((folder / "qrels.txt").open("w", encoding="utf-8"))
        run = stack.enter_context((folder / "run.trec").open("w", encoding="utf-8"))
        for query_id, text in read.queries.items():
            queries.write(json.dumps({"query_id": query_id, "text": text}) + "\n")
            own = sorted(read.candidates[query_id].items(), key=lambda item: not item[1])  # positives first
            for rank, (doc_id, positive) in enumerate(own, 1):
                run.write(f"{query_id} Q0 {doc_id} {rank} {1 / rank:.9f} {RUN}\n")
                if positive:
                    qrels.write(f"{query_id} 0 {doc_id} 1\n")
    return read


def _or(names: Sequence[str]) -> str:
    *others, last = names
    return f"{', '.join(others)} or {last}"


def _take(file: Path, number: int, line: bytes, read: Triples, documents: IO[str]) -> None:
    """Add a line to what was read, and write its new passages."""
    given = _object(file, number, line)
    text = _named(given, QUERY)
    if not isinstance(text, str) or not _sound(text):
        raise BadInput(f"{file}:{number}: no query: expected a text as {_or(QUERY)}", hint=_FORM)
    query_id = _id(f"{file}:{number}", given.get("query_id"), text, "q")
    if read.queries.setdefault(query_id, text) != text:
        raise BadInput(f"{file}:{number}: query {query_id} had another text before")
    own = read.candidates.setdefault(query_id, {})
    positives = list(_passages(file, number, given, POSITIVES))
    if not positives:
        raise BadInput(f"{file}:{number}: no positive: expected texts as {_or(POSITIVES)}", hint=_FORM)
    for positive, passages in ((True, positives), (False, list(_passages(file, number, given, NEGATIVES)))):
        for passage in passages:
            hashed = keys.text_hash(passage.title, passage.text)
            if passage.doc_id not in read.documents:
                read.documents[passage.doc_id] = hashed
                _write(documents, passage)
            elif read.documents[passage.doc_id] != hashed:
                raise BadInput(f"{file}:{number}: passage {passage.doc_id} had another text before")
            if passage.doc_id in own:
                read.n_both += own[passage.doc_id] != positive
                own[passage.doc_id] |= positive
            else:
                own[passage.doc_id] = positive


def _write(documents: IO[str], passage: Passage) -> None:
    title = {} if passage.title is None else {"title": passage.title}
    documents.write(json.dumps({"doc_id": passage.doc_id, **title, "text": passage.text}) + "\n")


def _passages(file: Path, number: int, given: dict[str, Any], names: tuple[str, ...]) -> Iterator[Passage]:
    value = _named(given, names)
    for item in [] if value is None else value if isinstance(value, list) else [value]:
        entry = {"text": item} if isinstance(item, str) else item
        text = entry.get("text") if isinstance(entry, dict) else None
        title = entry.get("title") if isinstance(entry, dict) else None
        if not isinstance(text, str) or not _sound(text) or not isinstance(title, str | None):
            raise BadInput(f"{file}:{number}: a passage of {names[0]} is no text, nor an object with a text")
        doc_id = _id(f"{file}:{number}", _named(entry, _IDS), f"{title or ''}\n{text}", "p")
        yield Passage(doc_id, title or None, text)


def _sound(text: str) -> bool:
    """Tell whether a text holds something, and neither a NUL nor half of a surrogate pair."""
    return bool(text.strip()) and "\x00" not in text and not any("\ud800" <= c <= "\udfff" for c in text)


def _named(given: dict[str, Any], names: tuple[str, ...]) -> Any:
    return next((given[name] for name in names if given.get(name) is not None), None)


def _id(where: str, given: Any, text: str, letter: str) -> str:
    """Return a given id, or one from the text."""
    if given is not None and (own := str(given).strip()):
        if len(own.split()) > 1:
            raise BadInput(f"{where}: the id {own!r} holds white space")
        return own
    return f"{letter}{keys.text_hash(None, text):016x}"


def _object(file: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        given = json.loads(lines.decode(file, number, line))
    except (json.JSONDecodeError, RecursionError) as error:
        raise BadInput(f"{file}:{number}: not JSON: {error}") from error
    if not isinstance(given, dict):
        raise BadInput(f"{file}:{number}: not a JSON object")
    return given
