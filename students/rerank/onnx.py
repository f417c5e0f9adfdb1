"""ONNX: a student as one graph for onnxruntime, in fp32 or with int8 matrix products."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from msft.host import extras
from students.errors import ExitCode, StudentError
from students.model.encoder import CrossEncoder
from students.rerank.channel_split import split_maps
from students.rerank.graph import FILES, Example, Inputs, Run, cannot_export, save_beside

FILE = FILES["onnx"]
OPSET = 18
# torch's list of operators: it warns of each of torchvision's, which no re-ranker has
_OPERATORS = logging.getLogger("torch.onnx._internal.exporter._registration")


def export_onnx(source: Path, folder: Path, *, max_length: int | None, int8: bool = False) -> Path:
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
    example = Example.of(encoder)
    if int8:
        split_maps(encoder)
    folder.mkdir(parents=True, exist_ok=True)
    plain = folder / ("fp32.onnx" if int8 else FILE)
    _export(encoder, example, plain)
    if int8:
        _quantise(plain, folder / FILE)
        plain.unlink()
    save_beside(encoder, folder, int8=int8)
    return folder / FILE


def _export(encoder: CrossEncoder, example: Example, path: Path) -> None:
    with warnings.catch_warnings(), _without_torchvision(), torch.no_grad():
        warnings.simplefilter("ignore")
        try:
            torch.onnx.export(
                example.function,
                example.inputs,
                str(path),
                input_names=example.names,
                output_names=["logits"],
                dynamic_shapes=(tuple(example.axes for _ in example.names),),
                opset_version=OPSET,
                dynamo=True,
                external_data=False,
                verbose=False,
            )
        except (RuntimeError, torch.onnx.errors.OnnxExporterError) as error:
            raise cannot_export(encoder, error) from error


@contextmanager
def _without_torchvision() -> Iterator[None]:
    """Silence the exporter's warnings that torchvision is not installed, and no others."""

    def other(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("torchvision is not installed")

    _OPERATORS.addFilter(other)
    try:
        yield
    finally:
        _OPERATORS.removeFilter(other)


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


def open_onnx(folder: Path, workers: int) -> Run:
    """Open a graph for several threads, each of which runs its own batches with its share of the cores.

    Raises:
        MsftError: the extra is not installed (exit code 4).
    """
    extras.require("onnx")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = max(1, torch.get_num_threads() // workers)
    session = onnxruntime.InferenceSession(str(folder / FILE), options, providers=["CPUExecutionProvider"])
    takes = {given.name for given in session.get_inputs()}

    def run(inputs: Inputs) -> NDArray[np.float32]:
        found: NDArray[np.float32] = session.run(
            ["logits"], {name: value for name, value in inputs.items() if name in takes}
        )[0]
        return found

    return run
