"""The errors of the store and of the command line, below the one root in `msft.errors`."""

from msft.errors import ExitCode, MsftError
from msft.refusals import NoMemory, NoRoom, NotWritable

__all__ = [
    "BadInput",
    "DataMissing",
    "ExitCode",
    "MsftError",
    "NoMemory",
    "NoRoom",
    "NotWritable",
    "PartlyDone",
    "StoreDamaged",
    "StoreError",
    "UsageError",
]


class UsageError(MsftError):
    """An argument or option that cannot be used."""

    exit_code = ExitCode.USAGE


class StoreError(MsftError):
    """The store is locked, or written by a newer version."""

    exit_code = ExitCode.STORE


class StoreDamaged(MsftError):
    """A block of the store's file is cut short or does not match its checksum."""


class DataMissing(MsftError):
    """A dataset, run, labeling, student, file or model is not found."""

    exit_code = ExitCode.DATA_MISSING


class BadInput(MsftError):
    """A file has wrong content; the message begins with ``file:line:``."""


class PartlyDone(MsftError):
    """A part of the work is done and stored; the message says what is left."""

    exit_code = ExitCode.PARTLY_DONE
