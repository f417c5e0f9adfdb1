"""Read a view folder: its manifest, lists and scores."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from students.errors import ExitCode, StudentError
from students.text.tokens import Ints
from students.train.lists import ViewLists

FORMAT = 1


@dataclass(frozen=True)
class View:
    """The content of a view folder: its manifest, its texts (as Arrow columns) and its lists by split."""

    folder: Path
    name: str
    kind: str  # contrastive or distillation
    view_hash: str
    licence: str | None
    queries: pa.ChunkedArray
    passages: pa.ChunkedArray
    train: ViewLists
    valid: ViewLists
    datasets: tuple[str, ...] = ()  # names of the datasets that its queries come from

    @property
    def has_scores(self) -> bool:
        """Return True if the teacher scored every passage of the training lists."""
        return bool(len(self.train.scores)) and bool(np.isfinite(self.train.scores).all())


def read_view(folder: str | Path) -> View:
    """Read a view folder and check its files against the manifest.

    Raises:
        StudentError: the folder is not a view folder, has a newer format, has files that differ from the manifest, or
            cannot be used for training.
    """
    folder = Path(folder)
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise StudentError(
            f"{folder} is not a view folder: it has no manifest.json",
            hint="write one with msft views export NAME -o FOLDER",
            exit_code=ExitCode.DATA_MISSING,
        ) from error
    except json.JSONDecodeError as error:
        raise StudentError(f"{folder / 'manifest.json'}:{error.lineno}: {error.msg}") from error
    if manifest.get("format") != FORMAT:
        raise StudentError(
            f"{folder} has view format {manifest.get('format')}, this version reads {FORMAT}",
            hint="export the view again with this version, or upgrade msft",
            exit_code=ExitCode.STORE,
        )
    if manifest["kind"] not in ("contrastive", "distillation"):
        raise StudentError(
            f"{folder} is a {manifest['kind']} view: it has nothing to learn from",
            hint="train from a contrastive or a distillation view",
            exit_code=ExitCode.USAGE,
        )
    for name in ("queries.parquet", "passages.parquet", "lists.parquet"):
        _check_file(folder / name, manifest.get("files", {}).get(name))
    table = pq.read_table(folder / "lists.parquet")
    validating = np.asarray(table["split"].to_numpy(zero_copy_only=False) == "valid", dtype=bool)
    lists = _lists(table)
    return View(
        folder=folder,
        name=str(manifest["name"]),
        kind=str(manifest["kind"]),
        view_hash=str(manifest["view_hash"]),
        licence=manifest.get("licence"),
        queries=pq.read_table(folder / "queries.parquet", columns=["text"])["text"],
        passages=pq.read_table(folder / "passages.parquet", columns=["text"])["text"],
        train=lists.take(np.flatnonzero(~validating)),
        valid=lists.take(np.flatnonzero(validating)),
        datasets=tuple(s["name"] for s in manifest.get("sources", ()) if s["kind"] == "dataset"),
    )


def file_hash(path: Path) -> str:
    """Hash a file's bytes to 128-bit hex, as the store does."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _check_file(path: Path, expected: str | None) -> None:
    if not path.is_file():
        raise StudentError(
            f"{path} is missing", hint="export the view again", exit_code=ExitCode.DATA_MISSING
        )
    if expected is None:
        return
    if (found := file_hash(path)) != expected:
        raise StudentError(
            f"{path} is not the file that the manifest names (hash {found}, not {expected})",
            hint="export the view again: the copy is damaged or was changed",
        )


