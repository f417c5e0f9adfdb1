"""The options that push an export to a repository of the Hugging Face Hub."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cli.output import diagnostics


@dataclass(frozen=True)
class Pushed:
    """Where an export is pushed to, and on which terms."""

    push: Annotated[
        str | None, "OWNER/NAME on the Hugging Face Hub to push the export to; a new repository is private."
    ] = None
    public: Annotated[bool, "Make a new repository public."] = False
    licence: Annotated[
        str | None, "The terms in the card, if the store has none on record, such as apache-2.0."
    ] = None

    @contextmanager
    def folder(self, kind: Literal["model", "dataset"], name: str, given: Path | None) -> Iterator[Path]:
        """Give the folder to write, the user's or a temporary one; push it when the block ends.

        Raises:
            UsageError: there is neither a folder nor a repository.
            MsftError: the repository's name is wrong, or the push fails.
        """
        from labelstore.errors import UsageError
        from msft.host import hub

        if self.push is None:
            if given is None:
                raise UsageError("no folder is given", hint="-o FOLDER, or --push OWNER/NAME")
            yield given
            return
        hub.check_repo(self.push)
        with tempfile.TemporaryDirectory(prefix="msft-push-") as work:
            into = given or Path(work) / "export"
            yield into
            address = hub.push(into, self.push, kind, public=self.public)
        diagnostics.note(f"{name} is at {address}")
