"""Re-rank on several GPUs of this machine, a process each. A process can also score on the CPU, where one has enough cores.

with on_devices("students/kd", ["cuda:0", "cuda:1"]) as reranker:
    reranker.scores([("query", ["a passage", "another"])])
"""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from msft.errors import MsftError
from students.errors import ExitCode, StudentError
from students.rerank.fleet import About, Fleet, Lost, Note, Part, Scorer
from students.rerank.pairs import Scores
from students.rerank.reranker import Reranker, resolve_precision

_CHILD = "from students.rerank.gpus import _work; _work()"


def check_gpus(number: int) -> None:
    """Refuse more GPUs than this machine has.

    Raises:
        StudentError: exit code 2.
    """
    there = torch.cuda.device_count()
    if 1 <= number <= there:
        return
    has = f"{there or 'no'} GPU{'' if there == 1 else 's'}"
    raise StudentError(
        f"--gpus {number}: this machine has {has}",
        hint=f"--gpus {min(max(number, 1), there)}"
        if there
        else "leave --gpus out: the CPU scores, with all cores",
        exit_code=ExitCode.USAGE,
    )


def on_gpus(path: str | Path, number: int, **options: Any) -> Reranker:
    """Load a student on the first GPUs of this machine (`on_devices`).

    Raises:
        StudentError: this machine has fewer (exit code 2).
    """
    check_gpus(number)
    return on_devices(path, [f"cuda:{k}" for k in range(number)], **options)


def on_devices(
    path: str | Path, devices: Sequence[str], *, note: Note | None = None, **options: Any
) -> Reranker:
    """Load a student in a process for each device (``cuda:1``, ``cpu``). The scores are those of one process.

    Args:
        note: called with a sentence about each lost process.
        options: those of `Reranker.load` without the device: precision, max_length, batch_tokens, long, instruction.
    """
    chosen = resolve_precision(options.pop("precision", "auto"), devices[0])
    cores = max(1, torch.get_num_threads() // len(devices))

    def start(place: int) -> ChildProcess:
        return ChildProcess(path, devices[place], cores, {**options, "precision": chosen})

    fleet = Fleet(start, len(devices), note)
    try:
        fleet.device = torch.device(devices[0]).type
        made = Reranker.over(fleet, path, chosen, **options)
        fleet.begin()
    except BaseException:
        fleet.close()
        raise
    return made


class ChildProcess:
    """A process on this machine with a student on one device."""

    def __init__(self, path: str | Path, device: str, cores: int, options: dict[str, Any]) -> None:
        self.name = f"the process on {device}"
        mine, theirs = socket.socketpair()
        kind, _, number = device.partition(":")
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(e or os.getcwd() for e in sys.path)}
        if kind == "cuda":  # the child sees one GPU, which is its first
            visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
            environment["CUDA_VISIBLE_DEVICES"] = visible[int(number)] if visible[0] else number
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _CHILD, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env=environment,
            )
        self._connection = Connection(mine.detach())
        self._about: About | None = None
        with suppress(OSError):  # `about` reports a child that ended at once
            self._connection.send((str(path), {**options, "device": kind}, cores))

    def about(self) -> About:
        """Wait until the student is loaded."""
        if self._about is None:
            self._about = self._answer()
        return self._about

    def send(self, part: Part) -> None:
        """Hand over a batch."""
        self.about()
        try:
            self._connection.send(part)
        except OSError as error:
            raise self._lost() from error

    def receive(self) -> Scores:
        """Wait for the scores of the oldest batch."""
        scores: Scores = self._answer()
        return scores

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()

    def _answer(self) -> Any:
        try:
            failed, value = self._connection.recv()
        except (EOFError, OSError) as error:
            raise self._lost() from error
        if failed:
            raise value
        return value

    def _lost(self) -> Lost:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=10)
        code = self._process.returncode
        return Lost(f"killed by signal {-code}" if code and code < 0 else f"ended with code {code}")


def _work() -> None:
    """Run in the child: load the student, then answer each batch in turn. It ends when the caller ends."""
    os.dup2(2, 1)  # the caller's stdout is for data
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the caller is interrupted, and ends this process
    connection = Connection(int(sys.argv[1]))
    with suppress(EOFError, OSError), ThreadPoolExecutor(1) as sending, ThreadPoolExecutor(2) as scoring:
        path, options, cores = connection.recv()
        torch.set_num_threads(cores)
        loading = scoring.submit(Scorer, path, options)
        sending.submit(_answer, connection, scoring.submit(lambda: loading.result().about())).result()
        while True:
            part = connection.recv()
            sending.submit(_answer, connection, scoring.submit(_scored, loading, part))


def _scored(loading: "Future[Scorer]", part: Part) -> Scores:
    return loading.result().score(part)


def _answer(connection: Connection, made: "Future[Any]") -> None:
    try:
        answer = (False, made.result())
    except MsftError as error:
        answer = (True, error)
    except Exception as error:  # noqa: BLE001  (raised in the caller)
        said = next(iter(str(error).splitlines()), "")
        answer = (True, StudentError(
            f"a process that scores failed: {type(error).__name__}: {said}",
            hint="if memory is short, give a smaller --batch-tokens",
        ))  # fmt: skip
    connection.send(answer)
