"""Score lists of passages. Texts are tokenised once, and batches are sorted by length across queries.

    reranker = Reranker.load("students/kd", precision="auto")
    reranker.scores([("query", ["a passage", "another"])])  # -> [array([…, …], dtype=float32)]

A score is the model's raw logit. The batch that a pair falls into changes its score only by rounding (1e-6 in fp32).
Batches depend only on the lengths, so the same call gives the same scores.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray

from students.cpu.bert import FusedEncoder, Precision
from students.cpu.capabilities import cpu_capabilities
from students.cpu.workers import MAX_WORKERS, each_done, worker_pool
from students.errors import ExitCode, StudentError
from students.model.encoder import CrossEncoder, choose_precision
from students.text.batches import PairBatch, budget_batches
from students.text.frames import Framing
from students.text.token_file import TokenFile
from students.text.tokens import Ints, Tokens
from students.text.windows import aggregate, check_mode

Scores = NDArray[np.float32]
TextLists = Sequence[tuple[str, Sequence[str]]]
Progress = Callable[[int, int | None], None]

CPU_BATCH_TOKENS = 2048  # a batch whose results of a layer fit into one core's cache
AMX_BATCH_TOKENS = 3072  # in bf16 with AMX: a twelfth faster than 2048, and than 6144
CUDA_BATCH_TOKENS = 65536


def resolve_precision(precision: str, device: torch.device | str | None = None) -> Precision:
    """Resolve `auto`: bf16 if the hardware supports it, otherwise fp32.

    Raises:
        StudentError: the precision is not known (exit code 2).
    """
    if precision == "int8":
        raise StudentError(
            "precision int8 is not supported in this process",
            hint="give --precision bf16, or run `msft students export --format int8` for onnxruntime",
            exit_code=ExitCode.USAGE,
        )
    if precision not in ("auto", "fp32", "bf16"):
        raise StudentError(
            f"precision {precision!r} is not known",
            hint="--precision auto | fp32 | bf16",
            exit_code=ExitCode.USAGE,
        )
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return choose_precision(cast(Literal["auto", "fp32", "bf16"], precision), where)


@dataclass(frozen=True)
class Pairs:
    """All pairs of a call, as numbers of their texts. The token ids are in memory or in a file."""

    queries: Tokens | TokenFile
    passages: Tokens | TokenFile
    query: NDArray[Any]  # (n_pairs,) integers: the number of each pair's query
    passage: NDArray[Any]  # (n_pairs,)
    start: Ints | None = None  # (n_pairs,) the first token that is taken of each pair's passage

    @property
    def query_lengths(self) -> Ints:
        """The tokens of each pair's query, (n_pairs,)."""
        return self.queries.lengths[self.query]

    @property
    def passage_lengths(self) -> Ints:
        """The tokens of each pair's passage, (n_pairs,)."""
        return self.passages.lengths[self.passage]


