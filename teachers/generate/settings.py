"""Settings of a labelling job, each with its default and its text for `--help`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any


@dataclass(frozen=True)
class Settings:
    """The settings of `msft teachers generate`; None means the default of the model or strategy.

    For settings without a text here, the text is in the command line's code.
    """

    model: Annotated[str, "Registry name, Hugging Face id, folder, student:NAME or minilm."]
    dataset: Annotated[str | None, "The dataset whose queries are labelled; by default the only one."] = None
    run: Annotated[str | None, "The run whose candidates are labelled; by default the only first stage."] = (
        None
    )
    depth: Annotated[int, "Candidates per query."] = 100
    strategy: Annotated[str | None, "sliding (default), single, full, top-down, tournament."] = None
    window: Annotated[int | None, "Passages per call; by default the model's."] = None
    stride: Annotated[int | None, "Passages by which a sliding window moves."] = None
    passes: Annotated[int | None, "Passes of a sliding window."] = None
    pivot: Annotated[int | None, "The rank of the pivot (top-down)."] = None
    keep: Annotated[int | None, "Passages of a group that go on (tournament)."] = None
    samples: Annotated[int, "Shuffled orders per query whose rankings are merged (self-consistency)."] = 1
    seed: Annotated[int, "The seed of shuffled orders and of sampling."] = 0
    engine: Annotated[str | None, "vllm, openai, ray, cross-encoder, bi-encoder."] = None
    base_urls: tuple[str, ...] = ()  # OpenAI-compatible servers
    engine_arguments: Mapping[str, Any] = field(default_factory=dict)  # arguments of vllm.LLM
    workers: Annotated[int, "Workers of --engine ray."] = 2
    max_in_flight: Annotated[int | None, "The most requests at once: in vLLM's batch, or per server."] = None
    timeout: Annotated[float, "Seconds that a server may take for a reply."] = 300.0
    tokenizer: Annotated[
        str | None, "The tokenizer of a server's model, a folder or an id, for exact token counts."
    ] = None
    limit: Annotated[int | None, "Label only the first N queries."] = None
    max_calls: Annotated[int | None, "Stop before the job makes more calls than this."] = None
    max_tokens: Annotated[
        int | None, "Stop before the job uses more tokens than this, in and out together."
    ] = None
    max_cost: Annotated[float | None, "Stop before the job costs more than this."] = None
    input_price: Annotated[
        float | None, "The price of a million input tokens; by default the registry's."
    ] = None
    output_price: Annotated[
        float | None, "The price of a million output tokens; by default the registry's."
    ] = None
    max_attempts: Annotated[int, "Attempts per call before its query goes to quarantine."] = 3
    retry_quarantined: Annotated[bool, "Try quarantined queries again."] = False
    name: Annotated[str | None, "The name of the labeling; by default TEACHER@RUN."] = None
    prompt: Annotated[str | None, "A registered prompt, NAME@VERSION; by default the model's."] = None
    context: Annotated[int | None, "The most tokens of prompt and reply together."] = None
    temperature: Annotated[float, "The sampling temperature; 0 is greedy."] = 0.0
    constrained: bool | None = None  # allow only unused identifiers; None: if the engine supports it
    top: Annotated[int | None, "End each reply after the best N identifiers; needs --constrained."] = None
    logprobs: Annotated[bool, "Store the log-probabilities of identifiers as scores."] = False
    fuse: Annotated[bool, "Fuse a scoring model's order with the run's by reciprocal ranks."] = False
    fuse_weight: Annotated[float, "The teacher's share in --fuse; the run has the rest."] = 0.5
    canaries: Annotated[
        int, "Calls repeated at each start to notice that a model has changed; 0 for none."
    ] = 3
