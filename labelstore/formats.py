"""Readers and writers of files that others use: TREC runs and qrels, JSONL documents, TSV queries; gz and zst as they are.

Every reader splits on ``\\n`` alone (passages hold U+0085 and U+2028), wants UTF-8, and names ``file:line`` in what it
refuses. The readers here are the reference; `labelstore.runs` lets DuckDB read large runs and comes here for the
line number when DuckDB refuses one.
"""

import gzip
import io
import json
import math
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import zstandard

from labelstore.errors import BadInput, DataMissing, UsageError

MAX_LINE = 64 * 2**20  # bytes; a longer line is not text that anybody ranks
GZIP_MAGIC, ZSTD_MAGIC = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
DAMAGED = (EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError)
_FLOAT32_MAX = 3.4028235677973366e38  # what lies above rounds to infinity
DOC_KEYS = ("doc_id", "_id", "docid", "docno", "id", "pid")
QUERY_KEYS = ("query_id", "_id", "qid", "id")
RANKING_TAG = "ranking"  # what a run is tagged whose layout has no tag
_RUN_FIELDS = {
    6: "query_id Q0 doc_id rank score tag",
    4: "query_id doc_id rank score",
    3: "query_id doc_id rank",
}
BEIR_HEADER = (b"query-id", b"corpus-id", b"score")
_ID_HEADERS = {
    *DOC_KEYS,
    *QUERY_KEYS,
    "query-id",
    "queryid",
    "corpus-id",
    "doc-id",
    "topic",
    "topic_id",
    "number",
}
_TEXT_HEADERS = {"text", "query", "query_text", "question", "title", "contents", "passage", "description"}
_QRELS_HINT = "TREC qrels: query_id 0 doc_id relevance"
_BEIR_HINT = "BEIR's qrels: query-id, corpus-id and score (a whole number), apart by tabs"


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


@dataclass(frozen=True)
class Judgment:
    line: int
    query_id: str
    doc_id: str
    relevance: int
    iteration: str = "0"  # TREC's second field; a subtopic's number in qrels for diversity


@dataclass(frozen=True)
class Candidate:
    """One line of a TREC run."""

    line: int
    query_id: str
    doc_id: str
    rank: int
    score: float
    tag: str


def compression(path: Path) -> str:
    """none, gzip or zstd, by the file's first bytes rather than its name.

    Raises:
        DataMissing: if there is no such file.
    """
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except FileNotFoundError:
        raise DataMissing(f"no file {path}", hint="check the path") from None
    except OSError as error:
        raise DataMissing(f"{path} cannot be read: {error.strerror}", hint="check the path") from error
    if magic[:2] == GZIP_MAGIC:
        return "gzip"
    return "zstd" if magic == ZSTD_MAGIC else "none"


