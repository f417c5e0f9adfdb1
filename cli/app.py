"""The root of the command tree; `cli.main` adds the commands to it."""

from importlib import metadata
from typing import Annotated, Any

import typer
from typer.core import TyperGroup


class HelpByDefault(TyperGroup):
    """A group that shows its help when it is called without a command: exit code 0, on stdout."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, args or ["--help"])

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command. A command of a group that is named alone (`msft serve`) is told with its group."""
        groups = [] if args[0] in self.commands else self.commands.items()
        if full := [
            f"'{name} {args[0]}'" for name, group in groups if args[0] in getattr(group, "commands", ())
        ]:
            ctx.fail(f"No such command '{args[0]}'. Did you mean {' or '.join(full)}?")
        return super().resolve_command(ctx, args)


app = typer.Typer(
    cls=HelpByDefault,
    name="msft",
    help="Train and test re-rankers from human judgments and LLM labels, around one DuckDB store.",
    epilog="Example: msft demo",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"msft {metadata.version('msft')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    pass
