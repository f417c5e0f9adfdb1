"""OpenVINO: a student as one graph for Intel's runtime, in fp32, or in int8 by NNCF's post-training quantisation."""

import io
import logging
import os
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from msft.host import extras
from students.cpu.capabilities import multiplies_bf16
from students.model.encoder import CrossEncoder
from students.rerank.graph import FILES, Example, Inputs, Run, cannot_export, feed, save_beside

FILE = FILES["openvino"]
# Operations that may stand between a weight and its product.
_OF_A_WEIGHT = ("Convert", "Transpose", "Reshape", "Multiply")
_BATCH = 8  # pairs of similar length per sample
TextLists = Sequence[tuple[str, Sequence[str]]]


def export_openvino(
    source: Path, folder: Path, *, max_length: int | None, calibrate: TextLists | None = None
) -> Path:
    """Write a student's graph, tokenizer and config to a folder.

    Args:
        source: the student's Hugging Face folder.
        calibrate: lists whose pairs show the ranges of activations; the graph is then in int8.

    Returns:
        The graph's path.

    Raises:
        MsftError: the extra is not installed (exit code 4).
        StudentError: the exporter does not support the model.
    """
    extras.require("openvino")
    import openvino

    encoder = CrossEncoder.load(source, max_length=max_length, precision="fp32", device="cpu").eval()
    with _quiet():
        model = _convert(encoder)
        if calibrate is not None:
            model = _quantise(model, encoder, calibrate)
    folder.mkdir(parents=True, exist_ok=True)
    openvino.save_model(model, str(folder / FILE), compress_to_fp16=False)
    save_beside(encoder, folder, int8=calibrate is not None)
    return folder / FILE


@contextmanager
def _quiet() -> Iterator[None]:
    """Let OpenVINO and NNCF send no statistics to their maker, and print nothing."""
    settings = {"CI": "true", "NNCF_CI": "1"}  # both send nothing in CI; they have no other switch
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    logger = logging.getLogger("nncf")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _convert(encoder: CrossEncoder) -> Any:
    """Trace a student and convert the trace. Batch and sequence stay free."""
    import openvino

    example = Example.of(encoder)
    try:
        with torch.no_grad():
            traced = torch.export.export(
                example.function,
                example.inputs,
                dynamic_shapes=(tuple(example.axes for _ in example.names),),
            )
            model = openvino.convert_model(traced)
    except (RuntimeError, ValueError) as error:
        raise cannot_export(encoder, error) from error
    for given, name in zip(model.inputs, example.names, strict=True):
        given.get_tensor().set_names({name})
    model.output(0).get_tensor().set_names({"logits"})
    return model


def _quantise(model: Any, encoder: CrossEncoder, lists: TextLists) -> Any:
    """Quantise the layers' products with their weights to int8; ranges of activations are those of the pairs.

    Attention's products of two activations stay in fp32, and so do the head's: MiniLM keeps τ .95 on dl19,
    and .86 to .88 with them in int8; the head's in int8 move all scores by half their deviation.
    """
    os.environ.setdefault("NNCF_DISABLE_TELEMETRY", "1")
    import nncf

    samples = list(_samples(encoder, lists))
    kept = [op.get_friendly_name() for op in model.get_ordered_ops() if _stays_exact(op)]
    return nncf.quantize(
        model,
        nncf.Dataset(samples),
        model_type=nncf.ModelType.TRANSFORMER,
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=len(samples),
        ignored_scope=nncf.IgnoredScope(names=kept),
    )


def _stays_exact(op: Any) -> bool:
    """Tell whether an operation is a product of two activations, or of a head: of one vector a pair, or to one number."""
    if op.get_type_name() != "MatMul":
        return False
    if not _is_weight(op.input_value(1).get_node()):
        return True
    shape = op.get_output_partial_shape(0)
    if not shape.rank.is_static:
        return False
    last = shape[shape.rank.get_length() - 1]
    return bool(shape.rank.get_length() == 2 or (last.is_static and last.get_length() == 1))


def _is_weight(op: Any) -> bool:
    if op.get_type_name() in _OF_A_WEIGHT:
        return all(_is_weight(value.get_node()) for value in op.input_values())
    return bool(op.get_type_name() == "Constant")


def _samples(encoder: CrossEncoder, lists: TextLists) -> Iterator[dict[str, NDArray[np.int64]]]:
    """Yield batches of the pairs, shortest first."""
    pairs = [(query, text) for query, texts in lists for text in texts]
    queries, passages = (encoder.tokenise([pair[side] for pair in pairs]) for side in (0, 1))
    order = np.argsort(queries.lengths + passages.lengths, kind="stable")
    for first in range(0, len(order), _BATCH):
        rows = order[first : first + _BATCH]
        yield feed(encoder.collate(queries, passages, rows, rows))


def open_openvino(folder: Path, workers: int) -> Run:
    """Open a graph for several threads, each of which runs its own batches with its share of the cores.

    An int8 graph computes what is not in int8 in bf16 if the CPU has instructions for it, so its scores differ a little from
    CPU to CPU.

    Raises:
        MsftError: the extra is not installed (exit code 4).
    """
    extras.require("openvino")
    import openvino

    core = openvino.Core()
    core.set_property({"ENABLE_MMAP": False})  # the folder may be temporary
    model = core.read_model(str(folder / FILE))
    # By default OpenVINO computes an fp32 graph in bf16 too, and the scores then differ from the student's.
    fast = _in_int8(model) and multiplies_bf16()
    compiled = core.compile_model(
        model,
        "CPU",
        {
            "INFERENCE_PRECISION_HINT": "bf16" if fast else "f32",
            "NUM_STREAMS": workers,
            "INFERENCE_NUM_THREADS": max(workers, torch.get_num_threads()),
        },
    )
    takes = {name for given in compiled.inputs for name in given.names}
    own = threading.local()

    def run(inputs: Inputs) -> NDArray[np.float32]:
        if not hasattr(own, "request"):
            own.request = compiled.create_infer_request()
        found = own.request.infer({name: value for name, value in inputs.items() if name in takes})
        return np.array(found[compiled.output(0)], dtype=np.float32)

    return run


def _in_int8(model: Any) -> bool:
    return any(op.get_type_name() == "FakeQuantize" for op in model.get_ops())
