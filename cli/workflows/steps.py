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
    """Runs commands of msft in this process, as a user would type them, and shows each on stderr.

    One process pays for importing torch once. A command that fails ends the demo with its own message and exit code.
    """

    def __init__(self, store: Path) -> None:
        self._store = store

    @contextlib.contextmanager
    def environment(self) -> Iterator[None]:
        """MSFT_STORE for the commands, and the talk's settings restored between them."""
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
        """Run one command; what it prints to stdout is returned, and shown under -v."""
        from cli.app import app

        settings = replace(diagnostics.settings)
        switches = ["-q"] * settings.quiet + ["-v"] * settings.verbose + ["--debug"] * settings.debug
        diagnostics.note(f"$ {shlex.join(['msft', *arguments])}")
        typed, sys.argv = sys.argv, ["msft", *arguments]  # what provenance records
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
        """Run a command that lists, and return its rows."""
        found: list[dict[str, Any]] = json.loads(self(*arguments, "--format", "json"))
        return found
