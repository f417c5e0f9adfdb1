"""A plan's engine, made only when a call has to be asked."""

from typing import Any

from teachers.engines.base import Engine
from teachers.errors import ExitCode, TeacherError
from teachers.generate.plan import Plan


def build(plan: Plan) -> Engine:
    """The engine of a plan, its model loaded.

    Raises:
        TeacherError: if an extra is missing, or the model or server cannot be reached.
    """
    settings = plan.settings
    if plan.engine in ("vllm", "ray"):  # each of Ray's workers has a vLLM of its own
        from teachers.engines.vllm import VllmEngine

        return VllmEngine(
            plan.location,
            plan.teacher.sampling,
            context=plan.context,
            max_num_seqs=settings.max_in_flight,
            options=settings.engine_arguments,
        )
    if plan.engine == "openai":
        try:
            from teachers.engines.openai import OpenAIEngine
        except ModuleNotFoundError as error:
            raise TeacherError(
                "httpx is not installed", hint="pip install 'msft[openai]'", exit_code=ExitCode.USAGE
            ) from error
        return OpenAIEngine(
            plan.location,
            settings.base_urls,
            plan.teacher.sampling,
            in_flight=settings.max_in_flight or 32,
            timeout=settings.timeout,
            tokenizer=tokenizer(plan),
        )
    if plan.engine == "cross-encoder":
        from teachers.engines.cross_encoder import CrossEncoderEngine

        return CrossEncoderEngine(plan.location)
    if plan.engine == "bi-encoder":
        from teachers.engines.bi_encoder import BiEncoderEngine

        return BiEncoderEngine(plan.location)
    raise TeacherError(
        f"the engine {plan.engine} does not run in this process", exit_code=ExitCode.TEACHER_ENGINE
    )


def tokenizer(plan: Plan) -> Any:
    """The model's tokenizer where it is on this machine (or named by ``--tokenizer``); None where it is not.

    Raises:
        TeacherError: if the one that was named cannot be loaded (exit code 4).
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
