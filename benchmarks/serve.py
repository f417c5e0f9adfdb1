"""Test `msft students serve` under valid, invalid and cancelled requests: scores, codes, memory and requests/s.

    python -m benchmarks.serve [--student FOLDER] [--data ../shared/data] [--clients 50] [--precision fp32]
        [--turns 2]

The command starts the server in a separate process, and clients send HTTP over loopback. A good request holds the first
1 to 16 candidates of a query of dl19 or nfcorpus. `Reranker.scores` gives the expected answers.

The first part sends the same good requests twice: one after the other from one client, then from all clients at once
(`requests_per_second`, `speedup_over_one_by_one`, latencies in ms). The second part sends a mixed load. Half of it is
good. The rest is huge (too many texts, a text or body that is too large, announced or not), malformed (not JSON, the
wrong form, not HTTP) or cancelled (the client disconnects while sending or waiting). The load runs in two new servers,
once short and once five times as long: `memory_ratio` is the peak resident memory of the long run over that of the
short run.

wrong_scores     good requests with a score further than 1e-4 (bf16: 0.25) from the expected one, or with a wrong code
wrong_codes      bad requests answered with a wrong code or not at all
left_over        pairs and bytes that the server still held for finished requests
"""

import argparse
import asyncio
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from benchmarks.real_lists import DATA, candidates, trained_student

ROOT = Path(__file__).resolve().parents[1]
MAX_TEXTS, MAX_BODY = 100, 1  # per request; MB
NEAR = {"fp32": 1e-4, "bf16": 0.25}
SIZES = (1, 2, 4, 8, 16)
KINDS = ("good", "huge", "good", "malformed", "good", "cancelled")
MALFORMED = [  # body, and the expected code
    (b'{"query": "q", "texts": [', 400),
    (b"\xff\xfe{}", 400),
    (b"[" * 50_000, 400),
    (b'{"query": "q", "texts": []}', 400),
    (b'{"texts": ["a"]}', 422),
    (b'{"query": "q", "texts": ["a", 7]}', 422),
    (b'{"query": "q", "texts": ["\\ud800"]}', 422),
]


@dataclass(frozen=True)
class Good:
    """A request and its expected answer."""

    query: str
    texts: list[str]
    scores: np.ndarray

    @property
    def body(self) -> dict[str, Any]:
        return {"query": self.query, "texts": self.texts, "raw_scores": True}


@dataclass
class Seen:
    """The answers that the clients got."""

    near: float
    sent: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)  # unexpected answers to good requests
    codes: list[str] = field(default_factory=list)  # unexpected answers to bad requests
    seconds: list[float] = field(default_factory=list)  # of good requests
    difference: float = 0.0

    def answered(self, request: Good, answer: httpx.Response, seconds: float) -> None:
        """Compare the answer to a good request with the expected one."""
        self.seconds.append(seconds)
        if answer.status_code != 200:
            self.wrong.append(f"{answer.status_code}: {answer.text[:100]}")
            return
        rows = answer.json()
        got = np.full(len(request.texts), np.nan)
        for row in rows:
            got[row["index"]] = row["score"]
        off = float(np.abs(got - request.scores).max())
        ranked = [row["score"] for row in rows]
        if len(rows) != len(got) or not off <= self.near or ranked != sorted(ranked, reverse=True):
            self.wrong.append(f"off by {off}")
        else:
            self.difference = max(self.difference, off)


