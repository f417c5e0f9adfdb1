"""`msft teachers generate`: label a run with a teacher."""

import json
import os
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.command import Context, command
from cli.output import diagnostics, render

if TYPE_CHECKING:
    from teachers.generate.job import Labelled
    from teachers.scheduling.figures import Figures

_EXAMPLE = "msft teachers generate --model rankzephyr --dataset dl19 --run bm25 --dry-run"


def add_generate(app: typer.Typer) -> None:
    """Add `generate` to the group of teachers' commands."""

    @command(app, "generate", example=_EXAMPLE, lists=True)
    def generate(
        context: Context,
        model: Annotated[
            str, typer.Option(help="Registry name, Hugging Face id, folder, student:NAME or minilm.")
        ],
        dataset: Annotated[str | None, typer.Option(help="Whose queries; the only one by default.")] = None,
        run: Annotated[
            str | None, typer.Option(help="Whose candidates; the only first stage by default.")
        ] = None,
        depth: Annotated[int, typer.Option(help="Candidates per query.")] = 100,
        strategy: Annotated[
            str | None, typer.Option(help="sliding (default), single, full, top-down, tournament.")
        ] = None,
        window: Annotated[int | None, typer.Option(help="Passages per call; the model's by default.")] = None,
        stride: Annotated[int | None, typer.Option(help="How far a sliding window moves.")] = None,
        passes: Annotated[int | None, typer.Option(help="Passes of a sliding window.")] = None,
        pivot: Annotated[int | None, typer.Option(help="Rank of top-down's pivot.")] = None,
        keep: Annotated[int | None, typer.Option(help="How many of a tournament's group go on.")] = None,
        samples: Annotated[
            int, typer.Option(help="Self-consistency: shuffled orders per query, merged.")
        ] = 1,
        seed: Annotated[int, typer.Option(help="Of shuffled orders and of sampling.")] = 0,
        engine: Annotated[
            str | None, typer.Option(help="vllm, openai, ray, cross-encoder, bi-encoder.")
        ] = None,
        base_url: Annotated[
            list[str] | None, typer.Option(help="An OpenAI-compatible server; repeat it for several.")
        ] = None,
        engine_arg: Annotated[
            list[str] | None, typer.Option(help="KEY=VALUE for vllm.LLM, e.g. tensor_parallel_size=2.")
        ] = None,
        workers: Annotated[int, typer.Option(help="Workers of --engine ray.")] = 2,
        max_in_flight: Annotated[
            int | None, typer.Option(help="Requests at once: vLLM's batch, or per server.")
        ] = None,
        timeout: Annotated[float, typer.Option(help="Seconds that a server may take for a reply.")] = 300.0,
        tokenizer: Annotated[
            str | None, typer.Option(help="Of a server's model, for exact token counts: folder or id.")
        ] = None,
        limit: Annotated[int | None, typer.Option(help="Only the first N queries.")] = None,
        dry_run: Annotated[
            bool, typer.Option("--dry-run", help="Forecast calls, tokens, cost and time; ask nothing.")
        ] = False,
        max_calls: Annotated[int | None, typer.Option(help="Stop before more calls than this.")] = None,
        max_tokens: Annotated[
            int | None, typer.Option(help="Stop before more tokens than this, in and out.")
        ] = None,
        max_cost: Annotated[float | None, typer.Option(help="Stop before it costs more than this.")] = None,
        input_price: Annotated[
            float | None, typer.Option(help="Per million input tokens, over the registry's.")
        ] = None,
        output_price: Annotated[float | None, typer.Option(help="Per million output tokens.")] = None,
        max_attempts: Annotated[
            int, typer.Option(help="Tries per call before its query is quarantined.")
        ] = 3,
        retry_quarantined: Annotated[
            bool, typer.Option("--retry-quarantined", help="Try quarantined queries again.")
        ] = False,
        name: Annotated[str | None, typer.Option(help="Of the labeling; TEACHER@RUN by default.")] = None,
        prompt: Annotated[
            str | None, typer.Option(help="A registered prompt, NAME@VERSION, over the model's.")
        ] = None,
        context_tokens: Annotated[
            int | None, typer.Option("--context", help="Tokens of prompt and reply together.")
        ] = None,
        temperature: Annotated[float, typer.Option(help="0: greedy.")] = 0.0,
        constrained: Annotated[
            bool | None,
            typer.Option(
                "--constrained/--free",
                help="Allow only unused identifiers and the separator; the default of vllm and ray.",
                show_default=False,
            ),
        ] = None,
        top: Annotated[
            int | None, typer.Option(help="Constrained, and each reply ends after the best N identifiers.")
        ] = None,
        logprobs: Annotated[
            bool, typer.Option("--logprobs", help="Keep identifiers' log-probabilities as scores.")
        ] = False,
        fuse: Annotated[
            bool,
            typer.Option("--fuse", help="Fuse a scoring model's order with the run's, by reciprocal ranks."),
        ] = False,
        canaries: Annotated[
            int, typer.Option(help="Calls repeated at each start to notice a changed model; 0: none.")
        ] = 3,
    ) -> None:
        """Label a run's candidates with a teacher; run it again to go on where it stopped."""
        from teachers.generate.job import generate as label
        from teachers.generate.plan import Settings

        settings = Settings(
            model=model,
            dataset=dataset,
            run=run,
            depth=depth,
            strategy=strategy,
            window=window,
            stride=stride,
            passes=passes,
            pivot=pivot,
            keep=keep,
            samples=samples,
            seed=seed,
            engine=engine,
            base_urls=tuple(base_url or ()),
            engine_arguments=_engine_arguments(engine_arg or []),
            workers=workers,
            max_in_flight=max_in_flight,
            timeout=timeout,
            tokenizer=tokenizer,
            limit=limit,
            max_calls=max_calls,
            max_tokens=max_tokens,
            max_cost=max_cost,
            max_attempts=max_attempts,
            retry_quarantined=retry_quarantined,
            name=name,
            prompt=prompt,
            context=context_tokens,
            input_price=input_price,
            output_price=output_price,
            temperature=temperature,
            constrained=constrained,
            top=top,
            logprobs=logprobs,
            fuse=fuse,
            canaries=canaries,
        )
        if dry_run:
            from teachers.generate.dry_run import forecast

            render.rows([forecast(context.store, settings, note=diagnostics.note).row()], context.format)
            return
        _tell_of_padded_keys()
        with diagnostics.progress("labelling", unit="queries") as bar:

            def progress(done: int, total: int, figures: "Figures", cost: float | None) -> None:
                bar(done, total, **_shown(figures, cost))

            result = label(context.store, settings, note=diagnostics.note, progress=progress)
        render.rows([summary(result)], context.format)
        raise_if_left(result)


