"""Make Ctrl-C end a running query as a KeyboardInterrupt.

DuckDB 2.0 runs queries outside Python, where a signal's handler cannot run. Most statements ignore Ctrl-C until they
end, and the others raise ``RuntimeError: Query interrupted``. So while a connection is open, the signal wakes a thread
(``signal.set_wakeup_fd``), which interrupts the connection.
"""

import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import duckdb

_open: list[duckdb.DuckDBPyConnection] = []
_pressed = threading.Event()  # the signal arrived while a connection was open
_handled = threading.Event()  # Python's handler has run


@contextmanager
def interruptible(con: duckdb.DuckDBPyConnection) -> Iterator[None]:
    """Let Ctrl-C end the work of `con`. It has no effect outside the main thread or if SIGINT has another handler.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed.
    """
    _open.append(con)
    try:
        if _listens():
            with _listening():
                yield
        else:
            yield
    except (RuntimeError, duckdb.InterruptException) as error:
        if _pressed.is_set() and "interrupted" in str(error).lower():
            raise KeyboardInterrupt from error
        raise
    finally:
        _open.remove(con)


def _listens() -> bool:
    in_main = threading.current_thread() is threading.main_thread()
    return in_main and signal.getsignal(signal.SIGINT) is signal.default_int_handler


@contextmanager
def _listening() -> Iterator[None]:
    _pressed.clear()
    _handled.clear()
    ours, told = socket.socketpair()
    told.setblocking(False)
    watcher = threading.Thread(target=_watch, args=(ours,), name="interrupts", daemon=True)
    watcher.start()
    before = signal.set_wakeup_fd(told.fileno(), warn_on_full_buffer=False)
    signal.signal(signal.SIGINT, _handler)
    try:
        yield
    finally:
        # In this order: every signal that wakes the watcher also reaches our handler, which stops the watcher.
        signal.set_wakeup_fd(before)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        told.close()  # the watcher reads end of file and ends
        watcher.join()
        ours.close()


def _handler(number: int, frame: object) -> None:
    _interrupt()  # a statement that checks for signals itself does not stop DuckDB's other threads
    _pressed.set()
    _handled.set()
    raise KeyboardInterrupt


def _watch(ours: socket.socket) -> None:
    while data := ours.recv(64):
        if signal.SIGINT not in data:
            continue
        _pressed.set()
        while not _handled.wait(
            0.02
        ):  # repeatedly, because a statement that is just beginning forgets an interrupt
            _interrupt()
        _handled.clear()


def _interrupt() -> None:
    for con in list(_open):
        with suppress(duckdb.Error):  # it was closed early
            con.interrupt()
