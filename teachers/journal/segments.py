"""The journal: an append-only log of completed calls, so that no paid reply is lost.

A segment is a file of lines ``CHECKSUM JSON``. Its first line is a header with the job and the data for merging
(teacher, labeling), so each segment can be merged alone, into any store. Each call is written with one system call
when it completes, and synced to disk (group commit) before 64 calls or one second are outstanding. A process killed
while writing leaves at most a torn last line: readers skip and report it. A writer never continues another writer's
segment. All engines, and Ray's workers, write this one format.
"""

import fcntl
import hashlib
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from msft.host.durable import flush
from teachers.errors import TeacherError
from teachers.journal import exact_json

SUFFIX = ".calls"
ASIDE = "aside"  # the folder of segments that could not be merged
FORMAT = 1
SYNC_CALLS = 64  # most completed calls that wait for a sync
SYNC_SECONDS = 1.0  # longest wait for a sync, in seconds

Record = dict[str, Any]


def encode(record: Record) -> bytes:
    """Encode a record as a line: 16 hex digits of BLAKE2b over the JSON, a space, the JSON, a newline."""
    body = exact_json.dumps(record, finite=record.get("scores") is None)
    return hashlib.blake2b(body, digest_size=8).hexdigest().encode("ascii") + b" " + body + b"\n"


def decode(line: bytes) -> Record | None:
    """Decode a line into its record; None if the line is torn or damaged."""
    if len(line) < 19 or line[16:17] != b" " or not line.endswith(b"\n"):
        return None
    body = line[17:-1]
    if hashlib.blake2b(body, digest_size=8).hexdigest().encode("ascii") != line[:16]:
        return None
    try:
        record = exact_json.loads(body)
    except (ValueError, RecursionError):  # the checksum fits, but no journal writes such JSON
        return None
    return record if isinstance(record, dict) else None


