"""`msft verify`, `merge`, `export-store`, `import-store`, `show lineage`, `… remove`: the upkeep of a store."""

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.command import Context, command, group
from cli.output import diagnostics, fitted, render
from cli.output.render import Format
from labelstore.errors import ExitCode

if TYPE_CHECKING:
    from labelstore.store.label_store import LabelStore
    from labelstore.upkeep.remove import Plan
    from labelstore.upkeep.verify.findings import Finding

FINDINGS = ("what", "name", "problem", "hint")
CONTRADICTIONS = ("what", "name", "here", "there", "hint")
MERGED = ("table", "there", "new", "known", "changed", "left_out")
_NAMED = ("what", "name")  # the columns that name a row

_YES = "Also remove what depends on it."
_YES_VIEWS = "Also remove what depends on it; of several views with this name, remove all."

show_app = group("Trace what is in the store.")


def add_to(app: typer.Typer) -> None:
    """Add this module's commands."""
    command(app, "verify", example="msft verify", lists=True)(verify)
    command(app, "merge", example="msft merge machine2.duckdb", lists=True)(merge)
    command(app, "export-store", example="msft export-store archive", lists=True)(export_store)
    command(app, "import-store", example="msft import-store archive --store copy.duckdb", lists=True)(
        import_store
    )
    command(app, "clean", example="msft clean --yes", lists=True)(clean)
    app.add_typer(show_app, name="show")
    _add_remove()


def _add_remove() -> None:
    """Add `remove` to the groups."""
    from cli.commands.data import data_app
    from cli.commands.negatives import negatives_app
    from cli.commands.runs import runs_app
    from cli.commands.students import students_app
    from cli.commands.teachers import teachers_app
    from cli.commands.views import views_app

    for app, kind, noun, example in (
        (data_app, "dataset", "dataset", "msft data remove scifact/dev --yes"),
        (negatives_app, "negatives", "mined negatives", "msft negatives remove hard"),
        (teachers_app, "labels", "labels", "msft teachers remove rankzephyr@bm25"),
        (views_app, "view", "view", "msft views remove cl"),
        (students_app, "student", "student", "msft students remove minilm-cl --yes"),
    ):
        command(app, "remove", example=example, lists=True)(_removing(kind, noun))
    command(runs_app, "remove", example="msft runs remove bm25 --dataset dl19", lists=True)(remove_run)


def verify(
    context: Context,
    hash_only: Annotated[
        bool, typer.Option("--hash", help="Print only the verify hash, one hash of all content.")
    ] = False,
) -> None:
    """Check every block, content key, reference, count and folder; print a row for each fault (then exit 1)."""
    from labelstore.upkeep.verify.verify import verify as check

    store = context.store
    with diagnostics.progress("verify", unit="checks") as tick:
        done = check(store, progress=tick)
    findings = done.findings + _journal(store)
    if hash_only:
        if done.hash:
            render.text(done.hash)
    else:
        rows = [{name: getattr(finding, name) for name in FINDINGS} for finding in findings]
        fitted.listed(rows, context.format, keys=_NAMED, columns=FINDINGS, empty="no faults found")
    if done.unchecked:
        diagnostics.warn(f"not checked, because of the damage: {', '.join(done.unchecked)}")
    if done.stale_evaluations:
        diagnostics.note(
            f"{done.stale_evaluations:,} evaluations are out of date, because their rankings or judgments changed:"
            " msft eval measures again"
        )
    if not hash_only and done.hash:
        _replies(store)
    diagnostics.note(f"verify hash {done.hash or 'none: the store cannot be read'}")
    if findings:
        diagnostics.warn(f"{len(findings)} findings in {store.path}")
        raise typer.Exit(ExitCode.FAILURE)
    diagnostics.note(f"{store.path} is sound")


def _replies(store: "LabelStore") -> None:
    """Name the labelings whose replies this version of msft parses differently. This is not a fault of the store."""
    from teachers.generate.stored_replies import changed_readings

    found, unknown = changed_readings(store)
    for one in found:
        diagnostics.note(
            f"{one.labeling}: {one.n_replies:,} stored replies for {one.n_queries:,} queries would be read otherwise"
            f" today: run `msft teachers reread {shlex.quote(one.labeling)}`, with --dry-run to see what changes"
        )
    if unknown:
        diagnostics.note(
            f"replies to prompts that this msft does not know were not read: {', '.join(sorted(unknown))}"
        )


