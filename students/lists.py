"""A view folder as arrays, and the passages that an epoch draws from its lists.

Draws are vectorised and counter-based: the random number of a passage depends on (view, seed, epoch, list, place) alone,
not on the batch it comes in, the process that draws it or what was drawn before. So a training resumes at the exact
list, and N processes draw what one would.
"""

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

from students.errors import StudentError
from students.losses import Loss
from students.regime import Objective
from students.tokens import Ints

FORMAT = 1


@dataclass(frozen=True)
class Lists:
    """L lists over P rows: list i is rows ``starts[i] : starts[i + 1]``.

    Attributes:
        query: (L,) row of the query table. passage: (P,) row of the passage table.
        labels: (P,) graded target, higher is better. scores: (P,) teacher's, NaN where there is none.
        weights: (P,). relevances: (P,) human judgments, -1 unjudged.
    """

    query: Ints
    starts: Ints
    passage: Ints
    labels: NDArray[np.float32]
    scores: NDArray[np.float32]
    weights: NDArray[np.float32]
    relevances: Ints

    def __len__(self) -> int:
        return len(self.query)

    @property
    def sizes(self) -> Ints:
        """(L,) passages per list."""
        return np.diff(self.starts)

    def query_of(self, rows: NDArray[Any]) -> Ints:
        """The query of each row."""
        return self.query[np.searchsorted(self.starts, rows, side="right") - 1]

    def take(self, chosen: NDArray[Any]) -> "Lists":
        """The chosen lists, in that order."""
        rows, sizes = self.rows(chosen)
        return Lists(
            self.query[chosen],
            np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
            self.passage[rows],
            self.labels[rows],
            self.scores[rows],
            self.weights[rows],
            self.relevances[rows],
        )

    def rows(self, chosen: NDArray[Any]) -> tuple[Ints, Ints]:
        """Rows of the chosen lists one after the other, and how many each has."""
        sizes = self.sizes[chosen]
        within = np.arange(int(sizes.sum())) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        return np.repeat(self.starts[:-1][chosen], sizes) + within, sizes


@dataclass(frozen=True)
class View:
    """A view folder: its manifest, its texts (as Arrow columns) and its lists by split."""

    folder: Path
    name: str
    kind: str  # contrastive or distillation
    view_hash: str
    licence: str | None
    queries: pa.ChunkedArray
    passages: pa.ChunkedArray
    train: Lists
    valid: Lists

    @property
    def has_scores(self) -> bool:
        """Whether the teacher scored every passage of the training lists."""
        return bool(len(self.train.scores)) and bool(np.isfinite(self.train.scores).all())


def read_view(folder: str | Path) -> View:
    """Read a view folder and check its files against the manifest.

    Raises:
        StudentError: it is no view folder, of a newer format, its files are not those of the manifest, or it cannot be
            trained from.
    """
    folder = Path(folder)
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise StudentError(
            f"{folder} is no view folder: it has no manifest.json",
            hint="msft views export NAME -o FOLDER writes one",
            exit_code=4,
        ) from error
    except json.JSONDecodeError as error:
        raise StudentError(f"{folder / 'manifest.json'}:{error.lineno}: {error.msg}", exit_code=1) from error
    if manifest.get("format") != FORMAT:
        raise StudentError(
            f"{folder} has view format {manifest.get('format')}, this version reads {FORMAT}",
            hint="export the view again with this version, or upgrade msft",
            exit_code=3,
        )
    if manifest["kind"] not in ("contrastive", "distillation"):
        raise StudentError(
            f"{folder} is a {manifest['kind']} view: it has nothing to learn from",
            hint="train from a contrastive or a distillation view",
            exit_code=2,
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
    )


def _check_file(path: Path, expected: str | None) -> None:
    if not path.is_file():
        raise StudentError(f"{path} is missing", hint="export the view again", exit_code=4)
    if expected is None:
        return
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != expected:
        raise StudentError(
            f"{path} is not the file that the manifest names (hash {digest.hexdigest()}, not {expected})",
            hint="the copy is damaged or was changed: export the view again",
        )


def _lists(table: pa.Table) -> Lists:
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
    return Lists(
        query=np.asarray(table["query"]).astype(np.int64),
        starts=starts,
        passage=passages,
        scores=scores,
        **columns,
    )


def _scores(table: pa.Table, starts: Ints) -> NDArray[np.float32]:
    """Teacher scores by row, NaN for lists (or passages) that have none."""
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


# --------------------------------------------------------------------------------------------------- drawing
@dataclass(frozen=True)
class Draw:
    """Passages drawn from some lists: row ``rows[k]`` belongs to the ``local[k]``-th of them; lists stay together."""

    local: Ints  # (n,) 0..m-1, ascending
    rows: Ints  # (n,) rows of Lists
    tiebreak: NDArray[np.uint64]  # (n,) orders equal labels


def stream_key(view_hash: str, seed: int, epoch: int, purpose: str) -> int:
    """64-bit key of one random stream."""
    data = f"{view_hash}:{seed}:{epoch}:{purpose}".encode()
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def epoch_order(n: int, key: int) -> Ints:
    """The order in which an epoch takes n lists."""
    return np.argsort(_random(key, np.arange(n), np.zeros(n, dtype=np.int64)), kind="stable")


