"""Keep a device busy: a thread prepares what comes next, and scores are read while the device computes the next batch."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch

from students.rerank.pairs import Scores

Item = TypeVar("Item")
Made = TypeVar("Made")

FLYING = 2  # batches that the device holds before scores are read
_END: Any = object()


def ahead(items: Iterator[Item], make: Callable[[Item], Made], number: int) -> Iterator[Made]:
    """Yield make(item) for each item, in order; another thread takes and makes up to ``number`` of them ahead."""

    def following() -> Any:
        item = next(items, _END)
        return item if item is _END else make(item)

    with ThreadPoolExecutor(1, "ahead") as thread:
        waiting = deque(thread.submit(following) for _ in range(number))
        try:
            while (made := waiting.popleft().result()) is not _END:
                waiting.append(thread.submit(following))
                yield made
        finally:
            for future in waiting:
                future.cancel()


class Launched(Protocol):
    """A batch that was given to the device."""

    def scores(self) -> Scores:
        """Wait for the raw logits."""

    def idle_since(self, before: "Launched") -> float:
        """Compute the seconds between the end of an earlier batch and the beginning of this one."""

    def seconds(self) -> float:
        """Compute the seconds from this batch's beginning to its end."""


@dataclass
class Done:
    """A batch that was scored when it was launched, on a CPU."""

    found: Scores
    begun: float
    ended: float

    def scores(self) -> Scores:
        """Return the raw logits."""
        return self.found

    def idle_since(self, before: Any) -> float:
        """Compute the seconds since an earlier batch."""
        return float(self.begun - before.ended)

    def seconds(self) -> float:
        """Compute the seconds of the forward."""
        return self.ended - self.begun


@dataclass
class OnGpu:
    """A batch on a GPU, whose scores are being copied to page-locked memory."""

    on_host: torch.Tensor
    begun: Any  # events of the GPU
    ended: Any

    def scores(self) -> Scores:
        """Wait for the raw logits."""
        self.ended.synchronize()
        found: Scores = self.on_host.numpy()
        return found

    def idle_since(self, before: Any) -> float:
        """Compute the seconds in which the GPU had nothing to do. Both batches have ended."""
        return float(before.ended.elapsed_time(self.begun)) / 1000

    def seconds(self) -> float:
        """Compute the seconds from the first copy to the last."""
        return float(self.begun.elapsed_time(self.ended)) / 1000


@dataclass
class DeviceTime:
    """The seconds in which a device computed, and those in which it waited between two batches."""

    busy: float = 0.0
    waited: float = 0.0

    @property
    def share_waited(self) -> float:
        """Compute the share of the time in which the device waited, 0 to 1."""
        return self.waited / (self.busy + self.waited) if self.busy else 0.0


def in_flight(
    batches: Iterator[tuple[Item, Any]], launch: Callable[[Any], Launched], time: DeviceTime
) -> Iterator[tuple[Item, Scores]]:
    """Launch each batch and yield (its item, its scores), in order; the time is added up."""
    flying: deque[tuple[Item, Launched]] = deque()
    before: Launched | None = None

    def landed() -> tuple[Item, Scores]:
        nonlocal before
        item, launched = flying.popleft()
        scores = launched.scores()
        time.busy += launched.seconds()
        time.waited += launched.idle_since(before) if before is not None else 0.0
        before = launched
        return item, scores

    for item, batch in batches:
        flying.append((item, launch(batch)))
        if len(flying) > FLYING:
            yield landed()
    while flying:
        yield landed()
