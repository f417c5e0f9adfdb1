"""Ray cluster resources: the connection, each worker's share, and the lock file that tests for shared disks."""

import fcntl
import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from labelstore.errors import UsageError
from teachers.errors import ExitCode, TeacherError
from teachers.generate.plan import Plan

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
INSTALL = "pip install 'msft[ray]' on every machine of the cluster"


@contextmanager
def connected() -> Iterator[Any]:
    """Connect and return the module `ray`: to RAY_ADDRESS, a cluster on this machine, or a new one on this machine.

    Raises:
        TeacherError: if Ray is not installed (exit code 4), or the cluster does not answer (exit code 5).
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # A worker without a GPU in its resources must not see one.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError as error:
        raise TeacherError("Ray is not installed", hint=INSTALL, exit_code=ExitCode.DATA_MISSING) from error
    if ray.is_initialized():
        with _quiet():
            yield ray
        return
    logging.getLogger("ray").setLevel(logging.ERROR)
    try:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, TimeoutError) as error:
        raise TeacherError(
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


def per_worker(ray: Any, plan: Plan) -> dict[str, float]:
    """Return each worker's resources: the GPUs that its model needs, or an equal part of the cores.

    Raises:
        UsageError: if the cluster has not enough resources.
    """
    number, arguments = plan.settings.workers, plan.settings.engine_arguments
    has = ray.cluster_resources()
    gpus, cores = int(has.get("GPU", 0)), int(has.get("CPU", 0))
    if gpus:
        each = int(arguments.get("tensor_parallel_size", 1)) * int(arguments.get("pipeline_parallel_size", 1))
        if number * each > gpus:
            raise UsageError(
                f"{number} workers with {each} GPUs each: the cluster has {gpus}",
                hint=f"--workers {gpus // each}" if gpus >= each else "a smaller tensor_parallel_size",
            )
        return {"num_gpus": each, "num_cpus": 1}
    if number > cores:
        raise UsageError(f"{number} workers: the cluster has {cores} cores", hint=f"--workers {cores}")
    return {"num_cpus": cores // number}


def words(ray: Any, number: int, resources: Mapping[str, float]) -> str:
    """Describe the workers that are about to start, for the log."""
    machines = sum(node["Alive"] for node in ray.nodes())
    each = ", ".join(
        f"{int(amount)} {name.removeprefix('num_').upper()}" for name, amount in resources.items()
    )
    return f"ray: {number} workers with {each} each on {machines} machine{'s' * (machines > 1)}"


def reason(error: BaseException) -> str:
    """Return why a worker was lost, on one line: the last line of a remote traceback."""
    text = _COLOUR.sub("", str(error)).strip()
    lines = text.splitlines() or [type(error).__name__]
    return lines[-1 if "Traceback (most recent call last)" in text else 0].strip()


@contextmanager
def locked(folder: Path, job_key: str) -> Iterator[str]:
    """Lock a file in the journal's folder and yield its name; workers use it to test whether they share the folder."""
    path = folder / f"{job_key}-cluster.{os.getpid()}.work"
    with path.open("xb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield path.name
        finally:
            path.unlink(missing_ok=True)


def keep(path: Path, data: bytes) -> None:
    """Write a segment received from a worker: atomically, and synced to disk on return."""
    half = path.with_suffix(".half")
    with half.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    half.replace(path)
