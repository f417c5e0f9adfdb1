"""Let torch.compile fuse the operations of a model's layers: one program for all layers and all lengths."""

import importlib.util
import os
import shutil
from typing import Any

from torch import nn

from students.errors import ExitCode, StudentError


def compile_layers(model: Any, device: str, backend: str = "inductor") -> None:
    """Compile each layer at its first call. Weights keep their names. It does not affect `students.cpu.bert`.

    Args:
        device: the kind of device, cuda or cpu.
        backend: torch.compile's; tests take one that needs no compiler.

    Raises:
        StudentError: a compiler is not found, or the model has no stack of layers (exit code 2).
    """
    missing = _missing(device) if backend == "inductor" else None
    if missing is not None:
        raise StudentError(
            f"torch.compile needs {missing[0]}",
            hint=f"{missing[1]}, or set compile = false",
            exit_code=ExitCode.USAGE,
        )
    stack = _stack(model)
    if stack is None:
        raise StudentError(
            f"{model.config.model_type} has no stack of layers that compile = true supports",
            hint="set compile = false",
            exit_code=ExitCode.USAGE,
        )
    for layer in stack:
        layer.compile(dynamic=True, backend=backend)


def possible(model: Any, device: str) -> bool:
    """Return True if the layers can be compiled on this kind of device."""
    return _missing(device) is None and _stack(model) is not None


def _missing(device: str) -> tuple[str, str] | None:
    """Return what torch.compile lacks, and how to get it; None if it has all that it needs."""
    if device != "cuda":
        return None if shutil.which(os.environ.get("CXX", "g++")) else ("a C++ compiler", "install g++")
    if importlib.util.find_spec("triton") is None:
        return "triton", "pip install triton"
    if any(shutil.which(name) for name in (os.environ.get("CC", "gcc"), "cc", "clang")):
        return None
    return "a C compiler, which Triton calls", "install gcc"


def _stack(model: Any) -> nn.ModuleList | None:
    """Find the layers: ``encoder.layer`` in BERT and its relatives, ``layers`` in ModernBERT and decoders."""
    base = model.base_model
    for owner, name in ((getattr(base, "encoder", None), "layer"), (base, "layers")):
        if isinstance(stack := getattr(owner, name, None), nn.ModuleList):
            return stack
    return None
