"""Make Ctrl-C end a running query as a KeyboardInterrupt.

DuckDB 2.0 runs queries outside Python, where a signal's handler cannot run: most statements ignore Ctrl-C until they
end, and the others raise ``RuntimeError: Query interrupted``. So while a connection is open, a thread is woken by
the signal (``signal.set_wakeup_fd``) and interrupts the connection.
"""

import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import duckdb

_open: list[duckdb.DuckDBPyConnection] = []
_pressed = threading.Event()  # the signal came while someone listened
_handled = threading.Event()  # Python's handler has run


@contextmanager
def interruptible(con: duckdb.DuckDBPyConnection) -> Iterator[None]:
    """Let Ctrl-C end what `con` does inside; does nothing outside the main thread or if SIGINT has another handler.

    Raises:
        KeyboardInterrupt: if Ctrl-C was pressed.
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
        # In this order: a signal that the watcher is told of always reaches our handler, which ends its interrupting.
        signal.set_wakeup_fd(before)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        told.close()  # the watcher reads the end of it
        watcher.join()
        ours.close()


def _handler(number: int, frame: object) -> None:
    _interrupt()  # what DuckDB's other threads do for a statement that looked for signals itself
    _pressed.set()
    _handled.set()
    raise KeyboardInterrupt


def _watch(ours: socket.socket) -> None:
    while data := ours.recv(64):
        if signal.SIGINT not in data:
            continue
        _pressed.set()
        while not _handled.wait(0.02):  # once is not enough: a statement that is just beginning forgets it
            _interrupt()
        _handled.clear()


def _interrupt() -> None:
    for con in list(_open):
        with suppress(duckdb.Error):  # it was closed early
            con.interrupt()
