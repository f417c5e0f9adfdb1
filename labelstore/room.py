"""A full disk in a user's words, whoever met it: Python, Arrow or DuckDB."""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb

from labelstore.errors import NoRoom

_FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
_SAYS_FULL = re.compile(
    r"No space left on device|File too large|Disk quota exceeded|failed to offload data block"
)


@contextmanager
def needed_in(folder: Path) -> Iterator[None]:
    """Name what cannot be written in `folder`, or beside it, for want of room.

    Raises:
        NoRoom: in place of the error that says so.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise _no_room(folder, error) from error
    except duckdb.Error as error:
        if not _SAYS_FULL.search(str(error)):
            raise
        raise _no_room(folder, error) from error


def _no_room(folder: Path, error: BaseException) -> NoRoom:
    return NoRoom(
        f"there is no room in {folder}: {str(error).splitlines()[0]}",
        hint="make room on the disk, or work with --store on another one; nothing was changed, run it again",
    )
