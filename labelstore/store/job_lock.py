"""Let one job at a time make a labeling or a student. Lock files have their own folder and are never removed."""

from contextlib import AbstractContextManager

from labelstore.store import keys
from labelstore.store.label_store import LabelStore
from msft.job_lock import alone


def labeling_alone(store: LabelStore, name: str) -> AbstractContextManager[None]:
    """Lock a labeling, so that one job at a time writes it (`msft.job_lock.alone`)."""
    return _alone(store, "labeling", name, "made")


def judging_alone(store: LabelStore, name: str) -> AbstractContextManager[None]:
    """Lock a judging, so that one job at a time writes it (`msft.job_lock.alone`)."""
    return _alone(store, "judging", name, "made")


def checking_alone(store: LabelStore, name: str) -> AbstractContextManager[None]:
    """Lock a check of negatives, so that one job at a time writes it (`msft.job_lock.alone`)."""
    return _alone(store, "verdicts", name, "made")


def dataset_alone(store: LabelStore, name: str) -> AbstractContextManager[None]:
    """Lock a dataset of generated queries, so that one job at a time writes it (`msft.job_lock.alone`)."""
    return _alone(store, "dataset", name, "generated")


def student_alone(store: LabelStore, name: str) -> AbstractContextManager[None]:
    """Lock a student's name, so that one process at a time trains it (`msft.job_lock.alone`)."""
    return _alone(store, "student", name, "trained")


def _alone(store: LabelStore, what: str, name: str, done: str) -> AbstractContextManager[None]:
    file = keys.content_key(what, name)  # a name may hold characters that a file name cannot
    return alone(store.folder("locks") / f"{file}.lock", f"{what} {name} is being {done}")
