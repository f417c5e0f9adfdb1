"""Let a waiting writer in before readers that come later.

Readers of a DuckDB file share its lock, so readers that follow each other without a gap would keep a writer out forever. A
waiting writer locks an empty file beside the store. A reader checks that file before it opens the store. On a file system
without locks, nothing waits.
"""

import fcntl
import os
from contextlib import suppress
from pathlib import Path


def _gate(store: Path) -> Path:
    return store.with_name(f".{store.name}.turn")


def writer_waits(store: Path) -> bool:
    """Tell whether a writer is waiting for the store."""
    try:
        handle = os.open(_gate(store), os.O_RDONLY)
    except OSError:  # no writer has been here yet, or the folder is not ours
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(handle)
    return False


class WriterLock:
    """The lock of a waiting writer. While one holds it, later readers wait."""

    def __init__(self, store: Path) -> None:
        try:
            self._handle: int | None = os.open(_gate(store), os.O_RDWR | os.O_CREAT, 0o666)
        except OSError:  # the folder is not ours: opening the store reports it
            self._handle = None

    def try_again(self) -> None:
        """Try to take the lock, which another writer may have held."""
        if self._handle is not None:
            with suppress(OSError):
                fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def __enter__(self) -> "WriterLock":
        return self

    def __exit__(self, *_: object) -> None:
        if self._handle is not None:
            os.close(self._handle)
