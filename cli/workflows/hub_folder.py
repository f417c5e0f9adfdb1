"""Add the datasets of a folder in the Hub's layout, with their candidates as runs (`msft data add NAME --from FOLDER`)."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from labelstore.datasets.add import Added
    from labelstore.store.label_store import LabelStore


def add_hub_folder(
    store: "LabelStore",
    name: str,
    folder: Path,
    *,
    collection: str | None = None,
    role: str | None = None,
    update: bool = False,
    progress: Callable[[int, int | None], None] | None = None,
) -> "list[Added]":
    """Add a dataset for each split of the judgments, or for each corpus; candidates become runs.

    The datasets are named NAME/SPLIT, or NAME if there is one. The sets of the suite nano-beir have the suite's names if
    NAME is the suite.

    Raises:
        UsageError: one collection is given for several corpora, or one role for several datasets.
        DataMissing: a table is missing.
        BadInput: FILE:ROW of what cannot be read; the datasets before it are stored.
    """
    from labelstore.datasets import catalog, from_hub
    from labelstore.datasets.add import NewDataset
    from labelstore.datasets.from_folder import add_folder
    from labelstore.errors import UsageError
    from labelstore.files.work_folder import work_folder
    from labelstore.runs.import_run import import_run

    found = from_hub.sets(folder)
    if len(found) > 1 and (role is not None or (collection is not None and found[0].own_corpus)):
        raise UsageError(
            f"{folder} has {len(found)} datasets: expected neither --role nor --collection for all of them",
            hint=f"msft data add {name} --from {folder}",
        )
    done = []
    for one in found:
        in_suite = name in catalog.SUITES and one.split in catalog.SUITES[name]
        own = one.split if in_suite else catalog.of_split(name, one.split) if one.split else name
        corpus = collection or (own if one.own_corpus else name)
        with work_folder(store.files) as work:
            from_hub.write(one, work)
            request = NewDataset(
                own, corpus, role, update, judged_only=bool(one.split) and not one.own_corpus, source=str(folder)
            )  # fmt: skip
            added = add_folder(store, work, request, work / "qrels.txt", progress=progress)
            if one.run is not None:
                run = import_run(store, work / "run.trec", added.dataset, one.run, replace=update).run
                added.notes.append(f"run {run.name}: {run.n_candidates:,} candidates")
        done.append(added)
    return done
