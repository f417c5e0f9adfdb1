"""The error class of this package, a subclass of `msft.errors.MsftError`."""

from msft.errors import ExitCode, MsftError

__all__ = ["ExitCode", "MsftError", "TeacherError"]


class TeacherError(MsftError):
    """A labelling failure that a user can fix."""
