"""Say where a re-ranking runs: GPUs of this machine, or a Ray cluster. This module imports little: it is on the command line."""

from dataclasses import dataclass
from typing import Annotated

from msft.host import extras
from students.errors import ExitCode, StudentError

LARGE = 100_000  # pairs from which several GPUs pay: each of their processes takes ten seconds to begin
ENGINES = ("local", "ray")
BACKENDS = ("auto", "torch", "openvino", "onnx")


@dataclass(frozen=True)
class Machines:
    """Where the batches are scored. The scores do not depend on it."""

    gpus: Annotated[
        int | None,
        "GPUs of this machine, with a process each; by default all of them for 100,000 pairs or more, otherwise one.",
    ] = None
    engine: Annotated[str, "local, or ray: the machines of a Ray cluster."] = "local"
    workers: Annotated[int | None, "Workers of --engine ray [2]."] = None

    def check(self) -> None:
        """Refuse what does not go together, and more GPUs than there are.

        Raises:
            StudentError: exit code 2. MsftError: Ray is not installed (exit code 4).
        """
        if self.engine not in ENGINES:
            raise _usage(f"engine {self.engine!r} is not known", hint="--engine local | ray")
        if self.engine == "ray" and self.gpus is not None:
            raise _usage(
                "--gpus counts GPUs of this machine, and --engine ray asks its cluster",
                hint="give --workers N: each gets a GPU where the cluster has GPUs",
            )
        if self.engine != "ray" and self.workers is not None:
            raise _usage("--workers are those of a Ray cluster", hint="--engine ray --workers N, or --gpus N")
        if self.workers is not None and self.workers < 1:
            raise _usage(f"{self.workers} workers: expected at least 1", hint="--workers 2")
        if self.engine == "ray":
            extras.require("ray")
        if self.gpus is not None:
            from students.rerank.gpus import check_gpus

            check_gpus(self.gpus)

    def n_gpus(self, n_pairs: int) -> int:
        """Choose how many GPUs of this machine score: the given number, or all of them if there is much to score."""
        if self.gpus is not None or n_pairs < LARGE:
            return self.gpus or 1
        import torch

        return max(1, torch.cuda.device_count())


@dataclass(frozen=True)
class Scoring(Machines):
    """How a run's pairs are scored, where it is not as usual."""

    backend: Annotated[
        str,
        "torch, openvino or onnx (on the CPU, with --precision fp32 or int8); auto is torch.",
    ] = "auto"
    batch_tokens: Annotated[int | None, "Tokens per batch."] = None
    long: Annotated[
        str | None,
        "first cuts passages beyond max_length; max and mean score windows over the whole passage; by default"
        " as in training.",
    ] = None
    instruction: Annotated[str | None, "Replaces the instruction of a decoder's text frame."] = None

    @property
    def changes(self) -> bool:
        """Whether settings stand in place of the student's; only the loaded student tells whether they are other ones."""
        return bool(self.long or self.instruction) or not self.in_torch

    @property
    def in_torch(self) -> bool:
        """Whether torch scores, and no exported graph."""
        return self.backend in ("auto", "torch")

    def check(self) -> None:
        """Refuse what does not go together, and more GPUs than there are.

        Raises:
            StudentError: exit code 2. MsftError: Ray or the backend is not installed (exit code 4).
        """
        super().check()
        if self.backend not in BACKENDS:
            raise _usage(
                f"backend {self.backend!r} is not known", hint=f"--backend {' | '.join(BACKENDS[1:])}"
            )
        if not self.in_torch:
            if self.gpus is not None or self.engine != "local":
                raise _usage(
                    f"--backend {self.backend} scores on the CPU of this machine",
                    hint="leave --gpus and --engine out, or take --backend torch",
                )
            extras.require(self.backend)


def _usage(message: str, hint: str) -> StudentError:
    return StudentError(message, hint=hint, exit_code=ExitCode.USAGE)
