"""Count the server's work for Prometheus."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import prometheus_client

BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)

prometheus_client.disable_created_metrics()  # one more series for each counter, with the time of its first count


@dataclass
class Outcome:
    """How a request ended."""

    code: int = 500


class Metrics:
    """Totals since the start, in a registry for each server."""

    def __init__(self) -> None:
        self._registry = prometheus_client.CollectorRegistry()
        self._requests = prometheus_client.Counter(
            "msft_requests", "Answered requests, by status code", ["code"], registry=self._registry
        )
        self._seconds = prometheus_client.Histogram(
            "msft_request_seconds", "Seconds from request to answer", buckets=BUCKETS, registry=self._registry
        )
        self._pairs = self._counter("pairs", "Scored pairs")
        self._rounds = self._counter("rounds", "Joint scorings")
        self._round_requests = self._counter("round_requests", "Requests in joint scorings")
        self._scoring_seconds = self._counter("scoring_seconds", "Seconds of joint scorings")

    def _counter(self, name: str, text: str) -> prometheus_client.Counter:
        return prometheus_client.Counter(f"msft_{name}", text, registry=self._registry)

    def gauge(self, name: str, text: str, value: Callable[[], float]) -> None:
        """Show what `value` returns whenever the page is read."""
        prometheus_client.Gauge(f"msft_{name}", text, registry=self._registry).set_function(value)

    @contextmanager
    def request(self) -> Iterator[Outcome]:
        """Count and time the enclosed request; its outcome's code is 500 unless set."""
        outcome = Outcome()
        started = time.monotonic()
        try:
            yield outcome
        finally:
            self._requests.labels(outcome.code).inc()
            self._seconds.observe(time.monotonic() - started)

    def round(self, requests: int, pairs: int, seconds: float) -> None:
        """Count one joint scoring."""
        self._rounds.inc()
        self._round_requests.inc(requests)
        self._pairs.inc(pairs)
        self._scoring_seconds.inc(seconds)

    def page(self) -> bytes:
        """Write the totals in Prometheus' text format."""
        return prometheus_client.generate_latest(self._registry)
