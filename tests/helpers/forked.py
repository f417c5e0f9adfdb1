"""Processes of Python that start in milliseconds: forks of one process that has imported the heavy libraries.

:class:`Popen` is :class:`subprocess.Popen` for ``[sys.executable, "-c" or "-m", ...]``: the same pipes, signals, exit codes
and process ids. A test that looks at imports, memory or settings that a library reads while it is imported (the number of
threads) needs a process of :mod:`subprocess`.
"""

import array
import functools
import json
import os
import runpy
import select
import selectors
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
HEAVY = (
    "duckdb", "polars", "torch", "transformers.models.bert.modeling_bert", "transformers.models.electra.modeling_electra",
    "torch._dynamo", "tokenizers", "safetensors.torch", "ir_measures", "typer", "cli.main", "labelstore.views.build",
    "students.jobs.train", "students.jobs.evaluate", "students.train.run", "teachers.generate.job",
)  # fmt: skip
VLLM = ("vllm", "vllm.v1.engine.llm_engine", "teachers.engines.vllm", "cli.main", "teachers.generate.job")
_STATUS_BYTES = 4


class Popen(subprocess.Popen[str]):
    """A process of Python, forked by a process that has imported `preload`."""

    def __init__(self, args: Sequence[str], preload: Sequence[str] = HEAVY, **options: Any) -> None:
        assert args[0] == sys.executable, args
        assert args[1] in ("-c", "-m"), args
        self._preload = tuple(preload)
        super().__init__(args, **options)

    def _execute_child(self, args: Sequence[str], executable: object, preexec_fn: object, *rest: Any) -> None:
        names = (
            "close_fds", "pass_fds", "cwd", "env", "startupinfo", "creationflags", "shell", "p2cread", "p2cwrite", "c2pread",
            "c2pwrite", "errread", "errwrite", "restore_signals", "gid", "gids", "uid", "umask", "start_new_session",
            "process_group",
        )  # fmt: skip
        of = dict(zip(names, rest, strict=True))
        assert preexec_fn is None
        assert not of["pass_fds"]
        read, write = os.pipe()
        try:
            streams = [
                fd if fd != -1 else k for k, fd in enumerate((of["p2cread"], of["c2pwrite"], of["errwrite"]))
            ]
            request = {
                "words": list(map(str, args[1:])), "cwd": str(of["cwd"] or Path.cwd()), "umask": of["umask"],
                "env": dict(os.environ if of["env"] is None else of["env"]), "session": of["start_new_session"],
            }  # fmt: skip
            self.pid = _server(self._preload, os.getpid()).fork(request, [*streams, write])
        finally:
            os.close(write)
            self._close_pipe_fds(*(of[n] for n in names[7:13]))
        self._child_created = True
        self._status = read

    def _try_wait(self, wait_flags: int) -> tuple[int, int]:
        if wait_flags & os.WNOHANG and not select.select([self._status], [], [], 0)[0]:
            return 0, 0
        told = os.read(self._status, _STATUS_BYTES)
        os.close(self._status)
        assert told, "the process that forks has ended"
        return self.pid, int.from_bytes(told, "little", signed=True)

    def _internal_poll(self, _deadstate: object = None, **_: object) -> int | None:
        if self.returncode is None and self._waitpid_lock.acquire(blocking=False):
            try:
                pid, status = self._try_wait(os.WNOHANG) if self.returncode is None else (0, 0)
                if pid:
                    self._handle_exitstatus(status)
            finally:
                self._waitpid_lock.release()
        return self.returncode


def run(
    args: Sequence[str], *, capture_output: bool = False, check: bool = False, timeout: float | None = None,
    input: str | None = None, **options: Any,
) -> "subprocess.CompletedProcess[str]":  # fmt: skip
    """Do what :func:`subprocess.run` does."""
    if capture_output:
        options |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    if input is not None:
        options["stdin"] = subprocess.PIPE
    with Popen(args, **options) as process:
        try:
            out, err = process.communicate(input, timeout=timeout)
        except BaseException:
            process.kill()
            raise
    if check and process.returncode:
        raise subprocess.CalledProcessError(process.returncode, args, out, err)
    return subprocess.CompletedProcess(args, process.returncode, out, err)


