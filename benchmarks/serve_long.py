"""Measure `msft students serve` over 5,000 requests, with idle connections, until SIGTERM.

    python -m benchmarks.serve_long [--student minilm] [--requests 5000] [--clients 8] [--connections 1000]

memory_mb             resident memory after each tenth of the requests; memory_growth is the last over the second
health_ms             slowest of ten /health beside `connections` that send nothing and as many with half a header
log_bytes             all bytes that the server wrote to stderr
sigterm_s             seconds from SIGTERM, with requests in flight, to the end of the process
answered_in_flight    how many of the requests in flight got their scores
"""

import argparse
import asyncio
import contextlib
import json
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

import httpx

from benchmarks.serve import ROOT, Server, _address

WORDS = [
    "river",
    "energy",
    "bank",
    "cell",
    "rate",
    "storm",
    "music",
    "law",
    "gene",
    "market",
    "ocean",
    "engine",
    "poem",
    "tax",
    "star",
    "wheat",
]
HALF_A_HEADER = b"POST /rerank HTTP/1.1\r\nHost: x\r\nContent-Le"


def body(rng: random.Random, most: int) -> dict[str, Any]:
    """Make a request of 1 to `most` short passages."""
    texts = [" ".join(rng.choices(WORDS, k=12)) for _ in range(rng.randint(1, most))]
    return {"query": " ".join(rng.choices(WORDS, k=4)), "texts": texts}


def send(url: str, bodies: Sequence[dict[str, Any]], clients: int) -> int:
    """Send requests from several clients at once; returns how many were answered with scores."""

    async def all_clients() -> int:
        waiting = iter(bodies)
        async with httpx.AsyncClient(base_url=url, timeout=120) as http:

            async def client() -> int:
                n = 0
                for one in waiting:
                    answer = await http.post("/rerank", json=one)
                    n += answer.status_code == 200 and len(answer.json()) == len(one["texts"])
                return n

            return sum(await asyncio.gather(*(client() for _ in range(clients))))

    return asyncio.run(all_clients())


def slowest_health(url: str, connections: int) -> float:
    """Measure the slowest of ten /health in milliseconds, beside connections that send nothing or half a header."""
    where = (urlsplit(url).hostname, urlsplit(url).port)
    with contextlib.ExitStack() as held:
        for sent in (b"", HALF_A_HEADER):
            for _ in range(connections):
                connection = held.enter_context(socket.create_connection(where, timeout=30))
                with contextlib.suppress(OSError):  # the server may have closed it
                    connection.sendall(sent)
        seconds = []
        for _ in range(10):
            began = time.perf_counter()
            httpx.get(f"{url}/health", timeout=30).raise_for_status()
            seconds.append(time.perf_counter() - began)
    return 1000 * max(seconds)


def end(server: Server, rng: random.Random, n: int) -> tuple[float, int]:
    """Send SIGTERM during `n` requests; returns the seconds to the end, and how many requests were answered."""

    async def ended() -> tuple[float, int]:
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as http:
            asked = [asyncio.ensure_future(http.post("/rerank", json=body(rng, 30))) for _ in range(n)]
            await asyncio.sleep(0.5)
            began = time.perf_counter()
            server.process.send_signal(signal.SIGTERM)
            answers = await asyncio.gather(*asked, return_exceptions=True)
            await asyncio.to_thread(server.process.wait, 60)
            good = sum(isinstance(a, httpx.Response) and a.status_code == 200 for a in answers)
            return time.perf_counter() - began, good

    return asyncio.run(ended())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--student", default="minilm")
    parser.add_argument("--requests", type=int, default=5000)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--connections", type=int, default=1000)
    arguments = parser.parse_args()
    rng = random.Random(7)
    command = [sys.executable, "-m", "cli.main", "students", "serve", arguments.student, "--port", "0"]
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, cwd=ROOT, stderr=errors, stdout=subprocess.DEVNULL, text=True)
        try:
            server = Server(process, _address(process, errors))
            memory, answered = [], 0
            for _ in range(10):
                bodies = [body(rng, 4) for _ in range(arguments.requests // 10)]
                answered += send(server.url, bodies, arguments.clients)
                memory.append(round(server.megabytes("VmRSS"), 1))
                print(f"{answered:,} answered, {memory[-1]:,} MB", file=sys.stderr, flush=True)
            health = slowest_health(server.url, arguments.connections)
            seconds, in_flight = end(server, rng, 4)
        finally:
            process.kill()
            process.wait()
        errors.seek(0)
        log = errors.read()
    result = {
        "benchmark": "serve_long",
        "requests": arguments.requests,
        "answered": answered,
        "memory_mb": memory,
        "memory_growth": round(memory[-1] / memory[1], 3),
        "health_ms": round(health, 1),
        "log_bytes": len(re.sub(r"Loading weights.*", "", log)),
        "sigterm_s": round(seconds, 2),
        "answered_in_flight": in_flight,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
