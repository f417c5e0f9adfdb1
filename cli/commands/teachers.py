"""`msft teachers`: import, list, combine, compare and export LLM rankings."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.command import Context, command, group
from cli.commands.from_documents.judge import add_to_teachers
from cli.commands.teachers_generate import BaseUrls, add_generate, asking_progress
from cli.output import diagnostics, fitted, render
from cli.output.render import Format
from cli.workflows.pushed import Pushed
from labelstore.errors import UsageError
from labelstore.labels.currency import CURRENCY

if TYPE_CHECKING:
    from teachers.generate.job import Labelled

teachers_app = group(
    help="Labels of LLM teachers: list, generate, combine, compare, import, reread, show, export."
)
add_generate(teachers_app)
add_to_teachers(teachers_app)

_LAYOUTS = (
    "permutations, trec, parquet, rankgpt, rankllm, replies or conversations; by default told by the file."
)


LISTED = (
    "labeling", "teacher", "first_stage", "dataset", "strategy", "depth", "reliable_depth", "lists", "ok", "repaired",
    "quarantined", "repairs", "calls", "licence",
)  # fmt: skip
# The columns of the formats for people; json and csv have all columns.
COMPARED = (
    "labeling", "first_stage", "value", "ci95_low", "ci95_high", "gain", "difference", "ci90_low", "ci90_high", "p_holm",
    "verdict", "tau", "position_bias", "calls", "tokens_in", "tokens_out", "cost", "currency", "seconds_per_query", "cost_per_point",
)  # fmt: skip
ABOUT_COMPARED = {
    "value": "the mean of the measure, with its 95 % interval",
    "gain": "what the value has over the first stage",
    "difference": "the value minus the baseline's, with its 90 % interval",
    "p_holm": "of the difference, Holm-corrected",
    "tau": "Kendall's tau with the baseline's order",
    "cost_per_point": "the cost of .01 of the measure over the first stage",
}


def add_to(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.add_typer(teachers_app, name="teachers")


@command(teachers_app, "list", example="msft teachers list", lists=True)
def list_teachers(
    context: Context,
    dataset: Annotated[str | None, "List only the labelings of this dataset."] = None,
    registry: Annotated[
        bool, typer.Option(help="List only the teachers that --model knows by name.")
    ] = False,
) -> None:
    """List the labelings of the store, and the teachers that --model knows by name."""
    rows, none = [], None
    if not registry and (context.store.exists or dataset is not None):
        from labelstore.labels import quality as label_quality
        from labelstore.store import lookup

        with context.store.read() as con:
            dataset = lookup.dataset(con, dataset).name if dataset else None
            none = lookup.none_yet("labels", dataset or "")
            rows = label_quality.labelings(con, dataset)
            judgings = [name for (name,) in con.execute("SELECT name FROM judgings ORDER BY name").fetchall()]
        if judgings:
            diagnostics.note(f"judgings of LLMs: {', '.join(judgings)}; see `msft teachers agreement NAME`")
    if rows or (dataset is not None and not registry):
        fitted.listed(rows, context.format, keys=("labeling",), columns=LISTED, empty=none)
        diagnostics.note("`msft teachers list --registry` shows what --model knows by name")
        return
    from teachers import models

    if none is not None:
        diagnostics.note(f"{none}; the teachers below are those that --model knows by name")
    fitted.listed(
        [
            {
                "teacher": t.name,
                "model": t.model,
                "prompt": t.prompt,
                "scoring": t.scoring,
                "context": t.context,
                "window": t.window,
                "engine": t.engine,
                "input_price": t.input_price,
                "output_price": t.output_price,
                "currency": None if t.input_price is None else CURRENCY,
                "licence": t.licence,
                "note": t.note,
            }
            for t in models.REGISTRY.values()
        ],
        context.format,
        keys=("teacher",),
    )


@command(teachers_app, "show", example="msft teachers show rankzephyr@bm25", lists=True)
def show_labels(
    context: Context,
    labels: Annotated[str, typer.Argument(help="A labeling; `msft teachers list` names them.")],
) -> None:
    """Show a labeling: origin, statuses, repairs, position bias, agreement, tokens, cost and quarantine."""
    from labelstore.labels import quality as label_quality

    with context.store.read() as con:
        rows = label_quality.show(con, labels)
    fitted.listed(rows, context.format, keys=("topic", "name"))
    diagnostics.note("`msft sql @label_quality`, @agreement and @position_bias compare labelings")


@command(teachers_app, "export", example="msft teachers export rankzephyr@bm25 -o labels.jsonl.gz")
def export_labels(
    context: Context,
    labels: Annotated[str, typer.Argument(help="A labeling; `msft teachers list` names them.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The file to write; by default stdout.")
    ] = None,
    layout: Annotated[str | None, _LAYOUTS] = None,
    prompt: Annotated[
        str, "The prompt that shows the passages, for --layout conversations."
    ] = "rankzephyr-train-variable",
    pushed: Pushed = Pushed(),
) -> None:
    """Export a labeling: permutations, TREC run, Parquet (Hugging Face), RankGPT, RankLLM or conversations.

    --push uploads Parquet with a card as a dataset of the Hugging Face Hub.
    """
    import io

    from teachers.generate.label_files import export_labels as export
    from teachers.generate.label_files import write_dataset

    if pushed.push is not None:
        if out is not None or layout not in (None, "parquet"):
            raise UsageError(
                "--push uploads Parquet, and writes no file", hint="leave --out and --layout out"
            )
        with pushed.folder("dataset", labels, None) as folder:
            write_dataset(context.store, labels, folder, licence=pushed.licence)
        return

    buffer = io.StringIO()
    n, written = export(context.store, labels, out, layout=layout, prompt=prompt, stdout=buffer)
    if out is None:
        render.text(buffer.getvalue())
    diagnostics.note(f"{labels}: {n} lists to {', '.join(map(str, written)) or 'stdout'}")


@command(teachers_app, "reread", example="msft teachers reread rankzephyr@bm25 --dry-run", lists=True)
def reread_labels(
    context: Context,
    labels: Annotated[str, typer.Argument(help="A labeling; `msft teachers list` names them.")],
    dry_run: Annotated[bool, "Say what would change; write nothing."] = False,
) -> None:
    """Read a labeling's stored replies with today's parser, and make its orders anew where they say something else.

    Replies stay as they are. Labelings that share these replies change with it. Killed at any point, it has changed all or
    nothing.
    """
    from teachers.generate.reread import reread

    done = reread(context.store, labels, dry_run=dry_run)
    diagnostics.note(
        f"{labels}: {done.n_read:,} stored replies read, {len(done.changes):,} of them otherwise"
    )
    for how, n in done.statuses.items():
        diagnostics.note(f"  {n:,} from {how}")
    fitted.listed(
        [{"labeling": name, **counts} for name, counts in done.labelings.items()],
        context.format,
        keys=("labeling",),
        columns=("labeling", "changed", "new", "quarantined", "to_ask", "same"),
    )
    if not done.changes:
        diagnostics.note("nothing to change: the store is as it was")
    elif dry_run:
        diagnostics.note("nothing was written; the same command without --dry-run does it")
    elif (partly := done.partly_done()) is not None:
        raise partly


@dataclass(frozen=True)
class Import:
    """The options of `msft teachers import`, beside the file."""

    dataset: Annotated[str | None, "The dataset whose queries are labelled; by default the only one."] = None
    model: Annotated[str | None, "The teacher, if the file does not name it; it replaces a TREC tag."] = None
    layout: Annotated[str | None, _LAYOUTS] = None
    name: Annotated[
        str | None, "The labeling's name, if the file has one labeling; by default TEACHER@FIRST_STAGE."
    ] = None
    run: Annotated[str | None, "The run that was labelled; its ranks are the initial ranks."] = None
    first_stage: Annotated[
        str | None, "The name of the labelled run, if neither the file nor the store has it."
    ] = None
    replies: Annotated[Path | None, "RankGPT's second file: the JSON list of permutation strings."] = None
    with_texts: Annotated[bool, "Take queries and passages that the store lacks from the file."] = False
    licence: Annotated[str | None, "The licence of the labels."] = None
    replace: Annotated[bool, "Let new orders replace those of the same labeling."] = False


@command(
    teachers_app,
    "import",
    example="msft teachers import permutations.jsonl.gz --dataset dl19",
    lists=True,
)
def import_labels(
    context: Context,
    file: Annotated[Path, typer.Argument(help="A file of labels, plain, .gz or .zst.")],
    options: Import,
) -> None:
    """Import labels: permutations, TREC runs, RankGPT's pair of files, RankLLM's results, raw replies …

    A list that cannot be used goes to quarantine with its reason. Importing the same file again changes nothing.
    """
    from labelstore.errors import PartlyDone
    from teachers.generate.label_files import import_labels as take

    with diagnostics.progress("reading", unit="lists") as tick:
        done = take(context.store, file, progress=tick, **vars(options))
    kept = done.n_read - done.n_refused
    diagnostics.note(
        f"{file.name} ({done.layout}) for {done.dataset}: {done.n_read} lists read, {kept} kept"
        f" ({sum(x.n_new for x in done.labelings)} new), {done.n_refused} refused"
    )
    for what, drops in (("lists refused", done.drops), ("passages dropped", done.passage_drops)):
        for reason, (n, example) in drops.items():
            diagnostics.note(f"  {what}: {n} {reason}, e.g. {example}")
    if done.n_not_held:
        diagnostics.note(
            f"  {done.n_not_held} passages have no text yet: views leave them out until the collection is added"
        )
    for line in done.notes:
        diagnostics.note(f"  {line}")
    if not done.changed:
        diagnostics.note("nothing new: the store is unchanged")
    fitted.listed(
        [
            {
                "labeling": x.name,
                "teacher": x.teacher,
                "first_stage": x.first_stage,
                "lists": x.n_lists,
                "new": x.n_new,
                "repaired": x.n_repaired,
                "quarantined": x.n_quarantined,
                "depth": x.depth,
            }
            for x in done.labelings
        ],
        context.format,
        keys=("labeling",),
    )
    if done.n_faulty:
        raise PartlyDone(
            f"{done.n_faulty} of {done.n_read} lists could not be used",
            hint=f"msft teachers show {done.labelings[0].name} lists them with their reasons",
        )


@dataclass(frozen=True)
class Combine:
    """How labelings are combined."""

    by: Annotated[
        str, "How: borda or median (of ranks), rrf (reciprocal ranks) or mean-score (of scores)."
    ] = "borda"
    name: Annotated[str | None, "The new labeling's name; by default BY@FIRST_STAGE."] = None
    refine: Annotated[
        str | None,
        "A cascade: this teacher (as in `generate --model`), or its labeling, orders the heads of the one labeling given.",
    ] = None
    top: Annotated[int, "How many passages of each list --refine orders."] = 10
    engine: Annotated[str | None, "The engine of --refine, as in `generate`."] = None
    base_urls: BaseUrls = ()


@dataclass(frozen=True)
class Compare:
    """What is compared."""

    dataset: Annotated[str | None, "The dataset; by default the labelings' own, or the only one."] = None
    measure: Annotated[str | None, "A measure in ir-measures' names; by default the dataset's first one."] = (
        None
    )
    baseline: Annotated[
        str | None,
        "The labeling that the verdicts are against; by default the best one that is not combined.",
    ] = None
    margin: Annotated[
        float, "The largest difference that counts as equal; declare it before you see the results."
    ] = 0.01


@command(
    teachers_app,
    "combine",
    example="msft teachers combine rankzephyr@bm25 minilm@bm25 --by rrf --name both",
    lists=True,
)
def combine(
    context: Context,
    labels: Annotated[
        list[str], typer.Argument(help="Labelings of one run; `msft teachers list` names them.")
    ],
    options: Combine,
) -> None:
    """Combine labelings of one run into a new labeling; its calls and its cost are those of its parts.

    Scores are scaled within a query before they are averaged. The same command again makes it anew from what its parts hold.
    With --refine a strong teacher is asked for the first passages of each list alone, and the rest keeps the cheap order.
    """
    from labelstore.labels.combine import CASCADE
    from labelstore.labels.combine import combine as together

    by, name = options.by, options.name
    if options.refine is not None:
        labels = [*labels, _heads(context, labels, options)]
        by, name = CASCADE, name or f"{labels[1]}+{labels[0]}"
    done = together(context.store, labels, by=by, name=name, note=diagnostics.note)
    row = {
        "labeling": done.name,
        "by": done.by,
        "parts": len(done.parts),
        "lists": done.lists,
        "new": done.stored.new,
        "replaced": done.stored.replaced,
        "left_out": done.left_out,
        "disagreement": done.disagreement,
    }
    fitted.listed([row], context.format)
    diagnostics.note(f"`msft teachers compare {done.name} {done.parts[0]}` compares it with a part")


def _heads(context: Context, labels: list[str], options: Combine) -> str:
    """Return the labeling of the heads that --refine asks for, and say what the cascade saved.

    Raises:
        UsageError: not exactly one labeling is refined, or --by is given too.
    """
    from cli.workflows import cascade
    from labelstore.errors import UsageError
    from teachers.generate.settings import Settings

    if len(labels) != 1:
        raise UsageError(
            f"--refine orders the heads of one labeling, and {len(labels)} are given",
            hint="combine them first, and give --refine the combined one",
        )
    if options.by != Combine.by:
        raise UsageError("--refine is a way to combine, and --by names another", hint="leave one of them out")
    cheap = labels[0]

    def ask(model: str) -> "Labelled":
        from teachers.generate.job import generate

        settings = Settings(
            model=model, head_of=cheap, depth=options.top, engine=options.engine, base_urls=options.base_urls
        )
        with asking_progress(f"{model} over the heads", "queries") as progress:
            return generate(context.store, settings, note=diagnostics.note, progress=progress)

    head = cascade.head_labels(context.store, cheap, str(options.refine), ask)
    saved = cascade.saved(context.store, cheap, head)
    if saved is not None:
        diagnostics.note(f"{head}: {saved}")
    return head


@command(teachers_app, "compare", example="msft teachers compare rankzephyr@bm25 minilm@bm25", lists=True)
def compare(
    context: Context,
    labels: Annotated[
        list[str] | None,
        typer.Argument(help="Labelings of one dataset; by default all of them.", show_default=False),
    ] = None,
    options: Compare = Compare(),
) -> None:
    """Compare labelings on judged queries: quality, verdicts, agreement, position bias, calls, tokens and cost.

    Verdicts are those of `msft compare`, Holm-corrected, against one baseline. `gain` is over the first stage; `tau` is
    Kendall's tau with the baseline's order. Calls, tokens, cost and seconds are those of the judged queries, and
    `cost_per_point` is the cost of one hundredth of the measure over the first stage.
    """
    from labelstore.evaluation import teachers

    rows = teachers.compare(context.store, labels or None, **vars(options), note=diagnostics.note)
    if context.format in (Format.table, Format.md):
        told = [{name: row[name] for name in COMPARED} for row in rows]
        fitted.rows(told, context.format, keys=("labeling",), about=ABOUT_COMPARED)
    else:
        for_people = context.format not in (Format.json, Format.csv)
        render.rows(rows, context.format, COMPARED if for_people else None)
    first = rows[0]
    diagnostics.note(
        f"{first['dataset']}, {first['measure']} over {first['n_queries']} judged queries, baseline {first['baseline']},"
        f" margin {options.margin:g}"
    )
