"""Readers of labels in columns: TREC runs and Parquet."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from labelstore.errors import BadInput
from labelstore.files import trec
from labelstore.labels.label_list import Item, LabelList, Malformed


def read_trec(path: Path) -> Iterator[Item]:
    """Read a TREC run as labels: lists by (query, tag), by rank; the tag is the teacher's name.

    Scores that only repeat the rank (the same at each rank in every list) are left out.
    """
    lists: dict[tuple[str, str], list[tuple[int, float, str, int]]] = {}
    for candidate in trec.read_run(path):
        lists.setdefault((candidate.query_id, candidate.tag), []).append(
            (candidate.rank, candidate.score, candidate.doc_id, candidate.line)
        )
    yield from _ranked_lists(path, lists)


def read_parquet(path: Path) -> Iterator[Item]:
    """Read columns query_id, doc_id (or qid, docid …), rank, and optionally score, grade, initial_rank, teacher,
    first_stage, query, licence.

    Raises:
        BadInput: the file is not Parquet, lacks a column, or has other values in a column of numbers.
    """
    import polars as pl

    try:
        with path.open("rb") as file:  # polars would take a path with * or [ for a pattern
            frame = pl.read_parquet(file)
    except (pl.exceptions.ComputeError, OSError) as error:
        raise BadInput(
            f"{path}: no Parquet file: {error}", hint="name the layout of the file with --layout"
        ) from error
    names = {
        "query_id": ("query_id", "qid", "query-id"),
        "doc_id": ("doc_id", "docid", "docno", "pid", "corpus-id"),
        "rank": ("rank",),
    }
    for name, others in names.items():
        present = next((other for other in others if other in frame.columns), None)
        if present is None:
            raise BadInput(f"{path}: no column {name}", hint=f"it has: {', '.join(frame.columns)}")
        frame = frame.rename({present: name})
    optional = ("teacher", "first_stage", "query", "licence", "score", "grade", "initial_rank", "settled")
    frame = frame.with_columns(pl.lit(None).alias(n) for n in optional if n not in frame.columns)
    frame = frame.with_columns(pl.col("query_id", "doc_id", "teacher", "first_stage").cast(pl.String))
    for name in ("rank", "score", "grade", "initial_rank", "settled"):
        kind = frame.schema[name]
        if not (kind.is_numeric() or kind == pl.Null):
            raise BadInput(
                f"{path}: column {name} holds {kind}, not numbers", hint="write it with a numeric type"
            )
    keys = ["query_id", "teacher", "first_stage"]
    for k, group in enumerate(
        frame.sort("rank", maintain_order=True).partition_by(keys, maintain_order=True), 1
    ):
        yield _parquet_list(group.to_dict(as_series=False), f"{path.name}, list {k}")


def _parquet_list(columns: dict[str, list[Any]], place: str) -> Item:
    query_id = columns["query_id"][0]
    ids = columns["doc_id"]
    if query_id is None or any(i is None for i in ids):
        return Malformed(place, "malformed line", "an id is missing", query_id)
    if any(rank is None or rank != rank for rank in columns["rank"]):
        return Malformed(place, "malformed line", "a rank is missing", query_id)
    scores, grades, initial = columns["score"], columns["grade"], columns["initial_rank"]
    groups = None
    if all(g is not None for g in grades) and len(set(grades)) < len(grades):
        groups = [len(list(same)) for _, same in itertools.groupby(grades)]
    shown = None
    if all(r is not None for r in initial):
        shown = [doc for _, doc in sorted(zip(initial, ids, strict=True))]
    whole = all(isinstance(s, float | int) and s == s and abs(s) < 3.4e38 for s in scores)
    return LabelList(
        place=place,
        query_id=query_id,
        ranking=ids,
        query_text=columns["query"][0],
        teacher=columns["teacher"][0],
        first_stage=columns["first_stage"][0],
        groups=groups,
        scores=[float(s) for s in scores] if whole else None,
        initial=shown,
        settled=columns["settled"][0],
        licence=columns["licence"][0],
    )


def _ranked_lists(
    path: Path, lists: dict[tuple[str, str], list[tuple[int, float, str, int]]]
) -> Iterator[LabelList]:
    ordered = {key: sorted(rows, key=lambda r: (r[0], -r[1])) for key, rows in lists.items()}
    scored = not _ranks_in_disguise([[row[1] for row in rows] for rows in ordered.values()])
    for (query_id, tag), rows in ordered.items():
        yield LabelList(
            place=f"{path.name}:{rows[0][3]}",
            query_id=query_id,
            ranking=[doc_id for _, _, doc_id, _ in rows],
            teacher=tag,
            scores=[score for _, score, _, _ in rows] if scored else None,
        )


def _ranks_in_disguise(lists: list[list[float]]) -> bool:
    """Tell whether scores are a function of the rank alone (n - rank, 1/rank …)."""
    if any(list(scores) != sorted(scores, reverse=True) for scores in lists):
        return True  # the ranks are the order; scores that contradict them are another ranker's
    steps = [round(a - b, 6) for scores in lists for a, b in itertools.pairwise(scores)]
    if len(steps) > 1 and len(set(steps)) == 1:
        return True
    longest = max(lists, key=len, default=[])
    return len(lists) > 1 and all(scores == longest[: len(scores)] for scores in lists)
