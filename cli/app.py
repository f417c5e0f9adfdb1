"""The root of the command tree; `cli.main` adds the commands to it."""

from typing import Any

import typer
from typer.core import TyperGroup


class HelpByDefault(TyperGroup):
    """A group that shows its help when it is called without a command: exit code 0, on stdout."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, args or ["--help"])


app = typer.Typer(
    cls=HelpByDefault,
    name="msft",
    help="Train and test re-rankers from human judgments and LLM labels, around one DuckDB store.",
    epilog="Example: msft demo",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
)
