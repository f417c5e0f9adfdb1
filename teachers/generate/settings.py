"""What a labelling job is asked: each setting with its default and the text that `--help` shows."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any


@dataclass(frozen=True)
class Settings:
    """The settings of `msft teachers generate`; None takes the default of the model or strategy.

    The command line has words of its own for those without a text.
    """

    model: Annotated[str, "Registry name, Hugging Face id, folder, student:NAME or minilm."]
    dataset: Annotated[str | None, "Whose queries; the only one by default."] = None
    run: Annotated[str | None, "Whose candidates; the only first stage by default."] = None
    depth: Annotated[int, "Candidates per query."] = 100
    strategy: Annotated[str | None, "sliding (default), single, full, top-down, tournament."] = None
    window: Annotated[int | None, "Passages per call; the model's by default."] = None
    stride: Annotated[int | None, "How far a sliding window moves."] = None
    passes: Annotated[int | None, "Passes of a sliding window."] = None
    pivot: Annotated[int | None, "Rank of top-down's pivot."] = None
    keep: Annotated[int | None, "How many of a tournament's group go on."] = None
    samples: Annotated[int, "Self-consistency: shuffled orders per query, merged."] = 1
    seed: Annotated[int, "Of shuffled orders and of sampling."] = 0
    engine: Annotated[str | None, "vllm, openai, ray, cross-encoder, bi-encoder."] = None
    base_urls: tuple[str, ...] = ()  # OpenAI-compatible servers
    engine_arguments: Mapping[str, Any] = field(default_factory=dict)  # of vllm.LLM
    workers: Annotated[int, "Workers of --engine ray."] = 2
    max_in_flight: Annotated[int | None, "Requests at once: vLLM's batch, or per server."] = None
    timeout: Annotated[float, "Seconds that a server may take for a reply."] = 300.0
    tokenizer: Annotated[str | None, "Of a server's model, for exact token counts: folder or id."] = None
    limit: Annotated[int | None, "Only the first N queries."] = None
    max_calls: Annotated[int | None, "Stop before more calls than this."] = None
    max_tokens: Annotated[int | None, "Stop before more tokens than this, in and out."] = None
    max_cost: Annotated[float | None, "Stop before it costs more than this."] = None
    input_price: Annotated[float | None, "Per million input tokens, over the registry's."] = None
    output_price: Annotated[float | None, "Per million output tokens."] = None
    max_attempts: Annotated[int, "Tries per call before its query is quarantined."] = 3
    retry_quarantined: Annotated[bool, "Try quarantined queries again."] = False
    name: Annotated[str | None, "Of the labeling; TEACHER@RUN by default."] = None
    prompt: Annotated[str | None, "A registered prompt, NAME@VERSION, over the model's."] = None
    context: Annotated[int | None, "Tokens of prompt and reply together."] = None
    temperature: Annotated[float, "0: greedy."] = 0.0
    constrained: bool | None = None  # allow only unused identifiers; None: wherever the engine can
    top: Annotated[int | None, "Constrained, and each reply ends after the best N identifiers."] = None
    logprobs: Annotated[bool, "Keep identifiers' log-probabilities as scores."] = False
    fuse: Annotated[bool, "Fuse a scoring model's order with the run's, by reciprocal ranks."] = False
    canaries: Annotated[int, "Calls repeated at each start to notice a changed model; 0: none."] = 3
