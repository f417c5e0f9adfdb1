"""Add a dataset by its name: from a folder, from a file of judgments, or from ir_datasets."""

from collections.abc import Callable
from pathlib import Path

from labelstore.datasets import catalog
from labelstore.datasets.add import Added, NewDataset
from labelstore.datasets.from_folder import add_folder, splits
from labelstore.datasets.from_ir_datasets import add_ir_dataset
from labelstore.datasets.staging import Progress
from labelstore.errors import UsageError
from labelstore.store.label_store import LabelStore


def add_dataset(
    store: LabelStore,
    name: str,
    folder: str | Path | None = None,
    *,
    qrels: str | Path | None = None,
    collection: str | None = None,
    role: str | None = None,
    update: bool = False,
    skip_bad_lines: int = 0,
    progress: Progress | None = None,
    note: Callable[[str], None] | None = None,
) -> Added:
    """Add documents, queries and judgments as a dataset; adding the same twice changes nothing.

    Args:
        name: an alias (dl19, dl20, dev …), an ir_datasets id, or a name of your own.
        folder: where docs.jsonl, queries.tsv and qrels.txt lie (each may be .gz or .zst). None: ir_datasets, or
            `qrels` over queries that the collection has.
        qrels: judgments; the dataset then has only the queries judged in this file. A bare name is looked for in
            `folder`.
        collection: the corpus that the dataset shares with others; by default the catalogue's, or from the name.
        role: train, dev or test. Views leave out training queries that stand in a test set.
        update: take a changed text as a new version, and other queries and judgments of a known dataset.
        skip_bad_lines: lines of passages and of queries that may be left out because they cannot be read; they are counted.
        progress: called with (passages read, total or None).
        note: called with the name that a catalogue alias stands for.

    Returns:
        The dataset's name, collection and role, and for each file what was read, kept, new and rejected.

    Raises:
        UsageError: an unknown role, or the dataset has another collection.
        DataMissing: the folder, a file or the ir_datasets id is not found.
        BadInput: ``file:line`` of what cannot be read, or of a text that contradicts the store.
    """
    if role is not None and role not in catalog.ROLES:
        raise UsageError(f"role {role!r} is not known", hint=f"--role {' | '.join(catalog.ROLES)}")
    entry = catalog.find(name)
    own_name = entry.name if entry else name
    if own_name != name and note is not None:
        note(f"{name} goes by the name {own_name}")
    source = folder or qrels
    request = NewDataset(
        name=own_name,
        collection=collection,
        role=role,
        update=update,
        judged_only=qrels is not None,
        source=None if source is None else str(source),
        ir_datasets_id=entry.ir_datasets_id if entry else None,
    )
    if source is None:
        return add_ir_dataset(store, request, progress=progress)
    return add_folder(
        store, _path(folder), request, _path(qrels), progress=progress, skip_bad_lines=skip_bad_lines
    )


def add_splits(
    store: LabelStore,
    name: str,
    folder: str | Path,
    *,
    collection: str | None = None,
    update: bool = False,
    skip_bad_lines: int = 0,
    progress: Progress | None = None,
) -> list[Added]:
    """Add a dataset NAME/SPLIT for each file of judgments in a BEIR folder, over one collection; passages are read once.

    The catalogue's test sets keep their names: the test split of ``nfcorpus`` is ``nfcorpus``.

    Args:
        collection: the corpus of all of them; by default `name`.
        update, skip_bad_lines, progress: as in :func:`add_dataset`.

    Raises:
        DataMissing: the folder has no judgments of splits.
        BadInput: as :func:`add_dataset`; the splits before it are stored.
    """
    done: list[Added] = []
    for split, qrels in splits(Path(folder)).items():
        request = NewDataset(
            catalog.of_split(name, split),
            collection or name,
            update=update,
            judged_only=True,
            source=str(folder),
        )
        done.append(
            add_folder(
                store,
                Path(folder),
                request,
                qrels,
                progress,
                skip_bad_lines=skip_bad_lines,
                passages=not done,
            )
        )
    return done


def _path(given: str | Path | None) -> Path | None:
    return None if given is None else Path(given)
