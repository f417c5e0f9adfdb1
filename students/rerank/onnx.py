"""ONNX: a student as one graph for onnxruntime, in fp32 or with int8 matrix products.

Inputs are ``input_ids``, ``attention_mask`` and, if the model has them, ``token_type_ids``, each (batch, sequence)
int64. The output is ``logits`` (batch,) float32, without an activation. `OnnxScorer` scores lists as `Reranker` does.
"""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from msft.host import extras
from students.errors import ExitCode, StudentError
from students.model.encoder import CrossEncoder
from students.rerank.channel_split import split_maps
from students.text.batches import budget_batches, collate
from students.text.tokens import PairFormat, tokenise

FILE = "model.onnx"
OPSET = 18
BATCH_TOKENS = 4096
Progress = Callable[[int, int | None], None]


class _Logits(nn.Module):
    """The model as a function from tensors to raw logits, which the exporter needs."""

    def __init__(self, model: Any, names: Sequence[str]) -> None:
        super().__init__()
        self.model = model
        self.names = tuple(names)

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.model(**dict(zip(self.names, inputs, strict=True))).logits
        return logits[:, 0]


def export_onnx(source: Path, folder: Path, *, max_length: int, int8: bool = False) -> Path:
    """Write a student's graph, tokenizer and config to a folder.

    Args:
        source: the student's Hugging Face folder.
        int8: quantise weights to int8 per channel, after `students.rerank.channel_split.split_maps`. Activations are
            quantised dynamically.

    Returns:
        The graph's path.

    Raises:
        StudentError: the extra is not installed, or the exporter does not support the model.
    """
    extras.require("onnx")
    # torch 2.9 writes guards on sizes into the graph that its own exporter cannot read
    if torch.__version__ < "2.10":  # compared as versions
        raise StudentError(
            f"torch {torch.__version__} cannot export this model: expected 2.10 or later",
            hint="pip install 'msft[onnx]'",
            exit_code=ExitCode.DATA_MISSING,
        )
    encoder = CrossEncoder.load(source, max_length=max_length, precision="fp32", device="cpu").eval()
    encoder.model.config._attn_implementation = (
        "eager"  # attention as separate matrix products, which can be quantised
    )
    if int8:
        split_maps(encoder)
    names = ["input_ids", "attention_mask"] + (["token_type_ids"] if encoder.form.has_types else [])
    folder.mkdir(parents=True, exist_ok=True)
    plain = folder / ("fp32.onnx" if int8 else FILE)
    _export(encoder, names, plain)
    if int8:
        _quantise(plain, folder / FILE)
        plain.unlink()
    encoder.model.config.save_pretrained(folder)
    encoder.tokenizer.model_max_length = max_length
    encoder.tokenizer.save_pretrained(folder)
    return folder / FILE


def _export(encoder: CrossEncoder, names: list[str], path: Path) -> None:
    queries = encoder.tokenise(["what is it", "rank these passages"])
    passages = encoder.tokenise(["a passage of some words", "another one, longer than the first one by far"])
    batch = encoder.collate(queries, passages, np.arange(2), np.arange(2))
    inputs = {"input_ids": batch.ids, "attention_mask": batch.mask, "token_type_ids": batch.types}
    axes = {
        0: torch.export.Dim("batch", min=1, max=65536),
        1: torch.export.Dim("sequence", min=2, max=encoder.max_length),
    }
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        try:
            torch.onnx.export(
                _Logits(encoder.model, names),
                tuple(inputs[name] for name in names),
                str(path),
                input_names=names,
                output_names=["logits"],
                dynamic_shapes=(tuple(axes for _ in names),),
                opset_version=OPSET,
                dynamo=True,
                external_data=False,
                verbose=False,
            )
        except (RuntimeError, torch.onnx.errors.OnnxExporterError) as error:
            raise StudentError(
                f"{encoder.architecture} cannot be exported: {str(error).strip().splitlines()[0]}",
                hint="export it with --format hf",
            ) from error


def _quantise(plain: Path, path: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = plain.with_name("prepared.onnx")
    quant_pre_process(str(plain), str(prepared), skip_symbolic_shape=True)
    quantize_dynamic(
        str(prepared),
        str(path),
        per_channel=True,
        weight_type=QuantType.QInt8,
        # Seven bits, because the export may run on a CPU without VNNI. It adds two products in 16 bits, which
        # overflow with eight-bit weights: the error of the scores was then nine times as large.
        reduce_range=True,
        op_types_to_quantize=["MatMul", "Gemm"],
        extra_options={"MatMulConstBOnly": True},
    )
    prepared.unlink()


class OnnxScorer:
    """Score lists with an exported folder, as `Reranker` does."""

    def __init__(self, folder: Path, *, max_length: int) -> None:
        extras.require("onnx")
        import onnxruntime
        from transformers import AutoTokenizer

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self.session = onnxruntime.InferenceSession(
            str(folder / FILE), options, providers=["CPUExecutionProvider"]
        )
        self.tokenizer = AutoTokenizer.from_pretrained(folder, use_fast=True, trust_remote_code=False)
        self.form = PairFormat.of(self.tokenizer, max_length)
        self._takes = {given.name for given in self.session.get_inputs()}

    def scores(
        self, lists: Sequence[tuple[str, Sequence[str]]], progress: Progress | None = None
    ) -> list[NDArray[np.float32]]:
        """Compute the raw logits of each list's passages, in the order given."""
        sizes = [len(passages) for _, passages in lists]
        queries = tokenise(self.tokenizer, [query for query, _ in lists])
        passages = tokenise(self.tokenizer, [passage for _, texts in lists for passage in texts])
        query, passage = np.repeat(np.arange(len(lists)), sizes), np.arange(sum(sizes))
        lengths = self.form.lengths(queries.lengths[query], passages.lengths)
        scored = np.empty(len(passage), dtype=np.float32)
        done = 0
        for rows in budget_batches(lengths, BATCH_TOKENS):
            batch = collate(self.form, queries, passages, query[rows], passage[rows])
            given = {"input_ids": batch.ids, "attention_mask": batch.mask, "token_type_ids": batch.types}
            feed = {k: v.numpy() for k, v in given.items() if k in self._takes and v is not None}
            scored[rows] = self.session.run(["logits"], feed)[0]
            done += len(rows)
            if progress is not None:
                progress(done, len(scored))
        return np.split(scored, np.cumsum(sizes)[:-1])
