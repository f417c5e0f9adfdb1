"""A labelling's part of a Ray cluster: each worker's share, and the lock file that tests for shared disks."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from labelstore.errors import MsftError, UsageError
from msft.host import ray_cluster
from teachers.generate.plan import Plan


def per_worker(ray: Any, plan: Plan) -> dict[str, float]:
    """Return each worker's resources: the GPUs that its model needs, or an equal part of the cores.

    Raises:
        UsageError: if the cluster has not enough resources.
    """
    arguments = plan.settings.engine_arguments
    each = int(arguments.get("tensor_parallel_size", 1)) * int(arguments.get("pipeline_parallel_size", 1))
    try:
        return ray_cluster.per_worker(ray, plan.settings.workers, each, "a smaller tensor_parallel_size")
    except MsftError as error:
        raise UsageError(error.message, hint=error.hint) from error


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
