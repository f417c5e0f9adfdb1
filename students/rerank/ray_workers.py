"""Re-rank on the machines of a Ray cluster: a worker with a GPU each, or with a part of the cores.

A worker that does not have the student's folder gets its files from the caller.
"""

import hashlib
import tempfile
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from msft.errors import MsftError
from msft.host import ray_cluster
from students.rerank.fleet import About, Fleet, Lost, Note, Part, Scorer
from students.rerank.pairs import Scores
from students.rerank.reranker import Reranker, resolve_precision


@contextmanager
def on_cluster(
    path: str | Path, number: int, *, note: Note | None = None, shared: bool = True, **options: Any
) -> Iterator[Reranker]:
    """Load a student in Ray workers. The scores are those of one process on such a device.

    Args:
        note: called with a sentence about the workers, and about each that is lost.
        shared: False: workers do not look for the student's folder, and get its files.
        options: those of `Reranker.load` without the device: precision, max_length, batch_tokens, long, instruction.

    Raises:
        MsftError: Ray is not installed (exit code 4), the cluster does not answer (5) or has too few resources (2).
    """
    own = {name: value for name, value in options.items() if name != "precision"}
    resolve_precision(options.get("precision", "auto"), "cpu")  # a wrong one is told before workers begin
    with ray_cluster.connected() as ray:
        resources = ray_cluster.per_worker(ray, number)
        if note is not None:
            note(ray_cluster.words(ray, number, resources))
        make = ray.remote(_Actor).options(**resources, max_concurrency=3, scheduling_strategy="SPREAD")
        files = _Files(ray, Path(path), shared)
        fleet = Fleet(lambda place: RayWorker(ray, make, place, files, str(path), options), number, note)
        try:
            about = fleet.begin()
            yield Reranker.over(fleet, path, resolve_precision(about.precision, "cpu"), **own)
        finally:
            fleet.close()


class _Files:
    """The files of the student's folder, put into Ray's store of objects once, when the first worker needs them."""

    def __init__(self, ray: Any, folder: Path, shared: bool) -> None:
        self._ray, self._folder, self._reference = ray, folder, None
        self._once = threading.Lock()
        self.digest = (
            _digest(folder) if folder.is_dir() else ""
        )  # empty: an id of the hub, which workers load
        self.shared = shared

    def reference(self) -> Any:
        """Return the reference to the files."""
        with self._once:
            if self._reference is None:
                held = {
                    str(path.relative_to(self._folder)): path.read_bytes() for path in _files(self._folder)
                }
                self._reference = self._ray.put(held)
            return self._reference


class RayWorker:
    """A Ray actor with a student."""

    def __init__(
        self, ray: Any, make: Any, place: int, files: _Files, path: str, options: dict[str, Any]
    ) -> None:
        self.name = f"worker ray{place}"
        self._ray, self._files = ray, files
        self._given = (path, options)
        self._actor = make.remote()
        there = files.digest if files.shared else "elsewhere"
        self._loading = self._actor.load.remote(path, options, there if files.digest else "")
        self._about: About | None = None
        self._sent: deque[Any] = deque()

    def about(self) -> About:
        """Wait until the student is loaded."""
        if self._about is None:
            found = self._get(self._loading)
            if found is None:
                found = self._get(self._actor.load.remote(*self._given, "", self._files.reference()))
            self._about = found
        return self._about

    def send(self, part: Part) -> None:
        """Hand over a batch."""
        self.about()
        self._sent.append(self._actor.score.remote(part))

    def receive(self) -> Scores:
        """Wait for the scores of the oldest batch."""
        scores: Scores = self._get(self._sent.popleft())
        return scores

    def close(self) -> None:
        """End the actor."""
        self._ray.kill(self._actor)

    def _get(self, reference: Any) -> Any:
        try:
            return self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None)
            if isinstance(cause, MsftError):
                raise cause from error
            raise Lost(ray_cluster.reason(cause or error)) from error


class _Actor:
    """The worker's side."""

    def __init__(self) -> None:
        self._scorer: Scorer | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def load(
        self, path: str, options: dict[str, Any], digest: str, files: dict[str, bytes] | None = None
    ) -> About | None:
        """Load the student; returns None if its folder is not here.

        Args:
            digest: that of the folder's files, which must be these; empty if the path is to be taken as it is.
            files: the folder's files, if it is not here.
        """
        if files is not None:
            self._folder = tempfile.TemporaryDirectory(prefix="msft-student-")
            path = self._folder.name
            for name, data in files.items():
                target = Path(path, name)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(data)
        elif digest and (not Path(path).is_dir() or _digest(Path(path)) != digest):
            return None
        self._scorer = Scorer(path, options)
        return self._scorer.about()

    def score(self, part: Part) -> Scores:
        """Score one batch."""
        if self._scorer is None:
            raise MsftError("a batch came before the student was loaded")
        return self._scorer.score(part)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _digest(folder: Path) -> str:
    """Hash the names and contents of a folder's files."""
    digest = hashlib.blake2b(digest_size=16)
    for path in _files(folder):
        with path.open("rb") as file:
            digest.update(
                str(path.relative_to(folder)).encode() + hashlib.file_digest(file, "blake2b").digest()
            )
    return digest.hexdigest()
