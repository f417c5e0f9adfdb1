"""The configuration file: `msft.toml`, or the table `[tool.msft]` of pyproject.toml, in this folder or one above it.

    store = "mydata.duckdb"

    [students.train]
    minutes = 30
    base = "minilm"

`store` is every command's ``--store``; a path in the file is relative to it. A table has a command's options, by their names
without the dashes. The command line and the environment come before the file.
"""

import functools
import os
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NAME = "msft.toml"
_OWN = ("help", "version", "debug")  # options that are no settings


@dataclass(frozen=True)
class Configuration:
    """What a file sets.

    Attributes:
        path: the file; None without one.
        settings: (command, option, value) of each setting; the command of `store` is empty.
        defaults: command -> … -> parameter's name -> value, as Typer takes them.
    """

    path: Path | None = None
    settings: tuple[tuple[str, str, Any], ...] = ()
    defaults: dict[str, Any] = field(default_factory=dict)


@functools.cache
def find(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """Find and read the nearest configuration; None without one.

    Raises:
        BadInput: the file is not TOML.
    """
    from labelstore.errors import BadInput

    for parent in (folder, *folder.parents):
        for path in (parent / NAME, parent / "pyproject.toml"):
            if not path.is_file():
                continue
            try:
                read = tomllib.loads(path.read_text("utf-8"))
            except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
                if path.name != NAME:
                    continue  # another program's file, whose errors that program reports
                raise BadInput(f"{path}: {error}", hint="repair the TOML file") from error
            if path.name == NAME:
                return path, read
            own = read.get("tool", {}).get("msft")
            if own is not None:
                return path, own
    return None


def read(root: Any, folder: Path | None = None) -> Configuration:
    """Read the configuration that holds for a folder, by default the current one.

    Args:
        root: the command tree.

    Raises:
        UsageError: commands or options are not known, or values do not fit; all are named.
    """
    from labelstore.errors import UsageError

    found = find(folder or Path.cwd())
    if found is None:
        return Configuration()
    path, table = found
    errors: list[str] = []
    settings: list[tuple[str, str, Any]] = []
    defaults: dict[str, Any] = {}
    store = table.get("store")
    if store is not None:
        if not isinstance(store, str):
            errors.append(f"store is {store!r}: expected a path")
        else:
            store = os.path.join(path.parent, os.path.expanduser(store))
            settings.append(("", "store", store))
            for words, _ in _commands(root):
                _inner(defaults, words)["store"] = store
    commands = {tuple(words): command for words, command in _commands(root)}
    for words, name, value in _entries({key: v for key, v in table.items() if key != "store"}):
        shown = ".".join([*words, name])
        if words not in commands:
            errors.append(f"{shown}: no command is named {' '.join(words) or name!r}")
            continue
        parameter = _option(commands[words], name)
        if parameter is None:
            errors.append(f"{shown}: msft {' '.join(words)} has no option --{name.replace('_', '-')}")
        elif problem := _problem(commands[words], parameter, value):
            errors.append(f"{shown} is {value!r}: {problem}")
        else:
            settings.append((" ".join(words), name, value))
            _inner(defaults, words)[parameter.name] = _typed(value)
    if errors:
        raise UsageError(f"{path}: {'; '.join(errors)}", hint="msft COMMAND --help lists the options")
    return Configuration(path, tuple(settings), defaults)


def _commands(group: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, command in getattr(group, "commands", {}).items():
        if name in _OWN:  # `msft help` has no settings, and its defaults would be those of --help
            continue
        if hasattr(command, "commands"):
            yield from _commands(command, (*words, name))
        else:
            yield (*words, name), command


def _entries(
    table: dict[str, Any], words: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], str, Any]]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _entries(value, (*words, key))
        else:
            yield words, key, value


def _inner(table: dict[str, Any], words: tuple[str, ...]) -> dict[str, Any]:
    for word in words:
        table = table.setdefault(word, {})
    return table


def _option(command: Any, name: str) -> Any:
    flag = f"--{name.replace('_', '-')}"
    return next((p for p in command.params if flag in getattr(p, "opts", ()) and p.name not in _OWN), None)


def _problem(command: Any, parameter: Any, value: Any) -> str | None:
    """Say what is wrong with a value; None if it fits."""
    import typer

    several = parameter.multiple or parameter.nargs != 1
    if isinstance(value, list) != several:
        return "expected a list" if several else "expected one value"
    switch = getattr(parameter, "is_flag", False)
    for one in value if several else [value]:
        if isinstance(one, bool) != switch or not isinstance(one, str | int | float):
            return "expected true or false" if switch else "expected text or a number"
    try:
        parameter.process_value(typer.Context(command, info_name=command.name), _typed(value))
    except typer.BadParameter as error:
        return str(error.message)
    return None


def _typed(value: Any) -> Any:
    """Return a value as the command line would have it: a switch, or texts."""
    if isinstance(value, list):
        return [_typed(one) for one in value]
    return value if isinstance(value, bool) else str(value)
