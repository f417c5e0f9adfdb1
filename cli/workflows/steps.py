"""Run commands of msft in this process, as a user would type them."""

import contextlib
import io
import json
import os
import shlex
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from cli.output import diagnostics


class Steps:
    """A runner of msft commands in this process. It shows each command on stderr as a user would type it.

    In one process torch is imported only once. A failed command ends the demo with the command's message and exit code.
    """

    def __init__(self, store: Path) -> None:
        self._store = store

    @contextlib.contextmanager
    def environment(self) -> Iterator[None]:
        """Set MSFT_STORE for the commands of the context, and restore its old value afterwards."""
        before = os.environ.get("MSFT_STORE")
        os.environ["MSFT_STORE"] = str(self._store)
        diagnostics.note(f"$ export MSFT_STORE={self._store}")
        try:
            yield
        finally:
            if before is None:
                del os.environ["MSFT_STORE"]
            else:
                os.environ["MSFT_STORE"] = before

    def __call__(self, *arguments: str) -> str:
        """Run one command and return its stdout, which is also shown under -v."""
        from cli.app import app

        settings = replace(diagnostics.settings)
        switches = ["-q"] * settings.quiet + ["-v"] * settings.verbose + ["--debug"] * settings.debug
        diagnostics.note(f"$ {shlex.join(['msft', *arguments])}")
        typed, sys.argv = sys.argv, ["msft", *arguments]  # provenance records this command line
        began = time.monotonic()
        try:
            with contextlib.redirect_stdout(io.StringIO()) as out:
                app(args=[*arguments, *switches], prog_name="msft", standalone_mode=False)
        finally:
            sys.argv = typed
            diagnostics.settings.__dict__.update(settings.__dict__)
        diagnostics.detail(out.getvalue().rstrip())
        diagnostics.note(f"  {time.monotonic() - began:.0f} s")
        return out.getvalue()

    def rows(self, *arguments: str) -> list[dict[str, Any]]:
        """Run a command that lists rows, and return the rows."""
        found: list[dict[str, Any]] = json.loads(self(*arguments, "--format", "json"))
        return found
