"""`msft queries`: make queries from a collection where real ones are few."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.command import Context, command, group
from cli.commands.from_documents.asking import AskingOptions, DryRun, summary
from cli.commands.teachers_generate import EngineArg, asking_progress, with_engine_arguments
from cli.output import diagnostics, fitted
from cli.parameters import After, given
from teachers.generate.single.wanted import Wanted as WantedQueries

if TYPE_CHECKING:
    from labelstore.generated.tests import Test

queries_app = group("Queries: made from a collection where real ones are few.")
_ON_THE_LINE = {"styles": "style", "base_urls": "base-url"}
_WITH_A_MODEL = (
    "prompt",
    "per_document",
    "styles",
    "examples",
    "documents",
    "stratify",
    "clusters",
    "logprobs",
)


@dataclass(frozen=True)
class Wanted(WantedQueries):
    """What is generated. On the command line one setting has another name."""

    styles: Annotated[
        tuple[str, ...],
        typer.Option(
            "--style",
            help="A style of queries: keyword, question or long; repeatable. Each is a call for each passage.",
        ),
        After("per_document"),
    ] = ()


def add_to(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.add_typer(queries_app, name="queries")


@command(
    queries_app,
    "generate",
    example="msft queries generate --model sentences --collection mysearch --n 1500",
    lists=True,
)
def generate(
    context: Context,
    wanted: Wanted,
    asking: AskingOptions,
    engine_arg: EngineArg = (),
    dry_run: DryRun = False,
) -> None:
    """Make a training dataset of queries: by a chat model, or from sentences, without a model and a cost.

    Each query has the passage that it was made from as a positive, which `msft views build --positives generated` takes. It
    is never a human judgment. Run the command again to go on where it stopped. Measure on real queries alone.
    """
    from labelstore.datasets import sentences

    if wanted.model == sentences.MODEL:
        _from_sentences(context, wanted, asking, dry_run)
        return
    from teachers.generate.single import queries as job

    settings = with_engine_arguments(asking, engine_arg)
    if dry_run:
        bills = job.bills(context.store, wanted, settings, note=diagnostics.note)
        fitted.listed([bill.row() for bill in bills], context.format)
        return
    with asking_progress("generating", "passages") as progress:
        made = job.generate(context.store, wanted, settings, note=diagnostics.note, progress=progress)
    row = {
        "dataset": made.dataset,
        "passages": made.drawn,
        "queries": made.stored.queries,
        "new": made.stored.new,
        "left_out": _reasons(made.stored.drops),
        **summary(made.done.figures, made.done.cost),
    }
    fitted.listed([row], context.format)
    if (partly := made.partly_done()) is not None:
        raise partly


def _from_sentences(context: Context, wanted: Wanted, asking: AskingOptions, dry_run: bool) -> None:
    from labelstore.datasets import sentences
    from labelstore.errors import UsageError

    plain = AskingOptions()
    usual = Wanted(wanted.model)
    foreign = ["dry_run"] if dry_run else []
    foreign += [name for name in _WITH_A_MODEL if getattr(wanted, name) != getattr(usual, name)]
    foreign += [name for name in given(asking) if getattr(asking, name) != getattr(plain, name)]
    if foreign:
        options = ", ".join(f"--{_ON_THE_LINE.get(name, name).replace('_', '-')}" for name in foreign)
        raise UsageError(
            f"{options}: --model {sentences.MODEL} asks no model",
            hint=f"leave out {options}, or --model with a chat model",
        )
    made = sentences.generate(
        context.store,
        wanted.collection,
        n=wanted.n,
        name=wanted.name,
        seed=wanted.seed,
        note=diagnostics.note,
    )
    if not made.changed:
        diagnostics.note(f"{made.dataset}: nothing new, the store is as it was")
    row: dict[str, Any] = {
        "dataset": made.dataset,
        "passages": made.n_read,
        "queries": made.n_queries,
        "left_out": _reasons(made.drops, examples=False),
    }
    fitted.listed([row], context.format)


def _reasons(drops: dict[str, tuple[int, str | None]], examples: bool = True) -> str | None:
    return (
        "; ".join(
            f"{reason}: {n:,}" + (f", e.g. {example}" if examples and example else "")
            for reason, (n, example) in drops.items()
        )
        or None
    )


@dataclass(frozen=True)
class Filters:
    """The filters of `msft queries filter`; those that are given are applied."""

    leakage: Annotated[bool, "Take out queries that a test set has."] = False
    words: Annotated[str | None, "Take out queries with fewer or more words: LEAST-MOST, e.g. 3-40."] = None
    copied: Annotated[bool, "Take out queries that stand word for word in their passage."] = False
    min_log_probability: Annotated[
        float | None, "Take out queries whose tokens have a lower log-probability on average."
    ] = None
    near_duplicates: Annotated[
        float | None,
        "Take out queries as similar as this (Jaccard similarity of trigrams) to another query of the store.",
    ] = None
    round_trip: Annotated[
        int | None, "Take out queries whose passage is not among the first N passages of --run."
    ] = None
    run: Annotated[str | None, "The run of --round-trip; by default the only first stage."] = None
    reranker: Annotated[
        str | None, "Score each query with its passage: student:NAME, a Hugging Face id or a folder."
    ] = None
    top: Annotated[int | None, "Keep the N queries that --reranker scores best."] = None
    min_score: Annotated[float | None, "Keep the queries that --reranker scores at least this."] = None


@command(
    queries_app,
    "filter",
    example="msft queries filter mysearch/synthetic --words 3-40 --copied --near-duplicates 0.8",
    lists=True,
)
def filter_queries(
    context: Context,
    dataset: Annotated[str, typer.Argument(help="A dataset of generated queries.")],
    filters: Filters,
    undo: Annotated[
        tuple[str, ...], "Undo a filter by its kind, or all; repeatable. Its queries come back."
    ] = (),
) -> None:
    """Take generated queries out of their dataset, by tests that can be undone. Nothing is deleted.

    Each filter tests the queries that are left by those before it, and its result for each query stays in the store. One
    filter of each kind is active: another threshold takes the place of the one before. `msft queries show` has examples.
    """
    from labelstore.errors import UsageError
    from labelstore.generated import filter as filtering

    asked = given(filters)
    if undo and asked:
        raise UsageError(
            "--undo and a filter exclude each other", hint="give --undo alone, then filter again"
        )
    if undo:
        back = filtering.undo(context.store, dataset, undo)
        diagnostics.note(f"{dataset}: {back:,} queries are back")
        fitted.listed([{"dataset": dataset, "undone": ", ".join(undo), "back": back}], context.format)
        return
    if not asked:
        raise UsageError(
            "no filter is given", hint="--words 3-40 --copied --near-duplicates 0.8 --round-trip 20 --run RUN"
        )
    tests = _tests(context, dataset, filters)
    done = filtering.apply(context.store, dataset, tests)
    fitted.listed(
        [
            {
                "dataset": dataset,
                "filter": one.kind,
                "tested": one.n_in,
                "kept": one.n_kept,
                "left_out": one.n_in - one.n_kept,
            }
            for one in done
        ],
        context.format,
        keys=("filter",),
    )
    if not any(one.new for one in done):
        diagnostics.note("nothing new: the store is as it was")


def _tests(context: Context, dataset: str, filters: Filters) -> "list[Test]":
    """Make the filters that are given; the re-ranker scores now, while the store is closed."""
    from labelstore.errors import UsageError
    from labelstore.generated import filter as filtering
    from labelstore.generated import tests
    from labelstore.store import lookup

    if filters.run is not None and filters.round_trip is None:
        raise UsageError("--run is the run of --round-trip", hint="--round-trip 20")
    if (filters.top is not None or filters.min_score is not None) and filters.reranker is None:
        raise UsageError("--top and --min-score need a re-ranker", hint="--reranker student:NAME")
    found = []
    if filters.leakage:
        found.append(tests.leaks())
    if filters.words is not None:
        found.append(tests.length(*_bounds(filters.words)))
    if filters.copied:
        found.append(tests.copied())
    if filters.min_log_probability is not None:
        found.append(tests.log_probability(filters.min_log_probability))
    if filters.near_duplicates is not None:
        found.append(tests.duplicates(filters.near_duplicates))
    with context.store.read() as con:
        of = filtering.pick(con, dataset)
        if filters.round_trip is not None:
            found.append(tests.round_trip(lookup.pick_run(con, of, filters.run), filters.round_trip))
    if filters.reranker is not None:
        tests.check_reranker(filters.top, filters.min_score)
        from students.jobs.query_scores import query_scores

        with diagnostics.progress("scoring", unit="queries") as tick:
            scores = query_scores(context.store, dataset, filters.reranker, tick)
        found.append(tests.reranker(filters.reranker, scores, filters.top, filters.min_score))
    return found


def _bounds(words: str) -> tuple[int, int]:
    from labelstore.errors import UsageError

    least, dash, most = words.partition("-")
    if not dash or not least.isdecimal() or not most.isdecimal():
        raise UsageError(f"--words {words}: expected two numbers", hint="--words 3-40")
    return int(least), int(most)


@command(queries_app, "show", example="msft queries show mysearch/synthetic", lists=True)
def show(
    context: Context,
    dataset: Annotated[str, typer.Argument(help="A dataset of generated queries.")],
    examples: Annotated[int, "Examples of what each filter took out."] = 3,
) -> None:
    """Show the filters of generated queries, with examples of what each took out."""
    from labelstore.errors import UsageError
    from labelstore.generated import filter as filtering

    if examples < 0:
        raise UsageError(f"--examples {examples}: expected 0 or more")
    with context.store.read() as con:
        of = filtering.pick(con, dataset)
        rows = filtering.show(con, of, examples)
        (generated, kept) = filtering.counts(con, of)
    columns = (
        "filter",
        "active",
        "parameters",
        "tested",
        "kept",
        "left_out",
        "query_id",
        "query",
        "doc_id",
        "value",
        "evidence",
    )
    empty = f"{of.name} has no filters yet; make one with `msft queries filter {of.name} --words 3-40`"
    fitted.listed(rows, context.format, keys=("filter", "query_id"), columns=columns, empty=empty)
    diagnostics.note(f"{of.name}: {kept:,} of {generated:,} generated queries are in the dataset")
    diagnostics.note(
        '`msft sql "SELECT * FROM generated_queries"` has each query with its passage, call and filters'
    )
