"""`msft`: the command line. Each module adds its commands; heavy imports wait until one of them runs."""

import sys

import typer

from cli import diagnostics

app = typer.Typer(
    name="msft",
    help="Train and test re-rankers from human judgments and LLM labels, around one DuckDB store.",
    epilog="Example: msft demo",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
)


def _assemble() -> None:
    from cli import compare, data, evaluate, report, retrieve, store_upkeep, students, teachers, views
    from cli import store as store_commands
    from cli.workflows import demo, reproduce

    for module in (
        demo,
        data,
        retrieve,
        teachers,
        views,
        students,
        evaluate,
        compare,
        reproduce,
        report,
        store_commands,
        store_upkeep,
    ):
        module.add_to(app)


def run(arguments: list[str] | None = None) -> None:
    """Run a command and exit with its code."""
    try:
        code = app(args=arguments, prog_name="msft", standalone_mode=False)
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - the one place that turns errors into codes
        diagnostics.fail(error)
    raise SystemExit(code if isinstance(code, int) else 0)


_assemble()


def main() -> None:
    """Entry point of the console script: a process of its own.

    Where scikit-learn is installed transformers imports it, with pandas, for text generation that no command uses: a
    third of the time in which a command that loads a model starts. So it is not there for this process.
    """
    sys.modules.setdefault("sklearn", None)  # type: ignore[arg-type]
    run(sys.argv[1:])


if __name__ == "__main__":
    main()
