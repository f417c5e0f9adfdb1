"""Let the bases of evaluated students re-rank first stages. Their runs are stored, so that each is scored once."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from labelstore.errors import DataMissing, MsftError
from labelstore.evaluation import bases
from labelstore.evaluation.bases import BASE, UNTRAINED, Start
from labelstore.files.work_folder import work_folder
from labelstore.provenance import record as provenance
from labelstore.runs.write import NewRun, store_run
from labelstore.store import lookup
from labelstore.store.label_store import LabelStore
from students.jobs.bases.find import check_unchanged, folder_of, framing_of, kind_of, short_name
from students.jobs.candidates import candidates
from students.jobs.rerank import DEFAULT_DEPTH, opened_folder, ranked
from students.rerank.machines import Machines, Scoring
from students.text.windows import check_mode

if TYPE_CHECKING:
    from students.jobs.evaluate import Talk
    from students.rerank.reranker import Reranker


@dataclass(frozen=True)
class Wanted:
    """A base that is to have a row."""

    start: Start
    kind: str  # "base" or "untrained"

    @property
    def name(self) -> str:
        """Return what stands in the table: ``base-ms-marco-MiniLM-L6``, ``untrained-electra``."""
        return f"{self.kind}-{short_name(self.start.base)}"


@dataclass(frozen=True)
class Chosen:
    """The students that are evaluated, with those that others began from, and the bases that are no students."""

    students: Sequence[str] | None  # None: all of the store
    bases: tuple[Wanted, ...] = ()


def choose(store: LabelStore, students: Sequence[str] | None, untrained: bool | None, talk: "Talk") -> Chosen:
    """Choose the bases of the evaluated students.

    A base that is not on this machine has a warning in place of a row.

    Args:
        students: None: all of the store.
        untrained: None: bases that rank as they are; True: also those whose head is drawn; False: none.
    """
    if untrained is False or not store.exists:
        return Chosen(students)
    with store.read() as con:
        known = bases.kinds(con)
        found = [
            (start, bases.registered(con, name, start)) for name, start in bases.starts(con, students).items()
        ]
    named = list(students) if students else None
    wanted: dict[str, Wanted] = {}
    lost: set[str] = set()
    for start, student in found:
        kind = next((k for k in (BASE, UNTRAINED) if known.get(start.key(k)) == k), None)
        try:
            kind = kind or kind_of(store, start)
        except MsftError as error:
            if student is None and start.base not in lost:
                lost.add(start.base)
                _warn(talk, start, error)
        if kind == UNTRAINED and not untrained:
            continue
        if student is not None:
            if named is not None and student not in named:
                named.append(student)
        elif kind is not None:
            wanted.setdefault(f"{kind} {start.key(kind)}", Wanted(start, kind))
    return Chosen(named if students else students, tuple(wanted.values()))


def base_runs(
    store: LabelStore,
    dataset: str,
    wanted: Sequence[Wanted],
    over: Sequence[lookup.Run],
    depth: int,
    machines: Machines | None,
    talk: "Talk",
) -> list[int]:
    """Return the runs of the bases over the given first stages. Missing ones are made first.

    Args:
        machines: where they are made. None: only stored runs are returned.
    """
    found: list[int] = []
    for base in wanted:
        with store.read() as con:
            held = lookup.runs(con, lookup.dataset(con, dataset), (base.kind,))
        todo = []
        for source in over:
            run = _stored(held, base, source, depth)
            if run is not None:
                found.append(run.run)
            else:
                todo.append(source)
        if not todo or machines is None:
            continue
        names = ", ".join(source.name for source in todo)
        talk.note(
            f"{dataset}: the base {short_name(base.start.base)} re-ranks {names}, so that its row stands beside its"
            " students'; --no-untrained leaves it out"
        )
        try:
            with _folder(store, base) as folder:
                found += [
                    _rank(store, dataset, base, folder, source, depth, machines, talk) for source in todo
                ]
        except MsftError as error:
            _warn(talk, base.start, error)
    return found


@contextmanager
def opened(store: LabelStore, wanted: Wanted, dataset: str, precision: str) -> "Iterator[Reranker]":
    """Load a base as its students began from it, ready to score lists of a dataset.

    Raises:
        StudentError, DataMissing, UsageError: the base is not on this machine, or it has changed.
    """
    with (
        _folder(store, wanted) as folder,
        opened_folder(folder, max_length=wanted.start.max_length, n_pairs=0, precision=precision) as reranker,
    ):
        reranker.encoder.form = reranker.encoder.form_for([dataset])
        yield reranker


def of_run(store: LabelStore, run: lookup.Run) -> Wanted:
    """Find the base that made a run, by a student that began from it.

    Raises:
        DataMissing: no student of the store began from it.
    """
    with store.read() as con:
        found = [start for start in bases.starts(con).values() if start.made(run)]
    if not found:
        raise DataMissing(f"no student of the store began from the base of {run.name}")
    return Wanted(found[0], run.kind)


def _stored(held: Sequence[lookup.Run], base: Wanted, source: lookup.Run, depth: int) -> lookup.Run | None:
    """Find the base's run over a first stage as it is now, to the depth; the smallest one."""
    fits = [
        run
        for run in held
        if run.source_run == source.run
        and run.parameters.get("source_hash") == source.content_hash
        and run.parameters.get("depth", 0) >= min(depth, source.depth)
        and base.start.made(run)
    ]
    return min(fits, key=lambda run: run.parameters["depth"], default=None)


