"""`msft students`: add, list, show, rerank, calibrate, export, serve; `cli.commands.students_train` has the training."""

from pathlib import Path
from typing import Annotated, Any

import typer

from cli.command import Context, command, group
from cli.commands import students_train
from cli.output import diagnostics, fitted, render
from cli.output.render import Format
from cli.workflows.pushed import Pushed
from students.rerank.machines import Scoring

students_app = group("Students: train them, re-rank with them, export and serve them.")

STUDENT_COLUMNS = (
    "student", "base", "architecture", "regime", "max_length", "seed", "stages", "steps", "pairs", "seconds",
    "weights_hash", "licence",
)  # fmt: skip
LOGGED = ("stage", "step", "pairs", "seconds", "measure", "value")
ABOUT_CALIBRATION = {
    "ece_before": "the error of the sigmoid of the logits",
    "ece": "the error of the calibrated probabilities, on queries that they were not fitted on",
    "none_below": "if a list's best probability is below, nothing in it is relevant; empty if no bound has the precision",
}
DatasetOption = Annotated[
    str | None, typer.Option("--dataset", help="The dataset; by default the only one.", show_default=False)
]
FrameOption = Annotated[
    str,
    typer.Option(
        "--frame",
        help="A decoder's text frame: qwen3-reranker, mxbai-rerank-v2, bge-gemma, plain, or a text with {query} and"
        " {passage}; by default the one that its name says.",
        show_default=False,
    ),
]
InstructionOption = Annotated[
    str,
    typer.Option(
        "--instruction", help="Replaces the instruction of a decoder's text frame.", show_default=False
    ),
]
PrecisionOption = Annotated[
    str,
    typer.Option(
        "--precision",
        help="auto, fp32 or bf16; auto is bf16 if the hardware supports it, otherwise fp32.",
    ),
]
BackendOption = Annotated[
    str,
    typer.Option(
        "--backend",
        help="torch, openvino or onnx (on the CPU, with --precision fp32 or int8); auto is torch, and an export's own"
        " runtime for a folder without weights.",
    ),
]


def add_to(app: typer.Typer) -> None:
    """Add this module's commands."""
    students_train.add_to(students_app)
    command(students_app, "serve", example="msft students serve minilm-cl --port 8080")(serve)
    app.add_typer(students_app, name="students")


@command(students_app, "add", example="msft students add minilm --name minilm-untrained")
def add(
    context: Context,
    model: Annotated[str, typer.Argument(help="A folder, a Hugging Face id, or an alias such as minilm.")],
    name: Annotated[str | None, "The student's name; by default the last part of MODEL."] = None,
    regime: Annotated[
        str, "The regime of a model that was trained elsewhere; none if it was not trained."
    ] = "none",
    max_length: Annotated[int | None, "The most tokens per pair."] = None,
    seed: Annotated[int, "The seed of the new head, if the model has no head."] = 42,
    licence: Annotated[
        str | None, "The licence of the model; by default that of `msft students bases`."
    ] = None,
    frame: FrameOption = "",
    instruction: InstructionOption = "",
) -> None:
    """Register a model as a student: an untrained baseline, or a model that was trained elsewhere."""
    from students.jobs.register import add_student
    from students.text.frames import Framing

    student = add_student(
        context.store,
        model,
        name=name,
        regime=regime,
        max_length=max_length,
        seed=seed,
        licence=licence,
        framing=Framing(frame, instruction),
    )
    diagnostics.note(f"student {student.name}: {student.architecture}, regime {student.regime}")


@command(students_app, "bases", example="msft students bases", lists=True)
def bases(context: Context) -> None:
    """List the short names of base models: a re-ranker ranks as it is (`students add`), an encoder must be trained.

    Sizes are those of fp32 weights; GPU means that a laptop would take hours. The licence is that of the weights.
    """
    from students.model.bases import TABLE

    columns = ["base", "kind", "millions", "size_mb", "runs_on", "licence"]
    if context.format is not Format.table:
        columns.append("model")
    fitted.listed([base.row() for base in TABLE], context.format, keys=("base",), columns=columns)
    diagnostics.note("any Hugging Face id or folder works too; --format json also prints each model's id")


