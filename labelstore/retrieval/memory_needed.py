"""Say before an index is built whether it fits, in memory and on the disk, and what to do if it does not."""

import math
import shutil
from pathlib import Path

from labelstore.errors import DataMissing
from labelstore.retrieval.common import Corpus

SMALL = 200_000  # passages, below which the question is not asked
_SAMPLE = 20_000  # passages whose lengths are read
# Bytes of memory: of the interpreter and a block; of a passage while it is read and indexed, and in each thread that searches; of
# a different word.
_FIXED, _PASSAGE, _SEARCHED, _WORD = 600_000_000, 190, 13, 225
ANSERINI = 6 << 30  # at most its heap, which suffices for MS MARCO
_POSTING = 16  # bytes on the disk of a posting: in a sorted block and in the index
_LETTERS = 6.0  # of a word and the blank after it
_DIFFERENT = 0.75  # share of a passage's words that are different and no stop words


def memory(n_passages: int, mean_bytes: float) -> int:
    """Estimate the bytes of memory that the embedded BM25 needs to index passages and to search them with one thread.

    A text of n words has about 100 √n different ones (Heaps' law).
    """
    words = 100 * math.sqrt(n_passages * mean_bytes / _LETTERS)
    return int(_FIXED + n_passages * (_PASSAGE + _SEARCHED) + words * _WORD)


def threads(n_passages: int, wanted: int) -> int:
    """Return how many threads can search passages in half of the free memory, at least 1."""
    room = available()
    return wanted if room is None else max(1, min(wanted, room // 2 // max(1, n_passages * _SEARCHED)))


def disk(n_passages: int, mean_bytes: float) -> int:
    """Estimate the bytes on the disk that its index takes while it is built, over passages of a mean length."""
    postings = mean_bytes / _LETTERS * _DIFFERENT
    return int(n_passages * (mean_bytes / 2 + postings * _POSTING))


def available() -> int | None:
    """Return the bytes of memory that a new process can have; None where the system does not say."""
    limits = []
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
        if "MemAvailable" in fields:
            limits.append(int(fields["MemAvailable"].split()[0]) * 1024)
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        file = Path("/sys/fs/cgroup") / name
        if file.is_file() and (text := file.read_text().strip()).isdigit():
            limits.append(int(text))
    return min(limits, default=None)


def check(corpus: Corpus) -> None:
    """Refuse a collection whose index does not fit.

    Raises:
        DataMissing: the message has both numbers, the hint a first stage that fits, or what to free.
    """
    if corpus.n_documents < SMALL:
        return
    with corpus.store.read() as con:
        ((mean,),) = con.execute(
            """SELECT avg(strlen(text) + coalesce(strlen(title), 0)) FROM (
                   SELECT title, text FROM documents WHERE collection = ? AND text IS NOT NULL LIMIT ?)""",
            [corpus.collection_key, _SAMPLE],
        ).fetchall()
    passages = f"the {corpus.n_documents:,} passages of {corpus.collection}"
    room, needed = available(), memory(corpus.n_documents, mean)
    if room is not None and needed > room:
        raise DataMissing(
            f"bm25s needs about {needed / 1e9:.1f} GB of memory to index and search {passages}, and"
            f" {room / 1e9:.1f} GB are free",
            hint="--retriever bm25 (Anserini) takes 6 GiB at most: pip install 'msft[pyserini]'"
            if needed > ANSERINI <= room
            else "end other programs, or take a machine with more memory",
        )
    room, needed = shutil.disk_usage(corpus.indexes).free, disk(corpus.n_documents, mean)
    if needed > room:
        raise DataMissing(
            f"bm25s needs about {needed / 1e9:.1f} GB of disk to index {passages}, and {room / 1e9:.1f} GB are free in"
            f" {corpus.indexes}",
            hint="free disk space, e.g. with msft clean, or move the store",
        )