class Reranker:
    """A student ready to score. Only one thread may use it at a time.

    Args:
        encoder: the student, on its device.
        batch_tokens: tokens of a batch, with padding; by default chosen by the device.
        workers: CPU threads that score batches side by side, each with its share of the cores; by default all cores.
        any_size: keep memory bounded for a server, whose lists have ever new sizes (`students.cpu.bert`).
    """

    def __init__(
        self,
        encoder: CrossEncoder,
        *,
        batch_tokens: int | None = None,
        workers: int | None = None,
        any_size: bool = False,
    ) -> None:
        self.encoder = encoder.eval()
        self._cuda = encoder.device.type == "cuda"
        self._forward: Callable[[PairBatch], torch.Tensor] = encoder
        self.precision: Precision = encoder.precision
        self._batch_tokens = batch_tokens or self._usual_tokens()
        on_cpu = encoder.device.type == "cpu"
        if on_cpu and encoder.layout == "padded" and FusedEncoder.supports(encoder.model):
            self._forward = FusedEncoder(encoder.model, self.precision, any_size=any_size)
        cores = torch.get_num_threads()
        self._workers = 1 if self._cuda else max(1, min(workers or cores, cores, MAX_WORKERS))
        self._pool: ThreadPoolExecutor | None = None
        self.changed: dict[str, str] = {}  # settings in place of the student's own

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        precision: str = "auto",
        max_length: int | None = None,
        batch_tokens: int | None = None,
        device: str | None = None,
        workers: int | None = None,
        any_size: bool = False,
        long: str = "",
        instruction: str = "",
    ) -> "Reranker":
        """Load a student's folder, a Hugging Face id, or an alias. The arguments are those of the class.

        Args:
            long: how passages beyond max_length are scored (`students.text.windows`); by default as in training.
            instruction: replaces the one of a decoder's text frame.

        Raises:
            StudentError: the model is not found (exit code 4), or the precision or `long` is not known (exit code 2).
        """
        mode = check_mode(long) if long else None
        chosen = resolve_precision(precision, device)
        where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        packed = _packed_name(path) if where.type == "cuda" and chosen == "bf16" else None
        encoder = CrossEncoder.load(
            path,
            max_length=max_length,
            precision=chosen,
            device=device,
            attention=packed,
            attention_dropout=0.0 if packed else None,
            framing=Framing(instruction=instruction),
        )
        made = cls(encoder, batch_tokens=batch_tokens, workers=workers, any_size=any_size)
        if mode is not None and mode != encoder.long:
            encoder.long = mode
            made.changed["long"] = mode
        if instruction:
            made.changed["instruction"] = instruction
        return made

    def scores(self, lists: TextLists, progress: Progress | None = None) -> list[Scores]:
        """Compute the raw logits of each list's passages, in the order given; an empty list has an empty array.

        Args:
            lists: a (query, passages) pair for each list. Equal texts are tokenised once.
            progress: called with (pairs scored, pairs).
        """
        sizes = [len(passages) for _, passages in lists]
        if sum(sizes) == 0:
            return [np.empty(0, dtype=np.float32) for _ in lists]
        scored = self.score_pairs(self._tokenise(lists), progress)
        return [part.copy() for part in np.split(scored, np.cumsum(sizes)[:-1])]

    def score_pairs(self, pairs: Pairs, progress: Progress | None = None) -> Scores:
        """Compute the raw logits of tokenised pairs, (n_pairs,) float32 in their order.

        Args:
            progress: called with (pairs scored, pairs); windows of long passages count one by one.
        """
        if not len(pairs.query):
            return np.empty(0, dtype=np.float32)
        mode = self.encoder.long
        if mode == "first":
            return self._score(pairs, progress)
        windows = self.encoder.windows(pairs.query_lengths, pairs.passage_lengths)
        owner = windows.owner
        each = Pairs(pairs.queries, pairs.passages, pairs.query[owner], pairs.passage[owner], windows.start)
        scored = torch.from_numpy(self._score(each, progress))
        return aggregate(scored, torch.from_numpy(owner), len(pairs.query), mode).numpy()

    def _score(self, pairs: Pairs, progress: Progress | None) -> Scores:
        lengths = self.encoder.form.lengths(pairs.query_lengths, pairs.passage_lengths)
        batches = budget_batches(
            lengths,
            self._budget(lengths),
            multiple=self.encoder.multiple,
            padded=self.encoder.layout == "padded",
        )
        return (
            self._on_device(pairs, batches, progress)
            if self._cuda
            else self._on_cpu(pairs, batches, progress)
        )

    def pair_lengths(self, query: str, texts: Sequence[str]) -> Ints:
        """Count the tokens of each pair before truncation, special tokens included."""
        n_query = len(self.encoder.tokenise([query])[0])
        return n_query + self.encoder.tokenise(list(texts)).lengths + self.encoder.form.n_special

    def cut(self, texts: Sequence[str], most_tokens: int) -> list[str]:
        """Cut each text after its first `most_tokens` tokens."""
        offsets = self.encoder.tokenizer(
            list(texts), add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )["offset_mapping"]
        return [
            text[: own[most_tokens - 1][1]] if len(own) > most_tokens else text
            for text, own in zip(texts, offsets, strict=True)
        ]

    def _usual_tokens(self) -> int:
        if self._cuda:
            return CUDA_BATCH_TOKENS
        amx = self.precision == "bf16" and cpu_capabilities().get("amx_bf16", False)
        return AMX_BATCH_TOKENS if amx else CPU_BATCH_TOKENS

    def _budget(self, lengths: Ints) -> int:
        """Choose the tokens per batch; fewer if some workers would otherwise stay idle."""
        share = -(-int(lengths.sum()) // self._workers)
        return max(min(self._batch_tokens, share), int(lengths.max()))

    def _tokenise(self, lists: TextLists) -> Pairs:
        query_numbers: dict[str, int] = {}
        passage_numbers: dict[str, int] = {}
        query: list[int] = []
        passage: list[int] = []
        for text, passages in lists:
            number = query_numbers.setdefault(text, len(query_numbers))
            query += [number] * len(passages)
            passage += [passage_numbers.setdefault(p, len(passage_numbers)) for p in passages]
        return Pairs(
            self.encoder.tokenise(list(query_numbers)),
            self.encoder.tokenise(list(passage_numbers)),
            np.array(query, dtype=np.int64),
            np.array(passage, dtype=np.int64),
        )

    def _collate(self, pairs: Pairs, batch: NDArray[np.intp]) -> PairBatch:
        queries, query = _in_memory(pairs.queries, pairs.query[batch])
        passages, passage = _in_memory(pairs.passages, pairs.passage[batch])
        start = None if pairs.start is None else pairs.start[batch]
        return self.encoder.collate(queries, passages, query, passage, start)

    def _on_cpu(self, pairs: Pairs, batches: list[NDArray[np.intp]], progress: Progress | None) -> Scores:
        scored = np.empty(len(pairs.query), dtype=np.float32)

        def work(batch: NDArray[np.intp]) -> int:
            with torch.inference_mode():
                scored[batch] = self._forward(self._collate(pairs, batch)).numpy()
            return len(batch)

        done = 0
        for n in each_done(self._threads(), work, batches) if self._workers > 1 else map(work, batches):
            done += n
            if progress is not None:
                progress(done, len(scored))
        return scored

    def _on_device(self, pairs: Pairs, batches: list[NDArray[np.intp]], progress: Progress | None) -> Scores:
        """Score on a GPU. A thread collates ahead, and scores are copied to the host once, at the end."""
        parts: list[torch.Tensor] = []
        done = 0
        with ThreadPoolExecutor(1) as ahead, torch.inference_mode():
            waiting: list[Future[PairBatch]] = []
            for step, batch in enumerate(batches):
                for later in batches[step + len(waiting) : step + 3]:
                    waiting.append(ahead.submit(lambda rows: self._collate(pairs, rows).pin(), later))
                parts.append(self.encoder(waiting.pop(0).result().to(self.encoder.device)))
                done += len(batch)
                if progress is not None:
                    progress(done, len(pairs.query))
            together = torch.cat(parts).float().cpu().numpy()
        scored = np.empty(len(pairs.query), dtype=np.float32)
        scored[np.concatenate(batches)] = together
        return scored

    def _threads(self) -> ThreadPoolExecutor:
        if self._pool is None:
            self._pool = worker_pool(self._workers, "rerank")
        return self._pool


def _in_memory(texts: Tokens | TokenFile, numbers: NDArray[Any]) -> tuple[Tokens, NDArray[Any]]:
    """Load the numbered texts' tokens; returns them with each text's index among them."""
    if isinstance(texts, Tokens):
        return texts, numbers
    return texts.take(numbers), np.arange(len(numbers))


def _packed_name(path: str | Path) -> str | None:
    """Return the packed attention's name if the model of that path runs packed, otherwise None."""
    from transformers import AutoConfig

    from students.model import packed_attention as attention
    from students.model.encoder import resolve_base
    from students.model.hub import local_only

    source = resolve_base(str(path))
    try:
        config = AutoConfig.from_pretrained(
            source, trust_remote_code=False, local_files_only=local_only(source)
        )
    except (OSError, ValueError, KeyError):
        return None  # CrossEncoder.load reports the error
    return attention.NAME if attention.supports(config.model_type) and attention.has_kernel() else None
