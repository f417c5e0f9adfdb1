"""One small tree of errors: what happened, a hint with the next command, and the exit code.

`students` and `teachers` may not import this package, so they raise errors of the same shape (attributes
``hint`` and ``exit_code``); `cli.output.diagnostics` prints whatever carries them.
"""

from enum import IntEnum


class ExitCode(IntEnum):
    """What every `msft` command ends with."""

    OK = 0
    FAILURE = 1
    USAGE = 2
    STORE = 3  # locked, or from a newer version
    DATA_MISSING = 4
    TEACHER_ENGINE = 5
    PARTLY_DONE = 6
    INTERRUPTED = 130


class MsftError(Exception):
    """A failure that a user can act on.

    Args:
        message: what is wrong and where (file:line, the id, the option).
        hint: the next command or the fix; printed after ``hint:``.
    """

    exit_code = ExitCode.FAILURE

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(MsftError):
    """An argument that cannot be taken."""

    exit_code = ExitCode.USAGE


class StoreError(MsftError):
    """The store is locked, or written by a newer version."""

    exit_code = ExitCode.STORE


class StoreDamaged(MsftError):
    """A block of the store's file is cut short or does not match its checksum."""


class NoRoom(MsftError):
    """The disk is full, or a file may not grow."""


class NotWritable(MsftError):
    """A file system or a file that may only be read, or not even that."""


class NoMemory(MsftError):
    """Memory that the work needs and the machine does not give."""


class DataMissing(MsftError):
    """A dataset, run, labeling, student, file or model that is not there."""

    exit_code = ExitCode.DATA_MISSING


class BadInput(MsftError):
    """A file that cannot be taken; the message begins with ``file:line:``."""


class PartlyDone(MsftError):
    """What could be done is stored; the message says what is left."""

    exit_code = ExitCode.PARTLY_DONE
