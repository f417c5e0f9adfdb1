"""The error of this package, below the one root in `msft.errors`."""

from msft.errors import ExitCode, MsftError

__all__ = ["ExitCode", "MsftError", "TeacherError"]


class TeacherError(MsftError):
    """A labelling failure that a user can fix."""
