"""Find the model that is asked about single passages, and check it, before anything is written."""

from dataclasses import dataclass
from pathlib import Path

from labelstore.errors import UsageError
from labelstore.labels import teacher_key
from labelstore.labels.write import Teacher as TeacherRow
from teachers import models
from teachers.engines.base import Sampling
from teachers.generate.calling.teacher import Teacher
from teachers.generate.plan import revision_of
from teachers.generate.settings import LEAST, PAIRS, check_least
from teachers.generate.single.settings import Asking
from teachers.journal.segments import Record
from teachers.prompts.template import Template

ENGINES = ("vllm", "openai")
KIND = "listwise"  # as the keys of all prompted teachers have it


@dataclass(frozen=True)
class Asked:
    """A model with a prompt about one passage: what the engine's maker, the journal and the store need."""

    settings: Asking
    engine: str
    location: str
    teacher: Teacher
    row: TeacherRow
    context: int | None
    pointwise: bool = False
    files: Path | None = None

    def header(self, collection: str) -> Record:
        """Return the header of each journal segment: calls can be merged from it alone."""
        return {"teacher": self.row.record(), "collection": collection}


def asked(
    name: str,
    template: Template,
    reading: str,
    settings: Asking,
    *,
    seed: int = 0,
    engine_name: str | None = None,
    logprobs: bool = False,
) -> Asked:
    """Resolve a model for a prompt.

    Args:
        reading: ``query`` or ``grade``; part of the teacher's key.
        seed: of sampling, if the temperature is above 0.
        engine_name: name of an engine that the caller supplies (tests).
        logprobs: ask for the mean log-probability of each reply's tokens.

    Raises:
        UsageError, TeacherError: a setting is wrong, or the model is not found.
    """
    model, engine = _found(name, settings, engine_name)
    location = model.model or name
    sampling = Sampling(
        temperature=settings.temperature,
        seed=seed if settings.temperature > 0 else None,
        mean_logprob=logprobs,
    )
    revision = revision_of(location) if engine != "openai" else None
    drawn = {**sampling.key(), "reading": reading}
    row = TeacherRow(
        name=model.name,
        engine=engine,
        model=model.model,
        revision=revision,
        prompt=template.ident,
        prompt_hash=template.hash,
        sampling=drawn,
        input_price=model.input_price,
        output_price=model.output_price,
        licence=model.licence,
        key=teacher_key.asked(location, revision, template.hash, drawn, KIND),
    )
    teacher = Teacher(
        key=row.teacher_key,
        revision=revision or location,
        template=template,
        sampling=sampling,
        context=model.context,
        reading=reading,
        renders=engine != "openai",
    )
    return Asked(settings, engine, location, teacher, row, model.context)


def _found(name: str, settings: Asking, engine_name: str | None) -> tuple[models.TeacherModel, str]:
    """Find the model and its engine, and check that they can be asked."""
    check_least(settings, **LEAST)
    model = models.resolve(
        name,
        engine=settings.engine,
        context=settings.context,
        input_price=settings.input_price,
        output_price=settings.output_price,
    )
    engine = engine_name or settings.engine or model.engine
    if model.kind in PAIRS:
        raise UsageError(
            f"{model.name} is a {model.kind}: it scores pairs and writes no text",
            hint="--model with a chat model",
        )
    if engine_name is None and engine not in ENGINES:
        raise UsageError(
            f"--engine {engine} cannot be asked about single passages", hint=f"--engine {' | '.join(ENGINES)}"
        )
    if engine == "openai" and not settings.base_urls:
        raise UsageError(
            "--engine openai needs a server",
            hint="--base-url http://127.0.0.1:8000/v1 (repeat it for several)",
        )
    if settings.max_cost is not None and None in (model.input_price, model.output_price):
        raise UsageError(
            f"--max-cost needs prices, and {model.name} has no prices",
            hint="--input-price X --output-price Y, per million tokens",
        )
    return model, engine
