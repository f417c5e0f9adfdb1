"""Make a plan's engine, only when a call is needed."""

from pathlib import Path
from typing import Any, Protocol

from msft.host import extras
from teachers.engines.base import Engine
from teachers.errors import ExitCode, TeacherError
from teachers.generate.calling.teacher import Teacher


class Plan(Protocol):
    """What an engine is made from: the plan of a labelling job, or of one that asks about single passages."""

    @property
    def engine(self) -> str: ...
    @property
    def location(self) -> str: ...
    @property
    def teacher(self) -> Teacher: ...
    @property
    def context(self) -> int | None: ...
    @property
    def pointwise(self) -> bool: ...
    @property
    def files(self) -> Path | None: ...
    @property
    def settings(self) -> Any: ...


def require(plan: Plan) -> None:
    """Check that the extra of a plan's engine is installed.

    Raises:
        MsftError: if it is missing (exit code 4).
    """
    require_engine(plan.engine)


def require_engine(name: str) -> None:
    """Check that the extra of an engine is installed.

    Raises:
        MsftError: if it is missing (exit code 4).
    """
    extra = name.removesuffix("-batch")  # a provider's batches need what its calls need
    if extra in extras.EXTRAS:
        extras.require(extra)


def build(plan: Plan) -> Engine:
    """Make the engine of a plan, with its model loaded.

    Raises:
        MsftError: if an extra is not installed.
        TeacherError: if the model or server cannot be reached.
    """
    require(plan)
    settings = plan.settings
    if plan.engine in ("vllm", "ray"):  # each Ray worker runs its own vLLM
        from teachers.engines.vllm import VllmEngine

        return VllmEngine(
            plan.location,
            plan.teacher.sampling,
            context=plan.context,
            max_num_seqs=settings.max_in_flight,
            options=settings.engine_arguments,
        )
    if plan.engine == "openai":
        from teachers.engines.openai import OpenAIEngine

        return OpenAIEngine(
            plan.location,
            settings.base_urls,
            plan.teacher.sampling,
            in_flight=settings.max_in_flight or 32,
            timeout=settings.timeout,
            tokenizer=tokenizer(plan),
        )
    if plan.engine == "openai-batch":
        from teachers.engines.openai_batch import OpenAIBatchEngine

        return OpenAIBatchEngine(
            plan.location,
            settings.base_urls[0],
            plan.teacher.sampling,
            folder=(plan.files or Path()) / "batches",
            in_flight=settings.max_in_flight,
            timeout=settings.timeout,
            tokenizer=tokenizer(plan),
        )
    if plan.engine == "transformers":
        from teachers.engines.forward import ForwardEngine

        return ForwardEngine(
            plan.location,
            plan.teacher.sampling,
            context=plan.context,
            batch=settings.max_in_flight,
            options=settings.engine_arguments,
        )
    if plan.engine == "cross-encoder":
        from teachers.engines.cross_encoder import CrossEncoderEngine

        return CrossEncoderEngine(plan.location)
    if plan.engine == "bi-encoder":
        from teachers.engines.bi_encoder import BiEncoderEngine

        kept = None if plan.files is None else plan.files / "vectors" / plan.teacher.revision
        return BiEncoderEngine(plan.location, vectors=kept)
    raise TeacherError(
        f"the engine {plan.engine} does not run in this process", exit_code=ExitCode.TEACHER_ENGINE
    )


def tokenizer(plan: Plan) -> Any:
    """Load the model's tokenizer if it is on this machine (or given by ``--tokenizer``); otherwise return None.

    Raises:
        TeacherError: if the tokenizer given by ``--tokenizer`` cannot be loaded (exit code 4).
    """
    if plan.pointwise:
        return None
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(
            plan.settings.tokenizer or plan.location, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        if plan.settings.tokenizer is None:
            return None
        raise TeacherError(
            f"no tokenizer at {plan.settings.tokenizer}: {str(error).splitlines()[0]}",
            hint="--tokenizer FOLDER or a Hugging Face id that is in the local cache",
            exit_code=ExitCode.DATA_MISSING,
        ) from error
