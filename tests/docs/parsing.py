"""Commands parsed by the command line's own parser, without running them."""

from typing import Any

import typer

from cli.main import app


def parse(words: list[str]) -> None:
    """Parse a whole command line (without ``msft``).

    Raises:
        Exception: typer's usage error, for an unknown command, option or value, or a missing one.
    """
    command, context, left = _resolve(words)
    command.make_context(command.name, left, parent=context)


def check_mention(words: list[str]) -> str | None:
    """What is wrong with a command that a text mentions: it may lack arguments, but what it names must exist."""
    try:
        command, _, left = _resolve(words)
    except LookupError as error:
        return str(error)
    known = {name for p in command.params for name in (*p.opts, *p.secondary_opts)} | {"-h", "--help"}
    for word in left:
        name = word.partition("=")[0].rstrip(",.;:")
        if name.startswith("-") and name not in known and not name.lstrip("-").replace(".", "").isdigit():
            return f"no option {name}"
    return None


def _resolve(words: list[str]) -> tuple[Any, Any, list[str]]:
    """(the command itself, its parent's context, the words after its name)."""
    command: Any = typer.main.get_command(app)
    context = None
    left = list(words)
    name = "msft"
    while hasattr(command, "commands"):
        context = command.context_class(command, info_name=name, parent=context)
        if not left:
            return command, context, left
        name = left.pop(0)
        if name.startswith("-"):
            return command, context, [name, *left]
        found = command.commands.get(name)
        if found is None:
            raise LookupError(f"no command {name!r} in {context.command_path}")
        command = found
    return command, context, left


def all_commands() -> list[tuple[str, Any]]:
    """Every command that does something, with its full name."""
    found = []
    groups = [("msft", typer.main.get_command(app))]
    for name, command in groups:
        for child_name, child in command.commands.items():
            full = f"{name} {child_name}"
            if hasattr(child, "commands"):
                groups.append((full, child))
            else:
                found.append((full, child))
    return found
