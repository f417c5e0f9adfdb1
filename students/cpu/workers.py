"""CPU threads that work on batches side by side, each with its share of the cores.

Two small batches on one core each take less time than one after the other on all cores: a layer's results stay in one
core's cache, and no core waits for the slowest part of a product.
"""

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from itertools import islice
from typing import Any

import torch

MAX_WORKERS = 16  # more would wait for Python's lock; fewer threads get several cores each
_AHEAD = 4 * MAX_WORKERS  # items handed to the threads before their turn


def worker_pool(number: int, name: str) -> ThreadPoolExecutor:
    """Start `number` threads, each with its share of the cores. The caller's thread count does not change."""
    cores = torch.get_num_threads()
    gate = threading.Barrier(number)
    made = ThreadPoolExecutor(
        number,
        thread_name_prefix=name,
        initializer=_take,
        initargs=(max(1, cores // number),),
    )
    for started in [made.submit(gate.wait) for _ in range(number)]:
        started.result()
    torch.set_num_threads(cores)  # torch keeps the last value for threads that others start
    return made


def _take(cores: int) -> None:
    # a thread's first operation resets its count to torch's global one, so it must run before the setting
    torch.get_num_threads()
    torch.set_num_threads(cores)


def each_done(threads: ThreadPoolExecutor, work: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
    """Yield results of work(item) in order. Items are taken a few at a time, so millions of them need little memory.

    After an error or an interrupt no further item begins.
    """
    left = iter(items)
    futures = {threads.submit(work, item) for item in islice(left, _AHEAD)}
    try:
        while futures:
            ready, futures = wait(futures, return_when=FIRST_COMPLETED)
            futures |= {threads.submit(work, item) for item in islice(left, len(ready))}
            for future in ready:
                yield future.result()
    finally:
        for future in futures:
            future.cancel()
