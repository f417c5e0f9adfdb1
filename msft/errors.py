"""The root of every error that a user can act on, and the exit codes.

It stands beside the four packages and imports nothing of theirs: training and re-ranking run where neither DuckDB nor
`labelstore` is installed, and still raise errors of this tree. Each package's `errors` module passes it on.
"""

from enum import IntEnum


class ExitCode(IntEnum):
    """What a command ends with."""

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
        exit_code: what the command ends with; by default the class's.
    """

    exit_code = ExitCode.FAILURE

    def __init__(self, message: str, hint: str | None = None, exit_code: ExitCode | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        if exit_code is not None:
            self.exit_code = exit_code
