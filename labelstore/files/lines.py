"""Read and write lines of text files, plain, .gz or .zst; results appear whole or not at all.

Every reader splits on ``\\n`` alone (passages hold U+0085 and U+2028), needs UTF-8, and names ``file:line`` in its
errors. The readers here are the reference. DuckDB reads runs (`run_lines`); if it refuses one, `trec.read_run` finds the
line.
"""

import gzip
import io
import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import zstandard

from labelstore.errors import BadInput, DataMissing
from labelstore.files.whole_file import appearing

MAX_LINE = 64 * 2**20  # bytes; no text for ranking is longer
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
GZIP_MAGIC, ZSTD_MAGIC = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
DAMAGED = (EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError)


def compression(path: Path) -> str:
    """Tell a file's compression (none, gzip or zstd) by its first bytes, not by its name.

    Raises:
        DataMissing: the file is not found.
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
    """Open the file's bytes, decompressed.

    Raises:
        DataMissing: the file is not found. Damage shows while reading; :func:`lines` explains it.
    """
    kind = compression(path)
    if kind == "gzip":
        return io.BufferedReader(gzip.GzipFile(path, "rb"), 1 << 20)  # type: ignore[type-var]
    if kind == "zstd":
        return io.BufferedReader(_ZstdFrames(path.open("rb")), 1 << 20)
    return path.open("rb", buffering=1 << 20)


def lines(path: Path, longest: int | None = None) -> Iterator[tuple[int, bytes]]:
    """Yield (number from 1, line without its end) of a text file, plain or compressed.

    Raises:
        DataMissing: the file is not found.
        BadInput: it is cut short or damaged, not UTF-8 text, or has a line of more than `longest` bytes (by default
            MAX_LINE).
    """
    number, longest = 0, longest or MAX_LINE
    try:
        with open_bytes(path) as file:
            while line := file.readline(longest + 1):
                number += 1
                if len(line) > longest:
                    raise BadInput(
                        f"{path}:{number}: the line is longer than {longest >> 20} MiB",
                        hint="check that this is the right file; its lines must end with \\n",
                    )
                line = line.rstrip(b"\r\n")
                if number == 1:
                    line = line.removeprefix(BYTE_ORDER_MARK)
                if b"\x00" in line:
                    raise BadInput(
                        f"{path}:{number}: a NUL byte; the file is not text, or is damaged",
                        hint="save the text as UTF-8, without NUL bytes",
                    )
                yield number, line
    except DAMAGED as error:
        raise BadInput(
            f"{path}: cut short or damaged after line {number}: {error}", hint="fetch or make the file again"
        ) from error


def decode(path: Path, number: int, line: bytes) -> str:
    """Decode a line.

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
    """Read a whole number in ASCII digits; None for other text. Python's int() also accepts ``1_0``."""
    try:
        return None if b"_" in text else int(text)
    except ValueError:
        return None


def real(text: bytes) -> float:
    """Read a number in ASCII digits; NaN for other text. Python's float() also accepts ``1_0``."""
    try:
        return math.nan if b"_" in text else float(text)
    except ValueError:
        return math.nan


@contextmanager
def create(path: Path) -> Iterator[IO[str]]:
    """Open a text file for writing, compressed if its name ends in .gz or .zst; it appears whole or not at all.

    A link is followed. A device or a pipe is written to, and never replaced.

    Raises:
        UsageError: the path is a folder.
        MsftError: the file cannot be written.
    """
    with appearing(path) as part, part.open("wb") as file:
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
