"""Connect to a Ray cluster, share its resources, and say why a worker was lost. Labelling and re-ranking use it."""

import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from typing import Any

from msft.errors import ExitCode, MsftError

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
INSTALL = "pip install 'msft[ray]' on every machine of the cluster"


@contextmanager
def connected() -> Iterator[Any]:
    """Connect and return the module `ray`: to RAY_ADDRESS, a cluster on this machine, or a new one on this machine.

    Raises:
        MsftError: if Ray is not installed (exit code 4), or the cluster does not answer (exit code 5).
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # A worker without a GPU in its resources must not see one.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError as error:
        raise MsftError("Ray is not installed", hint=INSTALL, exit_code=ExitCode.DATA_MISSING) from error
    if ray.is_initialized():
        with _quiet():
            yield ray
        return
    logging.getLogger("ray").setLevel(logging.ERROR)
    try:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, TimeoutError) as error:
        raise MsftError(
            f"no connection to Ray: {str(error).strip().partition(chr(10))[0]}",
            hint="start a cluster with `ray start --head` and set RAY_ADDRESS, or unset it to work on this machine alone",
            exit_code=ExitCode.TEACHER_ENGINE,
        ) from error
    try:
        with _quiet():
            yield ray
    finally:
        ray.shutdown()


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Ray's messages off stdout, which is for data; the driver reports each lost worker."""
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        yield


def per_worker(ray: Any, number: int, gpus_each: int = 1, fewer_gpus: str = "") -> dict[str, float]:
    """Return each worker's resources: its GPUs, or an equal part of the cores.

    Args:
        fewer_gpus: the hint if not even one worker gets its GPUs.

    Raises:
        MsftError: if the cluster has not enough resources (exit code 2).
    """
    has = ray.cluster_resources()
    gpus, cores = int(has.get("GPU", 0)), int(has.get("CPU", 0))
    if gpus:
        if number * gpus_each > gpus:
            raise MsftError(
                f"{number} workers with {gpus_each} GPUs each: the cluster has {gpus}",
                hint=f"--workers {gpus // gpus_each}" if gpus >= gpus_each else fewer_gpus,
                exit_code=ExitCode.USAGE,
            )
        return {"num_gpus": gpus_each, "num_cpus": 1}
    if number > cores:
        raise MsftError(
            f"{number} workers: the cluster has {cores} cores",
            hint=f"--workers {cores}",
            exit_code=ExitCode.USAGE,
        )
    return {"num_cpus": cores // number}


def words(ray: Any, number: int, resources: Mapping[str, float]) -> str:
    """Describe the workers that are about to start, for the log."""
    machines = sum(node["Alive"] for node in ray.nodes())
    each = ", ".join(
        f"{int(amount)} {name.removeprefix('num_')[:-1].upper()}{'s' * (amount != 1)}"
        for name, amount in resources.items()
    )
    return f"ray: {number} workers with {each} each on {machines} machine{'s' * (machines > 1)}"


def reason(error: BaseException) -> str:
    """Return why a worker was lost, on one line: the last line of a remote traceback."""
    text = _COLOUR.sub("", str(error)).strip()
    lines = text.splitlines() or [type(error).__name__]
    return lines[-1 if "Traceback (most recent call last)" in text else 0].strip()
