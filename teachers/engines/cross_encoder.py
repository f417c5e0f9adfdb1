"""Use any Hugging Face re-ranker, or a student, as a teacher: a score for each pair of query and passage."""

import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from teachers.engines.base import Completion, Request

CPU_CHUNK, CUDA_CHUNK = 400, 4000  # pairs per round; an interruption loses one round, some seconds


class CrossEncoderEngine:
    """Score lists chunk by chunk; each scored list is a completed call.

    Args:
        model: Hugging Face id or folder of a sequence classifier with one output.
        precision: auto, fp32 or bf16.

    Raises:
        MsftError: if the model is not found (exit code 4), or the precision is unknown.
    """

    name = "cross-encoder"
    concurrent = False
    tokenizer: Any = None  # texts are not rendered into a prompt
    context: int | None = None

    def __init__(self, model: str, *, precision: str = "auto", capacity: int = 64) -> None:
        import torch

        from students.rerank.reranker import Reranker

        self.capacity = capacity
        self._reranker = Reranker.load(model, precision=precision)
        self._most_pairs = CUDA_CHUNK if torch.cuda.is_available() else CPU_CHUNK
        self._waiting: deque[Request] = deque()

    def submit(self, requests: Sequence[Request]) -> None:
        self._waiting.extend(requests)

    def poll(self, timeout: float) -> list[Completion]:
        if timeout <= 0 and len(self._waiting) < self.capacity:
            return []  # wait for more requests: fuller batches
        chunk: list[Request] = []
        pairs = 0
        while self._waiting and (not chunk or pairs + len(self._waiting[0].passages) <= self._most_pairs):
            chunk.append(self._waiting.popleft())
            pairs += len(chunk[-1].passages)
        if not chunk:
            return []
        began = time.monotonic()
        scores = self._reranker.scores([(request.query, request.passages) for request in chunk])
        seconds = time.monotonic() - began
        return [
            Completion(
                ticket=request.ticket,
                finish_reason="scored",
                tokens_in=request.n_prompt_tokens,
                seconds=seconds * len(request.passages) / max(pairs, 1),
                scores=own.tolist(),
            )
            for request, own in zip(chunk, scores, strict=True)
        ]

    def close(self) -> None:
        self._waiting.clear()
