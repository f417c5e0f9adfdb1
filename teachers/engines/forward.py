"""Score by one forward pass of a transformers model: an encoder-decoder (T5), or a causal model where vLLM is not installed.

The engine reads the log-probabilities of answers or labels at the first generated position. It writes no replies.
"""

import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from teachers.engines.base import Completion, Request, Sampling
from teachers.engines.spelling import answer_tokens, first_tokens
from teachers.errors import ExitCode, TeacherError
from teachers.prompts.answers import highest, summed

BATCH = 32  # requests of one forward pass
_AHEAD = 8  # batches that are waited for, so that those of a pass have like lengths


class ForwardEngine:
    """A model of transformers on this machine's GPU, or on its CPU.

    Args:
        model: Hugging Face id or folder; weights are read as safetensors alone.
        sampling: `logits` reports logits in place of log-probabilities.
        context: most tokens of a prompt; by default the limit in the model's configuration.
        batch: most requests of one forward pass.
        options: further arguments of ``from_pretrained`` (dtype …).

    Raises:
        TeacherError: if the model cannot be loaded (exit code 4).
    """

    name = "transformers"
    concurrent = False

    def __init__(
        self,
        model: str,
        sampling: Sampling,
        *,
        context: int | None = None,
        batch: int | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        import torch

        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._logits = sampling.logits
        self._batch = batch or BATCH
        self.capacity = _AHEAD * self._batch
        self.tokenizer, self._model = _load(model, self._device, dict(options or {}))
        config = self._model.config
        self._encodes = bool(config.is_encoder_decoder)
        limits = (getattr(config, name, None) for name in ("n_positions", "max_position_embeddings"))
        self.context: int | None = context or next((limit for limit in limits if limit), None)
        self._waiting: deque[tuple[Request, float]] = deque()
        self._named: dict[tuple[str, ...], dict[int, str]] = {}

    def submit(self, requests: Sequence[Request]) -> None:
        now = time.monotonic()
        self._waiting.extend((request, now) for request in requests)

    def poll(self, timeout: float) -> list[Completion]:
        if not self._waiting:
            return []
        waiting = sorted(self._waiting, key=lambda item: len(item[0].token_ids or ()), reverse=True)
        chosen, self._waiting = waiting[: self._batch], deque(waiting[self._batch :])
        return self._completions(chosen)

    def close(self) -> None:
        self._waiting.clear()

    def _completions(self, chosen: Sequence[tuple[Request, float]]) -> list[Completion]:
        values = self._forward([list(request.token_ids or ()) for request, _ in chosen])
        found = []
        for (request, submitted), row in zip(chosen, values, strict=True):
            tokens = self._tokens(request)
            spelt = [(name, float(row[token])) for token, name in tokens.items()]
            best = int(row.argmax())
            found.append(
                Completion(
                    ticket=request.ticket,
                    text=self.tokenizer.decode([best]),
                    finish_reason="length",
                    tokens_in=len(request.token_ids or ()),
                    tokens_out=1,
                    seconds=time.monotonic() - submitted,
                    logprobs=summed(spelt) if request.spelling and not self._logits else highest(spelt),
                )
            )
        return found

    def _forward(self, prompts: Sequence[list[int]]) -> Any:
        """Return the values of all tokens at the first generated position of each prompt, in fp32."""
        import torch

        longest = max(map(len, prompts))
        pad = self.tokenizer.pad_token_id or 0
        # On the left, so that the last position is the last token of each prompt.
        ids = torch.tensor([[pad] * (longest - len(p)) + p for p in prompts], device=self._device)
        seen = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=self._device)
        try:
            with torch.inference_mode():
                if self._encodes:
                    start = torch.full(
                        (len(prompts), 1), self._model.config.decoder_start_token_id, device=self._device
                    )
                    out = self._model(input_ids=ids, attention_mask=seen, decoder_input_ids=start)
                else:
                    places = (seen.cumsum(-1) - 1).clamp(min=0)
                    out = self._model(
                        input_ids=ids,
                        attention_mask=seen,
                        position_ids=places,
                        logits_to_keep=1,
                        use_cache=False,
                    )
                logits = out.logits[:, -1].float()
                return (logits if self._logits else logits.log_softmax(-1)).cpu()
        except RuntimeError as error:  # out of memory among others
            raise TeacherError(
                f"the forward pass of {len(prompts)} prompts of up to {longest} tokens failed: {_first_line(error)}",
                hint="run the same command again with fewer prompts a pass (--max-in-flight 4): completed calls are kept",
                exit_code=ExitCode.TEACHER_ENGINE,
            ) from error

    def _tokens(self, request: Request) -> dict[int, str]:
        shown = (*request.identifiers, request.spelling)
        if shown not in self._named:
            self._named[shown] = (
                answer_tokens(self.tokenizer, request.identifiers, request.spelling)
                if request.spelling
                else first_tokens(self.tokenizer, request.identifiers, request.prefix)
            )
        return self._named[shown]


def _load(model: str, device: str, options: dict[str, Any]) -> tuple[Any, Any]:
    """Return the tokenizer and the model.

    Raises:
        TeacherError: if they cannot be loaded (exit code 4).
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

    options = {"dtype": "float32" if device == "cpu" else "bfloat16", **options, "trust_remote_code": False}
    try:
        config = AutoConfig.from_pretrained(model, trust_remote_code=False)
        kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
        loaded = kind.from_pretrained(model, use_safetensors=True, **options)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise TeacherError(
            f"transformers cannot load {model}: {_first_line(error)}",
            hint="give an id or a folder with config.json, a tokenizer and weights as safetensors (pickled weights are not read)",
            exit_code=ExitCode.DATA_MISSING,
        ) from error
    return tokenizer, loaded.to(device).eval()


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [repr(error)])[0]
