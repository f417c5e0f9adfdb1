"""Run vLLM's server on loopback with a tiny random Mistral that ranks for any client."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx

from benchmarks.tiny_mistral import make
from teachers.generate.settings import PROCESSOR

ROOT = Path(__file__).resolve().parents[1]


@contextmanager
def served(
    folder: Path, *, processor: str = PROCESSOR, texts: Iterable[str] = (), context: int = 2048, batch: int = 16,
    seconds: float = 240.0, model: Path | None = None, arguments: Sequence[str] = (),
) -> Iterator[tuple[str, Path]]:  # fmt: skip
    """Start a server and yield (base URL, model folder) once its health check answers.

    Args:
        processor: the logits processor that the server loads.
        texts: training texts of the model's tokenizer, beside a prompt.
        batch: requests in one batch.
        model: the model's folder; None: a tiny random Mistral.
        arguments: further arguments of the server.
    """
    model = model or make(folder / "tiny", texts, context=context)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        **os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1",
        "VLLM_NO_USAGE_STATS": "1", "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    environment.pop("VLLM_ENABLE_V1_MULTIPROCESSING", None)
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--served-model-name",
        "tiny", "--port", str(port), "--host", "127.0.0.1", "--enforce-eager", "--gpu-memory-utilization", "0.3",
        "--max-num-seqs", str(batch), "--logits-processors", processor, *arguments,
    ]  # fmt: skip
    log = folder / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        deadline = time.monotonic() + seconds
        while True:
            try:
                if (
                    httpx.get(f"http://127.0.0.1:{port}/health", timeout=2, trust_env=False).status_code
                    == 200
                ):
                    break
            except httpx.TransportError:
                pass
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the server did not start: {log.read_text()[-3000:]}")
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1", model
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(20)
        with suppress(ProcessLookupError):  # a server that did not start leaves its workers
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
