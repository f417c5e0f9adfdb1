"""Let one job at a time make a labeling or a student. Their lock files lie in a folder of their own and stay there."""

from contextlib import AbstractContextManager

from labelstore.store import keys
from labelstore.store.label_store import LabelStore
from msft.job_lock import alone


def labeling_alone(store: LabelStore, name: str) -> AbstractContextManager[None]:
    """Hold a labeling, so that one job at a time writes it (`msft.job_lock.alone`)."""
    return _alone(store, "labeling", name, "made")


def student_alone(store: LabelStore, name: str) -> AbstractContextManager[None]:
    """Hold a student's name, so that one process at a time trains it (`msft.job_lock.alone`)."""
    return _alone(store, "student", name, "trained")


def _alone(store: LabelStore, what: str, name: str, done: str) -> AbstractContextManager[None]:
    file = keys.content_key(what, name)  # a name may hold what a file's may not
    return alone(store.folder("locks") / f"{file}.lock", f"{what} {name} is being {done}")
