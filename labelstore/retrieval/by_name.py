"""Make a retriever by its name."""

from labelstore.errors import UsageError
from labelstore.retrieval.common import Retriever

RETRIEVERS = ("bm25s", "bm25", "colbert")


def make_retriever(
    retriever: str,
    *,
    k1: float = 0.9,
    b: float = 0.4,
    language: str | None = None,
    index: str | None = None,
    model: str | None = None,
    device: str | None = None,
    threads: int = 0,
) -> Retriever:
    """Make a retriever by its name.

    Args:
        retriever: bm25s (embedded), bm25 (Anserini) or colbert (PyLate).
        k1: saturation of term frequency (BM25).
        b: length normalisation (BM25).
        language: a Snowball stemmer or ``none`` (bm25s), two letters (bm25); by default English.
        index: a Pyserini prebuilt index or the folder of a Lucene index (bm25).
        model: the checkpoint, an id or a folder (colbert).
        device: cpu, cuda … (colbert).
        threads: 0 takes one per core.

    Raises:
        UsageError: the name is unknown, or an option does not belong to the retriever.
    """
    if retriever not in RETRIEVERS:
        raise UsageError(f"no retriever named {retriever!r}", hint=f"--retriever {' | '.join(RETRIEVERS)}")
    foreign = {"--index": (index, "bm25"), "--model": (model, "colbert"), "--device": (device, "colbert")}
    for option, (value, belongs_to) in foreign.items():
        if value is not None and retriever != belongs_to:
            raise UsageError(
                f"{option} does not go with {retriever}",
                hint=f"leave {option} out, or give --retriever {belongs_to}",
            )
    if retriever == "colbert":
        from labelstore.retrieval.colbert import DEFAULT_MODEL, Colbert

        if (k1, b, language) != (0.9, 0.4, None):
            raise UsageError(
                "--k1, --b and --language do not go with colbert",
                hint="leave them out: they are options of BM25",
            )
        return Colbert(model or DEFAULT_MODEL, device=device, threads=threads)
    if retriever == "bm25":
        from labelstore.retrieval.anserini import Anserini

        return Anserini(k1=k1, b=b, language=language or "en", index=index, threads=threads)
    from labelstore.retrieval.bm25s import Bm25s

    return Bm25s(k1=k1, b=b, language=language or "english", threads=threads)
