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
    n: Annotated[int, "Passages at most, each with a query; the seed draws them."] = 1500
    prompt: Annotated[
        str | None,
        "question@1 (default), inpars@1, inpars-gbq@1, promptagator@1, or queries@1 of several and styles.",
    ] = None
    per_document: Annotated[int, "Queries of each style that a reply has to a passage."] = 1
    styles: tuple[str, ...] = ()  # by default questions
    examples: Annotated[
        str | None, "A dataset whose judged queries are examples in the prompt; not a test set."
    ] = None
    documents: Annotated[
        Path | None, "A file with an SQL query that returns doc_id: draw only from these passages."
    ] = None
    stratify: Annotated[
        str | None,
        "An embedding model: draw evenly from clusters of the passages, so that rare topics come; minilm, an id or a folder.",
    ] = None
    clusters: Annotated[int, "Clusters of --stratify."] = 64
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
    prompt: Annotated[str | None, "umbrela@1 (default), umbrela-basic@1 or rating@1."] = None
    unjudged: Annotated[
        bool,
        "Judge only what people have not judged; without it, `msft teachers agreement` has pairs to compare.",
    ] = False
    name: Annotated[str | None, "The name of the judging; by default MODEL@DATASET."] = None
    samples: Annotated[
        int,
        "Calls for each passage, with a --temperature above 0; the grade of most of them counts, the lower one of equals.",
    ] = 1
    seed: Annotated[int, "The seed of sampling, with a --temperature above 0."] = 42


@dataclass(frozen=True)
class WantedVerdicts:
    """How negatives are checked."""

    model: Annotated[str, "The model that sees every negative: a registry name, Hugging Face id or folder."]
    then: Annotated[str | None, "A stronger model that sees only what --model flags; its verdict counts."] = (
        None
    )
    prompt: Annotated[str | None, "rlhn@1 (default)."] = None
    window: Annotated[int, "Negatives in a call, beside the best positive of their query."] = 20
    flags: Annotated[
        str,
        "Which verdicts make a negative a false one: better (as good as the positive, or better) or relevant.",
    ] = "better"
    name: Annotated[str | None, "The name of the verdicts; by default MODEL@NEGATIVES."] = None
    seed: Annotated[int, "The seed of sampling, with a --temperature above 0."] = 42
    then_engine: Annotated[str | None, "The engine of --then; by default as --engine."] = None
    then_base_urls: tuple[str, ...] = ()  # servers of the strong model
    then_input_price: Annotated[
        float | None, "The price of a million input tokens of --then; by default the registry's."
    ] = None
    then_output_price: Annotated[
        float | None, "The price of a million output tokens of --then; by default the registry's."
    ] = None
