"""Read datasets in the layouts of the Hugging Face Hub: NanoBEIR's, BEIR's and MTEB's tables in Parquet or JSON lines.

A table's columns tell what it holds: passages and queries have ``_id`` and ``text``, judgments ``query-id`` and
``corpus-id`` (and perhaps ``score``), candidates ``query-id`` and ``corpus-ids``. Its path tells subset and split:
``corpus/test-00000-of-00001.parquet``, ``qrels/dev.jsonl``, ``bm25/NanoNQ.parquet``, ``data/test-….parquet``.

A folder with one corpus has a dataset for each split of its judgments. A folder with several corpora, such as
``sentence-transformers/NanoBEIR-en``, has one for each of them.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from labelstore.datasets.from_folder import has_documents
from labelstore.errors import BadInput, DataMissing
from labelstore.files import lines

PASSAGES, QUERIES, JUDGMENTS, CANDIDATES = "passages", "queries", "judgments", "candidates"
_SHARD = re.compile(r"-\d{5}-of-\d{5}$|/\d{4,5}$")
_BATCH = 1024


@dataclass(frozen=True)
class Table:
    """A file of rows, with the subset and the split that its path names."""

    path: Path
    kind: str
    subset: str
    split: str

    def rows(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Yield each row with its place, FILE:NUMBER.

        Raises:
            BadInput: a line is not a JSON object, or the Parquet file is broken.
        """
        for number, row in enumerate(_rows(self.path), 1):
            yield f"{self.path}:{number}", row


@dataclass
class HubSet:
    """One dataset of a folder.

    Attributes:
        split: its name in the folder; empty if the folder has one dataset.
        own_corpus: whether it has a corpus of its own.
    """

    split: str
    own_corpus: bool
    tables: dict[str, list[Table]] = field(default_factory=dict)

    @property
    def run(self) -> str | None:
        """The name of its candidates: the subset's, such as bm25 or top_ranked."""
        found = self.tables.get(CANDIDATES)
        return found[0].subset if found else None


def is_hub_folder(folder: Path) -> bool:
    """Tell whether a folder has tables in the Hub's layout: Parquet without a file of passages, or judgments in JSON lines."""
    if not folder.is_dir():
        return False
    if any((folder / "qrels").glob("*.jsonl")):
        return True
    return not has_documents(folder) and any(folder.rglob("*.parquet"))


def sets(folder: Path) -> list[HubSet]:
    """List the datasets of a folder.

    Raises:
        DataMissing: passages, queries or judgments are missing.
    """
    tables = [table for path in _files(folder) if (table := _table(folder, path)) is not None]
    held = {
        kind: {t.split: [o for o in tables if (o.kind, o.split) == (kind, t.split)] for t in tables if t.kind == kind}
        for kind in (PASSAGES, QUERIES, JUDGMENTS, CANDIDATES)
    }  # fmt: skip
    missing = [kind for kind in (PASSAGES, QUERIES, JUDGMENTS) if not held[kind]]
    if missing:
        raise DataMissing(
            f"{folder} has no {' and no '.join(missing)} in the Hub's layout",
            hint="expected corpus/*.parquet and queries/*.parquet with _id and text, qrels/*.parquet with query-id and"
            " corpus-id (or .jsonl)",
        )
    corpora = held[PASSAGES]
    if len(corpora) > 1 and corpora.keys() == held[JUDGMENTS].keys():
        return [
            HubSet(split, True, {kind: by[split] for kind, by in held.items() if split in by})
            for split in sorted(corpora)
        ]
    every = {kind: [t for own in by.values() for t in own] for kind, by in held.items()}
    splits = sorted(held[JUDGMENTS], key=lambda name: (name != "train", name))
    alone = len(splits) == 1 and splits[0] in corpora
    return [
        HubSet(
            "" if alone else split,
            False,
            every
            | {JUDGMENTS: held[JUDGMENTS][split]}
            | {CANDIDATES: held[CANDIDATES].get(split, every[CANDIDATES] if len(splits) == 1 else [])},
        )
        for split in splits
    ]


