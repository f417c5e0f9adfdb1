"""The error of this package, below the one root in `msft.errors`."""

from msft.errors import ExitCode, MsftError

__all__ = ["ExitCode", "MsftError", "StudentError"]


class StudentError(MsftError):
    """A failure of training, re-ranking or serving that a user can act on."""
