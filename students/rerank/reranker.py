"""Score lists of passages. Texts are tokenised once, and batches are sorted by length across queries.

    reranker = Reranker.load("students/kd", precision="auto")
    reranker.scores([("query", ["a passage", "another"])])  # -> [array([…, …], dtype=float32)]

A score is the model's raw logit. The batch that a pair falls into changes its score only by rounding (1e-6 in fp32).
Batches depend only on the lengths, so the same call gives the same scores.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray

from students.cpu.bert import FusedEncoder, Precision
from students.cpu.capabilities import cpu_capabilities
from students.cpu.workers import MAX_WORKERS, each_done, worker_pool
from students.errors import ExitCode, StudentError
from students.model.encoder import CrossEncoder, choose_precision
from students.rerank.exports import load_graph
from students.rerank.graph import GraphEncoder, backend_of
from students.rerank.pairs import Pairs, Progress, Rows, Scorers, Scores
from students.rerank.pipeline import DeviceTime, Done, Launched, OnGpu, ahead, in_flight
from students.text.batches import PairBatch, budget_batches
from students.text.frames import Framing
from students.text.pair_reader import PairReader
from students.text.token_file import TokenFile
from students.text.tokens import Ints, PairFormat, Tokens
from students.text.windows import Long, aggregate, check_mode

TextLists = Sequence[tuple[str, Sequence[str]]]

CPU_BATCH_TOKENS = 2048  # a batch whose results of a layer fit into one core's cache
AMX_BATCH_TOKENS = 3072  # in bf16 with AMX: a twelfth faster than 2048, and than 6144
CUDA_BATCH_TOKENS = 65536
BLOCK_PAIRS = 16384  # pairs that are tokenised at once for a GPU: some twenty batches


def resolve_precision(precision: str, device: torch.device | str | None = None) -> Precision:
    """Resolve `auto`: bf16 if the hardware supports it, otherwise fp32.

    Raises:
        StudentError: the precision is not known, or torch does not compute in it (exit code 2).
    """
    if precision == "int8":
        raise StudentError(
            "precision int8 is not supported by the backend torch",
            hint="give --backend openvino or onnx with it, or --precision bf16",
            exit_code=ExitCode.USAGE,
        )
    if precision not in ("auto", "fp32", "bf16"):
        raise StudentError(
            f"precision {precision!r} is not known",
            hint="--precision auto | fp32 | bf16, or int8 with --backend openvino or onnx",
            exit_code=ExitCode.USAGE,
        )
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return choose_precision(cast(Literal["auto", "fp32", "bf16"], precision), where)


class Reranker:
    """A student ready to score. Only one thread may use it at a time.

    Args:
        encoder: the student, on its device, or an exported graph.
        batch_tokens: tokens of a batch, with padding; by default chosen by the device.
        workers: CPU threads that score batches side by side, each with its share of the cores; by default all cores.
        any_size: keep memory bounded for a server, whose lists have ever new sizes (`students.cpu.bert`).
        scorers: other processes that score the batches; the encoder then only tokenises, and has no weights.
    """

    def __init__(
        self,
        encoder: CrossEncoder | GraphEncoder,
        *,
        batch_tokens: int | None = None,
        workers: int | None = None,
        any_size: bool = False,
        scorers: Scorers | None = None,
    ) -> None:
        self.encoder = encoder.eval()
        self._scorers = scorers
        self._cuda = (encoder.device.type if scorers is None else scorers.device) == "cuda"
        self._forward: Callable[[PairBatch], torch.Tensor] = encoder
        self.precision: str = encoder.precision
        self._batch_tokens = batch_tokens or self._usual_tokens()
        on_cpu = encoder.device.type == "cpu" and encoder.layout == "padded"
        if on_cpu and isinstance(encoder, CrossEncoder) and FusedEncoder.supports(encoder.model):
            self._forward = FusedEncoder(encoder.model, encoder.precision, any_size=any_size)
        self._workers = 1 if self._cuda else _workers(workers)
        self._pool: ThreadPoolExecutor | None = None
        self.changed: dict[str, str] = {}  # settings in place of the student's own
        self.pipelined = self._cuda and scorers is None
        self.device_time = DeviceTime()  # of a GPU in this process

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
        backend: str = "auto",
        calibrate: TextLists | None = None,
    ) -> "Reranker":
        """Load a student's folder, a Hugging Face id, an alias, or an export. The arguments are those of the class.

        Args:
            precision: auto, fp32 or bf16; an exported graph has its own.
            backend: torch, openvino or onnx. By default torch, and an export's own runtime for a folder that has no
                weights. A student is exported on the way if its folder has no such graph.
            calibrate: lists that int8 for openvino is calibrated on.
            long: how passages beyond max_length are scored (`students.text.windows`); by default as in training.
            instruction: replaces the one of a decoder's text frame.

        Raises:
            StudentError: the model is not found (exit code 4), or the precision or `long` is not known (exit code 2).
        """
        kind = backend_of(path, backend)
        if kind != "torch":
            graph = load_graph(
                path,
                kind,
                precision,
                max_length=max_length,
                workers=_workers(workers),
                framing=Framing(instruction=instruction),
                calibrate=calibrate,
            )
            made = cls(graph, batch_tokens=batch_tokens, workers=workers)
            made.changed = {"backend": kind, **_changed(graph, long, instruction)}
            return made
        where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        chosen = resolve_precision(precision, where)
        encoder, changed = load_encoder(
            path, where, chosen, max_length=max_length, long=long, instruction=instruction
        )
        made = cls(encoder, batch_tokens=batch_tokens, workers=workers, any_size=any_size)
        made.changed = changed
        return made

    @classmethod
    def over(
        cls,
        scorers: Scorers,
        path: str | Path,
        precision: Precision,
        *,
        max_length: int | None = None,
        batch_tokens: int | None = None,
        long: str = "",
        instruction: str = "",
    ) -> "Reranker":
        """Load a student whose batches other processes score. They are the batches that this process would form."""
        encoder, changed = load_encoder(
            path,
            torch.device("cpu"),
            precision,
            packed=scorers.device == "cuda",
            max_length=max_length,
            long=long,
            instruction=instruction,
        )
        made = cls(encoder.to("meta"), batch_tokens=batch_tokens, scorers=scorers)
        made.changed = changed
        return made

    def __enter__(self) -> "Reranker":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the other processes, if there are any."""
        if self._scorers is not None:
            self._scorers.close()

    @property
    def in_blocks(self) -> bool:
        """Whether blocks of lists are scored as they come. On a CPU all pairs are sorted by length together."""
        return self._cuda

    def scores(self, lists: TextLists, progress: Progress | None = None) -> list[Scores]:
        """Compute the raw logits of each list's passages, in the order given; an empty list has an empty array.

        Args:
            lists: a (query, passages) pair for each list. Equal texts are tokenised once; on a GPU once in a block of
                lists, of which the next is tokenised while one is scored.
            progress: called with (pairs scored, pairs).
        """
        sizes = [len(passages) for _, passages in lists]
        if sum(sizes) == 0:
            return [np.empty(0, dtype=np.float32) for _ in lists]
        if self.in_blocks:
            blocks = ahead(_blocks(lists), self._tokenise, 1)
            scored = self.score_blocks(blocks, progress, sum(sizes))
        else:
            scored = self.score_pairs(self._tokenise(lists), progress)
        return [part.copy() for part in np.split(scored, np.cumsum(sizes)[:-1])]

    def score_pairs(self, pairs: Pairs, progress: Progress | None = None) -> Scores:
        """Compute the raw logits of tokenised pairs, (n_pairs,) float32 in their order.

        Args:
            progress: called with (pairs scored, pairs); windows of long passages count one by one.
        """
        return self.score_blocks(iter([pairs]), progress)

    def score_blocks(
        self, blocks: Iterator[Pairs], progress: Progress | None = None, n_pairs: int | None = None
    ) -> Scores:
        """Compute the raw logits of tokenised pairs that come block by block, in their order. Batches stay within a block.

        On a GPU another thread takes and collates what follows, so that blocks may be tokenised meanwhile.

        Args:
            progress: called with (pairs scored, pairs); windows of long passages count one by one.
            n_pairs: the pairs of all blocks, for the progress; by default those of the blocks so far.
        """
        plans: list[_Block] = []

        def work() -> Iterator[tuple[_Block, Rows]]:
            for pairs in blocks:
                if len(pairs.query):
                    plans.append(self._planned(pairs))
                    yield from ((plans[-1], rows) for rows in plans[-1].batches)

        done = 0
        for block, rows, scores in self._scored(work()):
            block.scores[rows] = scores
            done += len(rows)
            if progress is not None:
                first = n_pairs if self.encoder.long == "first" else None
                progress(done, first or sum(len(plan.scores) for plan in plans))
        if not plans:
            return np.empty(0, dtype=np.float32)
        return np.concatenate([plan.of_pairs(self.encoder.long) for plan in plans])

    def _planned(self, pairs: Pairs) -> "_Block":
        """Divide a block of pairs into windows and these into batches."""
        owner = None
        n = len(pairs.query)
        if self.encoder.long != "first":
            windows = self.encoder.windows(pairs.query_lengths, pairs.passage_lengths)
            owner = windows.owner
            pairs = Pairs(
                pairs.queries, pairs.passages, pairs.query[owner], pairs.passage[owner], windows.start
            )
        lengths = self.encoder.form.lengths(pairs.query_lengths, pairs.passage_lengths)
        batches = budget_batches(
            lengths,
            self._budget(lengths),
            multiple=self.encoder.multiple,
            padded=self.encoder.layout == "padded",
        )
        return _Block(pairs, batches, np.empty(len(lengths), dtype=np.float32), owner, n)

    def _scored(self, work: Iterator[tuple["_Block", Rows]]) -> Iterator[tuple["_Block", Rows, Scores]]:
        """Yield the scores of each batch, in any order."""
        if self._scorers is not None:
            parts = ((block, block.pairs, rows) for block, rows in work)
            yield from self._scorers.score(parts, self.encoder.form)
        elif self.pipelined:
            collated = ahead(work, lambda part: (part, self._collate(*part)), 2)
            for (block, rows), scores in in_flight(collated, self.launch, self.device_time):
                yield block, rows, scores
        elif self._workers > 1:
            yield from each_done(self._threads(), lambda part: (*part, self._score(*part)), work)
        else:
            yield from ((*part, self._score(*part)) for part in work)

    def _score(self, block: "_Block", rows: Rows) -> Scores:
        return self.launch(self._collate(block, rows)).scores()

    def _collate(self, block: "_Block", rows: Rows) -> PairBatch:
        pairs = block.pairs
        start = None if pairs.start is None else pairs.start[rows]
        some = Pairs(pairs.queries, pairs.passages, pairs.query[rows], pairs.passage[rows], start)
        return self.collate(some, self.encoder.form)

    def collate(self, pairs: Pairs, form: PairFormat) -> PairBatch:
        """Make one batch of pairs, ready for this student's device. Any thread may call this."""
        queries, query = _in_memory(pairs.queries, pairs.query)
        passages, passage = _in_memory(pairs.passages, pairs.passage)
        batch = self.encoder.collate(queries, passages, query, passage, pairs.start, form)
        return batch.pin() if self._cuda else batch

    @torch.inference_mode()
    def launch(self, batch: PairBatch) -> Launched:
        """Start to score a batch; its scores can be waited for."""
        if not self._cuda:
            clock = perf_counter()
            found = self._forward(batch).numpy()
            return Done(found, clock, perf_counter())
        begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begun.record()
        on_host = self._forward(batch.to(self.encoder.device)).float().to("cpu", non_blocking=True)
        ended.record()
        return OnGpu(on_host, begun, ended)

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

    def _threads(self) -> ThreadPoolExecutor:
        if self._pool is None:
            self._pool = worker_pool(self._workers, "rerank")
        return self._pool


