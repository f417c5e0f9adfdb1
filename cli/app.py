"""The root of the command tree; `cli.main` adds the commands to it."""

import difflib
import functools
from importlib import metadata
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_command


class HelpByDefault(TyperGroup):
    """A group that shows its help when it is called without a command: exit code 0, on stdout."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, args or ["--help"])

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command; an unknown one is told with what is meant.

        That is a command of a group that is named alone (`msft serve` for `students serve`), or a similar name. Typer's
        own message already has the similar names of this group. Shell completion gets no message.
        """
        if ctx.resilient_parsing:
            return super().resolve_command(ctx, args)
        if full := self._meant(args[0]):
            quoted = [f"'{name}'" for name in full]
            ctx.fail(f"No such command '{args[0]}'. Did you mean {' or '.join(quoted)}?")
        return super().resolve_command(ctx, args)

    def _meant(self, word: str) -> list[str]:
        """Name the groups' commands with this name, or with a similar one if no command here has a similar name."""
        if word in self.commands:
            return []
        groups = {name: list(getattr(group, "commands", ())) for name, group in self.commands.items()}
        inside = {command for commands in groups.values() for command in commands}
        names = [word] if word in inside else difflib.get_close_matches(word, sorted(inside))
        if word not in inside and difflib.get_close_matches(word, self.commands):
            return []
        return [
            f"{group} {name}" for name in names[:1] for group, commands in groups.items() if name in commands
        ]


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


@functools.cache
def command_tree() -> Any:
    """Build the commands' parsers, once a process: it takes a tenth of a second. `cli.main` must have added the commands."""
    return get_command(app)
