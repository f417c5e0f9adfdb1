"""Circuit breaker with back-off for a failing server, and the ``Retry-After`` header."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from random import Random

_JITTER = Random()


@dataclass
class Breaker:
    """Circuit breaker of one server.

    It is closed while the server answers. After `threshold` failures in a row it opens and allows one probe at a time.
    Times are ``time.monotonic()`` seconds. The caller must hold a lock.
    """

    threshold: int = 3
    first_pause: float = 1.0
    longest_pause: float = 60.0
    failures: int = 0  # in a row
    not_before: float = 0.0
    probing: bool = False
    reason: str = "has not answered yet"

    @property
    def healthy(self) -> bool:
        """Return whether the server is not known to be down (it may be busy, or have asked to wait)."""
        return self.failures < self.threshold

    def allows(self, now: float) -> bool:
        """Return whether a request may be sent now."""
        return now >= self.not_before and (self.healthy or not self.probing)

    def opens_in(self, now: float) -> float:
        return max(self.not_before - now, 0.0)

    def asked(self) -> None:
        self.probing = not self.healthy

    def succeeded(self) -> None:
        self.failures, self.probing, self.reason = 0, False, "answers"

    def failed(self, reason: str, wait: float | None = None) -> None:
        self.failures += 1
        self.probing, self.reason = False, reason
        pause = 0.0 if self.healthy else self.first_pause * 2 ** min(self.failures - self.threshold, 10)
        self._pause(min(pause, self.longest_pause) * (0.75 + _JITTER.random() / 2), wait)

    def told_to_wait(self, wait: float | None, reason: str) -> None:
        """Wait as a rate limit asks (one second by default); it does not count as a failure."""
        self.probing, self.reason = False, reason
        self._pause(0.0, wait if wait is not None else 1.0 + _JITTER.random())

    def _pause(self, pause: float, wait: float | None) -> None:
        self.not_before = max(self.not_before, time.monotonic() + max(pause, wait or 0.0))


def retry_after(headers: Mapping[str, str], longest: float = 600.0) -> float | None:
    """Return the seconds in a ``Retry-After`` header, in either form; None if it is absent or invalid."""
    value = headers.get("retry-after")
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            when = parsedate_to_datetime(value)
        except ValueError:
            return None
        if when.tzinfo is None:
            when = when.replace(tzinfo=UTC)
        seconds = (when - datetime.now(UTC)).total_seconds()
    return min(max(seconds, 0.0), longest) if seconds == seconds else None