@command(students_app, "list", example="msft students list --format json", lists=True)
def list_students(context: Context) -> None:
    """List the students, oldest first."""
    from labelstore.store import lookup
    from students.jobs.register import student_rows

    fitted.listed(
        student_rows(context.store), context.format, keys=("student",), columns=STUDENT_COLUMNS,
        empty=lookup.none_yet("students"),
    )  # fmt: skip


@command(students_app, "show", example="msft students show minilm-cl", lists=True)
def show(
    context: Context,
    student: Annotated[str, typer.Argument(help="A student's name.")],
    log: Annotated[bool, "Show what training measured, step by step."] = False,
) -> None:
    """Show a student with a row per stage: view, loss, steps, how far the weights moved, settings."""
    from students.jobs.register import log_rows, stage_rows

    if log:
        empty = f"{student} has no training log here"
        render.rows(log_rows(context.store, student), context.format, LOGGED, empty)
    else:
        fitted.rows(
            stage_rows(context.store, student),
            context.format,
            keys=("stage",),
            about=students_train.ABOUT_STAGES,
        )


@command(
    students_app,
    "rerank",
    example="msft students rerank minilm-cl --dataset dl19 --run bm25 --depth 100",
    lists=True,
)
def rerank(
    context: Context,
    student: Annotated[str, typer.Argument(help="A student's name.")],
    dataset: DatasetOption = None,
    run: Annotated[
        str | None, "The run to re-rank, by default the only first stage; a student's run makes a cascade."
    ] = None,
    depth: Annotated[int, "Candidates per query."] = 100,
    name: Annotated[str | None, "The name of the new run; by default STUDENT@RUN."] = None,
    precision: PrecisionOption = "auto",
    replace: Annotated[bool, "Overwrite a run of the same name."] = False,
    scoring: Scoring = Scoring(),
    probabilities: Annotated[
        bool, "Also store a run with probabilities of relevance as scores, by the student's calibration."
    ] = False,
) -> None:
    """Re-rank a run with a student and store the new run; an equal run is returned without scoring again."""
    from students.jobs.rerank import rerank_run

    with diagnostics.progress(f"re-ranking with {student}", unit="pairs") as tick:
        made = rerank_run(
            context.store,
            student=student,
            dataset=dataset,
            run=run,
            depth=depth,
            name=name,
            precision=precision,
            scoring=scoring,
            replace=replace,
            progress=tick,
            note=diagnostics.note,
        )
    if probabilities:
        from students.jobs.calibrate import probability_run

        made = probability_run(context.store, made, replace=replace)
    row: dict[str, Any] = {
        "run": made.name,
        "student": student,
        "depth": made.depth,
        "queries": made.n_queries,
        "candidates": made.n_candidates,
        "content_hash": made.content_hash,
    }
    fitted.listed([row], context.format)


@command(
    students_app, "calibrate", example="msft students calibrate minilm-cl --dataset mydata/dev", lists=True
)
def calibrate(
    context: Context,
    student: Annotated[str, typer.Argument(help="A student's name.")],
    dataset: Annotated[
        str, typer.Option("--dataset", help="The judged validation queries; never a test set.")
    ],
    run: Annotated[
        str | None, "The run whose candidates are scored, by default the only first stage."
    ] = None,
    depth: Annotated[int, "Candidates per query."] = 100,
    method: Annotated[str, "platt (a logistic curve) or isotonic (steps, for many judged pairs)."] = "platt",
    relevant_from: Annotated[
        int | None, "The lowest grade that counts as relevant; by default that of the dataset's measures."
    ] = None,
    none_precision: Annotated[
        float, "The share of lists called without any relevant passage for which this must hold."
    ] = 0.9,
    precision: PrecisionOption = "auto",
) -> None:
    """Fit a map from a student's logits to probabilities of relevance, on judged validation queries.

    The order never changes. `serve` and `rerank --probabilities` apply it, exports keep it, the report shows how reliable
    it is. ECE is the mean distance of predicted probability and observed share, on queries that the map was not fitted on.
    """
    from students.jobs.calibrate import calibrate_student
    from students.jobs.evaluate import Talk

    row = calibrate_student(
        context.store,
        student,
        dataset,
        run=run,
        depth=depth,
        method=method,
        relevant_from=relevant_from,
        none_precision=none_precision,
        precision=precision,
        talk=Talk(diagnostics.note, diagnostics.warn, diagnostics.progress),
    )
    fitted.rows([row], context.format, keys=("student",), about=ABOUT_CALIBRATION)


