"""Open an offline teacher for `msft students serve teacher:NAME`: a bi-encoder or a cross-encoder."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from labelstore.store.label_store import LabelStore
    from students.serve.batching import Scorer
    from teachers.engines.bi_encoder import BiEncoderEngine

OFFLINE = ("bi-encoder", "cross-encoder")


def open_teacher(store: "LabelStore", name: str, precision: str) -> "tuple[Scorer, dict[str, Any]]":
    """Load an offline teacher; returns its scorer, and what /info says of it.

    Args:
        name: a teacher of the store or the registry, minilm, or a model's folder.

    Raises:
        UsageError: the teacher is an LLM.
        MsftError: the teacher or its model is not found (exit code 4).
    """
    from labelstore.errors import UsageError

    location, engine = find(store, name)
    if engine not in OFFLINE:
        raise UsageError(
            f"{name} is asked through {engine}: expected a bi-encoder or a cross-encoder, which score pairs here",
            hint="serve a student that learnt from it",
        )
    if engine == "cross-encoder":
        from students.rerank.reranker import Reranker

        reranker = Reranker.load(location, precision=precision, any_size=True)
        about = {"model_dtype": reranker.precision, "max_input_length": reranker.encoder.max_length}
        from students.serve.models import sigmoid

        return reranker, about | {"engine": engine, "relevance": sigmoid}
    from teachers.engines.bi_encoder import BiEncoderEngine

    embedder = BiEncoderEngine(location, precision=precision)
    return EmbeddingScorer(embedder), {
        "model_dtype": embedder.precision, "max_input_length": embedder.max_length, "engine": engine,
    }  # fmt: skip


def find(store: "LabelStore", name: str) -> tuple[str, str]:
    """Find a teacher's model and engine: by its name in the store, else as `teachers generate --model` does."""
    from teachers import models
    from teachers.generate.plan import minilm_folder

    if name == "minilm":
        return str(minilm_folder()), "bi-encoder"
    if store.exists and not Path(name).is_dir():
        with store.read() as con:
            known = con.execute(
                "SELECT model, engine FROM teachers WHERE name = ? AND model IS NOT NULL ORDER BY teacher DESC",
                [name],
            ).fetchall()
        if known:
            return known[0]
    found = models.resolve(name)
    return found.model or name, found.engine


class EmbeddingScorer:
    """A bi-encoder as the server's scorer: a pair's score is the cosine of its two texts, from -1 to 1."""

    def __init__(self, embedder: "BiEncoderEngine") -> None:
        self._embedder = embedder

    def scores(self, lists: Sequence[tuple[str, Sequence[str]]]) -> "list[NDArray[np.float32]]":
        """Embed every text once, and score each list."""
        import numpy as np

        queries = self._embedder.embed_queries([query for query, _ in lists])
        texts = list(dict.fromkeys(text for _, own in lists for text in own))
        vectors = {
            text: embedded.vector for text, embedded in zip(texts, self._embedder.embed(texts), strict=True)
        }
        return [
            np.array([float(query.vector @ vectors[text]) for text in own], dtype=np.float32)
            for query, (_, own) in zip(queries, lists, strict=True)
        ]

    def pair_lengths(self, query: str, texts: Sequence[str]) -> "NDArray[np.int64]":
        """Count the tokens of each pair before truncation."""
        return self._embedder.lengths([query])[0] + self._embedder.lengths(texts)

    def cut(self, texts: Sequence[str], most_tokens: int) -> list[str]:
        """Cut each text after its first tokens."""
        return self._embedder.cut(texts, most_tokens)
