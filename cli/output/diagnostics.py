"""Write progress, notes, warnings and errors to stderr, and choose the exit code. No other module writes to stderr.

An error says what failed and where, then ``hint:`` with the next command. ``--debug`` adds the traceback.
"""

import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NoReturn

from labelstore.errors import ExitCode, MsftError
from labelstore.provenance import masks
from msft import refusals

FIRST_LINE = 2.0  # seconds after which a progress line is shown


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

    On a terminal the line is redrawn, within its width. In a pipe a new line is written every 30 s. The first line comes
    after two seconds at the latest. The rate is that since the first call, so it is right after a resume too. Silent
    under ``-q``.
    """

    label: str
    total: int | None = None
    unit: str = "it"
    done: int = 0
    _figures: dict[str, object] = field(default_factory=dict)
    _started: float = field(default_factory=time.monotonic)
    _first: tuple[float, int] | None = None  # time and items at the first call
    _shown: float = 0.0
    _drawn: bool = False
    _timer: threading.Timer | None = None

    def begin(self) -> None:
        """Show a line after two seconds even if nothing is done by then."""
        self._timer = threading.Timer(FIRST_LINE, self._draw_first)
        self._timer.daemon = True
        self._timer.start()

    def _draw_first(self) -> None:
        if not self._drawn and not settings.quiet:
            self._shown = time.monotonic()
            self._draw(sys.stderr.isatty())

    def __call__(self, done: int, total: int | None = None, **figures: object) -> None:
        """Set the number of items done so far, the total once it is known, and any figures to show."""
        now = time.monotonic()
        if self._first is None or done < self.done:  # a new stage or file began, so the rate starts again
            self._first = (now, done)
        self.done, self.total = done, total if total is not None else self.total
        self._figures.update(figures)
        if settings.quiet:
            return
        terminal = sys.stderr.isatty()
        if now - self._shown < (0.2 if terminal else 30.0) or (not terminal and now - self._started < 30.0):
            return
        self._shown = now
        self._draw(terminal)

    def line(self, width: int | None = None) -> str:
        """Write the line; with a width, figures that do not fit are left out from the end."""
        parts = [self._done()]
        rate = self._rate()
        if rate is not None:
            parts.append(f"{rate:,.1f} {self.unit}/s")
            if self.total and rate > 0 and self.done < self.total:
                parts.append(f"{_duration((self.total - self.done) / rate)} left")
        parts += [f"{name.replace('_', ' ')} {_figure(value)}" for name, value in self._figures.items()]
        while width is not None and len(parts) > 1 and len(", ".join(parts)) > width:
            parts.pop()
        return ", ".join(parts)[:width]

    def _done(self) -> str:
        if self._first is None:
            return f"{self.label}: working"
        return (
            f"{self.label}: {self.done:,}" + (f" of {self.total:,}" if self.total else "") + f" {self.unit}"
        )

    def _rate(self) -> float | None:
        """Items per second since the first call; over the whole time if there was one call alone."""
        if self._first is None:
            return None
        began, before = self._first
        if self.done > before:
            return (self.done - before) / max(time.monotonic() - began, 1e-9)
        return None if self.total is None or self.done < self.total else self.done / self._seconds()

    def _seconds(self) -> float:
        return max(time.monotonic() - self._started, 1e-9)

    def close(self) -> None:
        """End the line with the final count."""
        if self._timer is not None:
            self._timer.cancel()
        if not settings.quiet and self.done and (self._drawn or self._seconds() > FIRST_LINE):
            self._draw(sys.stderr.isatty())
        if self._drawn and sys.stderr.isatty():
            sys.stderr.write("\n")

    def _draw(self, terminal: bool) -> None:
        self._drawn = True
        sys.stderr.write(f"\r\x1b[2K{self.line(_columns())}" if terminal else self.line() + "\n")
        sys.stderr.flush()


def _columns() -> int:
    """Return the columns of the terminal that stderr writes to, less the last one, in which a line would wrap."""
    try:
        return max(os.get_terminal_size(sys.stderr.fileno()).columns - 1, 20)
    except (OSError, ValueError):  # a terminal without a size, or a stream without a descriptor
        return 79


@contextmanager
def progress(label: str, total: int | None = None, unit: str = "it") -> Iterator[Progress]:
    """Show progress: ``with progress("tokenising", n, "texts") as tick: tick(done)``."""
    bar = Progress(label, total, unit)
    bar.begin()
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