@command(
    students_app,
    "export",
    example="msft students export minilm-cl --format int8 -o minilm-cl-int8",
    lists=False,
)
def export(
    context: Context,
    student: Annotated[str, typer.Argument(help="A student's name.")],
    folder: Annotated[
        Path | None, typer.Option("--output", "-o", help="The folder to make; may be left out with --push.")
    ] = None,
    form: Annotated[
        str,
        typer.Option(
            "--format",
            help="hf (Hugging Face folder), adapter (LoRA's alone), onnx, int8 (quantised ONNX), openvino, or"
            " openvino-int8 (quantised by NNCF).",
        ),
    ] = "hf",
    check: Annotated[
        bool, "Compare the export's scores with the student's on candidates of the store."
    ] = True,
    dataset: DatasetOption = None,
    run: Annotated[
        str | None, "The run whose candidates the check scores; by default the only first stage."
    ] = None,
    replace: Annotated[bool, "Take the place of an earlier export in that folder."] = False,
    pushed: Pushed = Pushed(),
) -> None:
    """Write a student as a new folder, with a model card that has its measures so far.

    A warning and the card name what is better if the store's evaluations say that the student is worse than its first
    stage.

    The scores of graphs (onnx, int8, openvino, openvino-int8) are compared with the student's, and their nDCG@10 if the
    dataset has judgments. openvino-int8 is calibrated on pairs of the store, of training queries if it has some.
    """
    from students.jobs.export import export_student

    with (
        pushed.folder("model", student, folder) as into,
        diagnostics.progress(f"exporting {student}", unit="pairs") as tick,
    ):
        rows = export_student(
            context.store,
            student,
            into,
            form=form,
            check=check,
            dataset=dataset,
            run=run,
            replace=replace,
            licence=pushed.licence,
            progress=tick,
            note=diagnostics.note,
            warn=diagnostics.warn,
        )
        rows[0]["folder"] = str(folder or pushed.push)
    fitted.listed(rows, Format.table)


def serve(
    context: Context,
    student: Annotated[
        list[str],
        typer.Argument(
            help="Students' names, models' folders, Hugging Face ids or teacher:NAME; requests choose one by its name, and"
            " the first answers those that name none."
        ),
    ],
    host: Annotated[str, "Address to listen on."] = "127.0.0.1",
    port: Annotated[int, "Port; 0 picks a free one."] = 8080,
    precision: PrecisionOption = "auto",
    backend: BackendOption = "auto",
    max_texts: Annotated[int, "The most texts per request."] = 1000,
    max_body: Annotated[int, "The most megabytes per request."] = 16,
    max_waiting: Annotated[
        int, "The most pairs that may wait; further requests are answered with 429."
    ] = 20_000,
    fuse: Annotated[
        str | None,
        "Fuse each score with that of this first stage, which requests bring as `scores`; the weight is fixed on"
        " validation queries.",
    ] = None,
    fuse_on: Annotated[
        str | None,
        "The dataset whose queries fix the weight; by default a dev set, or held-out training queries.",
    ] = None,
    fuse_weight: Annotated[float | None, "The student's share in --fuse, instead of fixing it."] = None,
) -> None:
    """Serve re-ranking over HTTP, for the clients of text-embeddings-inference, vLLM, Jina and Cohere.

    The routes are /rerank, /v1/rerank, /v2/rerank, /score, /info, /health and /metrics; /docs describes them. SIGHUP
    loads the models anew, and no request is lost.
    """
    from cli.workflows.served_teachers import open_teacher
    from labelstore.errors import UsageError
    from msft.host import extras
    from students.jobs.serve import Fusion, Place, serve_students

    extras.require("serve")
    from students.serve.contracts import Limits

    if fuse is None and (fuse_on is not None or fuse_weight is not None):
        raise UsageError("--fuse-on and --fuse-weight are settings of a fusion", hint="add --fuse RUN")
    serve_students(
        context.store,
        student,
        place=Place(host, port),
        precision=precision,
        backend=backend,
        limits=Limits(
            texts=max_texts, body=max_body * 1_000_000, bodies=4 * max_body * 1_000_000, waiting=max_waiting
        ),
        fusion=None if fuse is None else Fusion(fuse, fuse_on, fuse_weight),
        open_teacher=lambda name: open_teacher(context.store, name, precision),
        note=diagnostics.note,
        warn=diagnostics.warn,
    )