class _ZstdFrames(io.RawIOBase):
    """All frames of a zstd file; unlike the library's reader it notices a file cut short."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._frame: Any = zstandard.ZstdDecompressor().decompressobj()
        self._fresh = True  # nothing of the current frame was read
        self._ready = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            if self._frame.eof:
                rest, self._frame = self._frame.unused_data, zstandard.ZstdDecompressor().decompressobj()
                self._fresh = True
            else:
                rest = b""
            block = rest or self._file.read(1 << 17)
            if not block:
                if not self._fresh:
                    raise EOFError("the last zstd frame is cut short")
                return 0
            self._fresh = False
            self._ready = self._frame.decompress(block)
        n = min(len(buffer), len(self._ready))
        buffer[:n], self._ready = self._ready[:n], self._ready[n:]
        return n

    def close(self) -> None:
        self._file.close()
        super().close()


def open_bytes(path: Path) -> IO[bytes]:
    """The file's bytes, decompressed.

    Raises:
        DataMissing: if there is no such file. Damage shows while reading: wrap that in :func:`lines`.
    """
    kind = compression(path)
    if kind == "gzip":
        return io.BufferedReader(gzip.GzipFile(path, "rb"), 1 << 20)  # type: ignore[type-var]
    if kind == "zstd":
        return io.BufferedReader(_ZstdFrames(path.open("rb")), 1 << 20)
    return path.open("rb", buffering=1 << 20)


def check_intact(path: Path) -> None:
    """Read a compressed file to its end, checksums included; nothing to do for a plain one.

    Raises:
        BadInput: if it is cut short or damaged.
    """
    if compression(path) == "none":
        return
    try:
        with open_bytes(path) as file:
            while file.read(1 << 20):
                pass
    except DAMAGED as error:
        raise BadInput(
            f"{path}: cut short or damaged: {error}", hint="fetch or make the file again"
        ) from error


def lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """(number from 1, line without its end) of a text file, plain or compressed.

    Raises:
        DataMissing: if there is no such file.
        BadInput: if it is cut short or damaged, not UTF-8 text, or has a line beyond MAX_LINE.
    """
    number = 0
    try:
        with open_bytes(path) as file:
            while line := file.readline(MAX_LINE + 1):
                number += 1
                if len(line) > MAX_LINE:
                    raise BadInput(
                        f"{path}:{number}: the line is longer than {MAX_LINE >> 20} MiB",
                        hint="lines end with \\n; is this the right file?",
                    )
                line = line.rstrip(b"\r\n")
                if number == 1:
                    line = line.removeprefix(b"\xef\xbb\xbf")
                if b"\x00" in line:
                    raise BadInput(
                        f"{path}:{number}: a NUL byte; this is no text file or a damaged one",
                        hint="text is wanted in UTF-8, without NUL bytes",
                    )
                yield number, line
    except DAMAGED as error:
        raise BadInput(
            f"{path}: cut short or damaged after line {number}: {error}", hint="fetch or make the file again"
        ) from error


def decode(path: Path, number: int, line: bytes) -> str:
    """A line as text.

    Raises:
        BadInput: naming file:line, if it is not UTF-8.
    """
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadInput(
            f"{path}:{number}: not UTF-8 (byte 0x{line[error.start]:02x} at {error.start})",
            hint="convert it, e.g. iconv -f latin1 -t utf-8",
        ) from error


def whole(text: bytes) -> int | None:
    """A whole number in ASCII digits; None for other text. Python's own reading takes ``1_0`` too."""
    try:
        return None if b"_" in text else int(text)
    except ValueError:
        return None


def real(text: bytes) -> float:
    """A number in ASCII digits; NaN for other text. Python's own reading takes ``1_0`` too."""
    try:
        return math.nan if b"_" in text else float(text)
    except ValueError:
        return math.nan


def _id(path: Path, number: int, value: Any, what: str) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value:
        raise BadInput(
            f"{path}:{number}: {what} is missing or no text",
            hint=f'each line is {{"{what}": "…", "text": "…"}}',
        )
    if len(value.split(None, 1)) != 1 or value != value.strip() or "\x00" in value:
        raise BadInput(
            f"{path}:{number}: {what} {value!r} holds white space", hint="TREC files cannot name it"
        )
    return value


def read_documents(path: Path) -> Iterator[Document]:
    """Documents of a JSONL file: ``doc_id`` (or ``_id``, ``docid``, ``docno``, ``id``), ``text`` (or ``contents``), ``title``.

    Empty texts are yielded as they are: the caller counts them.

    Raises:
        BadInput: naming the line that is no such object.
    """
    for number, line in lines(path):
        if not line.strip():
            continue
        row = _object(path, number, line)
        doc_id = _id(path, number, next((row[k] for k in DOC_KEYS if k in row), None), "doc_id")
        text, title = row.get("text", row.get("contents")), row.get("title")
        for name, value in (("text", text), ("title", title)):
            if value is not None and not isinstance(value, str):
                raise BadInput(f"{path}:{number}: {name} is no text", hint="it must be a JSON string")
        if text is None and "text" not in row and "contents" not in row:
            raise BadInput(
                f"{path}:{number}: no field text", hint='each line is {"doc_id": "…", "text": "…"}'
            )
        yield Document(
            number, doc_id, _sound(path, number, title or "") or None, _sound(path, number, text or "")
        )


