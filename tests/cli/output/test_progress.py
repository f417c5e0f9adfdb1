"""Progress: a first line within two seconds, the right rate after a resume, never wider than the terminal."""

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from cli.output import diagnostics
from cli.output.diagnostics import Progress

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(diagnostics.time, "monotonic", lambda: now[0])
    return now


@pytest.mark.parametrize(
    ("before", "rate", "left"),
    [(0, "10.0 pairs/s", "9.0 s"), (9_000, "10.0 pairs/s", "min"), (50, "10.0", "left")],
)
def test_the_rate_is_that_of_this_run(clock: list[float], before: int, rate: str, left: str) -> None:
    bar = Progress("training", before + 1000, "pairs")
    bar(before)
    clock[0] += 10
    bar(before + 100)
    assert rate in bar.line()
    assert "90 s left" in bar.line() or "2 min left" in bar.line()


def test_a_new_stage_begins_a_new_rate(clock: list[float]) -> None:
    bar = Progress("training", 100, "pairs")
    bar(0)
    clock[0] += 1
    bar(100)
    assert "100.0 pairs/s" in bar.line()
    bar(5, 100)
    clock[0] += 10
    bar(25, 100)
    assert "2.0 pairs/s" in bar.line()


@pytest.mark.parametrize("width", [20, 40, 60, 79, 200])
def test_a_line_fits(clock: list[float], width: int) -> None:
    bar = Progress("training the student with a long name", 10_000_000, "pairs")
    bar(0)
    clock[0] += 10
    bar(1234, loss=0.693, lr=2e-4, grad_norm=1.5, valid_loss=0.5, spread=0.01)
    assert len(bar.line(width)) <= width
    assert bar.line(width).startswith("training the student"[:width])


SLOW = """
import sys, time
from cli.output import diagnostics
with diagnostics.progress("building the index", 10, "passages") as tick:
    time.sleep(float(sys.argv[1]))
    tick(3, **{f"figure {k}": 0.123 for k in range(9)})
    time.sleep(0.5)
"""


@pytest.mark.test_all
@pytest.mark.parametrize(("seconds", "shown"), [(3.0, True), (0.0, False)])
def test_long_work_shows_a_line_before_its_first_result(seconds: float, shown: bool) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SLOW, str(seconds)], cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert ("building the index: working\n" in done.stderr) is shown, done.stderr


@pytest.mark.test_all
@pytest.mark.parametrize("columns", [40, 60, 100])
def test_a_line_never_wraps_on_a_terminal(columns: int) -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, "2.5"],
        cwd=ROOT,
        stderr=theirs,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    process.wait(120)
    os.close(theirs)
    time.sleep(0.1)
    written = os.read(ours, 65_536).decode()
    os.close(ours)
    lines = [line.replace("\x1b[2K", "").rstrip("\r\n") for line in written.split("\r\x1b[2K") if line]
    assert lines[0] == "building the index: working"
    assert any("3 of 10 passages" in line for line in lines)
    assert all(len(line) < columns for line in lines)
