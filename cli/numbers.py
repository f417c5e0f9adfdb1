"""Read numbers on the command line: plain ASCII digits only, as in input files."""

from collections.abc import Iterable
from inspect import Parameter
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import typer
from typer.core import TyperCommand


def numeric(parameters: Iterable[Parameter]) -> set[str]:
    """Name the parameters that are numbers or lists of numbers."""
    return {parameter.name for parameter in parameters if _is_number(parameter.annotation)}


def _is_number(annotation: Any) -> bool:
    if get_origin(annotation) is Annotated:
        return _is_number(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType, list, tuple):
        return any(_is_number(part) for part in get_args(annotation))
    return annotation in (int, float)


def command_of(numbers: set[str]) -> type[TyperCommand]:
    """Make a command class that refuses ``1_000`` and non-ASCII digits in these parameters. Typer accepts both."""

    class PlainNumbers(TyperCommand):
        def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
            given = list(args)
            left = super().parse_args(ctx, args)
            texts, _, _ = self.make_parser(ctx).parse_args(args=given)
            for parameter in self.params:
                if parameter.name in numbers:
                    _check(texts.get(parameter.name), parameter, ctx)
            return left

    return PlainNumbers


def _check(value: Any, parameter: Any, context: Any) -> None:
    for text in value if isinstance(value, list | tuple) else [value]:
        if isinstance(text, str) and ("_" in text or not text.isascii()):
            raise typer.BadParameter(f"{text!r} is no number in plain digits", ctx=context, param=parameter)
