"""CPU threads that work on batches side by side, each with its share of the cores.

Two small batches on a core each take less time than one after the other on all cores: what a layer makes of a small
batch stays in one core's cache, and nobody waits for the slowest part of a product.
"""

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from itertools import islice
from typing import Any

import torch

MAX_WORKERS = 16  # beyond that Python's own lock is what they wait for; they get several cores each instead
_AHEAD = 4 * MAX_WORKERS  # items handed to the threads before their turn


def worker_pool(number: int, name: str) -> ThreadPoolExecutor:
    """`number` threads, each with its share of the cores; the caller's own thread count stays as it was."""
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
    # a thread's first operation takes torch's count of that moment, the caller's: it must lie before the setting
    torch.get_num_threads()
    torch.set_num_threads(cores)


def each_done(threads: ThreadPoolExecutor, work: Callable[[Any], int], items: Iterable[Any]) -> Iterator[int]:
    """Results of work(item) as they come, a few items ahead of the workers, so that millions of items cost no memory.

    On an error or an interrupt what has not begun is not begun.
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
