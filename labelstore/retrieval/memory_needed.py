"""Say before an index is built in memory whether it fits, and what to do if it does not."""

from pathlib import Path

from labelstore.errors import DataMissing
from labelstore.retrieval.common import Corpus

SMALL = 200_000  # passages, below which the question is not asked
_SAMPLE = 20_000  # passages whose lengths are read
# Bytes: of a token while it is read, of a posting while the index is sorted, and of a passage.
_TOKEN, _POSTING, _PASSAGE = 4, 28, 96
_LETTERS = 6.0  # of a word and the blank after it
_DIFFERENT = 0.75  # share of a passage's words that are different and no stop words


def estimate(n_passages: int, mean_bytes: float) -> int:
    """Estimate the bytes that the embedded BM25 needs to index passages of a mean length."""
    words = mean_bytes / _LETTERS
    return int(n_passages * (_PASSAGE + words * (_TOKEN + _DIFFERENT * _POSTING)))


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
    """Refuse a collection whose index in memory does not fit.

    Raises:
        DataMissing: the message has both numbers, the hint a first stage that fits.
    """
    room = available()
    if corpus.n_documents < SMALL or room is None:
        return
    with corpus.store.read() as con:
        ((mean,),) = con.execute(
            """SELECT avg(strlen(text) + coalesce(strlen(title), 0)) FROM (
                   SELECT title, text FROM documents WHERE collection = ? AND text IS NOT NULL LIMIT ?)""",
            [corpus.collection_key, _SAMPLE],
        ).fetchall()
    needed = estimate(corpus.n_documents, mean)
    if needed > room:
        raise DataMissing(
            f"bm25s needs about {needed / 1e9:.1f} GB of memory to index the {corpus.n_documents:,} passages of"
            f" {corpus.collection}, and {room / 1e9:.1f} GB are free",
            hint="--retriever bm25 (Anserini) builds its index on the disk: pip install 'msft[pyserini]'",
        )