def _random(key: int, lists: NDArray[Any], places: NDArray[Any]) -> NDArray[np.uint64]:
    """A 64-bit random number for each (key, list, place): SplitMix64's finaliser over a Weyl sequence."""
    mask = (1 << 64) - 1
    with np.errstate(over="ignore"):
        x = lists.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(key & mask)
        x = _mix(x) + (places.astype(np.uint64) + np.uint64(1)) * np.uint64(0xD1B54A32D192ED03)
        return _mix(x)


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def draw(lists: Lists, chosen: Ints, objective: Objective, key: int) -> Draw:
    """The passages that an epoch shows of the chosen lists.

    ``cl``: one positive and ``group_size - 1`` negatives, at random. ``kd``: the teacher's top ``depth``, or of these
    ``group_size`` at random. Passages keep the view's order.
    """
    rows, sizes = lists.rows(chosen)
    local = np.repeat(np.arange(len(chosen)), sizes)
    places = rows - np.repeat(lists.starts[:-1][chosen], sizes)
    random = _random(key, np.repeat(chosen, sizes), places)
    if objective.name == "cl":
        negative = lists.labels[rows] <= 0
        rank = _rank_within(local * 2 + negative, random)
        kept = rank < np.where(negative, objective.group_size - 1, 1)
    else:
        kept = _rank_within(local, random, -lists.labels[rows]) < objective.depth
        if objective.group_size:
            rows, local, random = rows[kept], local[kept], random[kept]
            kept = _rank_within(local, _mix(random)) < objective.group_size
    return Draw(local[kept], rows[kept], random[kept])


def _rank_within(group: NDArray[Any], *keys: NDArray[Any]) -> Ints:
    """0-based rank of each row inside its group by the keys, the last of them first. Groups need not be adjacent."""
    order = np.lexsort((*keys, group))
    sorted_group = group[order]
    first = np.flatnonzero(np.r_[True, sorted_group[1:] != sorted_group[:-1]]) if len(order) else order
    counts = np.diff(np.append(first, len(order)))
    ranks = np.empty(len(order), dtype=np.int64)
    ranks[order] = np.arange(len(order)) - np.repeat(first, counts)
    return ranks


def usable(lists: Lists, objective: Objective, loss: Loss) -> NDArray[np.bool_]:
    """(L,) which lists can have a term of the loss at all; the others are skipped, and counted."""
    every = np.arange(len(lists))
    rows, sizes = lists.rows(every)
    group = np.repeat(every, sizes)
    if objective.name == "kd":
        top = _rank_within(group, -lists.labels[rows]) < objective.depth
        rows, group = rows[top], group[top]
    labels = lists.labels[rows]
    if loss.needs == "scores":
        known = np.isfinite(lists.scores[rows])
        rows, group, labels = rows[known], group[known], labels[known]
    if loss.needs == "binary" or objective.name == "cl":
        positives = np.bincount(group[labels > 0], minlength=len(lists))
        negatives = np.bincount(group[labels <= 0], minlength=len(lists))
        return (positives > 0) & (negatives > 0)
    low = np.full(len(lists), np.inf)
    high = np.full(len(lists), -np.inf)
    np.minimum.at(low, group, labels)
    np.maximum.at(high, group, labels)
    return np.asarray(low < high)


def assign_views(stages: Sequence[Any], given: Any) -> list[dict[str, Path]]:
    """For each stage, the view folder of each objective.

    Args:
        given: folders by objective (``cl``), by stage (``2``) or both (``2:kd``); the more exact name wins. Or a
            sequence of folders, each taken for the objective that its kind is for.

    Raises:
        StudentError: an objective without a view (exit code 2).
    """
    from students.regime import KINDS

    if not isinstance(given, dict):
        by_kind = {kind: objective for objective, kind in KINDS.items()}
        named: dict[str, Path] = {}
        for folder in given:
            kind = read_kind(folder)
            if kind not in by_kind or by_kind[kind] in named:
                raise StudentError(
                    f"{folder}: a second {kind} view" if kind in by_kind else f"{folder} is a {kind} view",
                    hint="name the stage that it is for: --view 2=FOLDER; one view can hold several datasets",
                    exit_code=2,
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
                    exit_code=2,
                )
            if read_kind(folder) != KINDS[objective.name]:
                raise StudentError(
                    f"stage {stage.number} ({objective.name}) learns from a {KINDS[objective.name]} view, and {folder} "
                    f"is a {read_kind(folder)} view",
                    hint=f"give a {KINDS[objective.name]} view, or another regime",
                    exit_code=2,
                )
            views[objective.name] = folder
        assigned.append(views)
    return assigned


def read_kind(folder: str | Path) -> str:
    """The kind that a view folder's manifest names."""
    try:
        return str(json.loads((Path(folder) / "manifest.json").read_text(encoding="utf-8"))["kind"])
    except (FileNotFoundError, NotADirectoryError) as error:
        raise StudentError(
            f"{folder} is no view folder: it has no manifest.json",
            hint="msft views export NAME -o FOLDER writes one",
            exit_code=4,
        ) from error
