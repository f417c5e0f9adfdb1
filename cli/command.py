"""Decorate every command: add the common options and the help's example, and turn errors into exit codes.

A command is ``def show(context: Context, name: …) -> None``. In the signature that Typer sees, the decorator replaces
`context` by ``--store``, ``-q``, ``-v`` and ``--debug``, and by ``--format`` if the command lists rows. A parameter that
is a dataclass stands for its fields: see `cli.parameters`.
"""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import numbers
from cli.app import HelpByDefault
from cli.output import diagnostics
from cli.output.render import Format
from cli.parameters import gathered, shown

if TYPE_CHECKING:
    from labelstore.store.label_store import LabelStore

StoreOption = Annotated[
    Path, typer.Option("--store", envvar="MSFT_STORE", help="The DuckDB file.", show_default="msft.duckdb")
]
FormatOption = Annotated[Format, typer.Option("--format", help="How to print the rows.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Print no notes and no progress.")]
VerboseOption = Annotated[bool, typer.Option("--verbose", "-v", help="Print more detail.")]
DebugOption = Annotated[bool, typer.Option("--debug", help="Print a traceback with an error.")]


@dataclass(frozen=True)
class Context:
    """The store's path and the output format, passed to every command."""

    store_path: Path
    format: Format

    @property
    def store(self) -> "LabelStore":
        """Make the store object. The import stands here so that ``--help`` does not import DuckDB."""
        from labelstore.store.label_store import LabelStore

        LabelStore.tell = staticmethod(diagnostics.note)
        return LabelStore(self.store_path)


def group(help: str) -> typer.Typer:
    """Make a command group that shows its help when called without a command."""
    return typer.Typer(cls=HelpByDefault, help=help, add_completion=False, rich_markup_mode=None)


def command(
    app: typer.Typer, name: str, *, example: str, lists: bool = False
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a function as a command.

    Args:
        example: one working command line; the help ends with it.
        lists: whether the command prints rows and therefore takes ``--format``.
    """

    def register(function: Callable[..., None]) -> Callable[..., None]:
        own = shown(function)
        common: list[tuple[str, Any, Any]] = [("store", StoreOption, Path("msft.duckdb"))]
        if lists:
            common.append(("format", FormatOption, Format.table))
        common += [
            ("quiet", QuietOption, False),
            ("verbose", VerboseOption, False),
            ("debug", DebugOption, False),
        ]
        extra = [
            inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, annotation=kind, default=default)
            for key, kind, default in common
        ]

        @functools.wraps(function)
        def run(**values: Any) -> None:
            settings = diagnostics.settings
            settings.quiet, settings.verbose, settings.debug = (
                values.pop("quiet"),
                values.pop("verbose"),
                values.pop("debug"),
            )
            context = Context(values.pop("store"), values.pop("format", Format.table))
            try:
                function(context, **gathered(function, values))
            except (Exception, KeyboardInterrupt) as error:
                if isinstance(error, typer.Exit) or hasattr(error, "format_message"):
                    raise
                diagnostics.fail(error)

        run.__signature__ = inspect.Signature([*own, *extra])  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in [*own, *extra]}
        app.command(
            name,
            cls=numbers.command_of(numbers.numeric([*own, *extra])),
            epilog=f"Example: {example}",
            help=inspect.getdoc(function),
        )(run)
        return function

    return register
