"""Settings of a job that asks about single passages, each with its default and its text for `--help`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any


@dataclass(frozen=True)
class Asking:
    """How the model is reached, and the limits of a job."""

    engine: Annotated[str | None, "vllm or openai; by default the model's."] = None
    base_urls: tuple[str, ...] = ()  # OpenAI-compatible servers
    engine_arguments: Mapping[str, Any] = field(default_factory=dict)  # arguments of vllm.LLM
    max_in_flight: Annotated[int | None, "The most requests at once: in vLLM's batch, or per server."] = None
    timeout: Annotated[float, "Seconds that a server may take for a reply."] = 300.0
    tokenizer: Annotated[
        str | None, "The tokenizer of a server's model, a folder or an id, for exact token counts."
    ] = None
    max_calls: Annotated[int | None, "Stop before the job makes more calls than this."] = None
    max_tokens: Annotated[
        int | None, "Stop before the job uses more tokens than this, in and out together."
    ] = None
    max_cost: Annotated[float | None, "Stop before the job costs more than this, in US dollars."] = None
    input_price: Annotated[
        float | None, "The price of a million input tokens; by default the registry's."
    ] = None
    output_price: Annotated[
        float | None, "The price of a million output tokens; by default the registry's."
    ] = None
    max_attempts: Annotated[int, "Attempts per passage before it goes to quarantine."] = 3
    retry_quarantined: Annotated[bool, "Try passages in quarantine again."] = False
    context: Annotated[int | None, "The most tokens of prompt and reply together."] = None
    temperature: Annotated[float, "The sampling temperature; 0 is greedy."] = 0.0
