"""Write a file that the user names: it appears whole or not at all."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from labelstore.errors import MsftError, UsageError
from msft import refusals


@contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """Give the path of a file beside the target, which takes the target's place when it is complete.

    A link is followed. A device or a pipe is never replaced: its own path is given.

    Raises:
        UsageError: the target is a folder.
        MsftError: the target cannot be written; the message names it, not the file beside it.
    """
    with _named(path):
        if path.is_dir():
            raise UsageError(f"{path} is a folder", hint=f"name a file in it, e.g. -o {path / 'out.txt'}")
        if path.exists() and not path.is_file():
            yield path
            return
        target = Path(os.path.realpath(path))
        if target.is_symlink():  # links that lead to each other
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = target.with_name(f".{target.name}.{os.getpid()}.part")
        try:
            yield beside
            beside.replace(target)
        finally:
            if beside.exists():
                beside.unlink()


@contextmanager
def _named(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        found = refusals.explained(error, path)
        if isinstance(found, refusals.NoRoom | refusals.NotWritable):
            raise found from error
        raise MsftError(
            f"{path} cannot be written: {error.strerror or error}", hint="name another file with -o FILE"
        ) from error
