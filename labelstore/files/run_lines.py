"""Bring a run into the form that DuckDB reads strictly: one space or one tab between fields, each line a candidate.

Most runs have this form and are read where they lie. Other runs are first copied into it, by the rules of
`trec.read_run`: compressed ones, and those with lines that end with ``\\r\\n``, more space between fields, comments or
blank lines.
"""

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from labelstore.errors import BadInput
from labelstore.files import trec
from labelstore.files.lines import BYTE_ORDER_MARK, DAMAGED, compression, open_bytes

_BLOCK = (
    1 << 20
)  # bytes: smaller ones make the threads wait for each other, larger ones leave the processor's cache
_PART = 1 << 26  # bytes of a file that a thread looks through at a time
_WHITE = b" \t\r\x0b\x0c"  # what separates fields, beside the end of a line
_PATTERN = set("*?[\\")  # DuckDB would read the files that fit the pattern


@dataclass(frozen=True)
class RunLines:
    """A run that DuckDB can read.

    Attributes:
        path: the run as it was given; messages name it.
        file: the same lines in the one form: `path` itself, or a copy.
        separator: one space or one tab.
        n_fields: 6, 4 or 3, by the first line.
        tag: what ranked, by the first line.
        odd_numbers: whether numbers may be written as only DuckDB takes them: 1_000, +-1.
    """

    path: Path
    file: Path
    separator: str
    n_fields: int
    tag: str
    odd_numbers: bool

    @property
    def relation(self) -> str:
        """SQL for (query_id, doc_id, rank, score).

        DuckDB refuses numbers that `trec.read_run` refuses, or gives NULL, NaN or infinity.
        """
        names = trec.RUN_FIELDS[self.n_fields].split()
        columns = ", ".join(f"'{name}': 'VARCHAR'" for name in names)
        score = self._number("score") if "score" in names else f"-abs({self._number('rank')})"
        return f"""(SELECT query_id, doc_id, {self._number("rank")} AS rank, {score} AS score
            FROM read_csv('{str(self.file).replace("'", "''")}', columns = {{{columns}}}, delim = '{self.separator}',
            auto_detect = false, header = false, quote = '', escape = '', comment = '', new_line = '\\n',
            strict_mode = true, maximum_line_size = {trec.LONGEST_RUN_LINE}))"""

    def _number(self, column: str) -> str:
        if not self.odd_numbers:
            return f"{column}::DOUBLE"
        return f"CASE WHEN NOT contains({column}, '_') AND NOT starts_with({column}, '+-') THEN {column}::DOUBLE END"


class _Unreadable(Exception):
    """Only `trec.read_run` can say which line is wrong."""


def run_lines(path: Path, folder: Path) -> RunLines:
    """Look through a run, and copy it into the folder unless DuckDB can read it where it lies.

    Raises:
        DataMissing: if there is no such file.
        BadInput: if it is damaged, not text or without a candidate.
    """
    file = path
    try:
        form = _form(path)
        if form is None:
            file = folder / "lines.txt"
            form = _copy(path, file)
    except (_Unreadable, UnicodeDecodeError, *DAMAGED) as error:
        trec.refuse_run(path, error)
    separator, odd_numbers = form
    with file.open("rb") as opened:
        fields = opened.readline().rstrip(b"\n").split(separator)
    if fields == [b""]:
        raise BadInput(
            f"{path}: the file has no candidate",
            hint="check that this is the right file; a line of a run is: query Q0 passage rank score tag",
        )
    tag = fields[5].decode() if len(fields) == 6 else trec.RANKING_TAG
    return RunLines(path, file, separator.decode(), trec.number_of_fields(fields), tag, odd_numbers)


def _blocks(file: IO[bytes], size: int = sys.maxsize) -> Iterator[bytes]:
    """Yield blocks of whole lines, until they have so many bytes."""
    n = 0
    while n < size and (block := file.read(min(_BLOCK, size - n))):
        block += _rest_of_line(file)
        if b"\x00" in block:
            raise _Unreadable
        n += len(block)
        yield block


def _rest_of_line(file: IO[bytes]) -> bytes:
    rest = file.readline(trec.LONGEST_RUN_LINE + 1)
    if len(rest) > trec.LONGEST_RUN_LINE:
        raise _Unreadable
    return rest


def _form(path: Path) -> tuple[bytes, bool] | None:
    """Find the separator, and whether numbers may be odd; None if DuckDB cannot read the file in place."""
    if compression(path) != "none" or set(str(path)) & _PATTERN:
        return None
    with path.open("rb") as file:
        separator = b"\t" if b"\t" in file.readline(trec.LONGEST_RUN_LINE) else b" "
    odd_numbers = False
    looks = ThreadPoolExecutor(2)  # numpy and reading let other threads run
    try:
        for plain, odd in looks.map(
            lambda at: _look(path, at, separator), range(0, path.stat().st_size, _PART)
        ):
            if not plain:
                return None
            odd_numbers = odd_numbers or odd
    finally:
        looks.shutdown(cancel_futures=True)
    return separator, odd_numbers


def _look(path: Path, start: int, separator: bytes) -> tuple[bool, bool]:
    """Tell whether the lines that begin in a part of a file are plain, and whether numbers may be odd."""
    odd_numbers = False
    with path.open("rb") as file:
        if start:
            file.seek(start - 1)
            start += len(_rest_of_line(file)) - 1
        for block in _blocks(file, _PART - start % _PART):
            if not _is_plain(block, separator):
                return False, odd_numbers
            odd_numbers = odd_numbers or _has_odd_numbers(block)
    return True, odd_numbers


def _copy(path: Path, to: Path) -> tuple[bytes, bool]:
    """Write the run's candidates with one space between fields; the separator and whether numbers may be odd.

    Raises:
        UnicodeDecodeError: if a candidate is not UTF-8.
    """
    odd_numbers = False
    with open_bytes(path) as file, to.open("wb") as out:
        for number, block in enumerate(_blocks(file)):
            text = block if number else block.removeprefix(BYTE_ORDER_MARK)
            if not _is_plain(text, b" "):
                fields = (line.split() for line in text.split(b"\n"))
                text = b"".join(b" ".join(line) + b"\n" for line in fields if line and line[0] != b"#")
                text.decode("utf-8")
            odd_numbers = odd_numbers or _has_odd_numbers(text)
            out.write(text)
    return b" ", odd_numbers


def _has_odd_numbers(block: bytes) -> bool:
    return b"_" in block or (b"+" in block and b"+-" in block)


def _is_plain(block: bytes, separator: bytes) -> bool:
    """Tell whether DuckDB reads the lines as `trec.read_run` does."""
    if any(byte in block for byte in _WHITE.replace(separator, b"")):
        return False
    blank = np.frombuffer(block, np.uint8) <= ord(" ")
    if not block or blank[0] or (blank[1:] & blank[:-1]).any() or block.endswith(separator):
        return False
    if block.startswith((b"#", BYTE_ORDER_MARK)) or (b"#" in block and b"\n#" in block):
        return False
    return block.isascii() or _is_text(block)


def _is_text(block: bytes) -> bool:
    try:
        block.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
