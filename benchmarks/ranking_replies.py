"""Make every reply of a vLLM server a ranking of 20 passages, for any client, by a logits processor.

A random model can then stand in for a ranker, even if the client cannot constrain replies (`benchmarks.teachers`).
"""

from typing import Any

from teachers.engines.constrained import IdentifierConstraint, Language
from teachers.engines.spelling import constraint


class EveryReplyRanks(IdentifierConstraint):
    """IdentifierConstraint with the same 20 identifiers for all requests, so windows must have 20 passages."""

    def __init__(self, vllm_config: Any, device: Any, is_pin_memory: bool) -> None:
        super().__init__(vllm_config, device, is_pin_memory)
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(vllm_config.model_config.tokenizer)
        self._language = Language.of(constraint(tokenizer, [str(k) for k in range(1, 21)]))

    def language(self, params: Any) -> Language:
        return self._language