class Journal:
    """Write records to one open segment at a time, which is locked while it is open.

    Args:
        folder: folder of the segments; created if absent.
        job_key: the job that writes.
        header: data for merging; repeated at the head of each segment.
        writer: distinguishes the writers of one job (Ray's workers).
        rotate_bytes: size at which a segment is closed and the next one begun.
    """

    def __init__(
        self,
        folder: Path,
        job_key: str,
        header: Record,
        *,
        writer: str = "0",
        rotate_bytes: int = 16 << 20,
        sync_calls: int = SYNC_CALLS,
        sync_seconds: float = SYNC_SECONDS,
    ) -> None:
        self.folder = folder
        self.job_key = job_key
        self.writer = writer
        self._header = {"t": "header", "format": FORMAT, "job": job_key, "writer": writer, **header}
        self._rotate_bytes = rotate_bytes
        self._sync_calls, self._sync_seconds = sync_calls, sync_seconds
        self._file: int | None = None
        self._size = 0
        self._sequence = 0
        self._written = 0  # records written in total
        self._synced = 0  # records synced to disk
        self._oldest = 0.0  # time of the first record that is not synced
        self._failure: OSError | None = None
        self._closed = False
        self._state = threading.Condition()
        folder.mkdir(parents=True, exist_ok=True)
        self._thread = threading.Thread(target=self._sync_loop, name="journal-sync", daemon=True)
        self._thread.start()

    def append(self, record: Record) -> None:
        """Write one record. It is then in the operating system's cache and survives the death of this process.

        Raises:
            TeacherError: if the disk is full or failing. The segment then ends in a torn line at worst.
        """
        line = encode(record)
        with self._state:
            while self._written - self._synced >= self._sync_calls and self._failure is None:
                self._state.wait()
            self._check()
            if self._file is None:
                self._open()
            self._write(line)
            if self._written == self._synced:
                self._oldest = time.monotonic()
            self._written += 1
            if self._written - self._synced in (1, self._sync_calls // 2):
                self._state.notify_all()
            if self._size >= self._rotate_bytes:
                self._close_segment()

    def rotate(self) -> None:
        """Close the open segment, so that it can be merged and removed."""
        with self._state:
            self._check()
            self._close_segment()

    def close(self) -> None:
        """Sync everything to disk and close; safe to call twice."""
        with self._state:
            if self._closed:
                return
            self._closed = True
            try:
                if self._failure is None:
                    self._close_segment()
                elif self._file is not None:
                    os.close(self._file)
                    self._file = None
            finally:
                self._state.notify_all()
        self._thread.join()

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check(self) -> None:
        if self._closed:
            raise TeacherError("the journal is closed")
        if self._failure is not None:
            raise TeacherError(
                f"the journal at {self.folder} cannot be written: {self._failure}",
                hint="free disk space and run the same command again; completed calls are kept",
            ) from self._failure

    def _open(self) -> None:
        while self._file is None:
            self._sequence += 1
            name = f"{self.job_key}.{self.writer}.{os.getpid()}.{self._sequence:06d}{SUFFIX}"
            file = os.open(self.folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)
            fcntl.flock(file, fcntl.LOCK_EX)
            if os.fstat(file).st_nlink:
                self._file = file
            else:  # a merge removed the file before it was locked, as a dead writer's
                os.close(file)
        self._size = 0
        self._write(encode(self._header))
        flush(self.folder)

    def _write(self, line: bytes) -> None:
        file = self._file
        if file is None:
            raise TeacherError("the journal has no open segment")
        try:
            written = os.write(file, line)
            while written < len(line):
                written += os.write(file, line[written:])
        except OSError as error:
            self._failure = error
            self._check()
        self._size += len(line)

    def _close_segment(self) -> None:
        if self._file is None:
            return
        try:
            os.fsync(self._file)
        except OSError as error:
            self._failure = error
            self._check()
        os.close(self._file)
        self._file = None
        self._synced = self._written
        self._state.notify_all()

    def _sync_loop(self) -> None:
        while True:
            with self._state:
                while not self._closed and not self._due():
                    waiting = self._written - self._synced
                    self._state.wait(
                        max(self._oldest + self._sync_seconds - time.monotonic(), 0.001) if waiting else None
                    )
                if self._closed or self._failure is not None:
                    return
                file, written = os.dup(self._file) if self._file is not None else None, self._written
            if file is None:
                continue
            failure, began = None, time.monotonic()
            try:
                os.fsync(file)
            except OSError as error:
                failure = error
            finally:
                os.close(file)
            with self._state:
                if failure is not None:
                    self._failure = failure
                elif written > self._synced:
                    self._synced, self._oldest = written, began
                self._state.notify_all()

    def _due(self) -> bool:
        waiting = self._written - self._synced
        return waiting >= max(self._sync_calls // 2, 1) or (
            waiting > 0 and time.monotonic() - self._oldest >= self._sync_seconds
        )


@dataclass
class Damage:
    """Damage found in a segment."""

    torn: int = 0  # bytes of an unfinished last line
    lines: list[int] = field(default_factory=list)  # numbers of damaged lines before the last line


def segments(folder: Path) -> list[Path]:
    """List the segments of a journal, oldest first; a merge in another process may remove any of them at any time."""
    found: list[tuple[int, str, Path]] = []
    for path in folder.glob(f"*{SUFFIX}"):
        with suppress(FileNotFoundError):
            found.append((path.stat().st_mtime_ns, path.name, path))
    return [path for *_, path in sorted(found)]


def closed(folder: Path) -> list[tuple[Path, Record | None]]:
    """Return the segments that no living writer holds, with their headers (None: damaged).

    A segment whose writer was killed before its header was complete is empty, and is removed.
    """
    found: list[tuple[Path, Record | None]] = []
    for path in segments(folder):
        with path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            head = header(path)  # read under the lock: the writer of a new file waits for it
            if head is None and not file.readline().endswith(b"\n"):
                remove(path)
            else:
                found.append((path, head))
    return found


def size(path: Path) -> int:
    """Return a segment's size in bytes; 0 if a merge has removed it."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


@contextmanager
def merging(folder: Path) -> Iterator[None]:
    """Hold the merge lock: only one merge runs at a time, over all processes."""
    file = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        os.close(file)


def is_open(path: Path) -> bool:
    """Return whether a living writer holds the segment."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False


def read(path: Path, damage: Damage | None = None) -> Iterator[Record]:
    """Yield the sound records of a segment, its header first; holds one record at a time.

    Reading while a writer appends is safe: an incomplete line is treated as a torn tail.

    Args:
        damage: receives the damage that was skipped.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            record = decode(line)
            if record is not None and isinstance(record.get("t"), str):
                yield record
            elif damage is not None:
                if line.endswith(b"\n"):
                    damage.lines.append(number)
                else:
                    damage.torn = len(line)


def header(path: Path) -> Record | None:
    """Read a segment's header; None if it is torn."""
    for record in read(path):
        return record if record.get("t") == "header" else None
    return None


def remove(path: Path) -> None:
    """Remove a segment that the store has checkpointed."""
    path.unlink(missing_ok=True)
    flush(path.parent)


def set_aside(path: Path, reasons: list[str]) -> None:
    """Move a segment that cannot be merged out of the way, with a file of the reasons, one a line, beside it.

    The reasons are written first: after a kill in between, the next merge finds the segment in its old place.
    """
    folder = path.parent / ASIDE
    folder.mkdir(exist_ok=True)
    target = folder / path.name
    while target.exists():  # a segment of the same name was set aside before
        target = target.with_name(f"again-{target.name}")
    with _reasons(target).open("w", encoding="utf-8", errors="replace") as file:
        file.writelines(f"{' '.join(reason.split())}\n" for reason in reasons)
        file.flush()
        os.fsync(file.fileno())
    path.rename(target)
    flush(folder)
    flush(path.parent)


def aside(folder: Path) -> list[tuple[Path, list[str]]]:
    """List the segments that were set aside, with the reasons."""
    found = []
    for path in segments(folder / ASIDE):
        said = _reasons(path)
        lines = said.read_text("utf-8", "replace").splitlines() if said.is_file() else []
        found.append((path, lines or ["its reason is not there"]))
    return found


def _reasons(path: Path) -> Path:
    return path.with_name(path.name + ".reason")


def summary(folder: Path) -> list[Record]:
    """Return one row per segment for ``msft status``: job, labels, calls by status, whether it is open, damage."""
    rows: list[Record] = []
    for path in segments(folder):
        damage, kinds, statuses, head = Damage(), Counter[str](), Counter[str](), Record()
        try:
            for record in read(path, damage):
                kinds[record["t"]] += 1
                if record["t"] == "header":
                    head = record
                elif record["t"] == "call":
                    statuses[str(record.get("status"))] += 1
        except FileNotFoundError:  # a merge has just removed it
            continue
        labeling = head.get("labeling")
        rows.append(
            {
                "segment": path.name,
                "job": head.get("job"),
                "labels": labeling.get("name") if isinstance(labeling, dict) else None,
                "calls": kinds["call"],
                "permutations": kinds["permutation"],
                "statuses": dict(statuses),
                "being_written": is_open(path),
                "torn_bytes": damage.torn,
                "damaged_lines": len(damage.lines),
                "bytes": size(path),
            }
        )
    return rows
