"""One job of a labeling at a time."""

from contextlib import AbstractContextManager

from labelstore.store import keys
from labelstore.store.label_store import LabelStore
from msft.job_lock import alone


def labeling_alone(store: LabelStore, name: str) -> AbstractContextManager[None]:
    """Hold a labeling, so that one job at a time writes it (`msft.job_lock.alone`)."""
    file = keys.content_key("labeling", name)  # a name may hold what a file's may not
    return alone(store.folder("locks") / f"{file}.lock", f"labeling {name} is being made")