def _lists(table: pa.Table) -> ViewLists:
    table = table.combine_chunks()

    def flat(name: str, dtype: Any, missing: float | int) -> tuple[Any, Any]:
        column = table[name]
        array = column.chunk(0) if column.num_chunks else pa.array([], column.type)
        offsets = np.asarray(array.offsets) if len(array) else np.zeros(1, dtype=np.int64)
        values = array.values.fill_null(missing)[int(offsets[0]) : int(offsets[-1])]
        return np.asarray(values).astype(dtype), offsets.astype(np.int64) - int(offsets[0])

    passages, starts = flat("passages", np.int64, -1)
    columns: dict[str, Any] = {
        "labels": flat("labels", np.float32, 0),
        "weights": flat("weights", np.float32, 1),
        "relevances": flat("relevances", np.int64, -1),
    }
    scores = _scores(table, starts)
    for name, (values, own_starts) in columns.items():
        if not np.array_equal(own_starts, starts):
            raise StudentError(
                f"lists.parquet: {name} and passages are not aligned", hint="export the view again"
            )
        columns[name] = values
    return ViewLists(
        query=np.asarray(table["query"]).astype(np.int64),
        starts=starts,
        passage=passages,
        scores=scores,
        **columns,
    )


def _scores(table: pa.Table, starts: Ints) -> NDArray[np.float32]:
    """Read teacher scores by row; NaN for lists (or passages) without scores."""
    scores = np.full(int(starts[-1]), np.nan, dtype=np.float32)
    column = table["scores"]
    if pa.types.is_null(column.type) or column.null_count == len(column):
        return scores
    array = column.chunk(0)
    present = np.asarray(array.is_valid())
    sizes = np.diff(starts)
    if not np.array_equal(np.asarray(array.value_lengths().fill_null(0))[present], sizes[present]):
        raise StudentError("lists.parquet: scores and passages are not aligned", hint="export the view again")
    scores[np.repeat(present, sizes)] = np.asarray(array.flatten().fill_null(np.nan), dtype=np.float32)
    return scores


def assign_views(stages: Sequence[Any], given: Any) -> list[dict[str, Path]]:
    """Assign a view folder to each objective of each stage.

    Args:
        given: folders by objective (``cl``), by stage (``2``) or both (``2:kd``); the more exact name wins. It may also
            be a sequence of folders, each used for the objective that matches its kind.

    Raises:
        StudentError: an objective has no view (exit code 2).
    """
    from students.recipes.recipe import KINDS

    if not isinstance(given, dict):
        by_kind = {kind: objective for objective, kind in KINDS.items()}
        named: dict[str, Path] = {}
        for folder in given:
            kind = read_kind(folder)
            if kind not in by_kind or by_kind[kind] in named:
                raise StudentError(
                    f"{folder}: a second {kind} view" if kind in by_kind else f"{folder} is a {kind} view",
                    hint="name the stage that it is for: --view 2=FOLDER; one view can hold several datasets",
                    exit_code=ExitCode.USAGE,
                )
            named[by_kind[kind]] = Path(folder)
    else:
        named = {str(key): Path(folder) for key, folder in given.items()}
    assigned = []
    for stage in stages:
        views = {}
        for objective in stage.objectives:
            names = (f"{stage.number}:{objective.name}", str(stage.number), objective.name)
            folder = next((named[name] for name in names if name in named), None)
            if folder is None:
                raise StudentError(
                    f"stage {stage.number} ({objective.name}) has no view",
                    hint=f"give a {KINDS[objective.name]} view: --view FOLDER",
                    exit_code=ExitCode.USAGE,
                )
            if read_kind(folder) != KINDS[objective.name]:
                raise StudentError(
                    f"stage {stage.number} ({objective.name}) learns from a {KINDS[objective.name]} view, and {folder} "
                    f"is a {read_kind(folder)} view",
                    hint=f"give a {KINDS[objective.name]} view, or another regime",
                    exit_code=ExitCode.USAGE,
                )
            views[objective.name] = folder
        assigned.append(views)
    return assigned


def read_kind(folder: str | Path) -> str:
    """Read the kind of a view folder from its manifest."""
    try:
        return str(json.loads((Path(folder) / "manifest.json").read_text(encoding="utf-8"))["kind"])
    except (FileNotFoundError, NotADirectoryError) as error:
        raise StudentError(
            f"{folder} is not a view folder: it has no manifest.json",
            hint="write one with msft views export NAME -o FOLDER",
            exit_code=ExitCode.DATA_MISSING,
        ) from error
