"""The short names of models that people start from: re-rankers that are trained already, and encoders without a head."""

from dataclasses import asdict, dataclass
from typing import Any

RERANKER, ENCODER = "re-ranker", "encoder"
LAPTOP, GPU = "laptop", "GPU"


@dataclass(frozen=True)
class Base:
    """A base model.

    Attributes:
        base: the short name that ``--base`` and `msft students add` take.
        model: its id on the Hugging Face Hub.
        kind: re-ranker (it ranks as it is) or encoder (its head is new and must be trained).
        millions: parameters.
        runs_on: laptop, or GPU where a laptop would take hours.
        licence: SPDX identifier of the weights.
    """

    base: str
    model: str
    kind: str
    millions: int
    runs_on: str
    licence: str

    def row(self) -> dict[str, Any]:
        """Make the row that `msft students bases` prints; sizes are those of fp32 weights."""
        values = asdict(self)
        model = values.pop("model")
        return values | {"size_mb": 4 * self.millions, "model": model}


TABLE = (
    Base("minilm", "sentence-transformers/all-MiniLM-L6-v2", ENCODER, 23, LAPTOP, "Apache-2.0"),
    Base("ms-marco-MiniLM-L6", "cross-encoder/ms-marco-MiniLM-L6-v2", RERANKER, 23, LAPTOP, "Apache-2.0"),
    Base("ms-marco-MiniLM-L12", "cross-encoder/ms-marco-MiniLM-L12-v2", RERANKER, 33, LAPTOP, "Apache-2.0"),
    Base(
        "gte-reranker-modernbert",
        "Alibaba-NLP/gte-reranker-modernbert-base",
        RERANKER,
        149,
        GPU,
        "Apache-2.0",
    ),
    Base("mxbai-rerank-base", "mixedbread-ai/mxbai-rerank-base-v1", RERANKER, 184, GPU, "Apache-2.0"),
    Base("bge-reranker-base", "BAAI/bge-reranker-base", RERANKER, 278, GPU, "MIT"),
    Base("bge-reranker-v2-m3", "BAAI/bge-reranker-v2-m3", RERANKER, 568, GPU, "Apache-2.0"),
    Base("ettin-reranker-32m", "cross-encoder/ettin-reranker-32m-v1", RERANKER, 32, LAPTOP, "Apache-2.0"),
    Base("ettin-reranker", "cross-encoder/ettin-reranker-150m-v1", RERANKER, 150, GPU, "Apache-2.0"),
    Base("qwen3-reranker", "Qwen/Qwen3-Reranker-0.6B", RERANKER, 596, GPU, "Apache-2.0"),
    Base("mxbai-rerank-v2", "mixedbread-ai/mxbai-rerank-base-v2", RERANKER, 494, GPU, "Apache-2.0"),
    Base("ettin-32m", "jhu-clsp/ettin-encoder-32m", ENCODER, 32, LAPTOP, "MIT"),
    Base("ettin", "jhu-clsp/ettin-encoder-150m", ENCODER, 150, GPU, "MIT"),
    Base("electra", "google/electra-base-discriminator", ENCODER, 109, GPU, "Apache-2.0"),
    Base("bert", "google-bert/bert-base-uncased", ENCODER, 110, GPU, "Apache-2.0"),
    Base("roberta", "FacebookAI/roberta-base", ENCODER, 125, GPU, "MIT"),
    Base("modernbert", "answerdotai/ModernBERT-base", ENCODER, 149, GPU, "Apache-2.0"),
    Base("deberta-v3", "microsoft/deberta-v3-base", ENCODER, 184, GPU, "MIT"),
    Base("xlm-r", "FacebookAI/xlm-roberta-base", ENCODER, 278, GPU, "MIT"),
)
BASES = {base.base: base.model for base in TABLE if base.base != "minilm"}  # minilm: the folder of its wheel


def licence_of(base: str) -> str | None:
    """Return the licence of a base by its short name or its id on the Hub; None if it is not in the table."""
    return next((known.licence for known in TABLE if base in (known.base, known.model)), None)
