"""The root of the command tree; `cli.main` adds the commands to it."""

import typer

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
