"""What a reproduction's trainings learn from: ``[evaluate.cl]``, and ``[evaluate.kd]`` or several ``[[evaluate.kd]]``."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_CONTRASTIVE = {"dataset", "run", "depth", "per_query", "negatives", "n_queries"}
_IMPORTED = ("file", "layout", "replies", "model", "first_stage")
_ASKED = ("model", "run", "depth", "strategy", "engine")
_COMBINED = ("parts", "by")
_KNOWN = {"name", "dataset", "labels", "losses", "n_queries", *_IMPORTED, *_ASKED, *_COMBINED}


@dataclass(frozen=True)
class Teacher:
    """A labeling that distilling stages learn from, and how the store gets it.

    Attributes:
        losses: the losses that learn from these labels; None: all of the recipe's.
        how: the settings of the command that makes the labeling: with `parts` it is combined from other labelings,
            with `run` a model is asked, else a file is imported.
    """

    name: str
    dataset: str
    labels: str
    losses: tuple[str, ...] | None = None
    n_queries: int | None = None
    how: dict[str, Any] = field(default_factory=dict)

    @property
    def parts(self) -> list[str]:
        """The labelings that it is combined from."""
        return list(self.how.get("parts", ()))

    @property
    def files(self) -> list[str]:
        return [str(self.how[key]) for key in ("file", "replies") if key in self.how]

    @property
    def asked(self) -> bool:
        """Return True if a model is asked for the labels."""
        return "run" in self.how and not self.parts

    def command(self) -> tuple[str, ...]:
        """Make the command that adds the labeling to the store."""
        if self.parts:
            by = ("--by", str(self.how["by"])) if "by" in self.how else ()
            return ("teachers", "combine", *self.parts, *by, "--name", self.labels)
        first: list[str] = ["generate"] if self.asked else ["import", (self.files or ["FILE"])[0]]
        taken = _ASKED if self.asked else tuple(key for key in _IMPORTED if key != "file")
        given = [
            a for key in taken if key in self.how
            for a in (f"--{key.replace('_', '-')}", str(self.how[key]))
        ]  # fmt: skip
        return ("teachers", *first, "--dataset", self.dataset, *given, "--name", self.labels)


def contrastive(evaluate: Mapping[str, Any], errors: list[str]) -> dict[str, Any]:
    """Read ``[evaluate.cl]``; empty if the recipe has none."""
    table = evaluate.get("cl", {})
    if not isinstance(table, dict):
        errors.append("[evaluate.cl] must be a table")
        return {}
    if table:
        errors += [
            f"[evaluate.cl] lacks {key}" for key in ("dataset", "run", "negatives") if key not in table
        ]
    errors += [f"[evaluate.cl] unknown setting {key!r}" for key in table.keys() - _CONTRASTIVE]
    return dict(table)


def teachers(evaluate: Mapping[str, Any], errors: list[str]) -> tuple[Teacher, ...]:
    """Read the labelings of ``[evaluate.kd]``, a table, or of ``[[evaluate.kd]]``, one table each with a name."""
    given = evaluate.get("kd", [])
    tables = [given] if isinstance(given, dict) else given
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        errors.append("[evaluate.kd] must be a table, or several with a name each")
        return ()
    needed = ("dataset", "labels", *(("name",) if len(tables) > 1 else ()))
    made = []
    for number, table in enumerate(tables, 1):
        where = f"[evaluate.kd] {table.get('name', number)}:" if len(tables) > 1 else "[evaluate.kd]"
        lacking = [key for key in needed if not isinstance(table.get(key), str)]
        errors += [f"{where} lacks {key}" for key in lacking]
        errors += [f"{where} unknown setting {key!r}" for key in table.keys() - _KNOWN]
        errors += _wrong(where, table)
        if not lacking:
            made.append(_teacher(table))
    for what in ("name", "labels"):
        values = [getattr(teacher, what) for teacher in made]
        errors += [
            f"[evaluate.kd] two have the {what} {v!r}" for v in {v for v in values if values.count(v) > 1}
        ]
    return tuple(made)


def _teacher(table: Mapping[str, Any]) -> Teacher:
    losses = table.get("losses")
    return Teacher(
        str(table.get("name", "")),
        str(table["dataset"]),
        str(table["labels"]),
        losses=tuple(map(str, losses)) if isinstance(losses, list) else None,
        n_queries=table.get("n_queries"),
        how={key: table[key] for key in (*_IMPORTED, *_ASKED, *_COMBINED) if key in table},
    )


def _wrong(where: str, table: Mapping[str, Any]) -> list[str]:
    from students.losses import LOSSES

    found = []
    for key in ("losses", "parts"):
        if key in table and not (isinstance(table[key], list) and table[key]):
            found.append(f"{where} {key} must be a list of at least one name")
        elif key == "losses":
            found += [
                f"{where} unknown loss {loss!r}" for loss in table.get("losses", []) if loss not in LOSSES
            ]
    if "run" in table and "file" in table:
        found.append(f"{where} run (a model is asked) and file (an import) exclude each other")
    if "run" in table and "model" not in table:
        found.append(f"{where} lacks model: which teacher is asked about {table['run']}")
    return found
