"""Readers and writers of TREC runs and qrels."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NoReturn

from labelstore.errors import BadInput
from labelstore.files.lines import decode, lines, real, whole

_FLOAT32_MAX = 3.4028235677973366e38  # what lies above rounds to infinity

LONGEST_RUN_LINE = 1 << 20  # bytes
RANKING_TAG = "ranking"  # what a run is tagged whose layout has no tag
RUN_FIELDS = {
    6: "query_id Q0 doc_id rank score tag",
    4: "query_id doc_id rank score",
    3: "query_id doc_id rank",
}
BEIR_HEADER = (b"query-id", b"corpus-id", b"score")

_QRELS_HINT = "TREC qrels: query_id 0 doc_id relevance"
_BEIR_HINT = "BEIR's qrels: query-id, corpus-id and score (a whole number), separated by tabs"


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


def read_qrels(path: Path) -> Iterator[Judgment]:
    """Read judgments of TREC qrels (``query_id 0 doc_id relevance``) or of BEIR's three columns under their header.

    Raises:
        BadInput: a line has neither form; the message names it.
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
    """Split a line into fields at ASCII white space.

    Raises:
        BadInput: if the line is not UTF-8.
    """
    if not line.isascii():
        decode(path, number, line)
    return line.split()


def read_run(path: Path) -> Iterator[Candidate]:
    """Read the lines of a run, with fields split at ASCII white space: TREC's ``query_id Q0 doc_id rank score tag``, ColBERT's
    ``query_id doc_id rank score``, or MS MARCO's ``query_id doc_id rank``, whose scores are then -rank.

    The first line tells the layout. Comment lines (an ir_metadata header begins each line with ``# ``) and blank lines are
    skipped.

    Raises:
        BadInput: a line has another number of fields than the first, a rank that is not a whole number, or a score
            that is not finite; the message names the line.
    """
    wanted, hint = 0, ""
    for number, line in lines(path, LONGEST_RUN_LINE):
        if line.split(None, 1)[:1] in ([], [b"#"]):
            continue
        fields = _fields(path, number, line)
        if not wanted:
            wanted = number_of_fields(fields)
            hint = f"each line is {RUN_FIELDS[wanted]}"
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
            raise BadInput(f"{path}:{number}: rank {place.decode()!r} is not a whole number", hint=hint)
        score = real(value)
        if not abs(score) < _FLOAT32_MAX:
            raise BadInput(
                f"{path}:{number}: score {value.decode()!r} is not a finite number",
                hint="give every candidate a finite score: remove the line, or repair the system that wrote it",
            )
        yield Candidate(number, query.decode(), document.decode(), int(rank), score, tag)


def number_of_fields(first: list[bytes]) -> int:
    """Count the fields of a run's lines by its first line: 6 unless they are the 4 or 3 of another layout."""
    return len(first) if len(first) in RUN_FIELDS else 6


def refuse_run(path: Path, reason: BaseException) -> NoReturn:
    """Say why a run cannot be read, with the first line that is wrong.

    Args:
        reason: what is said if each line reads well.
    """
    for _ in read_run(path):
        pass
    raise BadInput(
        f"{path}: cannot be read: {str(reason).partition(chr(10))[0] or 'it was changed meanwhile'}",
        hint="run the command again when no other program writes the file",
    ) from reason


def format_score(score: float) -> str:
    """Write a score as the shortest text that reads back as the same float32."""
    import numpy

    return numpy.format_float_positional(numpy.float32(score), unique=True, trim="0")


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