def _blocks(lists: TextLists) -> Iterator[TextLists]:
    """Divide lists into blocks of at least `BLOCK_PAIRS` pairs."""
    first = size = 0
    for number, (_, passages) in enumerate(lists):
        size += len(passages)
        if size >= BLOCK_PAIRS:
            yield lists[first : number + 1]
            first, size = number + 1, 0
    yield lists[first:]


def _workers(wanted: int | None) -> int:
    cores = torch.get_num_threads()
    return max(1, min(wanted or cores, cores, MAX_WORKERS))


def _in_memory(texts: Tokens | TokenFile, numbers: NDArray[Any]) -> tuple[Tokens, NDArray[Any]]:
    """Load the numbered texts' tokens; returns them with each text's index among them."""
    if isinstance(texts, Tokens):
        return texts, numbers
    return texts.take(numbers), np.arange(len(numbers))


@dataclass(frozen=True)
class _Block:
    """Pairs, or windows of pairs, with their batches and the room for their scores."""

    pairs: Pairs
    batches: list[Rows]
    scores: Scores
    owner: Ints | None  # the pair of each window
    n: int

    def of_pairs(self, mode: Long) -> Scores:
        """Compute the scores of the pairs."""
        if self.owner is None:
            return self.scores
        found = torch.from_numpy(self.scores)
        return aggregate(found, torch.from_numpy(self.owner), self.n, mode).numpy()