# ----------------------------------------------------------------------------------------------- the server
class Server:
    """A running server: its address, and figures of its process from the system."""

    def __init__(self, process: "subprocess.Popen[str]", url: str) -> None:
        self.process, self.url = process, url

    @property
    def alive(self) -> bool:
        return self.process.poll() is None and httpx.get(f"{self.url}/health").status_code == 200

    def megabytes(self, key: str = "VmHWM") -> float:
        """Read the resident memory: the peak so far, or the current value (VmRSS)."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition(f"{key}:")[2].split()[0]) / 1024

    def held(self) -> float:
        """Count pairs and bytes of waiting requests, after a moment in which the server can release them."""
        deadline = time.monotonic() + 10
        while (left := self.metric("msft_waiting_pairs") + self.metric("msft_bytes_in_flight")) > 0:
            if time.monotonic() > deadline:
                break
            time.sleep(0.05)
        return left

    def metric(self, name: str) -> float:
        for line in httpx.get(f"{self.url}/metrics").text.splitlines():
            if line.startswith(name + " "):
                return float(line.rsplit(" ", 1)[1])
        raise KeyError(name)


@contextmanager
def serving(student: str, precision: str, *options: str) -> Iterator[Server]:
    """Run `msft students serve` as a process until the context ends; then interrupt it as Ctrl-C does.

    Raises:
        RuntimeError: the server did not start, or did not end.
    """
    command = [
        sys.executable, "-m", "cli.main", "students", "serve", student, "--port", "0", "--precision", precision,
        "--max-texts", str(MAX_TEXTS), "--max-body", str(MAX_BODY), *options,
    ]  # fmt: skip
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, cwd=ROOT, stderr=errors, stdout=subprocess.DEVNULL, text=True)
        try:
            yield Server(process, _address(process, errors))
        finally:
            if process.poll() is None:
                process.send_signal(2)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired as late:
                process.kill()
                raise RuntimeError("the server did not end") from late


def _address(process: "subprocess.Popen[str]", errors: Any) -> str:
    deadline = time.monotonic() + 600  # enough on a busy machine
    while time.monotonic() < deadline:
        errors.seek(0)
        said = errors.read()
        if found := re.search(r"(http://\S+)/rerank", said):
            with suppress(httpx.TransportError):
                if httpx.get(f"{found[1]}/health").status_code == 200:
                    return found[1]
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with {process.returncode}: {said}")
        time.sleep(0.1)
    raise RuntimeError(f"the server did not start: {said}")


# ---------------------------------------------------------------------------------------------- the clients
async def _good(http: httpx.AsyncClient, request: Good, seen: Seen) -> None:
    began = time.perf_counter()
    answer = await http.post("/rerank", json=request.body)
    seen.answered(request, answer, time.perf_counter() - began)


async def _huge(http: httpx.AsyncClient, rng: random.Random, seen: Seen) -> None:
    kind = rng.randrange(4)
    if kind == 0:
        content: Any = json.dumps({"query": "q", "texts": ["text"] * (MAX_TEXTS + 1)}).encode()
    elif kind == 1:
        content = json.dumps({"query": "q", "texts": ["x" * 200_000]}).encode()
    elif kind == 2:
        content = b" " * (MAX_BODY * 1_000_000 + 1)
    else:
        content = _endless()
    with suppress(httpx.TransportError):  # the server may close the connection during sending
        answer = await http.post("/rerank", content=content, headers={"connection": "close"})
        # Together, bodies of unknown length may reach the limit of all bytes before one reaches its own limit.
        if answer.status_code != 413 and not (kind == 3 and answer.status_code == 429):
            seen.codes.append(f"huge {kind}: {answer.status_code}")


async def _endless() -> Any:
    """Send a body of unannounced length, twice the limit."""
    for _ in range(2 * MAX_BODY * 20):
        yield b" " * 50_000


async def _malformed(http: httpx.AsyncClient, rng: random.Random, seen: Seen) -> None:
    if rng.random() < 0.2:
        code = await _no_http(http)
        if code not in (400, None):
            seen.codes.append(f"no HTTP: {code}")
        return
    body, code = rng.choice(MALFORMED)
    answer = await http.post("/rerank", content=body)
    if answer.status_code != code:
        seen.codes.append(f"{body[:40]!r}: {answer.status_code}, not {code}")


async def _no_http(http: httpx.AsyncClient) -> int | None:
    """Send bytes that are not HTTP; returns the code of the answer, or None if the server just closed the connection."""
    reader, writer = await asyncio.open_connection(http.base_url.host, http.base_url.port)
    try:
        writer.write(b"\x16\x03\x01\x02\x00\x01\x00 no HTTP\r\n\r\n")
        line = await asyncio.wait_for(reader.readline(), 30)
        return int(line.split()[1]) if line else None
    finally:
        writer.close()


async def _cancelled(http: httpx.AsyncClient, request: Good, rng: random.Random) -> None:
    """Send a request or a part of it, then disconnect: at once, or during scoring."""
    host = http.base_url.host
    _, writer = await asyncio.open_connection(host, http.base_url.port)
    body = json.dumps(request.body).encode()
    head = f"POST /rerank HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    message = head + body
    with suppress(ConnectionError):
        writer.write(message if rng.random() < 0.7 else message[: rng.randrange(1, len(message))])
        await writer.drain()
        await asyncio.sleep(rng.uniform(0, 0.2))
    writer.transport.abort()


async def _each(
    url: str, clients: int, repeats: int, work: Callable[[httpx.AsyncClient, int, int], Awaitable[None]]
) -> None:
    """Run clients side by side, each on its own connections; each does its repeats one after the other."""

    async def client(number: int) -> None:
        async with httpx.AsyncClient(base_url=url, timeout=120) as http:
            for repeat in range(repeats):
                await work(http, number, repeat)

    await asyncio.gather(*(client(number) for number in range(clients)))


def good_load(url: str, requests: Sequence[Good], clients: int, near: float) -> tuple[Seen, float]:
    """Send each request once, by `clients` clients. Return their answers and the seconds."""
    seen, waiting = Seen(near), list(requests)

    async def work(http: httpx.AsyncClient, number: int, repeat: int) -> None:
        while waiting:
            await _good(http, waiting.pop(), seen)
            seen.sent["good"] += 1

    began = time.perf_counter()
    asyncio.run(_each(url, clients, 1, work))
    return seen, time.perf_counter() - began


def mixed_load(url: str, requests: Sequence[Good], clients: int, repeats: int, near: float) -> Seen:
    """Run clients that each send `repeats` requests of all kinds."""
    seen = Seen(near)

    async def work(http: httpx.AsyncClient, number: int, repeat: int) -> None:
        rng = random.Random(1000 * number + repeat)
        kind = KINDS[(number + repeat) % len(KINDS)]
        request = requests[(7 * number + repeat) % len(requests)]
        if kind == "good":
            await _good(http, request, seen)
        elif kind == "huge":
            await _huge(http, rng, seen)
        elif kind == "malformed":
            await _malformed(http, rng, seen)
        else:
            await _cancelled(http, request, rng)
        seen.sent[kind] += 1

    asyncio.run(_each(url, clients, repeats, work))
    return seen


# ------------------------------------------------------------------------------------------------- measuring
def good_requests(student: Path, data: Path, n: int, precision: str) -> list[Good]:
    """Make requests of uneven sizes from real candidates, with the expected scores from `Reranker`."""
    from students.rerank.reranker import Reranker

    lists = [
        one
        for name in ("dl19-passage", "nfcorpus")
        for one in candidates(name, data=data, depth=max(SIZES), n_queries=40).lists
    ]
    chosen = [(lists[k % len(lists)][0], lists[k % len(lists)][1][: SIZES[k % len(SIZES)]]) for k in range(n)]
    scores = Reranker.load(student, precision=precision, device="cpu").scores(chosen)
    return [Good(query, texts, row) for (query, texts), row in zip(chosen, scores, strict=True)]


def latencies(seen: Seen, prefix: str) -> dict[str, float]:
    return {
        f"{prefix}latency_p{p}_ms": round(float(np.percentile(seen.seconds, p)) * 1000, 1)
        for p in (50, 95, 99)
    }


def speeds(student: Path, requests: Sequence[Good], clients: int, precision: str) -> dict[str, Any]:
    """Measure the same requests one by one and by all clients at once."""
    near = NEAR[precision]
    with serving(str(student), precision) as server:
        good_load(server.url, requests[:10], 2, near)  # warm
        alone, seconds_alone = good_load(server.url, requests, 1, near)
        many, seconds = good_load(server.url, requests, clients, near)
        rounds = server.metric("msft_rounds_total")
        together = server.metric("msft_round_requests_total") / rounds
    n_pairs = sum(len(request.texts) for request in requests)
    return {
        "good_requests": len(requests),
        "pairs": n_pairs,
        "requests_per_second": round(len(requests) / seconds, 2),
        "requests_per_second_one_by_one": round(len(requests) / seconds_alone, 2),
        "speedup_over_one_by_one": round(seconds_alone / seconds, 2),
        "pairs_per_second": round(n_pairs / seconds, 1),
        "requests_per_round": round(together, 2),
        **latencies(alone, "one_by_one_"),
        **latencies(many, ""),
        "wrong_scores": len(alone.wrong) + len(many.wrong),
        "max_score_difference": max(alone.difference, many.difference),
    }


def endurance(
    student: Path, requests: Sequence[Good], clients: int, repeats: int, precision: str
) -> dict[str, Any]:
    """Send the mixed load to a new server; returns the answers and the server's memory."""
    near = NEAR[precision]
    with serving(str(student), precision) as server:
        good_load(server.url, requests[:10], 2, near)
        before = server.megabytes()
        seen = mixed_load(server.url, requests, clients, repeats, near)
        left = server.held()
        after, _ = good_load(server.url, requests[:10], 2, near)
        row = {
            "before_mb": before,
            "peak_mb": server.megabytes(),
            "alive": server.alive,
            "left": left,
            "wrong": seen.wrong + after.wrong,
            "codes": seen.codes,
            "seen": seen,
        }
    for what in row["wrong"][:5] + row["codes"][:5]:
        print(what, file=sys.stderr)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--student", type=Path, help="a student's folder")
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--requests", type=int, default=80, help="good ones, for the speed")
    parser.add_argument(
        "--turns", type=int, default=2, help="requests of each client in the short mixed load"
    )
    parser.add_argument("--precision", choices=list(NEAR), default="fp32")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        student = (arguments.student or trained_student(Path(scratch), data=arguments.data)).resolve()
        requests = good_requests(student, arguments.data, arguments.requests, arguments.precision)
        row = speeds(student, requests, arguments.clients, arguments.precision)
        print(json.dumps(row), file=sys.stderr, flush=True)
        short, long = (
            endurance(student, requests, arguments.clients, repeats, arguments.precision)
            for repeats in (arguments.turns, 5 * arguments.turns)
        )
    seen: Seen = long["seen"]
    result = {
        "benchmark": "serve",
        "precision": arguments.precision,
        "clients": arguments.clients,
        **row,
        **latencies(seen, "mixed_"),
        **{f"mixed_{kind}": seen.sent[kind] for kind in dict.fromkeys(KINDS)},
        "wrong_scores": row["wrong_scores"] + len(short["wrong"]) + len(long["wrong"]),
        "wrong_codes": len(short["codes"]) + len(long["codes"]),
        "max_score_difference": max(row["max_score_difference"], seen.difference),
        "alive": short["alive"] and long["alive"],
        "left_over": short["left"] + long["left"],
        "memory_before_mb": round(long["before_mb"], 1),
        "memory_short_mb": round(short["peak_mb"], 1),
        "memory_long_mb": round(long["peak_mb"], 1),
        "memory_ratio": round(long["peak_mb"] / short["peak_mb"], 3),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
