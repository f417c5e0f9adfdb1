"""Settings of a job that asks about single passages, each with its default and its text for `--help`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from teachers.generate.settings import (
    Context,
    InputPrice,
    MaxCalls,
    MaxCost,
    MaxInFlight,
    MaxTokens,
    OutputPrice,
    Temperature,
    Timeout,
    Tokenizer,
)


@dataclass(frozen=True)
class Asking:
    """How the model is reached, and the limits of a job."""

    engine: Annotated[str | None, "vllm or openai; by default the model's."] = None
    base_urls: tuple[str, ...] = ()  # OpenAI-compatible servers
    engine_arguments: Mapping[str, Any] = field(default_factory=dict)  # arguments of vllm.LLM
    max_in_flight: MaxInFlight = None
    timeout: Timeout = 300.0
    tokenizer: Tokenizer = None
    max_calls: MaxCalls = None
    max_tokens: MaxTokens = None
    max_cost: MaxCost = None
    input_price: InputPrice = None
    output_price: OutputPrice = None
    max_attempts: Annotated[int, "Attempts per passage before it goes to quarantine."] = 3
    retry_quarantined: Annotated[bool, "Try passages in quarantine again."] = False
    context: Context = None
    temperature: Temperature = 0.0
