"""Score requests together: a round takes a slice of every waiting request, and one thread scores it.

The measured speed sets the size of a round, so that rounds take about the same time on every machine. A cancelled
request leaves at the next round. If the model fails, only the requests of that round fail.
"""

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from students.serve.metrics import Metrics

SMALLEST_ROUND, LARGEST_ROUND = 16, 8192


class Overloaded(Exception):
    """Too many pairs are waiting."""


class ModelFailed(Exception):
    """The model raised an error, or gave a score that is not finite."""


@dataclass
class _Waiting:
    """A request in the queue, with its scores so far and its future answer."""

    query: str
    texts: Sequence[str]
    answer: "asyncio.Future[list[float]]"
    scores: list[float] = field(default_factory=list)

    @property
    def left(self) -> int:
        return len(self.texts) - len(self.scores)


class Batcher:
    """Score requests together in one thread. It is an async context; all remaining work is dropped at its end.

    Args:
        most: largest number of waiting pairs, over all requests.
        round_seconds: duration of a round.
        thread: scores; an executor with one thread, which several batchers may share.
    """

    def __init__(
        self, scorer: "Scorer", most: int, metrics: Metrics, round_seconds: float, thread: ThreadPoolExecutor
    ) -> None:
        self._scorer = scorer
        self._most = most
        self._metrics = metrics
        self._round_seconds = round_seconds
        self._thread = thread
        self._queue: deque[_Waiting] = deque()
        self._arrived = asyncio.Event()
        self._round_pairs = 64
        self.waiting = 0

    async def __aenter__(self) -> "Batcher":
        self._loop_task = asyncio.create_task(self._loop())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._loop_task.cancel()
        await asyncio.gather(self._loop_task, return_exceptions=True)
        for request in self._queue:
            request.answer.cancel()

    @property
    def alive(self) -> bool:
        """Whether requests are being scored."""
        return not self._loop_task.done()

    async def score(self, query: str, texts: Sequence[str]) -> list[float]:
        """Return the raw scores of the texts. Cancelling this removes the request from the queue.

        Raises:
            Overloaded: too many pairs are waiting. ModelFailed: the model failed.
        """
        if self.waiting and self.waiting + len(texts) > self._most:
            raise Overloaded(f"{self.waiting} pairs are waiting; try again later")
        request = _Waiting(query, texts, asyncio.get_running_loop().create_future())
        self.waiting += len(texts)
        self._queue.append(request)
        self._arrived.set()
        try:
            return await request.answer
        finally:
            self.waiting -= len(texts)
            if request in self._queue:
                self._queue.remove(request)

    async def lengths(self, query: str, texts: Sequence[str]) -> Any:
        """Count the tokens of each pair before truncation. It runs in the scoring thread, which owns the tokenizer."""
        return await asyncio.get_running_loop().run_in_executor(
            self._thread, self._scorer.pair_lengths, query, texts
        )

    async def cut(self, texts: Sequence[str], most_tokens: int) -> list[str]:
        """Cut each text to its first tokens, in the scoring thread."""
        return await asyncio.get_running_loop().run_in_executor(
            self._thread, self._scorer.cut, texts, most_tokens
        )

    async def _loop(self) -> None:
        while True:
            await self._arrived.wait()
            slices = self._next_round()
            if not slices:
                self._arrived.clear()
                continue
            await self._score(slices)

    def _next_round(self) -> list[tuple[_Waiting, int]]:
        """Take a slice of each waiting request: equal shares. What small requests leave goes to those behind them."""
        room = self._round_pairs
        slices: list[tuple[_Waiting, int]] = []
        requests = [r for r in self._queue if not r.answer.done()]
        for position, request in enumerate(requests):
            if room <= 0:
                break
            share = max(-(-room // (len(requests) - position)), 1)
            taken = min(share, request.left)
            slices.append((request, taken))
            room -= taken
        self._queue.rotate(-len(slices))  # requests that got nothing are first in the next round
        return slices

    async def _score(self, slices: list[tuple[_Waiting, int]]) -> None:
        lists = [(r.query, r.texts[len(r.scores) : len(r.scores) + n]) for r, n in slices]
        started = time.monotonic()
        try:
            scored = await asyncio.get_running_loop().run_in_executor(
                self._thread, self._scorer.scores, lists
            )
            if not all(np.isfinite(part).all() for part in scored):
                raise ModelFailed("the model gave a score that is not finite")
        except Exception as error:  # noqa: BLE001 - an error of the model fails these requests, not the server
            for request, _ in slices:
                if not request.answer.done():
                    request.answer.set_exception(
                        error
                        if isinstance(error, ModelFailed)
                        else ModelFailed(f"{type(error).__name__}: {error}")
                    )
                self._queue.remove(request) if request in self._queue else None
            return
        pairs, seconds = sum(n for _, n in slices), time.monotonic() - started
        self._metrics.round(len(slices), pairs, seconds)
        self._resize(pairs, seconds)
        for (request, _), part in zip(slices, scored, strict=True):
            request.scores += [float(score) for score in part]
            if request.left == 0 and not request.answer.done():
                request.answer.set_result(request.scores)
                self._queue.remove(request)

    def _resize(self, pairs: int, seconds: float) -> None:
        """Adjust the round's size to its duration, from the speed of rounds that were nearly full."""
        if pairs * 2 >= self._round_pairs or seconds > self._round_seconds:
            wanted = int(pairs * self._round_seconds / max(seconds, 1e-6))
            self._round_pairs = min(max((self._round_pairs + wanted) // 2, SMALLEST_ROUND), LARGEST_ROUND)


class Scorer(Protocol):
    """The part of `students.rerank.Reranker` that the server needs."""

    def scores(self, lists: Sequence[tuple[str, Sequence[str]]]) -> list[Any]: ...

    def pair_lengths(self, query: str, texts: Sequence[str]) -> Any: ...

    def cut(self, texts: Sequence[str], most_tokens: int) -> list[str]: ...