def _tell_of_padded_keys() -> None:
    for name in ("MSFT_API_KEY", "OPENAI_API_KEY"):
        value = os.environ.get(name, "")
        if value != value.strip():
            diagnostics.warn(f"{name} begins or ends with white space or a line break: it is sent without")


def _shown(figures: "Figures", cost: float | None) -> dict[str, object]:
    """The progress line's figures; those that are zero stay away, save for the calls."""
    always: dict[str, object] = {"calls": figures.calls}
    sometimes: dict[str, object] = {
        "resumed": figures.resumed,
        "repaired": figures.repaired,
        "retried": figures.retried,
        "quarantined": figures.quarantined,
    }
    shown = always | {key: value for key, value in sometimes.items() if value}
    shown["tokens/s"] = round(figures.tokens_per_second)
    if cost is not None:
        shown["spent"] = cost
    return shown


def summary(result: "Labelled") -> dict[str, Any]:
    """The one row that a job prints."""
    figures = result.figures
    return {
        "labels": result.plan.name,
        "queries": result.queries,
        "labelled": result.labelled,
        "quarantined": result.quarantined,
        "left": result.left,
        "calls": figures.calls,
        "resumed": figures.resumed,
        "repaired": figures.repaired,
        "retried": figures.retried,
        "tokens_in": figures.tokens_in,
        "tokens_out": figures.tokens_out,
        "cost": result.cost,
        "seconds": round(figures.seconds, 2),
        "tokens_per_second": round(figures.tokens_per_second, 1),
        "occupancy": round(figures.occupancy, 3),
        "overhead_share": round(figures.overhead_share, 4),
        "drifted": result.drifted,
        "stopped_by": figures.stopped,
    }


def raise_if_left(result: "Labelled") -> None:
    """End with code 6 where queries are left without labels.

    Raises:
        PartlyDone: then.
    """
    error = result.partly_done()
    if error is not None:
        raise error


def _engine_arguments(given: list[str]) -> dict[str, Any]:
    """KEY=VALUE pairs; values read as JSON where they are (2, 0.5, true), as text otherwise.

    Raises:
        UsageError: for one without ``=``.
    """
    from labelstore.errors import UsageError

    arguments: dict[str, Any] = {}
    for pair in given:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise UsageError(
                f"--engine-arg {pair!r} is not KEY=VALUE", hint="--engine-arg tensor_parallel_size=2"
            )
        try:
            arguments[key] = json.loads(value)
        except ValueError:
            arguments[key] = value
    return arguments
