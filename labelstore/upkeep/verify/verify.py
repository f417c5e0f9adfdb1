"""Run `msft verify`: block by block, key by key, reference by reference, folder by folder.

The store is closed between checks, so that a writer waits a few seconds, or one check at most. A damaged table ends only the
checks that need it. Memory is bounded: sets are grouped within DuckDB, which spills beside the store.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import duckdb

from labelstore.errors import StoreDamaged
from labelstore.store.label_store import LabelStore
from labelstore.upkeep.verify import content_keys, counts, folders, references
from labelstore.upkeep.verify.damage import HINT, damaged_blocks
from labelstore.upkeep.verify.digest import content_hash
from labelstore.upkeep.verify.findings import Finding

MEMORY = "2GB"  # DuckDB's memory; beyond it DuckDB works on disk
HELD = 2.0  # seconds after which the store is closed between two checks

Check = Callable[[duckdb.DuckDBPyConnection], Iterator[Finding]]
_CHECKS: tuple[tuple[str, Check], ...] = (
    ("references", references.dangling),
    ("collections of what is named", references.in_other_collections),
    ("repeated rows", references.repeated),
    ("counts", counts.counts),
    ("texts that labels were given for", counts.texts_pinned),
    ("hashes of texts", content_keys.texts),
    ("hashes of judgments, runs and negatives", content_keys.rankings),
    ("keys of labels", content_keys.label_keys),
)


@dataclass
class Verified:
    """The result of `verify`.

    Attributes:
        hash: of the whole content; None if damage prevents reading it.
        unchecked: checks that damage prevented.
    """

    findings: list[Finding] = field(default_factory=list)
    hash: str | None = None
    unchecked: list[str] = field(default_factory=list)
    stale_evaluations: int = 0


def verify(store: LabelStore, progress: Callable[[int, int | None], None] | None = None) -> Verified:
    """Check everything.

    Args:
        progress: called with (checks done, number of checks).

    Raises:
        DataMissing, StoreError: the store is not found, stays locked, or is from a newer version.
    """
    done = Verified()
    tick = progress or (lambda n, total: None)
    total = len(_CHECKS) + 3
    tick(0, total)
    done.findings += _blocks(store)
    _run(store, [*_CHECKS], done, lambda n: tick(n, total))
    tick(total - 2, total)
    done.findings += folders.folders(store)
    done.findings += folders.leftovers(store)
    tick(total - 1, total)
    _run(store, [("the verify hash", lambda con: _digest(con, done))], done, lambda n: None)
    tick(total, total)
    return done


def _blocks(store: LabelStore) -> list[Finding]:
    """Find damage in the file itself; a file that cannot be opened is one finding."""
    try:
        with store.read():
            pass
    except StoreDamaged:
        pass  # the check of the blocks reports more
    try:
        return [block.finding() for block in damaged_blocks(store)]
    except StoreDamaged as damaged:
        return [Finding("store", str(store.path), f"{damaged.message}: its header or its catalogue", HINT)]


def _run(
    store: LabelStore, waiting: list[tuple[str, Check]], done: Verified, tick: Callable[[int], None]
) -> None:
    """Run checks one after the other, and note those that damage prevented."""
    total = len(waiting)
    while waiting:
        try:
            with store.read() as con:
                con.execute(f"SET memory_limit = '{MEMORY}'")
                con.execute("SET preserve_insertion_order = false")
                began = time.monotonic()
                while waiting and time.monotonic() - began < HELD:
                    tick(total - len(waiting) + 1)
                    done.findings += list(waiting[0][1](con))
                    waiting.pop(0)
        except StoreDamaged:
            done.unchecked.append(waiting.pop(0)[0])


def _digest(con: duckdb.DuckDBPyConnection, done: Verified) -> Iterator[Finding]:
    done.hash = content_hash(con)
    (done.stale_evaluations,) = con.execute(
        """SELECT count(*) FROM evaluations e LEFT JOIN datasets d ON d.dataset = e.dataset AND d.qrels_hash = e.qrels_hash
           LEFT JOIN current_rankings c ON c.dataset = e.dataset AND c.hash = e.run_hash
                AND c.run IS NOT DISTINCT FROM e.run AND c.labeling IS NOT DISTINCT FROM e.labeling
           WHERE d.dataset IS NULL OR c.dataset IS NULL"""
    ).fetchall()[0]
    return iter(())
