"""Exported graphs: what the exporters share, and a graph in place of a model in torch.

A graph's inputs are ``input_ids``, ``attention_mask`` and, if the model has them, ``token_type_ids``, each (batch,
sequence) int64. Its output is ``logits`` (batch,) float32, without an activation.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from students.errors import ExitCode, StudentError
from students.model import base_config
from students.model.decoder import framed_tokenizer
from students.model.encoder import CrossEncoder, read_config
from students.text.batches import PairBatch
from students.text.frames import Framing
from students.text.pair_reader import PairReader
from students.text.tokens import PairFormat

FILES = {"openvino": "openvino_model.xml", "onnx": "model.onnx"}  # by backend, the graph in an export
BACKENDS = ("torch", *FILES)
PRECISION = "msft_graph"  # key of the graph's precision in its config.json

Inputs = Mapping[str, NDArray[np.int64]]
Run = Callable[[Inputs], NDArray[np.float32]]


class Logits(nn.Module):
    """The model as a function from tensors to raw logits, which exporters need."""

    def __init__(self, model: Any, names: Sequence[str]) -> None:
        super().__init__()
        self.model = model
        self.names = tuple(names)

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.model(**dict(zip(self.names, inputs, strict=True))).logits
        return logits[:, 0]


@dataclass(frozen=True)
class Example:
    """What an exporter traces: a function of tensors, an example of its inputs, and the axes that vary."""

    function: Logits
    names: list[str]
    inputs: tuple[torch.Tensor, ...]
    axes: dict[int, Any]

    @classmethod
    def of(cls, encoder: CrossEncoder) -> "Example":
        """Make the example of a student. It sets the attention to separate matrix products, which can be quantised."""
        encoder.model.config._attn_implementation = "eager"
        encoder.model.config.use_cache = False  # a decoder's cache serves only to generate more tokens
        queries = encoder.tokenise(["what is it", "rank these passages"])
        passages = encoder.tokenise(
            ["a passage of some words", "another one, longer than the first one by far"]
        )
        given = feed(encoder.collate(queries, passages, np.arange(2), np.arange(2)))
        axes = {
            0: torch.export.Dim("batch", min=1, max=65536),
            1: torch.export.Dim("sequence", min=2, max=encoder.max_length),
        }
        inputs = tuple(torch.from_numpy(value) for value in given.values())
        return cls(Logits(encoder.model, list(given)), list(given), inputs, axes)


def feed(batch: PairBatch) -> dict[str, NDArray[np.int64]]:
    """Return a batch as the inputs of a graph."""
    given = {"input_ids": batch.ids, "attention_mask": batch.mask, "token_type_ids": batch.types}
    return {name: value.numpy() for name, value in given.items() if value is not None}


def cannot_export(encoder: CrossEncoder, error: Exception) -> StudentError:
    """Build the error for a model that an exporter does not support."""
    first = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return StudentError(
        f"{encoder.architecture} cannot be exported: {first}", hint="export it with --format hf"
    )


def save_beside(encoder: CrossEncoder, folder: Path, *, int8: bool) -> None:
    """Write the config and the tokenizer that a graph needs."""
    setattr(encoder.model.config, PRECISION, "int8" if int8 else "fp32")
    encoder.model.config.save_pretrained(folder)
    encoder.tokenizer.model_max_length = encoder.max_length
    encoder.tokenizer.save_pretrained(folder)


def backend_of(path: str | Path, wanted: str) -> str:
    """Return the backend that runs a model: the wanted one; for ``auto`` torch, unless the folder has a graph alone.

    Raises:
        StudentError: the backend is not known (exit code 2), or the folder has neither weights nor that graph (exit code 4).
    """
    if wanted not in ("auto", *BACKENDS):
        raise StudentError(
            f"backend {wanted!r} is not known",
            hint=f"--backend {' | '.join(BACKENDS)}",
            exit_code=ExitCode.USAGE,
        )
    held = [name for name, file in FILES.items() if (Path(path) / file).is_file()]
    if not held or any(Path(path).glob("*.safetensors")):
        return "torch" if wanted == "auto" else wanted
    if wanted != "auto" and wanted not in held:
        raise StudentError(
            f"{path} is an export for {held[0]}, not for {wanted}",
            hint=f"--backend {held[0]}, or export the student again: msft students export",
            exit_code=ExitCode.DATA_MISSING,
        )
    return held[0] if wanted == "auto" else wanted


class GraphEncoder(PairReader):
    """An exported folder in place of a `CrossEncoder`: it reads texts alike, and a runtime computes the logits.

    Args:
        run: computes the logits of a batch; several threads may call it.
        framing: a decoder's instruction, if it is not the exported one.
    """

    device = torch.device("cpu")

    def __init__(
        self, folder: Path, run: Run, *, max_length: int | None = None, framing: Framing = Framing()
    ) -> None:
        source = str(folder)
        self._config, tokenizer = read_config(folder, source, source, local=True)
        base_config.set_padding(self._config, tokenizer, folder)
        self.tokenizer = framed_tokenizer(tokenizer, self._config, source, framing)
        self.max_length = base_config.max_length(max_length, tokenizer, self._config, folder)
        self.form = PairFormat.of(self.tokenizer, self.max_length)
        self.precision = str(getattr(self._config, PRECISION, "fp32"))
        self._run = run

    @property
    def config(self) -> Any:
        """The model's configuration."""
        return self._config

    @property
    def architecture(self) -> str:
        """bert, electra, roberta, modernbert …"""
        return str(self._config.model_type)

    def eval(self) -> "GraphEncoder":
        """Return the graph, which has no training mode."""
        return self

    def __call__(self, batch: PairBatch) -> torch.Tensor:
        """Compute raw logits, (n_pairs,) fp32."""
        return torch.from_numpy(self._run(feed(batch)))
