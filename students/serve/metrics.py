"""Count the server's work in the format of Prometheus."""

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


@dataclass
class Outcome:
    """How a request ended."""

    code: int = 500


@dataclass
class Metrics:
    """Totals since the start; `page` writes them out."""

    requests: Counter[int] = field(default_factory=Counter)
    latency: list[int] = field(default_factory=lambda: [0] * (len(BUCKETS) + 1))
    latency_sum: float = 0.0
    rounds: int = 0
    round_requests: int = 0
    pairs: int = 0
    scoring_seconds: float = 0.0

    @contextmanager
    def request(self) -> Iterator[Outcome]:
        """Count and time the enclosed request; its outcome's code is 500 unless set."""
        outcome = Outcome()
        started = time.monotonic()
        try:
            yield outcome
        finally:
            seconds = time.monotonic() - started
            self.requests[outcome.code] += 1
            self.latency[bisect_left(BUCKETS, seconds)] += 1
            self.latency_sum += seconds

    def round(self, requests: int, pairs: int, seconds: float) -> None:
        """Count one joint scoring."""
        self.rounds += 1
        self.round_requests += requests
        self.pairs += pairs
        self.scoring_seconds += seconds

    def page(self, gauges: Mapping[str, float]) -> str:
        """The text format of Prometheus, version 0.0.4."""
        lines = ["# TYPE msft_requests_total counter"]
        lines += [f'msft_requests_total{{code="{code}"}} {n}' for code, n in sorted(self.requests.items())]
        lines.append("# TYPE msft_request_seconds histogram")
        seen = 0
        for edge, n in zip((*BUCKETS, "+Inf"), self.latency, strict=True):
            seen += n
            lines.append(f'msft_request_seconds_bucket{{le="{edge}"}} {seen}')
        lines += [f"msft_request_seconds_sum {self.latency_sum:.6f}", f"msft_request_seconds_count {seen}"]
        for name, value in (
            ("pairs_total", self.pairs),
            ("rounds_total", self.rounds),
            ("round_requests_total", self.round_requests),
            ("scoring_seconds_total", round(self.scoring_seconds, 6)),
        ):
            lines += [f"# TYPE msft_{name} counter", f"msft_{name} {value}"]
        for name, value in gauges.items():
            lines += [f"# TYPE msft_{name} gauge", f"msft_{name} {value}"]
        return "\n".join(lines) + "\n"