def _sound(path: Path, number: int, text: str) -> str:
    """Text as stored: no NUL, no half of a surrogate pair (JSON's escapes can write both)."""
    if "\x00" in text or (not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text)):
        raise BadInput(
            f"{path}:{number}: the text holds a NUL or a lone surrogate escape", hint="repair the passage"
        )
    return text


def _object(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(decode(path, number, line))
    except (json.JSONDecodeError, RecursionError) as error:
        raise BadInput(f"{path}:{number}: not JSON: {error}", hint="one JSON object per line") from error
    if not isinstance(row, dict):
        raise BadInput(f"{path}:{number}: not a JSON object", hint="one JSON object per line")
    return row


def read_queries(path: Path) -> Iterator[Query]:
    """Queries of a TSV (``query_id<TAB>text``; further tabs belong to the text) or, where the name says so, a JSONL file.

    Text is stripped of white space around it; an empty one is yielded: the caller counts it.

    Raises:
        BadInput: naming the line that is neither.
    """
    if ".jsonl" in path.name:
        for number, line in lines(path):
            if not line.strip():
                continue
            row = _object(path, number, line)
            query_id = _id(path, number, next((row[k] for k in QUERY_KEYS if k in row), None), "query_id")
            text = row.get("text", row.get("query"))
            if not isinstance(text, str):
                raise BadInput(
                    f"{path}:{number}: no field text", hint='each line is {"query_id": "…", "text": "…"}'
                )
            yield Query(number, query_id, _sound(path, number, text).strip())
        return
    for number, query_id, text in _table(path, "query_id"):
        yield Query(number, query_id, text)


def read_document_table(path: Path) -> Iterator[Document]:
    """Documents of a TSV, as MS MARCO's ``collection.tsv``: ``doc_id<TAB>text``; further tabs belong to the text.

    Raises:
        BadInput: naming the line that is none.
    """
    for number, doc_id, text in _table(path, "doc_id"):
        yield Document(number, doc_id, None, text)


def _table(path: Path, id_name: str) -> Iterator[tuple[int, str, str]]:
    """(line, id, text) of a TSV; a header in its first line is passed over."""
    first = True
    for number, line in lines(path):
        if not line.strip():
            continue
        id_, tab, text = decode(path, number, line).partition("\t")
        if not tab:
            raise BadInput(
                f"{path}:{number}: no tab between {id_name} and text", hint=f"each line is {id_name}<TAB>text"
            )
        header, first = first and _is_header(id_, text), False
        if not header:
            yield number, _id(path, number, id_.strip(), id_name), text.strip()


def _is_header(id_: str, text: str) -> bool:
    names = id_.strip(' #"').lower(), text.partition("\t")[0].strip(' "').lower()
    return names[0] in _ID_HEADERS and names[1] in _TEXT_HEADERS


def read_qrels(path: Path) -> Iterator[Judgment]:
    """Judgments of TREC qrels (``query_id 0 doc_id relevance``) or of BEIR's three columns under their header.

    Raises:
        BadInput: naming the line that is neither.
    """
    beir, hint = False, _QRELS_HINT
    for number, line in lines(path):
        fields = _fields(path, number, line)
        if not fields:
            continue
        if number == 1 and tuple(fields) == BEIR_HEADER:
            beir, hint = True, _BEIR_HINT
            continue
        if len(fields) != (3 if beir else 4):
            raise BadInput(
                f"{path}:{number}: {len(fields)} fields, not {3 if beir else 4}",
                hint=hint,
            )
        relevance = whole(fields[-1])
        if relevance is None or not -(2**15) <= relevance < 2**15:
            raise BadInput(
                f"{path}:{number}: relevance {fields[-1].decode()!r} is not a small whole number", hint=hint
            )
        iteration = "0" if beir else fields[1].decode()
        yield Judgment(number, fields[0].decode(), fields[-2].decode(), relevance, iteration)


def _fields(path: Path, number: int, line: bytes) -> list[bytes]:
    """A line's fields, apart by ASCII white space.

    Raises:
        BadInput: if the line is not UTF-8.
    """
    if not line.isascii():
        decode(path, number, line)
    return line.split()


def read_run(path: Path) -> Iterator[Candidate]:
    """Lines of a run, fields apart by any ASCII white space: TREC's ``query_id Q0 doc_id rank score tag``, ColBERT's
    ``query_id doc_id rank score``, or MS MARCO's ``query_id doc_id rank``, whose scores are then -rank.

    The first line tells which. Comment lines (an ir_metadata header begins each line with ``# ``) and blank lines are
    passed over.

    Raises:
        BadInput: naming the line whose fields are not as many as the first one's, whose rank is no whole number, or
            whose score is not finite.
    """
    wanted, hint = 0, ""
    for number, line in lines(path):
        if line.split(None, 1)[:1] in ([], [b"#"]):
            continue
        fields = _fields(path, number, line)
        if not wanted:
            wanted = len(fields) if len(fields) in _RUN_FIELDS else 6
            hint = f"each line is {_RUN_FIELDS[wanted]}"
        if len(fields) != wanted:
            raise BadInput(f"{path}:{number}: {len(fields)} fields, not {wanted}", hint=hint)
        if wanted < 6:
            query, document, place = fields[:3]
            value, tag = fields[3] if wanted == 4 else b"-" + place.lstrip(b"+-"), RANKING_TAG
        else:
            query, _, document, place, value = fields[:5]
            tag = fields[5].decode()
        rank = real(place)
        if not (rank.is_integer() and abs(rank) < 2**31):
            raise BadInput(f"{path}:{number}: rank {place.decode()!r} is no whole number", hint=hint)
        score = real(value)
        if not abs(score) < _FLOAT32_MAX:
            raise BadInput(
                f"{path}:{number}: score {value.decode()!r} is no finite number",
                hint="every candidate needs a finite score; take out the line or mend the system that wrote it",
            )
        yield Candidate(number, query.decode(), document.decode(), int(rank), score, tag)


def format_score(score: float) -> str:
    """The shortest text that reads back as the same float32."""
    import numpy

    return numpy.format_float_positional(numpy.float32(score), unique=True, trim="0")


@contextmanager
def create(path: Path) -> Iterator[IO[str]]:
    """A text file to write, compressed as its name says (.gz, .zst); it appears whole or not at all.

    A link is followed; a device or a pipe is written to and never replaced.

    Raises:
        UsageError: if it is a folder.
    """
    if path.is_dir():
        raise UsageError(f"{path} is a folder", hint=f"name a file in it, e.g. -o {path / 'out.txt'}")
    if path.exists() and not path.is_file():
        with path.open("w", encoding="utf-8", newline="\n") as device:
            yield device
        return
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as file:
            packed: Any = file
            if path.suffix == ".gz":
                packed = gzip.GzipFile(filename="", mode="wb", fileobj=file, compresslevel=6, mtime=0)
            elif path.suffix == ".zst":
                packed = zstandard.ZstdCompressor(write_checksum=True).stream_writer(file, closefd=False)
            text = io.TextIOWrapper(packed, "utf-8", newline="\n")
            yield text
            text.flush()
            if packed is not file:
                text.close()
            else:
                text.detach()
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_run(
    out: IO[str], rows: Iterable[tuple[str, str, int, float]], tag: str, header: Iterable[str] = ()
) -> int:
    """Write a TREC run and return its number of lines.

    Args:
        rows: (query_id, doc_id, rank, score).
        tag: the run's name; its white space becomes ``-``.
        header: lines of an ir_metadata header, without the leading ``# ``.
    """
    for line in header:
        out.write(f"# {line}".rstrip() + "\n")
    tag = "-".join(tag.split()) or "msft"
    n = 0
    for query_id, doc_id, rank, score in rows:
        out.write(f"{query_id} Q0 {doc_id} {rank} {format_score(score)} {tag}\n")
        n += 1
    return n


def write_qrels(out: IO[str], rows: Iterable[tuple[str, str, int]]) -> int:
    """Write TREC qrels from (query_id, doc_id, relevance) and return the number of lines."""
    n = 0
    for query_id, doc_id, relevance in rows:
        out.write(f"{query_id} 0 {doc_id} {relevance}\n")
        n += 1
    return n
