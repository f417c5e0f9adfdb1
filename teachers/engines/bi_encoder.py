"""Use any embedding model as a teacher: score = cosine of query and passage.

Texts of all requests in flight are embedded in batches, and passage vectors are cached, in memory and beside the store
(`teachers.engines.passage_vectors`). A text is padded to its length rounded up to a multiple of eight and is batched only
with texts of that width. So an embedding depends neither on the batch nor on the cache. On the CPU it was bit-identical
for every batch, in fp32 and in bf16. If a library picks its kernel by the number of rows, only rounding can differ.
"""

import hashlib
import json
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from students.cpu.bert import FusedEncoder
from students.cpu.workers import MAX_WORKERS, each_done, worker_pool
from students.model.encoder import QuietLoading
from students.model.hub import local_only
from students.rerank.reranker import resolve_precision
from teachers.engines.base import Completion, Request
from teachers.engines.passage_vectors import Embedded, PassageVectors, Vectors
from teachers.errors import ExitCode, TeacherError

States = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # ids, mask -> states of all tokens
WIDTH = 8  # texts are padded to a multiple of this
CPU_BATCH_TOKENS, CUDA_BATCH_TOKENS = 1024, 65_536  # tokens per batch, with padding; on a CPU per core
CPU_CHUNK, CUDA_CHUNK = 256, 16_384  # new texts per round; an interruption loses one round, some seconds
REMEMBERED_BYTES = 64 << 20  # for passage vectors: about 40,000 of 384 dimensions