def _journal(store: "LabelStore") -> "list[Finding]":
    """Find segments that wait to be merged, are damaged or were set aside. Segments still being written are fine."""
    from labelstore.upkeep.verify.findings import Finding
    from teachers.journal import segments as journal

    found = []
    for segment in journal.summary(store.files / "journal"):
        if segment["being_written"]:
            continue
        problem = f"{segment['calls']:,} calls wait to be merged into the store"
        if segment["torn_bytes"]:
            problem += f", {segment['torn_bytes']} bytes of an unfinished last line"
        if segment["damaged_lines"]:
            problem += f", {segment['damaged_lines']} lines that do not match their checksums"
        labels = segment["labels"] or "its labels"
        hint = f"the `msft teachers generate` command of {labels} merges them and goes on"
        found.append(Finding("journal", segment["segment"], problem, hint))
    for path, reasons in journal.aside(store.files / "journal"):
        more = f" (and {len(reasons) - 1:,} more lines in {path}.reason)" if len(reasons) > 1 else ""
        hint = (
            f"mend the cause, then `mv '{path}' '{path.parent.parent}'` and run any `msft teachers generate`: it merges it;"
            f" or give it up with `rm '{path}'`: its labeling's command asks again for what is not in the store"
        )
        found.append(
            Finding("journal", path.name, f"set aside, as it cannot be merged: {reasons[0]}{more}", hint)
        )
    return found


def merge(
    context: Context,
    other: Annotated[Path, typer.Argument(help="The other store's DuckDB file; it is only read.")],
    rename_suffix: Annotated[
        str | None, "A suffix for names that this store uses for other content, e.g. @machine2."
    ] = None,
) -> None:
    """Unite another store with this one. What both have is kept once; if they contradict, nothing is changed."""
    from labelstore.store.label_store import LabelStore
    from labelstore.upkeep.merge.job import Contradictory
    from labelstore.upkeep.merge.job import merge_stores as unite

    theirs = LabelStore(other)
    waiting = sorted((theirs.files / "journal").glob("*.calls"))
    if waiting:
        diagnostics.warn(
            f"{len(waiting)} journal segments of {other} are not in that store yet: run its `msft teachers generate`"
            " command first, then merge"
        )
    try:
        done = unite(context.store, theirs, rename_suffix=rename_suffix, note=diagnostics.warn)
    except Contradictory as error:
        rows = [{name: getattr(found, name) for name in CONTRADICTIONS} for found in error.contradictions]
        fitted.listed(rows, context.format, keys=_NAMED, columns=CONTRADICTIONS)
        raise
    for what, there, here in done.renamed:
        diagnostics.note(f"{what} {there} is stored as {here}")
    rows = [
        {
            "table": taken.table,
            "there": taken.there,
            "new": taken.new,
            "known": taken.there - taken.new - taken.stale,
            "changed": taken.changed,
            "left_out": taken.stale,
        }
        for taken in done.taken
        if taken.there
    ]
    fitted.listed(rows, context.format, columns=MERGED)
    if done.folders:
        diagnostics.note(f"{done.folders} folders of views and students copied")
    diagnostics.note("merged" if done.new else "nothing new: the store is unchanged")


def export_store(
    context: Context,
    folder: Annotated[Path, typer.Argument(help="A new folder for the Parquet files.")],
) -> None:
    """Write the store as Parquet that any engine reads, with its views, students and waiting journal segments."""
    from labelstore.upkeep.archive import export_store as write

    with diagnostics.progress("export", unit="tables") as tick:
        done = write(context.store, folder, progress=tick)
    _archived(
        context, done.rows, f"{folder}: {done.companions} companion folders and files", done.verify_hash
    )


def import_store(
    context: Context,
    folder: Annotated[Path, typer.Argument(help="A folder that `msft export-store` made.")],
) -> None:
    """Make a new store (--store) from an archive; `msft merge` then unites it with an existing one."""
    from labelstore.upkeep.archive import import_store as read

    with diagnostics.progress("import", unit="tables") as tick:
        done = read(folder, context.store, progress=tick)
    _archived(context, done.rows, f"{context.store_path}: made from {folder}", done.verify_hash)


def _archived(context: Context, counts: dict[str, int], said: str, verify_hash: str) -> None:
    rows: list[dict[str, Any]] = [{"table": table, "rows": n} for table, n in counts.items()]
    render.rows(rows, context.format, ("table", "rows"))
    diagnostics.note(said)
    diagnostics.note(f"verify hash {verify_hash}")


@command(show_app, "lineage", example="msft show lineage electra-cl-kd", lists=True)
def show_lineage(
    context: Context,
    student: Annotated[str, typer.Argument(help="The student's name.")],
) -> None:
    """Show what a student was made from: evaluations, stages, views, sources, teacher, model revision and prompt."""
    from labelstore.provenance import lineage

    with context.store.read() as con:
        root = lineage.lineage(con, student)
    if context.format is Format.table:
        render.text(lineage.text(root))
    else:
        render.rows(lineage.rows(root), context.format, lineage.COLUMNS)


