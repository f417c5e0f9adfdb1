"""LLM teachers: models that rank passages, and their labels.

Import the public names from here. They load on first use, so `import teachers` stays fast:

    from labelstore import LabelStore
    from teachers import Settings, label_run

    store = LabelStore("msft.duckdb")
    done = label_run(store, Settings(model="minilm", engine="bi-encoder", dataset="mydata/train", depth=10))
    print(done.labelled, "of", done.queries)

`docs/guides/python.md` shows how to use them; `docs/guides/teachers.md` explains every setting.
"""

from typing import TYPE_CHECKING

from msft import on_first_use

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

__getattr__, __dir__ = on_first_use(__name__, _HOMES)
