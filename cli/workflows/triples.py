"""Add a dataset from a file of triples, with its candidates as a run (`msft data add --layout triples`)."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from labelstore.datasets.add import Added
    from labelstore.store.label_store import LabelStore


def add_triples(
    store: "LabelStore",
    name: str,
    file: Path,
    *,
    collection: str | None = None,
    role: str | None = None,
    update: bool = False,
    progress: Callable[[int, int | None], None] | None = None,
) -> "Added":
    """Add passages, queries and judgments, and import each line's passages as the run `triples`.

    Raises:
        UsageError: an unknown role.
        DataMissing: the file is not found.
        BadInput: a line is not a triple, with file:line; nothing is stored.
    """
    from labelstore.datasets import catalog
    from labelstore.datasets.add import NewDataset
    from labelstore.datasets.from_folder import add_folder
    from labelstore.datasets.from_triples import RUN, split
    from labelstore.errors import UsageError
    from labelstore.files.work_folder import work_folder
    from labelstore.runs.import_run import import_run

    if role is not None and role not in catalog.ROLES:
        raise UsageError(f"role {role!r} is not known", hint=f"--role {' | '.join(catalog.ROLES)}")
    with work_folder(store.files) as folder:
        read = split(file, folder)
        request = NewDataset(name, collection, role, update, judged_only=False, source=str(file))
        added = add_folder(store, folder, request, progress=progress)
        done = import_run(store, folder / "run.trec", added.dataset, RUN, replace=True)
    added.notes.append(
        f"run {RUN}: {done.run.n_candidates:,} candidates, {read.n_negatives:,} of them given negatives;"
        f" msft negatives mine --dataset {added.dataset} --run {RUN} takes them"
    )
    if read.n_both:
        added.notes.append(
            f"{read.n_both:,} passages are positive and negative for one query: taken as positive"
        )
    return added