def clean(
    context: Context,
    yes: Annotated[
        bool,
        typer.Option("--yes", help="Also remove interrupted trainings, and views that a killed build left."),
    ] = False,
) -> None:
    """Remove what killed and interrupted work left beside the store; `msft status --stale` lists it."""
    from labelstore.upkeep import stale

    found = stale.stale(context.store)
    rows = []
    for left in found:
        row = left.row()
        if yes or not left.careful:
            stale.remove(left)
            row["becomes"] = "removed"
        rows.append(row)
    fitted.listed(rows, context.format, keys=_NAMED, columns=stale.COLUMNS, empty="nothing was left")
    if not yes and any(left.careful for left in found):
        diagnostics.note("what a training could continue stays; msft clean --yes removes it too")


def _removing(kind: str, noun: str) -> Callable[..., None]:
    """Make the command that removes things of a kind."""

    is_view = kind == "view"

    def remove(
        context: Context,
        name: Annotated[
            str,
            typer.Argument(help=f"The name of the {noun}" + (", or its hash." if is_view else ".")),
        ],
        yes: Annotated[bool, typer.Option("--yes", help=_YES_VIEWS if is_view else _YES)] = False,
    ) -> None:
        _remove(context, _what(kind, context, name), name, yes)

    remove.__doc__ = (
        f"Remove {'a ' if noun[-1] != 's' else ''}{noun}; without --yes only if nothing depends on "
        f"{'it' if noun[-1] != 's' else 'them'}{' and no other view has its name' if is_view else ''}."
    )
    return remove


# What a command removes instead if only that has the name: kind -> (its table, the other table, the other kind).
_INSTEAD = {
    "labels": ("labelings", "judgings", "judging"),
    "negatives": ("minings", "checkings", "verdicts"),
}


def _what(kind: str, context: Context, name: str) -> str:
    """Return the other kind of :data:`_INSTEAD` if only that has the name."""
    if kind not in _INSTEAD:
        return kind
    own, other, instead = _INSTEAD[kind]
    with context.store.read() as con:
        held = [
            con.execute(f"SELECT 1 FROM {table} WHERE name = ?", [name]).fetchall() for table in (own, other)
        ]
    return instead if held[1] and not held[0] else kind


def remove_run(
    context: Context,
    name: Annotated[str, typer.Argument(help="The name of the run.")],
    dataset: Annotated[
        str | None,
        typer.Option("--dataset", help="The run's dataset; by default the only one with such a run."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help=_YES)] = False,
) -> None:
    """Remove a run; without --yes only if nothing depends on it."""
    _remove(context, "run", name, yes, dataset)


def _remove(context: Context, kind: str, name: str, yes: bool, dataset: str | None = None) -> None:
    from labelstore.errors import UsageError
    from labelstore.upkeep import remove as removing
    from teachers.journal import segments as journal

    planned = removing.plan(context.store, kind, name, dataset)
    _warn_of_folders(planned)
    if planned.namesakes:
        _tell_of_namesakes(context, name, planned, yes)
    if planned.dependents and not yes:
        _print_affected(context, planned)
        raise UsageError(
            f"{kind} {name}: {len(planned.dependents)} other things depend on it; nothing was removed",
            hint="read the rows above, then give the command with --yes",
        )
    waiting = {row["labels"] for row in journal.summary(context.store.files / "journal")}
    done = removing.remove(context.store, kind, name, planned, dataset, waiting)
    _print_affected(context, done)
    if done.labelings and _holds_calls(context):
        diagnostics.note("calls that stay are used again if the same labels are generated")
    for removed in done.folders:
        diagnostics.detail(f"folder {context.store.files / removed.folder} removed")


def _tell_of_namesakes(context: Context, name: str, planned: "Plan", yes: bool) -> None:
    """Say that several views have the name, and which.

    Raises:
        UsageError: they are not to be removed all.
    """
    from labelstore.errors import UsageError

    found = f"{len(planned.namesakes)} views are named {name}"
    if yes:
        diagnostics.note(f"{found}, all are removed: {', '.join(planned.namesakes)}")
        return
    _print_affected(context, planned)
    raise UsageError(
        f"{found}; nothing was removed",
        hint="--yes removes all; `msft views remove HASH` removes one, and `msft views list` tells them apart: "
        + " | ".join(planned.namesakes[:8]),
    )


def _print_affected(context: Context, of: "Plan") -> None:
    from labelstore.upkeep import remove as removing

    rows = [row._asdict() for row in of.affected]
    fitted.listed(rows, context.format, keys=_NAMED, columns=removing.COLUMNS)


def _holds_calls(context: Context) -> bool:
    with context.store.read() as con:
        return bool(con.execute("SELECT 1 FROM calls LIMIT 1").fetchall())


def _warn_of_folders(planned: "Plan") -> None:
    for reason in planned.left:
        diagnostics.warn(f"{reason}; the folder is left as it is")