class BiEncoderEngine:
    """Embed with ``AutoModel`` and the pooling given in the model's folder (mean by default).

    Args:
        model: Hugging Face id or folder, in sentence-transformers' layout or plain.
        precision: auto, fp32 or bf16, as for students.
        max_length: tokens per text; by default the folder's limit, at most 512.
        remembered_bytes: limit on the passage vectors that are cached in memory.
        vectors: folder of this model's passage vectors that are kept on disk; by default none are.

    Raises:
        MsftError: if the model is not found (exit code 4), its pooling is not supported, or the precision is
            unknown.
    """

    name = "bi-encoder"
    concurrent = False
    tokenizer: Any = None  # texts are not rendered into a prompt
    context: int | None = None

    def __init__(
        self,
        model: str,
        *,
        precision: str = "auto",
        max_length: int | None = None,
        capacity: int = 64,
        remembered_bytes: int = REMEMBERED_BYTES,
        vectors: Path | None = None,
    ) -> None:
        from transformers import AutoModel, AutoTokenizer

        self.capacity = capacity
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._cuda = self._device.type == "cuda"
        self.precision = resolve_precision(precision, self._device)
        try:
            local = local_only(model)
            self._encode = AutoTokenizer.from_pretrained(
                model, trust_remote_code=False, local_files_only=local
            )
            with QuietLoading():
                loaded = AutoModel.from_pretrained(
                    model,
                    dtype=torch.float32,
                    use_safetensors=True,
                    trust_remote_code=False,
                    local_files_only=local,
                )
        except (OSError, ValueError) as error:
            raise TeacherError(
                f"no embedding model at {model}: {str(error).splitlines()[0]}",
                hint="give --model minilm, a Hugging Face id, or a folder of a saved model",
                exit_code=ExitCode.DATA_MISSING,
            ) from error
        self._dimensions = int(loaded.config.hidden_size)
        self._states = self._forward(loaded.eval().to(self._device))
        cores = torch.get_num_threads()
        self._workers = 1 if self._cuda else min(cores, MAX_WORKERS)
        self._threads = worker_pool(self._workers, "embed") if self._workers > 1 else None
        stated = _Stated(model)
        self._max_length = max_length or stated.max_length or min(self._encode.model_max_length, 512)
        self._first_token, self._query_prefix = stated.first_token, stated.query_prefix
        self._waiting: deque[Request] = deque()
        self._known: OrderedDict[bytes, Embedded] = OrderedDict()
        self._most_known = max(remembered_bytes // (4 * self._dimensions), 1)
        self._kept: PassageVectors | None = None
        if vectors is not None:
            # What changes a vector's last bits, so that vectors from two machines are not mixed.
            machine = torch.cuda.get_device_name() if self._cuda else torch.backends.cpu.get_cpu_capability()
            way = (
                self._device.type,
                machine.replace(" ", "_"),
                torch.__version__,
                self.precision,
                self._max_length,
            )
            self._kept = PassageVectors(vectors / "-".join(map(str, way)), self._dimensions)
        self.n_embedded = 0

    def submit(self, requests: Sequence[Request]) -> None:
        self._waiting.extend(requests)

    def poll(self, timeout: float) -> list[Completion]:
        if timeout <= 0 and len(self._waiting) < self.capacity:
            return []  # wait for more requests: fuller batches
        began = time.monotonic()
        chunk, passages, new = self._next_chunk()
        if not chunk:
            return []
        queries = [self._query_prefix + request.query for request in chunk]
        embedded = self.embed([*new.values(), *queries])
        made = dict(zip(new, embedded, strict=False))
        passages.update(made)
        self._remember(made)
        if self._kept is not None:
            self._kept.add(made)
        seconds = (time.monotonic() - began) / len(chunk)
        return [
            _scored(request, query, [passages[_digest(text)] for text in request.passages], seconds)
            for request, query in zip(chunk, embedded[len(new) :], strict=True)
        ]

    def close(self) -> None:
        self._waiting.clear()
        self._known.clear()
        if self._threads is not None:
            self._threads.shutdown()
            self._threads = None

    @property
    def max_length(self) -> int:
        """The tokens of a text, special tokens included; longer texts are cut."""
        return self._max_length

    def embed_queries(self, queries: Sequence[str]) -> list[Embedded]:
        """Embed queries, with the prefix that the model has for them."""
        return self.embed([self._query_prefix + query for query in queries])

    def lengths(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """Count the tokens of each text before truncation."""
        ids = self._encode(list(texts), truncation=False, verbose=False)["input_ids"]
        return np.array([len(row) for row in ids], dtype=np.int64)

    def cut(self, texts: Sequence[str], most_tokens: int) -> list[str]:
        """Cut each text after its first `most_tokens` tokens."""
        offsets = self._encode(
            list(texts),
            add_special_tokens=False,
            return_offsets_mapping=True,
            truncation=False,
            verbose=False,
        )["offset_mapping"]
        return [
            text[: own[most_tokens - 1][1]] if len(own) > most_tokens else text
            for text, own in zip(texts, offsets, strict=True)
        ]

    def embed(self, texts: Sequence[str]) -> list[Embedded]:
        """Return unit vectors and lengths, in the order of the texts."""
        if not texts:
            return []
        ids: list[list[int]] = self._encode(list(texts), truncation=True, max_length=self._max_length)[
            "input_ids"
        ]
        lengths = np.array([len(row) for row in ids])
        vectors = np.empty((len(ids), self._dimensions), dtype=np.float32)

        def work(batch: NDArray[np.intp]) -> int:
            vectors[batch] = self._vectors([ids[k] for k in batch], lengths[batch])
            return len(batch)

        most_tokens = CUDA_BATCH_TOKENS if self._cuda else CPU_BATCH_TOKENS
        batches = _of_one_width(self._widths(lengths), most_tokens)
        done = each_done(self._threads, work, batches) if self._threads is not None else map(work, batches)
        self.n_embedded += sum(done)
        return [Embedded(vector, int(n)) for vector, n in zip(vectors, lengths, strict=True)]

    def _next_chunk(self) -> tuple[list[Request], dict[bytes, Embedded], dict[bytes, str]]:
        """Return the requests to answer now, their cached passages, and their new passages."""
        most = CUDA_CHUNK if self._cuda else CPU_CHUNK
        chunk: list[Request] = []
        passages: dict[bytes, Embedded] = {}
        new: dict[bytes, str] = {}
        while self._waiting and len(new) + len(chunk) < most:
            chunk.append(self._waiting.popleft())
            for text in chunk[-1].passages:
                digest = _digest(text)
                known = self._known.get(digest)
                if known is None:
                    new[digest] = text
                else:
                    self._known.move_to_end(digest)
                    passages[digest] = known
        if self._kept is not None:
            kept = self._kept.find(list(new))
            passages.update(kept)
            self._remember(kept)
            new = {digest: text for digest, text in new.items() if digest not in kept}
        return chunk, passages, new

    def _remember(self, new: dict[bytes, Embedded]) -> None:
        for digest, (vector, n_tokens) in new.items():
            # A copy, because a view would keep the whole batch in memory.
            self._known[digest] = Embedded(vector.copy(), n_tokens)
        while len(self._known) > self._most_known:
            self._known.popitem(last=False)

    def _forward(self, model: Any) -> States:
        """Return the model's forward; on a CPU the students' fast one, if the architecture allows it."""
        if not self._cuda and FusedEncoder.supports(model):
            return FusedEncoder(model, self.precision, every_token=True).states

        def states(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            with torch.autocast(self._device.type, torch.bfloat16, enabled=self.precision == "bf16"):
                hidden: torch.Tensor = model(input_ids=ids, attention_mask=mask.long()).last_hidden_state
            return hidden

        return states

    def _widths(self, lengths: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the padded widths for texts of these lengths; a width depends only on its text's length."""
        return np.minimum(-(-lengths // WIDTH) * WIDTH, self._max_length)

    def _vectors(self, rows: list[list[int]], lengths: NDArray[np.int64]) -> Vectors:
        width = int(self._widths(lengths).max())
        inside = np.arange(width)[None, :] < lengths[:, None]
        padded = np.full((len(rows), width), self._encode.pad_token_id or 0, dtype=np.int64)
        padded[inside] = np.concatenate(rows)
        mask = torch.from_numpy(inside).to(self._device)
        with torch.inference_mode():
            hidden = self._states(torch.from_numpy(padded).to(self._device), mask).float()
            if self._first_token:
                pooled = hidden[:, 0]
            else:
                weights = mask[:, :, None].to(hidden.dtype)
                pooled = (hidden * weights).sum(1) / weights.sum(1)
            unit: Vectors = torch.nn.functional.normalize(pooled, dim=1).cpu().numpy()
        return unit


def _scored(request: Request, query: Embedded, passages: Sequence[Embedded], seconds: float) -> Completion:
    return Completion(
        ticket=request.ticket,
        finish_reason="scored",
        tokens_in=query.n_tokens + sum(passage.n_tokens for passage in passages),
        seconds=seconds,
        scores=[float(query.vector @ passage.vector) for passage in passages],
    )


def _of_one_width(widths: NDArray[np.int64], most_tokens: int) -> list[NDArray[np.intp]]:
    """Group texts by padded width into batches of indices, widest first."""
    batches: list[NDArray[np.intp]] = []
    for width in np.unique(widths)[::-1]:
        alike = np.flatnonzero(widths == width)
        rows = max(most_tokens // int(width), 1)
        batches += [alike[first : first + rows] for first in range(0, len(alike), rows)]
    return batches


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


class _Stated:
    """Read the length, pooling and query prefix from a sentence-transformers folder."""

    def __init__(self, model: str) -> None:
        self.max_length: int | None = _json(model, "sentence_bert_config.json").get("max_seq_length")
        pooling = _json(model, "1_Pooling/config.json")
        modes = [name for name, on in pooling.items() if name.startswith("pooling_mode_") and on is True]
        known = {"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}
        if len(modes) > 1 or any(mode not in known for mode in modes):
            raise TeacherError(
                f"{model} pools by {', '.join(modes)}, which is not supported",
                exit_code=ExitCode.TEACHER_ENGINE,
            )
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
