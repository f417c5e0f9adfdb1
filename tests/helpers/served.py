"""Run a server's application over a real socket in a thread, and a scorer whose scores are known."""

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence

import numpy as np
import uvicorn
from starlette.types import ASGIApp


@contextlib.contextmanager
def serving_app(app: ASGIApp) -> Iterator[str]:
    """The address of the running application."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", lifespan="on"))
    sockets = [server.config.bind_socket()]
    thread = threading.Thread(target=server.run, kwargs={"sockets": sockets})
    thread.start()
    try:
        deadline = time.monotonic() + 20
        while not server.started:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield f"http://127.0.0.1:{sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


class WordScorer:
    """A scorer in words: a text's score is its number of words less `shift`; a token is a word, and a pair has 3 more."""

    def __init__(self, shift: float = 0.0) -> None:
        self.shift = shift

    def scores(self, lists: Sequence[tuple[str, Sequence[str]]]) -> list[np.ndarray]:
        return [
            np.array([len(text.split()) - self.shift for text in texts], dtype=np.float32)
            for _, texts in lists
        ]

    def pair_lengths(self, query: str, texts: Sequence[str]) -> np.ndarray:
        return np.array([len(query.split()) + len(text.split()) + 3 for text in texts])

    def cut(self, texts: Sequence[str], most_tokens: int) -> list[str]:
        return [" ".join(text.split()[:most_tokens]) for text in texts]
