"""The package's error class, derived from the root class in `msft.errors`."""

from msft.errors import ExitCode, MsftError

__all__ = ["ExitCode", "MsftError", "StudentError"]


class StudentError(MsftError):
    """Training, re-ranking or serving failed, and the user can act on it."""
