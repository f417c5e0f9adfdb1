"""Make a plan's engine, only when a call is needed."""

from typing import Any

from teachers.engines.base import Engine
from teachers.errors import ExitCode, TeacherError
from teachers.generate.plan import Plan


def build(plan: Plan) -> Engine:
    """Make the engine of a plan, with its model loaded.

    Raises:
        TeacherError: if an extra is not installed, or the model or server cannot be reached.
    """
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
