"""Allow one training of a student and one job of a labeling at a time, by a locked file that names the process."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from msft.errors import ExitCode, MsftError


@contextmanager
def alone(lock: Path, what: str) -> Iterator[None]:
    """Hold the lock on the file ``lock`` during the context.

    The file is not removed afterwards: removing it could let a third process run beside a second.

    Args:
        what: the work, for the message: ``student x is being trained``.

    Raises:
        MsftError: another process holds the lock (exit code 3); the message has its PID.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(handle, 32, 0).decode("ascii", "replace").strip() or "unknown"
            raise MsftError(
                f"{what} by another process (PID {holder})",
                hint=f"wait for it or end it (ps {holder}), then give this command again",
                exit_code=ExitCode.STORE,
            ) from error
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(handle)