class _Server:
    """The process that forks, seen from the test."""

    def __init__(self, preload: Sequence[str]) -> None:
        self._ours, theirs = socket.socketpair()
        self._turn = threading.Lock()
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve()), str(theirs.fileno()), *preload],
            pass_fds=[theirs.fileno()], cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        theirs.close()

    def fork(self, request: Mapping[str, object], files: list[int]) -> int:
        """Start a process with these three streams and the pipe for its exit status; its process id."""
        with self._turn:
            data = json.dumps(request).encode()
            head = len(data).to_bytes(8, "little")
            self._ours.sendmsg([head], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", files))])
            self._ours.sendall(data)
            told = self._ours.recv(8)
        assert told, f"the process that forks has ended with {self._process.wait()}"
        return int.from_bytes(told, "little")


@functools.cache
def _server(preload: tuple[str, ...], of: int) -> _Server:
    """The server of a set of libraries and a test process; it ends when that process does."""
    return _Server(preload)


def _main(ours: socket.socket, preload: Sequence[str]) -> None:
    sys.modules.setdefault("sklearn", None)  # type: ignore[arg-type]  # as cli.main.main
    for name in preload:
        __import__(name)
    statuses: dict[int, tuple[int, int]] = {}  # pidfd -> process id, pipe for its status
    with selectors.DefaultSelector() as waiting:
        waiting.register(ours, selectors.EVENT_READ)
        while True:
            for key, _ in waiting.select():
                if key.fileobj is not ours:
                    watch = key.fd
                    waiting.unregister(watch)
                    pid, pipe = statuses.pop(watch)
                    _, status = os.waitpid(pid, 0)
                    os.write(pipe, status.to_bytes(_STATUS_BYTES, "little", signed=True))
                    os.close(pipe)
                    os.close(watch)
                    continue
                head, files, _, _ = socket.recv_fds(ours, 8, 4)
                if not head:
                    return
                data = b""
                while len(data) < int.from_bytes(head, "little"):
                    data += ours.recv(1 << 20)
                pid = os.fork()
                if not pid:
                    kept = files[:3]
                    for fd in (*statuses, *(pipe for _, pipe in statuses.values()), files[3], ours.fileno()):
                        os.close(fd)
                    waiting.close()
                    _child(json.loads(data), kept)
                for fd in files[:3]:
                    os.close(fd)
                watch = os.pidfd_open(pid)
                statuses[watch] = (pid, files[3])
                waiting.register(watch, selectors.EVENT_READ)
                ours.sendall(pid.to_bytes(8, "little"))


def _child(request: dict[str, Any], streams: Sequence[int]) -> None:
    """Be the process that was asked for; it never returns."""
    import random

    for k, fd in enumerate(streams):
        os.dup2(fd, k)
    for fd in streams:
        if fd > 2:
            os.close(fd)
    if request["session"]:
        os.setsid()
    if request["umask"] >= 0:
        os.umask(request["umask"])
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    random.seed()
    sys.stdin, sys.stdout = open(0, encoding="utf-8"), open(1, "w", encoding="utf-8")  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", buffering=1, errors="backslashreplace")  # noqa: SIM115
    way, what, *arguments = request["words"]
    sys.path[0] = "" if way == "-c" else request["cwd"]
    sys.path[1:1] = [
        p for p in request["env"].get("PYTHONPATH", "").split(os.pathsep) if p and p not in sys.path
    ]
    code = _run(way, what, arguments)
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads, as the end of Python does
    import atexit

    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            code = code or 120
    if code == -signal.SIGINT:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(code & 0xFF)


def _run(way: str, what: str, arguments: list[str]) -> int:
    """Run the code or module as ``__main__`` and return the exit code; that of a keyboard's interrupt is negative."""
    try:
        if way == "-m":
            sys.argv = [what, *arguments]
            sys.modules.pop(what, None)
            runpy.run_module(what, run_name="__main__", alter_sys=True)
        else:
            sys.argv = ["-c", *arguments]
            module = type(sys)("__main__")
            sys.modules["__main__"] = module
            exec(compile(what, "<string>", "exec"), module.__dict__)
    except SystemExit as ended:
        if ended.code is None or isinstance(ended.code, int):
            return ended.code or 0
        print(ended.code, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        traceback.print_exc()
        return -signal.SIGINT
    except BaseException:  # noqa: BLE001 - as Python does at the end of a program
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    _main(socket.socket(fileno=int(sys.argv[1])), sys.argv[2:])
