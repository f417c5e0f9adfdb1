"""The models of a server by name: how each one's scores become relevance, and how they are replaced without a lost request."""

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

from msft.rankings import scaled
from students.serve.batching import Batcher, Scorer
from students.serve.contracts import Refused
from students.serve.metrics import Metrics


def sigmoid(x: float) -> float:
    """Map a logit to 0..1."""
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


@dataclass(frozen=True)
class Model:
    """A model to serve.

    Attributes:
        info: the answer of /info; ``max_input_length`` is the tokens per pair.
        relevance: maps a raw score to the relevance that clients get; it must never reverse two scores.
        weight: the student's share in a fusion with the first stage's scores; None does not fuse.
        none_below: if the best relevance of a request is below, none of its texts is relevant; None: not known.
    """

    name: str
    scorer: Scorer
    info: dict[str, Any] = field(default_factory=dict)
    relevance: Callable[[float], float] = sigmoid
    weight: float | None = None
    none_below: float | None = None

    def rank(
        self, raw: Sequence[float], first_stage: Sequence[float] | None, *, as_is: bool
    ) -> tuple[list[int], list[float]]:
        """Return the order, best first, and each text's value; ties keep the first stage's order, or the given one.

        Args:
            as_is: give raw scores, without the map to relevance. A fused score is the same either way.
        """
        if self.weight is None or first_stage is None:
            values = [float(x) if as_is else self.relevance(float(x)) for x in raw]
            return sorted(range(len(raw)), key=lambda i: (-float(raw[i]), i)), values
        own, first = scaled(raw), scaled(first_stage)
        values = [self.weight * a + (1 - self.weight) * b for a, b in zip(own, first, strict=True)]
        return sorted(range(len(raw)), key=lambda i: (-values[i], -first_stage[i], i)), values


class Running:
    """A model with its queue."""

    def __init__(self, model: Model, batcher: Batcher) -> None:
        self.model, self.batcher = model, batcher
        self._users = 0
        self._unused = asyncio.Event()
        self._unused.set()

    @contextlib.contextmanager
    def used(self) -> Iterator[None]:
        """Keep the model until the block ends."""
        self._users += 1
        self._unused.clear()
        try:
            yield
        finally:
            self._users -= 1
            if not self._users:
                self._unused.set()

    async def end(self) -> None:
        """Stop when the last request is answered."""
        await self._unused.wait()
        await self.batcher.__aexit__()


class Models:
    """All models of a server. It is an async context.

    One thread scores for all of them, so that two models do not compete for the cores.

    Args:
        models: the first is the default, for requests that name none.
        load: makes the models anew for :meth:`reload`; None for a failure, which keeps those that run.
    """

    def __init__(
        self,
        models: Sequence[Model],
        most: int,
        metrics: Metrics,
        round_seconds: float,
        load: Callable[[], Sequence[Model] | None] | None = None,
    ) -> None:
        self._first = list(models)
        self._most, self._metrics, self._round_seconds = most, metrics, round_seconds
        self._load = load
        self._reloading = asyncio.Lock()
        self._ending: set[asyncio.Task[None]] = set()
        self._running: dict[str, Running] = {}
        self.reloads = 0

    @contextlib.asynccontextmanager
    async def started(self) -> AsyncIterator["Models"]:
        """Run the models until the block ends."""
        with ThreadPoolExecutor(1, thread_name_prefix="scoring") as thread:
            self._thread = thread
            async with AsyncExitStack() as stack:
                self._running = await self._start(self._first)
                stack.push_async_callback(self._stop)
                yield self

    async def _start(self, models: Sequence[Model]) -> dict[str, Running]:
        running = {}
        for model in models:
            batcher = Batcher(model.scorer, self._most, self._metrics, self._round_seconds, self._thread)
            running[model.name] = Running(model, await batcher.__aenter__())
        return running

    async def _stop(self) -> None:
        for task in self._ending:
            task.cancel()
        await asyncio.gather(*self._ending, return_exceptions=True)
        for running in self._running.values():
            await running.batcher.__aexit__()

    async def reload(self) -> bool:
        """Load the models anew and serve them; requests in flight end with the models they began with.

        Returns:
            Whether the models were replaced.
        """
        if self._load is None:
            return False
        async with self._reloading:
            loaded = await asyncio.to_thread(self._load)
            if loaded is None:
                return False
            before, self._running = self._running, await self._start(loaded)
            for old in before.values():
                task = asyncio.create_task(old.end())
                self._ending.add(task)
                task.add_done_callback(self._ending.discard)
            self.reloads += 1
            return True

    @property
    def names(self) -> list[str]:
        return list(self._running)

    @property
    def alive(self) -> bool:
        """Whether every model answers."""
        return bool(self._running) and all(r.batcher.alive for r in self._running.values())

    @property
    def waiting(self) -> int:
        """The pairs that wait, over all models."""
        return sum(running.batcher.waiting for running in self._running.values())

    def named(self, name: str | None) -> Running:
        """Find a model; the first without a name.

        Raises:
            Refused: the model is not served (404).
        """
        found = next(iter(self._running.values())) if name is None else self._running.get(name)
        if found is None:
            raise Refused(
                404, "Validation", f"model {name!r} is not served here: expected {' or '.join(self._running)}"
            )
        return found
