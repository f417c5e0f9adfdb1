"""Define the exit codes and the base class of every error that a user can act on.

This module imports none of the four packages. So training and re-ranking raise these errors even if neither DuckDB nor
`labelstore` is installed. Each package's `errors` module re-exports the base class.
"""

from enum import IntEnum


class ExitCode(IntEnum):
    """The exit codes of the commands."""

    OK = 0
    FAILURE = 1
    USAGE = 2
    STORE = 3  # the store is locked or from a newer version
    DATA_MISSING = 4
    TEACHER_ENGINE = 5
    PARTLY_DONE = 6
    INTERRUPTED = 130


class MsftError(Exception):
    """A failure that a user can act on.

    Args:
        message: what is wrong and where (file:line, the id, the option).
        hint: the next command or the fix; printed after ``hint:``.
        exit_code: the command's exit code; by default that of the class.
    """

    exit_code = ExitCode.FAILURE

    def __init__(self, message: str, hint: str | None = None, exit_code: ExitCode | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        if exit_code is not None:
            self.exit_code = exit_code
