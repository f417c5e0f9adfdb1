"""Run `msft merge`: look for contradictions, copy folders, then write everything or nothing.

The two stores are read together twice: first to find contradictions and folders to copy, while other readers can read, then
inside the one transaction that writes. Merging the same store again finds nothing new.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field

import duckdb

from labelstore.errors import BadInput, UsageError
from labelstore.provenance import record as provenance
from labelstore.store import foreign
from labelstore.store.label_store import LabelStore, Undo
from labelstore.upkeep.merge.folders import lacking
from labelstore.upkeep.merge.maps import Contradiction, Maps
from labelstore.upkeep.merge.match_corpora import match_collections, match_datasets
from labelstore.upkeep.merge.match_labels import (
    match_checkings,
    match_evaluations,
    match_judgings,
    match_labels,
)
from labelstore.upkeep.merge.match_rankings import match_minings, match_runs, match_students
from labelstore.upkeep.merge.write import Taken, Writer

KNOWN, STALE = "there already", "of a ranking or judgments that have changed"
_SUFFIX = re.compile(r"[\w.@+-]+")


@dataclass
class MergedStore:
    """The result of a merge; `new` is False if this store had everything."""

    taken: list[Taken] = field(default_factory=list)
    renamed: list[tuple[str, str, str]] = field(default_factory=list)
    folders: int = 0
    new: bool = False


class Contradictory(BadInput):
    """The stores have different content under one name or id; nothing was changed."""

    def __init__(self, found: list[Contradiction], other: LabelStore) -> None:
        first = found[0]
        super().__init__(
            f"{other.path} contradicts this store: {first.what} {first.name} is {first.here} here and {first.there}"
            f" there"
            + (f"; {len(found)} contradictions in all" if len(found) > 1 else "")
            + "; nothing was changed",
            hint=first.hint,
        )
        self.contradictions = found


def merge_stores(
    store: LabelStore,
    other: LabelStore,
    *,
    rename_suffix: str | None = None,
    note: Callable[[str], None] | None = None,
) -> MergedStore:
    """Unite another store with this one.

    Args:
        rename_suffix: appended to names of the other store that this store uses for other content.

    Raises:
        Contradictory: the stores contradict each other; it lists every contradiction, and nothing was changed.
        UsageError: both are the same file, or the suffix cannot be in a name.
        DataMissing, StoreError: the other store is not found, or one of them stays locked.
    """
    say = note or (lambda message: None)
    if rename_suffix is not None and not _SUFFIX.fullmatch(rename_suffix):
        raise UsageError(
            f"--rename-suffix {rename_suffix!r} cannot be in a name", hint="--rename-suffix @machine2"
        )
    if store.exists and store.path.resolve() == other.path.resolve():
        raise UsageError(f"{other.path} is this store itself", hint="name another file")
    clock = provenance.Clock()
    _look_at(other)
    if not store.exists:
        with store.write():
            pass
    with store.read(reach=[other.path]) as con:
        _attach(con, other)
        maps = _matched(con, rename_suffix)
        if maps.contradictions:
            raise Contradictory(maps.contradictions, other)
        copies = list(lacking(maps, store, other))
    done = MergedStore(renamed=maps.renamed)
    for copy in copies:
        problems = copy.problems()
        if copy.source.is_dir() and not problems:
            copy.run()
            done.folders += 1
        else:
            say(f"{copy.name}: its folder is not copied: {'; '.join(problems)}")
    try:
        _write(store, other, rename_suffix, clock, done)
    except duckdb.ConstraintException as error:
        text = str(error).splitlines()[0]
        raise BadInput(
            f"{other.path} holds rows that name what it has not ({text}); nothing was changed",
            hint=f"msft verify --store {other.path}",
        ) from error
    return done


def _look_at(other: LabelStore) -> None:
    """Check that the other store exists, has only a store's tables, and has this version."""
    if other.exists:
        foreign.check_store(other)
    with other.read():
        pass


def _write(
    store: LabelStore, other: LabelStore, suffix: str | None, clock: provenance.Clock, done: MergedStore
) -> None:
    with store.write(reach=[other.path]) as con, provenance.recorded_in(con, "merge", clock) as job:
        _attach(con, other)
        maps = _matched(con, suffix)
        if maps.contradictions:
            raise Contradictory(maps.contradictions, other)
        writer = Writer(maps)
        writer.run()
        done.taken = list(writer.taken.values())
        if not writer.changed:
            raise Undo
        done.new = True
        for taken in done.taken:
            known = taken.there - taken.new - taken.stale
            job.count(
                con, f"merge {taken.table}", str(other.path), taken.there,
                {KNOWN: (known, None), STALE: (taken.stale, None)},
            )  # fmt: skip


def _matched(con: duckdb.DuckDBPyConnection, suffix: str | None) -> Maps:
    """Make all maps, in the order of the references between tables."""
    maps = Maps(con, suffix)
    maps.keyed("provenance", "job_key")
    match_collections(maps)
    match_datasets(maps)
    match_students(maps)
    match_runs(maps)
    match_minings(maps)
    match_labels(maps)
    maps.keyed("query_filters", "filter_key")
    match_judgings(maps)
    match_checkings(maps)
    maps.keyed("views", "view_hash")
    match_evaluations(maps)
    return maps


def _attach(con: duckdb.DuckDBPyConnection, other: LabelStore) -> None:
    """Attach the other store as ``msft_theirs``, to read; the connection's end detaches it."""
    path = str(other.path).replace("'", "''")
    try:
        con.execute(f"ATTACH '{path}' AS msft_theirs (READ_ONLY)")
    except duckdb.IOException:
        with other.read():  # waits while another process writes it, and explains other errors
            pass
        con.execute(f"ATTACH '{path}' AS msft_theirs (READ_ONLY)")
    foreign.lock(con)
