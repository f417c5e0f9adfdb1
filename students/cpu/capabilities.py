"""What this CPU and this torch can do. Only this module calls private functions of torch.

`has_onednn` tries the private operators once and compares their result with the public one. `students.cpu.operations`
uses torch's public functions if the private ones are missing, have another signature, or give other numbers.
"""

import functools
from typing import cast

import torch
from torch.nn import functional as F

# In torch before 2.12 these functions are private.
_PROBES = {
    "avx512_bf16": "_is_avx512_bf16_supported",
    "amx_bf16": "_is_amx_tile_supported",
    "avx512_vnni": "_is_vnni_supported",
}


def cpu_capabilities() -> dict[str, bool]:
    """Return which instruction sets this CPU has, by torch's names. A name that torch does not know is missing."""
    if hasattr(torch.cpu, "get_capabilities"):
        return {name: has for name, has in torch.cpu.get_capabilities().items() if isinstance(has, bool)}
    return {name: getattr(torch.cpu, probe)() for name, probe in _PROBES.items() if hasattr(torch.cpu, probe)}


def multiplies_bf16() -> bool:
    """Return True if this CPU has instructions for bf16. Without them bf16 is emulated, which is slower than fp32."""
    has = cpu_capabilities()
    return bool(has.get("avx512_bf16") or has.get("amx_bf16"))


@functools.cache
def has_onednn(dtype: torch.dtype = torch.float32) -> bool:
    """Return True if `onednn_linear` works on this machine and agrees with ``F.linear``.

    oneDNN does not support bf16 on a CPU without AVX-512; ``F.linear`` emulates it.
    """
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    try:
        with torch.inference_mode():
            made = torch.eye(16), torch.arange(512.0).view(32, 16) / 512, torch.arange(32.0) / 32
            x, weight, bias = (one.to(dtype) for one in made)
            mine = onednn_linear(x, onednn_weight(weight, 16), bias, gelu=True)
            near = 1e-5 if dtype == torch.float32 else 2e-2
            return torch.allclose(mine, F.gelu(F.linear(x, weight, bias)), atol=near)
    except (AttributeError, RuntimeError, NotImplementedError):  # no such operator, or not on this CPU
        return False


def onednn_weight(weight: torch.Tensor, rows: int) -> torch.Tensor:
    """Put a weight into the layout that oneDNN prefers for inputs of about `rows` rows."""
    return cast(torch.Tensor, torch.ops.mkldnn._reorder_linear_weight(weight, rows))


def onednn_linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, *, gelu: bool = False
) -> torch.Tensor:
    """Compute x · weightᵀ + bias with oneDNN, followed by the (exact) GELU if requested."""
    after = ("gelu", "none") if gelu else ("none", "")
    return cast(torch.Tensor, torch.ops.mkldnn._linear_pointwise(x, weight, bias, after[0], [], after[1]))