def load_encoder(
    path: str | Path,
    device: torch.device,
    precision: Precision,
    *,
    packed: bool | None = None,
    max_length: int | None = None,
    long: str = "",
    instruction: str = "",
) -> tuple[CrossEncoder, dict[str, str]]:
    """Load a student for re-ranking, packed if it runs on a GPU in bf16; returns it with the settings that replace its own.

    Args:
        packed: whether batches are for a GPU, if it is not the device's kind that says so.

    Raises:
        StudentError: the model is not found (exit code 4), or `long` is not known (exit code 2).
    """
    if long:
        check_mode(long)
    on_gpu = device.type == "cuda" if packed is None else packed
    name = _packed_name(path) if on_gpu and precision == "bf16" else None
    encoder = CrossEncoder.load(
        path,
        max_length=max_length,
        precision=precision,
        device=device,
        attention=name,
        attention_dropout=0.0 if name else None,
        framing=Framing(instruction=instruction),
    )
    return encoder, _changed(encoder, long, instruction)


def _changed(encoder: PairReader, long: str, instruction: str) -> dict[str, str]:
    """Set how long passages are scored; returns the settings that replace the student's own.

    Raises:
        StudentError: `long` is not known (exit code 2).
    """
    changed: dict[str, str] = {}
    mode = check_mode(long) if long else encoder.long
    if mode != encoder.long:
        encoder.long = mode
        changed["long"] = mode
    if instruction:
        changed["instruction"] = instruction
    return changed


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
