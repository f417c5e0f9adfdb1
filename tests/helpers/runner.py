"""Runs commands in one folder, as a user would in one shell.

Plain msft commands and Python blocks share one process, over all shells, so that torch is imported once; other lines
(pipes, ``&``, curl) are bash's.
"""

import contextlib
import functools
import io
import json
import os
import shlex
import subprocess
import sys
import time
import traceback
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str


class Commands:
    """A process that runs msft commands one after another, each in the folder and environment that it is given."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve())], cwd=ROOT, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def run(self, words: Sequence[str], folder: Path, environment: Mapping[str, str]) -> Done:
        """Run one command; the arguments that follow ``msft``."""
        return self._ask({"words": list(words)}, folder, environment)

    def python(self, source: str, page: str, folder: Path, environment: Mapping[str, str]) -> Done:
        """Run Python; sources of one page share their names."""
        return self._ask({"python": source, "page": page}, folder, environment)

    def _ask(self, what: dict[str, object], folder: Path, environment: Mapping[str, str]) -> Done:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        request = {**what, "folder": str(folder), "environment": dict(environment)}
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BaseException:  # a test's timeout: the next command must not read this one's answer
            self._process.kill()
            commands.cache_clear()
            raise
        assert answer, f"the process ended with {self._process.wait()} in {what}"
        return Done(**json.loads(answer))


@functools.cache
def commands() -> Commands:
    """This test process's own; it ends when its input does."""
    return Commands()


class Shell:
    """One folder and one environment; what runs in the background ends with it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        clean = {k: v for k, v in os.environ.items() if k != "MSFT_STORE"}
        self._environment = {**clean, "PATH": path, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
        self._behind: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> "Shell":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        for process in self._behind:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()

    def run(self, line: str, words: tuple[str, ...] | None) -> Done:
        """One line; `words` are those of a plain msft command."""
        if words is not None:
            return commands().run(words, self._folder, self._environment)
        if line.startswith("export "):
            name, _, value = shlex.split(line)[1].partition("=")
            self._environment[name] = value
            return Done(0, "", "")
        if line.rstrip().endswith("&"):
            return self._serve(line.rstrip().removesuffix("&"))
        done = subprocess.run(
            ["bash", "-c", line],
            cwd=self._folder,
            env=self._environment,
            text=True,
            capture_output=True,
            timeout=300,
        )
        return Done(done.returncode, done.stdout, done.stderr)

    def python(self, source: str) -> Done:
        """Run a block of Python, after the blocks before it."""
        return commands().python(source, f"{self._folder}:{id(self)}", self._folder, self._environment)

    def _serve(self, line: str) -> Done:
        """Start a server behind; done when it answers on its port."""
        words = shlex.split(line)
        port = words[words.index("--port") + 1]
        process = subprocess.Popen(
            ["bash", "-c", f"exec {line}"], cwd=self._folder, env=self._environment,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip
        self._behind.append(process)
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and process.poll() is None:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                    return Done(0, "", "")
            except (urllib.error.URLError, OSError):
                time.sleep(0.2)
        said = process.stderr.read().decode() if process.poll() is not None and process.stderr else ""
        return Done(process.poll() or 1, "", f"no answer on port {port}; {said}")


def _python(source: str, names: dict[str, object]) -> int:
    """Run a block as a script would run; its exit code."""
    try:
        exec(compile(source, "block", "exec"), names)
    except BaseException:  # noqa: BLE001 - a block may end in anything
        traceback.print_exc()
        return 1
    return 0


def _main() -> None:
    """The process of the plain commands: a request a line, an answer a line."""
    from cli.main import run

    sys.modules.setdefault("sklearn", None)  # type: ignore[arg-type]  # as cli.main.main
    answers = os.fdopen(os.dup(1), "w", buffering=1)  # what libraries write to 1 does not come between
    os.dup2(2, 1)
    names: dict[str, dict[str, object]] = {}  # of each page's Python
    for line in sys.stdin:
        request = json.loads(line)
        os.chdir(request["folder"])
        os.environ.clear()
        os.environ.update(request["environment"])
        sys.argv = ["msft", *request.get("words", [])]
        code = 0
        with (
            contextlib.redirect_stdout(io.StringIO()) as out,
            contextlib.redirect_stderr(io.StringIO()) as err,
        ):
            try:
                if "python" in request:
                    code = _python(request["python"], names.setdefault(request["page"], {"__name__": "page"}))
                else:
                    run(request["words"])
            except SystemExit as ended:
                code = ended.code if isinstance(ended.code, int) else 1
        answers.write(json.dumps({"code": code, "out": out.getvalue(), "err": err.getvalue()}) + "\n")


if __name__ == "__main__":
    _main()
