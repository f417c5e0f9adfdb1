"""LLM teachers: models that rank passages, and their labels.

Import the public names from here. They load on first use, so `import teachers` stays fast:

    from labelstore import LabelStore
    from teachers import Settings, label_run

    store = LabelStore("msft.duckdb")
    done = label_run(store, Settings(model="minilm", engine="bi-encoder", dataset="mydata/train", depth=10))
    print(done.labelled, "of", done.queries)

`docs/guides/python.md` shows how to use them; `docs/guides/teachers.md` explains every setting.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from teachers.generate.dry_run import forecast
    from teachers.generate.job import generate as label_run
    from teachers.generate.label_files import export_labels, import_labels
    from teachers.generate.settings import Settings

__all__ = ["Settings", "export_labels", "forecast", "import_labels", "label_run"]

_HOMES = {
    "Settings": "generate.settings:Settings",
    "export_labels": "generate.label_files:export_labels",
    "forecast": "generate.dry_run:forecast",
    "import_labels": "generate.label_files:import_labels",
    "label_run": "generate.job:generate",
}


def __getattr__(name: str) -> Any:
    """Load a public name on its first use."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _HOMES[name].partition(":")
    return getattr(import_module(f"{__name__}.{module}"), attribute)


def __dir__() -> list[str]:
    """List the public names, including those not loaded yet."""
    return sorted({*globals(), *__all__})
