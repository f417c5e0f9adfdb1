"""Add a dataset from a folder: docs.jsonl, queries.tsv and qrels.txt, each plain, .gz or .zst.

Documents are optional if the store has the collection, judgments always. BEIR's names (corpus.jsonl, queries.jsonl,
qrels/test.tsv through --qrels) and MS MARCO's collection.tsv work too.
"""

import re
from pathlib import Path

from labelstore.datasets import add as ingest
from labelstore.datasets.staging import Progress, staging
from labelstore.errors import DataMissing, UsageError
from labelstore.files import trec
from labelstore.store.label_store import LabelStore

_ENDINGS = ("", ".gz", ".zst")
_DOCUMENTS = ("docs.jsonl", "corpus.jsonl", "collection.tsv", "docs.tsv", "corpus.tsv")
_QUERIES = ("queries.tsv", "queries.jsonl")
_QRELS = ("qrels.txt", "qrels.tsv")
_TEXTS = re.compile(r"\.(jsonl?|ndjson|tsv|csv|parquet|xml|trec)(\.(gz|zst|bz2|zip))?$", re.IGNORECASE)


def find_file(folder: Path, names: tuple[str, ...]) -> Path | None:
    """Find the one file of a kind in a folder.

    Raises:
        UsageError: there are several, e.g. plain and compressed.
    """
    found = [path for name in names for ending in _ENDINGS if (path := folder / (name + ending)).is_file()]
    if len(found) > 1:
        raise UsageError(
            f"{folder} has {' and '.join(path.name for path in found)}", hint="leave one of them there"
        )
    return found[0] if found else None


def add_folder(
    store: LabelStore,
    folder: Path | None,
    request: ingest.NewDataset,
    qrels: Path | None = None,
    progress: Progress | None = None,
    skip_bad_lines: int = 0,
    passages: bool = True,
) -> ingest.Added:
    """Add a dataset from a folder, or (folder None) from judgments over queries that the collection holds.

    Args:
        qrels: judgments; a bare name is looked for in the folder. The dataset then has only the queries judged in it.
            Without it the dataset has all queries of the folder, with its qrels.txt if there is one.
        skip_bad_lines: lines of passages and of queries that may be left out because they cannot be read.
        passages: False leaves the folder's passages unread, since the collection has them.

    Raises:
        DataMissing: the folder or a file is not found.
        BadInput: a line is wrong, and the message has file:line; the store is not changed.
    """
    if folder is not None and not folder.is_dir():
        hint = "name a folder with docs.jsonl and queries.tsv: --from FOLDER"
        if folder.exists():
            raise DataMissing(
                f"{folder} is not a folder", hint=f"{hint}; a file of triples needs --layout triples"
            )
        raise DataMissing(f"folder not found: {folder}", hint=hint)
    documents = find_file(folder, _DOCUMENTS) if folder else None
    queries = find_file(folder, _QUERIES) if folder else None
    if qrels is not None:
        judgments: Path | None = _resolve(qrels, folder)
    else:
        judgments = find_file(folder, _QRELS) if folder else None
    if documents is None and queries is None and judgments is None:
        raise DataMissing(
            f"{folder} has none of the files of a dataset: docs.jsonl, queries.tsv, qrels.txt (.gz, .zst)",
            hint="name the folder that holds them: --from FOLDER",
        )
    with staging(store, skip_bad_lines) as stage:
        if judgments is not None:
            stage.add_judgments(trec.read_qrels(judgments), str(judgments))
        if queries is not None:
            stage.add_query_file(queries)
        if documents is not None and passages:
            stage.add_document_file(documents, progress)
        stage.finish(request.update)
        added = ingest.merge_dataset(store, stage, request)
        added.notes += stage.notes
    if judgments is None and folder is not None and (others := _other_judgments(folder)):
        added.notes.append(
            f"no judgments were read: {folder} has no qrels.txt, but {', '.join(others)}; --qrels {others[0]} takes them,"
            " --splits makes a dataset of each"
        )
    if documents is None and folder is not None and (others := _other_texts(folder, queries, judgments)):
        added.notes.append(
            f"no passages were read: {folder} has no docs.jsonl or collection.tsv, but {', '.join(others)};"
            " rename the file that holds them"
        )
    return added


def is_beir(folder: Path) -> bool:
    """Tell whether a folder has judgments in BEIR's layout alone: ``qrels/SPLIT.tsv``, and no file of its own."""
    return find_file(folder, _QRELS) is None and any((folder / "qrels").glob("*.tsv*"))


def has_documents(folder: Path) -> bool:
    """Tell whether a folder has a file of passages at its top."""
    return find_file(folder, _DOCUMENTS) is not None


def splits(folder: Path) -> dict[str, Path]:
    """Find the splits of a folder: ``qrels/test.tsv`` as BEIR has them, or ``qrels.test.txt``.

    Raises:
        DataMissing: the folder has no judgments of splits.
        UsageError: two files are of one split.
    """
    found: dict[str, Path] = {}
    for name in _other_judgments(folder):
        path = folder / name
        split = (path.name if path.parent != folder else path.name.removeprefix("qrels").lstrip(".-_")).split(
            "."
        )[0]
        if split in found:
            raise UsageError(
                f"{found[split]} and {path} are both of the split {split}", hint="leave one of them there"
            )
        found[split] = path
    if not found:
        raise DataMissing(
            f"{folder} has no judgments of splits",
            hint="expected qrels/train.tsv, qrels/test.tsv or qrels.test.txt",
        )
    return dict(sorted(found.items(), key=lambda item: (item[0] != "train", item[0])))


def _other_judgments(folder: Path) -> list[str]:
    """Find files in the folder that may be judgments: qrels/test.tsv, qrels.train.txt …"""
    found = [*folder.glob("qrels*"), *folder.glob("qrels/*")]
    return sorted(path.relative_to(folder).as_posix() for path in found if path.is_file())


def _other_texts(folder: Path, *read: Path | None) -> list[str]:
    """Find files in the folder that may be passages, under other names."""
    return sorted(
        p.name
        for p in folder.iterdir()
        if p.is_file()
        and p not in read
        and _TEXTS.search(p.name)
        and not p.name.startswith(("qrels", "queries"))
    )


def _resolve(qrels: Path, folder: Path | None) -> Path:
    if qrels.is_file():
        return qrels
    if folder is not None and (folder / qrels).is_file():
        return folder / qrels
    raise DataMissing(f"no file {qrels}" + (f", nor in {folder}" if folder else ""), hint="check --qrels")
