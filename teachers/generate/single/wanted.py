"""What `msft queries generate` and `msft teachers judge` make, each setting with its default and its text for `--help`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated


@dataclass(frozen=True)
class Wanted:
    """What is generated; fields with a text are options of the command."""

    model: Annotated[
        str,
        "A registry name, Hugging Face id or folder of a chat model; or sentences: titles, or each passage's most"
        " informative sentence, without a model.",
    ]
    collection: Annotated[str | None, "The collection of passages; by default the only one."] = None
    n: Annotated[int, "Queries at most, one a passage; the seed draws the passages."] = 1500
    prompt: Annotated[str | None, "question@1 (default), inpars@1, inpars-gbq@1 or promptagator@1."] = None
    examples: Annotated[
        str | None, "A dataset whose judged queries are examples in the prompt; not a test set."
    ] = None
    documents: Annotated[
        Path | None, "A file with an SQL query that returns doc_id: draw only from these passages."
    ] = None
    name: Annotated[
        str | None, "The dataset's name; by default COLLECTION/synthetic, or COLLECTION/sentences."
    ] = None
    logprobs: Annotated[
        bool, "Ask the engine for the mean log-probability of each query; needed for --min-log-probability."
    ] = False
    seed: Annotated[int, "The seed of the draw of passages, of examples and of sampling."] = 42


@dataclass(frozen=True)
class WantedGrades:
    """What is judged."""

    model: Annotated[str, "A registry name, Hugging Face id or folder of a chat model."]
    dataset: Annotated[str | None, "The dataset whose passages are judged; by default the only one."] = None
    runs: tuple[str, ...] = ()  # by default the only first stage
    depth: Annotated[int, "Passages per query and run."] = 10
    prompt: Annotated[str | None, "umbrela@1 (default) or umbrela-basic@1."] = None
    unjudged: Annotated[
        bool,
        "Judge only what people have not judged; without it, `msft teachers agreement` has pairs to compare.",
    ] = False
    name: Annotated[str | None, "The name of the judging; by default MODEL@DATASET."] = None
    seed: Annotated[int, "The seed of sampling, with a --temperature above 0."] = 42
