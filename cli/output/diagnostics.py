"""Write progress, notes, warnings and errors to stderr, and choose the exit code. No other module writes to stderr.

An error says what failed and where, then ``hint:`` with the next command. ``--debug`` adds the traceback.
"""

import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NoReturn

from labelstore.errors import ExitCode, MsftError
from labelstore.provenance import masks
from msft import refusals


@dataclass
class _Settings:
    quiet: bool = False
    verbose: bool = False
    debug: bool = False


settings = _Settings()


def note(message: str) -> None:
    """Print what was done or chosen, with the reason; silent under ``-q``."""
    if not settings.quiet:
        _say(message)


def detail(message: str) -> None:
    """Print a detail under ``-v`` only."""
    if settings.verbose:
        _say(message)


def warn(message: str) -> None:
    """Print a warning, also under ``-q``."""
    _say(f"warning: {message}")


def _say(text: str) -> None:
    """Write to stderr with API keys and credentials masked."""
    print(masks.masked(text), file=sys.stderr, flush=True)


def report(error: BaseException) -> int:
    """Print an error for a user and return its exit code."""
    if settings.debug:
        _say("".join(traceback.format_exception(error)).rstrip("\n"))
    if isinstance(error, KeyboardInterrupt):
        print("interrupted; what was completed is kept", file=sys.stderr)
        return int(ExitCode.INTERRUPTED)
    if isinstance(error, BrokenPipeError):  # the reader (head, less) closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    error = _named(error)
    if hasattr(error, "format_message"):  # a usage error raised by Typer
        _say(f"error: {error.format_message()}")
        context = getattr(error, "ctx", None)
        if context is not None:
            print(f"hint: {context.command_path} --help", file=sys.stderr)
        return int(getattr(error, "exit_code", ExitCode.FAILURE))
    if isinstance(error, MsftError):
        _say(f"error: {error}")
        if error.hint:
            _say(f"hint: {error.hint}")
        return int(error.exit_code)
    _say(f"error: {type(error).__name__}: {error}")
    if not settings.debug:
        print(
            "hint: msft does not know this error; run the command again with --debug to see its origin",
            file=sys.stderr,
        )
    return int(ExitCode.FAILURE)


def _named(error: BaseException) -> BaseException:
    """Turn an error of the machine (a full disk, no memory) into a clear one; return any other unchanged."""
    if isinstance(error, MsftError) or hasattr(error, "format_message"):
        return error
    return refusals.explained(error) or error


def fail(error: BaseException) -> NoReturn:
    """Report an error and end the process with its exit code."""
    if not isinstance(error, BrokenPipeError):
        sys.stdout.flush()
    raise SystemExit(report(error))


@dataclass
class Progress:
    """A progress line for long work: items done, total, rate, time left, and named figures.

    On a terminal the line is redrawn. In a pipe a new line is written every 30 s. Silent under ``-q``.
    """

    label: str
    total: int | None = None
    unit: str = "it"
    done: int = 0
    _figures: dict[str, object] = field(default_factory=dict)
    _started: float = field(default_factory=time.monotonic)
    _shown: float = 0.0
    _drawn: bool = False

    def __call__(self, done: int, total: int | None = None, **figures: object) -> None:
        """Set the number of items done so far, the total once it is known, and any figures to show."""
        if done < self.done:  # a new stage or file began, so the rate starts again
            self._started = time.monotonic()
        self.done, self.total = done, total if total is not None else self.total
        self._figures.update(figures)
        if settings.quiet:
            return
        terminal = sys.stderr.isatty()
        now = time.monotonic()
        if now - self._shown < (0.2 if terminal else 30.0) or (not terminal and now - self._started < 30.0):
            return
        self._shown = now
        self._draw(terminal)

    def line(self) -> str:
        seconds = max(time.monotonic() - self._started, 1e-9)
        rate = self.done / seconds
        parts = [
            f"{self.label}: {self.done:,}" + (f" of {self.total:,}" if self.total else "") + f" {self.unit}"
        ]
        parts.append(f"{rate:,.1f} {self.unit}/s")
        if self.total and rate > 0 and self.done < self.total:
            parts.append(f"{_duration((self.total - self.done) / rate)} left")
        parts += [f"{name.replace('_', ' ')} {_figure(value)}" for name, value in self._figures.items()]
        return ", ".join(parts)

    def close(self) -> None:
        """End the line with the final count."""
        if not settings.quiet and self.done and (self._drawn or time.monotonic() - self._started > 2.0):
            self._draw(sys.stderr.isatty())
            if sys.stderr.isatty():
                sys.stderr.write("\n")

    def _draw(self, terminal: bool) -> None:
        self._drawn = True
        sys.stderr.write(f"\r\x1b[2K{self.line()}" if terminal else self.line() + "\n")
        sys.stderr.flush()


@contextmanager
def progress(label: str, total: int | None = None, unit: str = "it") -> Iterator[Progress]:
    """Show progress: ``with progress("tokenising", n, "texts") as tick: tick(done)``."""
    bar = Progress(label, total, unit)
    try:
        yield bar
    finally:
        bar.close()


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def _figure(value: object) -> str:
    return (
        f"{value:,.4g}"
        if isinstance(value, float)
        else f"{value:,}"
        if isinstance(value, int)
        else str(value)
    )
