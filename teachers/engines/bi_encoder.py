"""Any embedding model as a teacher: the cosine of query and passage. Each text is embedded once, wherever it stands."""

import json
import time
from collections import OrderedDict, deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from teachers.engines.base import Completion, Request
from teachers.errors import TeacherError

Vectors = NDArray[np.float32]
CHUNK_LISTS = 32  # between two looks at the journal
BATCH_TOKENS = 4096  # padding counted
REMEMBERED = 50_000  # passage vectors kept: passages recur between queries


class BiEncoderEngine:
    """Embeds with ``AutoModel`` and the pooling that the model's folder states (mean where it states none).

    Args:
        model: Hugging Face id or folder, in sentence-transformers' layout or plain.
        max_length: tokens per text; default: what the folder states, at most 512.

    Raises:
        TeacherError: if there is no such model (exit code 4), or it pools in a way that this engine does not know.
    """

    name = "bi-encoder"
    tokenizer: Any = None  # texts go in as they are; there is no prompt to render
    context: int | None = None

    def __init__(self, model: str, *, max_length: int | None = None, capacity: int = 64) -> None:
        from transformers import AutoModel, AutoTokenizer

        self.capacity = capacity
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        try:
            self._encode = AutoTokenizer.from_pretrained(model)
            loaded = AutoModel.from_pretrained(model, dtype=torch.float32)
        except (OSError, ValueError) as error:
            raise TeacherError(
                f"no embedding model at {model}: {str(error).splitlines()[0]}",
                hint="--model minilm, a Hugging Face id, or a folder of a saved model",
                exit_code=4,
            ) from error
        self._model = loaded.eval().to(self._device)
        stated = _Stated(model)
        self._max_length = max_length or stated.max_length or min(self._encode.model_max_length, 512)
        self._first_token, self._query_prefix = stated.first_token, stated.query_prefix
        self._waiting: deque[Request] = deque()
        self._known: OrderedDict[str, Vectors] = OrderedDict()
        self.embedded = 0

    def submit(self, requests: Sequence[Request]) -> None:
        self._waiting.extend(requests)

    def poll(self, timeout: float) -> list[Completion]:
        chunk = [self._waiting.popleft() for _ in range(min(CHUNK_LISTS, len(self._waiting)))]
        if not chunk:
            return []
        began = time.monotonic()
        passages = self._remembered({text for request in chunk for text in request.passages})
        queries = self.embed([self._query_prefix + request.query for request in chunk])
        seconds = (time.monotonic() - began) / len(chunk)
        return [
            Completion(
                ticket=request.ticket,
                finish_reason="scored",
                tokens_in=request.n_prompt_tokens,
                seconds=seconds,
                scores=[float(query @ passages[text]) for text in request.passages],
            )
            for request, query in zip(chunk, queries, strict=True)
        ]

    def close(self) -> None:
        self._waiting.clear()
        self._known.clear()

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Unit vectors (len(texts), dimensions), in the order given."""
        if not texts:
            return np.zeros((0, self._model.config.hidden_size), dtype=np.float32)
        ids: list[list[int]] = self._encode(list(texts), truncation=True, max_length=self._max_length)[
            "input_ids"
        ]
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        vectors = np.empty((len(ids), self._model.config.hidden_size), dtype=np.float32)
        batch: list[int] = []
        for i in order:
            if batch and len(ids[i]) * (len(batch) + 1) > BATCH_TOKENS:
                vectors[batch] = self._forward([ids[k] for k in batch])
                batch = []
            batch.append(i)
        vectors[batch] = self._forward([ids[k] for k in batch])
        self.embedded += len(ids)
        return vectors

    def _forward(self, rows: list[list[int]]) -> Vectors:
        longest = max(map(len, rows))
        ids = torch.full((len(rows), longest), self._encode.pad_token_id or 0)
        mask = torch.zeros((len(rows), longest), dtype=torch.long)
        for k, row in enumerate(rows):
            ids[k, : len(row)] = torch.tensor(row)
            mask[k, : len(row)] = 1
        ids, mask = ids.to(self._device), mask.to(self._device)
        with torch.inference_mode():
            hidden = self._model(input_ids=ids, attention_mask=mask).last_hidden_state
            if self._first_token:
                pooled = hidden[:, 0]
            else:
                weights = mask[:, :, None].to(hidden.dtype)
                pooled = (hidden * weights).sum(1) / weights.sum(1)
            unit: Vectors = torch.nn.functional.normalize(pooled.float(), dim=1).cpu().numpy()
        return unit

    def _remembered(self, texts: set[str]) -> dict[str, Vectors]:
        """Vectors of passages, embedding those that are not remembered."""
        new = sorted(text for text in texts if text not in self._known)
        for text, vector in zip(new, self.embed(new), strict=True):
            self._known[text] = vector
        found = {}
        for text in texts:
            self._known.move_to_end(text)
            found[text] = self._known[text]
        while len(self._known) > REMEMBERED:
            self._known.popitem(last=False)
        return found


class _Stated:
    """What a sentence-transformers folder says of its length, pooling and query prefix."""

    def __init__(self, model: str) -> None:
        self.max_length: int | None = _json(model, "sentence_bert_config.json").get("max_seq_length")
        pooling = _json(model, "1_Pooling/config.json")
        modes = [name for name, on in pooling.items() if name.startswith("pooling_mode_") and on is True]
        known = {"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}
        if len(modes) > 1 or any(mode not in known for mode in modes):
            raise TeacherError(f"{model} pools by {', '.join(modes)}, which is not supported", exit_code=5)
        self.first_token = known[modes[0]] if modes else False
        prompts = _json(model, "config_sentence_transformers.json").get("prompts") or {}
        self.query_prefix: str = prompts.get("query", "")


def _json(model: str, name: str) -> dict[str, Any]:
    path = Path(model) / name
    if not Path(model).is_dir():
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(model, name)
        path = Path(cached) if isinstance(cached, str) else path
    if not path.is_file():
        return {}
    loaded: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return loaded