def write(of: HubSet, folder: Path) -> None:
    """Write a dataset as a folder of docs.jsonl, queries.jsonl, qrels.txt, and run.trec if it has candidates.

    Raises:
        BadInput: FILE:ROW of a row without an id or a text.
    """
    with (
        (folder / "docs.jsonl").open("w", encoding="utf-8") as documents,
        (folder / "queries.jsonl").open("w", encoding="utf-8") as queries,
        (folder / "qrels.txt").open("w", encoding="utf-8") as qrels,
    ):
        for table in of.tables[PASSAGES]:
            for where, row in table.rows():
                title = {"title": row["title"]} if row.get("title") else {}
                entry = {"doc_id": _id(where, row, "_id", "id"), **title, "text": row.get("text") or ""}
                documents.write(json.dumps(entry) + "\n")
        for table in of.tables[QUERIES]:
            for where, row in table.rows():
                entry = {"query_id": _id(where, row, "_id", "id"), "text": row.get("text") or ""}
                queries.write(json.dumps(entry) + "\n")
        for table in of.tables[JUDGMENTS]:
            for where, row in table.rows():
                query, grade = _id(where, row, "query-id"), _grade(where, row.get("score", 1))
                for document in _several(where, row["corpus-id"]):
                    qrels.write(f"{query} 0 {document} {grade}\n")
    if of.tables.get(CANDIDATES):
        _write_run(of, folder / "run.trec")


def _write_run(of: HubSet, path: Path) -> None:
    """Write candidates as a run; their scores are the inverse ranks, since the Hub's tables have none."""
    with path.open("w", encoding="utf-8") as run:
        for table in of.tables[CANDIDATES]:
            for where, row in table.rows():
                query = _id(where, row, "query-id")
                for rank, document in enumerate(_several(where, row["corpus-ids"]), 1):
                    run.write(f"{query} Q0 {document} {rank} {1 / rank:.9f} {table.subset}\n")


def _files(folder: Path) -> list[Path]:
    found = (p for ending in ("*.parquet", "*.jsonl") for p in folder.rglob(ending))
    return sorted(p for p in found if p.is_file() and not p.relative_to(folder).parts[0].startswith("."))


def _table(folder: Path, path: Path) -> Table | None:
    """Tell what a file holds by its columns; None for other files."""
    inside = path.relative_to(folder)
    named = _SHARD.sub("", inside.with_suffix("").as_posix())
    subset, _, split = named.rpartition("/")
    subset, split = (subset or split).rpartition("/")[2], split or subset
    names = _columns(path)
    kind = None
    if "corpus-ids" in names and "query-id" in names:
        kind = CANDIDATES
    elif "corpus-id" in names and "query-id" in names:
        kind = JUDGMENTS
    elif names & {"_id", "id"} and "text" in names:
        kind = QUERIES if subset.startswith("quer") else PASSAGES if subset.startswith("corpus") else None
    return None if kind is None else Table(path, kind, subset, split)


def _columns(path: Path) -> set[str]:
    if path.suffix == ".parquet":
        return set(_parquet(path).schema_arrow.names)
    return set(next(_rows(path), {}))


def _rows(path: Path) -> Iterator[Mapping[str, Any]]:
    if path.suffix == ".parquet":
        for batch in _parquet(path).iter_batches(batch_size=_BATCH):
            yield from batch.to_pylist()
        return
    for number, line in lines.lines(path):
        if line.strip():
            try:
                row = json.loads(lines.decode(path, number, line))
            except (json.JSONDecodeError, RecursionError) as error:
                raise BadInput(f"{path}:{number}: not JSON: {error}") from error
            if not isinstance(row, dict):
                raise BadInput(f"{path}:{number}: not a JSON object")
            yield row


def _parquet(path: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise BadInput(
            f"{path} is not a Parquet file: {str(error).splitlines()[0]}",
            hint="download it again; a Git LFS pointer is a small text file",
        ) from error


def _id(where: str, row: Mapping[str, Any], *names: str) -> str:
    given = next((row[name] for name in names if row.get(name) is not None), None)
    return _checked(where, given, names[0])


def _several(where: str, given: Any) -> list[str]:
    return [_checked(where, one, "corpus-id") for one in (given if isinstance(given, list) else [given])]


def _checked(where: str, given: Any, name: str) -> str:
    value = str(given) if isinstance(given, int) and not isinstance(given, bool) else given
    if not isinstance(value, str) or len(value.split()) != 1 or value != value.strip():
        raise BadInput(f"{where}: {name} is {given!r}: expected an id without white space")
    return value


def _grade(where: str, given: Any) -> int:
    if isinstance(given, int | float) and float(given).is_integer() and abs(given) < 2**15:
        return int(given)
    raise BadInput(f"{where}: score is {given!r}: expected a small whole number")
