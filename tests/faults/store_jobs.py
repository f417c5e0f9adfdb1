"""Jobs over a small store that can be killed anywhere, and what must hold afterwards.

A job runs in a child that was forked from a server with everything imported, so that a kill hits the job's own work.
"""

import contextlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from made_words import WORDS

from labelstore.datasets import add as ingest
from labelstore.datasets.from_folder import add_folder
from labelstore.negatives import mine as negatives
from labelstore.runs import import_run as importing
from labelstore.store.label_store import LabelStore
from labelstore.upkeep.merge.job import merge_stores
from labelstore.upkeep.verify.digest import content_hash
from labelstore.upkeep.verify.findings import Finding
from labelstore.upkeep.verify.verify import verify
from labelstore.views import build as views

DOCUMENTS, QUERIES, DEPTH = 1_500, 80, 50

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload([__name__])


def write_source(folder: Path, *, first: int = 0, seed: int = 1) -> Path:
    """docs.jsonl, queries.tsv, qrels.txt and run.txt; ids begin at `first`."""
    rng = random.Random(seed)
    folder.mkdir(parents=True)
    documents, queries = range(first, first + DOCUMENTS), range(first, first + QUERIES)
    with (folder / "docs.jsonl").open("w") as out:
        for n in documents:
            text = " ".join(rng.choices(WORDS, k=20))
            out.write(json.dumps({"doc_id": f"{n:06d}", "text": f"{text} {n}"}) + "\n")
    (folder / "queries.tsv").write_text("".join(f"q{n}\t{rng.choice(WORDS)} {n}\n" for n in queries))
    with (folder / "qrels.txt").open("w") as judged, (folder / "run.txt").open("w") as run:
        for n in queries:
            found = rng.sample(documents, DEPTH)
            judged.write(f"q{n} 0 {found[rng.randrange(10)]:06d} 1\n")
            run.writelines(f"q{n} Q0 {d:06d} {k} {90 - k / 2} bm25\n" for k, d in enumerate(found, 1))
    return folder


def made(folder: Path) -> LabelStore:
    """A store with one dataset and one run, and beside it the sources of more."""
    write_source(folder / "a")
    write_source(folder / "b", first=DOCUMENTS, seed=2)
    store = LabelStore(folder / "s.duckdb")
    for job in (add_first, import_first):
        job(store)
    other = LabelStore(folder / "other" / "o.duckdb")
    add_folder(other, folder / "b", ingest.NewDataset("b", collection="other", role="train"))
    importing.import_run(other, folder / "b" / "run.txt", "b", "bm25")
    return store


def add_first(store: LabelStore) -> None:
    add_folder(store, store.path.parent / "a", ingest.NewDataset("a", collection="one", role="train"))


def import_first(store: LabelStore) -> None:
    importing.import_run(store, store.path.parent / "a" / "run.txt", "a", "bm25")


def add_documents(store: LabelStore) -> None:
    add_folder(store, store.path.parent / "b", ingest.NewDataset("b", collection="one", role="train"))


def import_run(store: LabelStore) -> None:
    importing.import_run(store, store.path.parent / "a" / "run.txt", "a", "again", parameters={"k": 1})


def mine(store: LabelStore) -> None:
    negatives.mine(store, dataset="a", runs=["bm25"], depth=40, per_query=20, name="mined")


def build_view(store: LabelStore) -> None:
    views.build(store, "contrastive", datasets=["a"], runs=["bm25"], depth=40, per_query=20, name="v")


def merge_other(store: LabelStore) -> None:
    merge_stores(store, LabelStore(store.path.parent / "other" / "o.duckdb"))


JOBS: dict[str, Callable[[LabelStore], None]] = {
    "import documents": add_documents,
    "import a run": import_run,
    "mine negatives": mine,
    "build a view": build_view,
    "merge": merge_other,
}


def content(store: LabelStore) -> str:
    """The verify hash, without the checks."""
    with store.read() as con:
        return content_hash(con)


def findings(store: LabelStore) -> list[Finding]:
    return verify(store).findings


def copy(store: LabelStore, folder: Path) -> LabelStore:
    """The store with its companion folder and sources, elsewhere."""
    shutil.copytree(store.path.parent, folder)
    return LabelStore(folder / store.path.name)


def child(target: Callable[..., Any], *arguments: Any) -> Any:
    """A started process."""
    process = _context.Process(target=_quiet, args=(target, *arguments), daemon=True)
    process.start()
    return process


def _quiet(target: Callable[..., Any], *arguments: Any) -> None:
    os.environ["MSFT_LOCK_WAIT"] = "120"
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stderr(nowhere):
        target(*arguments)


def duration(job: Callable[[LabelStore], None], store: LabelStore) -> float:
    """Seconds of a job that nobody kills."""
    started = time.monotonic()
    process = child(job, store)
    process.join()
    if process.exitcode != 0:
        raise RuntimeError(f"{job.__name__} ended with {process.exitcode}")
    return time.monotonic() - started


def kill_at(job: Callable[[LabelStore], None], store: LabelStore, seconds: float) -> bool:
    """Start a job and SIGKILL it; False if it was done before."""
    process = child(job, store)
    process.join(seconds)
    killed = process.exitcode is None
    if killed:
        os.kill(process.pid, signal.SIGKILL)
    process.join()
    return killed
