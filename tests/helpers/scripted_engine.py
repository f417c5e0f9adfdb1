"""An engine whose reply is a function of the prompt: for tests, and for measuring everything but the model."""

import heapq
import itertools
import time
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from teachers.engines.base import Completion, Request


class ScriptedEngine:
    """Answers at once, or after ``delay(request)`` seconds, with ``reply(request)``.

    Args:
        reply: a request to its reply; may return a whole :class:`Completion` (its ticket is filled in).
        delay: seconds until the answer; answers with shorter delays overtake others.
        capacity: requests wanted in flight.
    """

    name = "scripted"
    concurrent = False
    tokenizer: Any = None
    context: int | None = None

    def __init__(
        self,
        reply: Callable[[Request], str | Completion],
        *,
        delay: Callable[[Request], float] | None = None,
        capacity: int = 64,
    ) -> None:
        self.capacity = capacity
        self._reply, self._delay = reply, delay
        self._waiting: list[tuple[float, int, float, Request]] = []
        self._count = itertools.count()
        self.answered = 0

    def submit(self, requests: Sequence[Request]) -> None:
        now = time.monotonic()
        for request in requests:
            due = now + (self._delay(request) if self._delay else 0.0)
            heapq.heappush(self._waiting, (due, next(self._count), now, request))

    def poll(self, timeout: float) -> list[Completion]:
        if self._waiting and self._waiting[0][0] > (now := time.monotonic()):
            time.sleep(min(self._waiting[0][0] - now, timeout))
        done = []
        now = time.monotonic()
        while self._waiting and self._waiting[0][0] <= now:
            _, _, submitted, request = heapq.heappop(self._waiting)
            done.append(self._complete(request, now - submitted))
        self.answered += len(done)
        return done

    def close(self) -> None:
        self._waiting.clear()

    def _complete(self, request: Request, seconds: float) -> Completion:
        reply = self._reply(request)
        if isinstance(reply, Completion):
            reply.ticket = request.ticket
            return reply
        return Completion(
            ticket=request.ticket,
            text=reply,
            finish_reason="stop",
            tokens_in=request.n_prompt_tokens,
            tokens_out=len(reply.split()),
            seconds=seconds,
            server="scripted",
        )


def hashed_order(request: Request) -> str:
    """A full ranking that depends on nothing but the request's key: the same prompt always gets the same reply."""
    shown = list(request.identifiers)
    Random(request.key).shuffle(shown)
    return " > ".join(f"[{identifier}]" for identifier in shown)
