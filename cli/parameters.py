"""Read a command's parameters from dataclasses: each field becomes an option, and the command gets the instance.

    @dataclass(frozen=True)
    class Options:
        dataset: Annotated[str | None, typer.Option(help="Whose queries.")] = None
        runs: Annotated[tuple[str, ...], typer.Option("--run", help="May be given several times.")] = ()
        mining: Mining = Mining()

    def mine(context: Context, options: Options) -> None: ...

A field's annotation decides how the command line shows it:

- `typer.Option` and `typer.Argument` mean what they mean in a function's signature.
- A text alone makes an option with the field's name: ``depth: Annotated[int, "Candidates per query."] = 100``. So a
  job's settings become options although their module does not import Typer. A switch that is off by default then has
  no ``--no-`` form. A subclass of the settings can give a field another name or help.
- A dataclass is a group. Its options stand in the field's place.
- A tuple is an option that may be repeated.
- Any other field is not on the command line and keeps its default.

`After` moves a single option behind another one in the help.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from types import GenericAlias
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer
from typer.models import ParameterInfo


@dataclass(frozen=True)
class After:
    """Show the option behind the one of this name: ``Annotated[bool, typer.Option(…), After("limit")]``."""

    name: str


@dataclass(frozen=True)
class _Shown:
    """A parameter for Typer's signature and the name of the parameter before it."""

    parameter: inspect.Parameter
    after: str | None


def shown(function: Callable[..., Any]) -> list[inspect.Parameter]:
    """List a function's parameters in Typer's form, with the fields of its dataclasses.

    Raises:
        TypeError: two parameters have the same name, `After` names an unknown parameter, or a parameter has no option.
    """
    found: list[_Shown] = []
    for parameter in _own(function).values():
        found += _of_parameter(parameter)
    names = [one.parameter.name for one in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise TypeError(f"{function.__qualname__}: two parameters are named {', '.join(twice)}")
    return _in_order(found, function.__qualname__)


def gathered(function: Callable[..., Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Turn Typer's values into a function's arguments: make the dataclasses and pass other values unchanged."""
    return {
        name: _made(parameter.annotation, values)
        if is_dataclass(parameter.annotation)
        else _value(parameter.annotation, values[name], parameter.default)
        for name, parameter in _own(function).items()
    }


def given(group: Any) -> dict[str, Any]:
    """Return the fields of a group that the user gave: neither None nor a switch that is off.

    A switch whose default is None has three values, and its ``--no-`` form counts as given.
    """
    values = {field.name: (getattr(group, field.name), field.default) for field in fields(group)}
    return {
        name: value
        for name, (value, default) in values.items()
        if value is not None and (value is not False or default is None)
    }


def _own(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    signature = inspect.signature(function, eval_str=True)
    return {name: parameter for name, parameter in signature.parameters.items() if name != "context"}


def _of_parameter(parameter: inspect.Parameter) -> Iterator[_Shown]:
    if is_dataclass(parameter.annotation):
        yield from _of_dataclass(parameter.annotation)
    else:
        yield _one(parameter.name, parameter.annotation, parameter.default)


def _of_dataclass(kind: Any) -> Iterator[_Shown]:
    hints = get_type_hints(kind, include_extras=True)
    for field in fields(kind):
        hint = hints[field.name]
        if is_dataclass(hint):
            yield from _of_dataclass(hint)
        elif _is_shown(hint):
            yield _one(field.name, hint, _default(field))
        elif _default(field) is inspect.Parameter.empty:
            raise TypeError(f"{kind.__qualname__}.{field.name} has neither an option nor a default")


def _is_shown(hint: Any) -> bool:
    return any(isinstance(part, ParameterInfo | str) for part in _notes(hint))


def _notes(hint: Any) -> tuple[Any, ...]:
    return get_args(hint)[1:] if get_origin(hint) is Annotated else ()


def _default(field: Any) -> Any:
    if field.default_factory is not MISSING:
        return field.default_factory()
    return inspect.Parameter.empty if field.default is MISSING else field.default


def _one(name: str, hint: Any, default: Any) -> _Shown:
    notes = _notes(hint)
    kind = get_args(hint)[0] if notes else hint
    info = next((note for note in notes if isinstance(note, ParameterInfo | str)), None)
    if info is None:
        raise TypeError(f"parameter {name} has no option: annotate it with typer.Option or a text")
    if isinstance(info, str):
        switch = [f"--{name.replace('_', '-')}"] if kind is bool and default is False else []
        info = typer.Option(*switch, help=info)
    if get_origin(kind) is tuple:
        several: Any = GenericAlias(list, get_args(kind)[:1])
        required = default is inspect.Parameter.empty
        kind, default = (several, default) if required else (several | None, list(default) or None)
    after = next((note.name for note in notes if isinstance(note, After)), None)
    parameter = inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, annotation=Annotated[kind, info], default=default
    )
    return _Shown(parameter, after)


def _in_order(found: list[_Shown], where: str) -> list[inspect.Parameter]:
    ordered = [one.parameter for one in found if one.after is None]
    for one in found:
        if one.after is None:
            continue
        place = next((k for k, other in enumerate(ordered) if other.name == one.after), None)
        if place is None:
            raise TypeError(
                f"{where}: {one.parameter.name} stands after {one.after}, which is not a parameter"
            )
        ordered.insert(place + 1, one.parameter)
    return ordered


def _made(kind: Any, values: Mapping[str, Any]) -> Any:
    """Make a dataclass from Typer's values, by field name."""
    hints = get_type_hints(kind, include_extras=True)
    arguments: dict[str, Any] = {}
    for field in fields(kind):
        hint = hints[field.name]
        if is_dataclass(hint):
            arguments[field.name] = _made(hint, values)
        elif _is_shown(hint):
            arguments[field.name] = _value(hint, values[field.name], _default(field))
    return kind(**arguments)


def _value(hint: Any, value: Any, default: Any) -> Any:
    kind = get_args(hint)[0] if _notes(hint) else hint
    if get_origin(kind) is not tuple:
        return value
    return tuple(value) if value else default
