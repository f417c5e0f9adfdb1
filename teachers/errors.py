"""Errors of this package: the same shape as the store's (message, hint, exit code) without importing it."""


class TeacherError(Exception):
    """A failure that a user can act on.

    Args:
        message: what is wrong and where.
        hint: the next command or the fix.
        exit_code: what the command ends with (see labelstore.errors.ExitCode).
    """

    def __init__(self, message: str, hint: str | None = None, exit_code: int = 1) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.exit_code = exit_code
