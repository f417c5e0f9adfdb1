"""SIGHUP loads the models anew: no request is lost, and a model that cannot be loaded changes nothing."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import forked
import httpx
import pytest

# The models' scores are the number of the loading; a file that is there makes the next loading fail.
SERVER = """
import os, socket, sys, time
import numpy as np
from students.serve import guard
from students.serve.app import Limits, create_app_of
from students.serve.models import Model
class Scorer:
    def __init__(self, value):
        self.value = value
    def scores(self, lists):
        time.sleep(0.01 * sum(len(texts) for _, texts in lists))
        return [np.full(len(texts), self.value) for _, texts in lists]
    def pair_lengths(self, query, texts):
        return np.ones(len(texts))
loadings = 0
def load():
    global loadings
    if os.path.exists(sys.argv[1]):
        return None
    loadings += 1
    time.sleep(0.2)
    return [Model(name, Scorer(loadings), {"loading": loadings, "max_input_length": 9}) for name in ("a", "b")]
listening = socket.create_server(("127.0.0.1", 0))
print(listening.getsockname()[1], flush=True)
app = create_app_of(load(), Limits(), round_seconds=0.05, load=load)
guard.Server(guard.config(app)).run(sockets=[listening])
"""


@contextlib.contextmanager
def server(fails: os.PathLike[str]) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    process = forked.Popen([sys.executable, "-c", SERVER, str(fails)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        url = f"http://127.0.0.1:{int(process.stdout.readline())}"
        wait(lambda: httpx.get(f"{url}/health", timeout=5).status_code == 200)
        yield process, url
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) is not None


def wait(ready, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(httpx.TransportError):
            if ready():
                return
        assert time.monotonic() < deadline
        time.sleep(0.02)


def loading(url: str, model: str = "a") -> int:
    return httpx.get(f"{url}/info", params={"model": model}, timeout=10).json()["loading"]


@pytest.mark.test_all
def test_no_request_is_lost_while_models_are_replaced(tmp_path) -> None:
    wrong: list[str] = []
    values: set[float] = set()
    over = threading.Event()

    def client(url: str, model: str, n: int) -> None:
        with httpx.Client(timeout=30) as http:
            while not over.is_set():
                body = {"model": model, "query": "q", "documents": ["t"] * n, "use_activation": False}
                answer = http.post(f"{url}/v2/rerank", json=body)
                scores = {row["relevance_score"] for row in answer.json().get("results", [])}
                if (
                    answer.status_code != 200 or len(scores) != 1
                ):  # a request ends with the model it began with
                    wrong.append(f"{answer.status_code}: {answer.text[:80]}")
                values.update(scores)

    with server(tmp_path / "fails") as (process, url):
        clients = [
            threading.Thread(target=client, args=(url, model, n)) for model in "ab" for n in (1, 3, 12)
        ]
        for thread in clients:
            thread.start()
        wait(lambda: 1.0 in values)  # on a busy machine the first answer may come late
        for turn in range(2, 6):
            process.send_signal(signal.SIGHUP)
            wait(lambda turn=turn: loading(url) == loading(url, "b") == turn)
            wait(lambda turn=turn: float(turn) in values)
        over.set()
        for thread in clients:
            thread.join(30)
        assert process.poll() is None
    assert wrong == []
    assert values == {1.0, 2.0, 3.0, 4.0, 5.0}


def test_models_stay_if_the_new_ones_cannot_be_loaded(tmp_path) -> None:
    with server(tmp_path / "fails") as (process, url):
        (tmp_path / "fails").touch()
        process.send_signal(signal.SIGHUP)
        time.sleep(0.5)
        assert loading(url) == 1
        body = {"query": "q", "documents": ["t"], "use_activation": False}
        assert (
            httpx.post(f"{url}/v1/rerank", json=body, timeout=10).json()["results"][0]["relevance_score"] == 1
        )
        (tmp_path / "fails").unlink()
        process.send_signal(signal.SIGHUP)
        wait(lambda: loading(url) == 2)