@contextmanager
def _folder(store: LabelStore, wanted: Wanted) -> Iterator[Path]:
    """Write the model that the training started with into a folder that is removed afterwards.

    Raises:
        StudentError, DataMissing, UsageError: the base is not on this machine, or it has changed.
    """
    from students.model.encoder import CrossEncoder
    from students.model.head import HeadStart

    start = wanted.start
    source = folder_of(store, start)
    check_unchanged(source, start)
    with work_folder(store.folder("students")) as folder:
        encoder = CrossEncoder.load(
            source,
            max_length=start.max_length,
            precision="fp32",
            device="cpu",
            seed=start.seed,
            layers=start.layers or None,
            head=HeadStart(start.head_scale, start.head_identity),
            framing=framing_of(start),
        )
        encoder.long = check_mode(start.long)
        encoder.save(folder / "model")
        del encoder
        yield folder / "model"


def _rank(
    store: LabelStore,
    dataset: str,
    base: Wanted,
    folder: Path,
    source: lookup.Run,
    depth: int,
    machines: Machines,
    talk: "Talk",
) -> int:
    """Re-rank a run and store the result."""
    depth = min(depth, source.depth)
    clock = provenance.Clock()
    with store.read() as con:
        of = lookup.dataset(con, dataset)
        found = candidates(con, source, depth)
    scoring = Scoring(machines.gpus, machines.engine, machines.workers)
    with (
        opened_folder(
            folder, max_length=base.start.max_length, n_pairs=found.n_pairs, scoring=scoring, note=talk.note
        ) as reranker,
        talk.progress(f"{base.name} over {source.name}", found.n_pairs, "pairs") as tick,
    ):
        frame = ranked(store, reranker, of, found, tick)
        precision = reranker.precision
    parameters = {
        **base.start.settings(base.kind),
        "depth": depth,
        "precision": precision,
        "source_hash": source.content_hash,
    }
    with store.write() as con, provenance.recorded_in(con, "students.rerank", clock) as job:
        name = _run_name(lookup.runs(con, of), base, source, depth)
        con.register("reranked", frame.to_arrow())
        new = NewRun(of.dataset, name, base.kind, f"{base.kind}:{base.start.base}", parameters, source.run)
        made = store_run(con, job, new, "reranked", replace=True)
        job.count(con, "rerank", f"{of.name}/{name}", found.n_pairs)
        return made.run


def _run_name(held: Sequence[lookup.Run], base: Wanted, source: lookup.Run, depth: int) -> str:
    """Name a base's run: ``base-NAME@RUN``, with its seed, length and a number if another base has the name."""
    start = base.start
    seed = [f"{base.name}-seed{start.seed}"] if base.kind == UNTRAINED else []
    stems = [base.name, *seed, f"{(seed or [base.name])[0]}-len{start.max_length}"]
    stems += [f"{stems[-1]}-{number}" for number in range(2, len(held) + 3)]
    top = "" if depth == min(DEFAULT_DEPTH, source.depth) else f"-top{depth}"
    by_name = {run.name: run for run in held}
    for name in (f"{stem}@{source.name}{top}" for stem in stems):
        other = by_name.get(name)
        if other is None or (other.kind == base.kind and start.made(other)):
            return name  # a run of the same base is over a first stage that has changed since
    raise AssertionError("there are more names than runs")


def _warn(talk: "Talk", start: Start, error: MsftError) -> None:
    hint = f" ({error.hint})" if error.hint else ""
    (talk.warn or talk.note)(f"no row for the base {start.base}: {error.message}{hint}")
