"""Give written files the permissions that the user's umask says; some libraries write files that only the user can read."""

import os
from pathlib import Path


def as_umask(folder: Path) -> None:
    """Set the permissions of a folder and of all that it holds as if they had been made plainly; links stay."""
    mask = os.umask(0o077)
    os.umask(mask)
    for where, _, names in os.walk(folder):
        Path(where).chmod(0o777 & ~mask)
        for path in (Path(where, name) for name in names):
            if not path.is_symlink():
                path.chmod(0o666 & ~mask)
