"""Errors and small functions without dependencies, which all four packages may import."""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def on_first_use(
    package: str, homes: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Make a package's ``__getattr__`` and ``__dir__``.

    Args:
        package: the package's ``__name__``.
        homes: public name -> ``module:attribute``, the module relative to the package.

    Returns:
        ``__getattr__``, which imports a name's module, and ``__dir__``, which lists all public names.
    """

    def load(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module, _, attribute = homes[name].partition(":")
        return getattr(import_module(f"{package}.{module}"), attribute)

    return load, lambda: sorted({*vars(import_module(package)), *homes})
