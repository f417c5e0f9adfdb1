"""Serve students of the store, or any models, over HTTP (`msft students serve`)."""

import ipaddress
import json
import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labelstore.errors import DataMissing, UsageError
from labelstore.evaluation import calibration
from labelstore.store import lookup
from labelstore.store.label_store import LabelStore
from msft.errors import MsftError
from msft.host import extras
from students.errors import StudentError
from students.jobs.export import CALIBRATION, WARNINGS
from students.jobs.register import warnings_of
from students.jobs.rerank import Note, load_reranker, student_folder

if TYPE_CHECKING:
    from students.rerank.reranker import Reranker
    from students.serve.batching import Scorer
    from students.serve.contracts import Limits
    from students.serve.models import Model

TEACHER = "teacher:"  # before the name of an offline teacher

OpenTeacher = Callable[[str], "tuple[Scorer, dict[str, Any]]"]
"""The name after ``teacher:`` -> a scorer, and what /info says of it; `max_input_length` is required."""


@dataclass(frozen=True)
class Fusion:
    """How scores are fused with those of a first stage, which requests bring.

    Attributes:
        run: the first stage's name.
        on: the dataset whose queries fix the weight; by default a dev set, or held-out training queries.
        weight: the student's share; None fixes it on validation queries.
    """

    run: str
    on: str | None = None
    weight: float | None = None

    def __post_init__(self) -> None:
        if self.weight is not None and not 0 <= self.weight <= 1:
            raise UsageError(
                f"--fuse-weight is {self.weight:g}: expected a number from 0 to 1", hint="--fuse-weight 0.5"
            )
        if self.weight is not None and self.on is not None:
            raise UsageError(
                "--fuse-weight gives the weight that --fuse-on would fix", hint="leave one of the two out"
            )


@dataclass(frozen=True)
class Place:
    """Where a server listens."""

    host: str = "127.0.0.1"
    port: int = 8080


def serve_students(
    store: LabelStore,
    names: Sequence[str],
    *,
    place: Place = Place(),
    precision: str = "auto",
    backend: str = "auto",
    limits: "Limits | None" = None,
    fusion: Fusion | None = None,
    open_teacher: OpenTeacher | None = None,
    note: Note | None = None,
    warn: Note | None = None,
) -> None:
    """Serve until interrupted. The store is open only while models are loaded: at the start, and after SIGHUP.

    Args:
        names: students' names, models' folders, Hugging Face ids or ``teacher:NAME``; the first is the default.
        backend: torch, openvino or onnx; auto is torch, and an export's own runtime for a folder without weights.
        fusion: fuse each student with the first stage's scores that requests bring.
        open_teacher: opens offline teachers.
        warn: called with evaluations in which a student is worse than its first stage, and with failed reloads.

    Raises:
        StudentError: the extra is not installed or the model is not found (exit code 4), or the port is taken.
        DataMissing: a student, or validation queries for the weight, are not found.
        UsageError: a name is given twice.
    """
    extras.require("serve")
    from students.serve.app import create_app_of
    from students.serve.guard import RequireKey, Server, config

    if len({served_name(name) for name in names}) < len(names):
        raise UsageError(f"two models have one name: {', '.join(names)}", hint="name each model once")
    loader = _Loader(store, names, precision, backend, fusion, open_teacher, note, warn)
    loader.check()
    listening = _listen(place.host, place.port)
    loader.warn_of_poor()
    models = loader.load()
    app = create_app_of(models, *([limits] if limits else []), load=loader.reload)
    key = os.environ.get("MSFT_SERVE_KEY", "").strip()
    server = Server(config(RequireKey(app, key) if key else app))
    if note is not None:
        _tell(note, models, listening, place.host, bool(key))
    server.run(sockets=[listening])


def _tell(note: Note, models: "Sequence[Model]", listening: socket.socket, host: str, key: bool) -> None:
    address, port = listening.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    named = ", ".join(f"{model.name} ({model.info['model_dtype']})" for model in models)
    note(f"serving {named} at http://{shown}:{port}/rerank; stop with Ctrl-C")
    note(f"routes: /rerank, /v1/rerank, /v2/rerank, /score; http://{shown}:{port}/docs describes them")
    if not key and not ipaddress.ip_address(address.partition("%")[0]).is_loopback:
        note(f"warning: anyone who reaches {host} can use this server; set MSFT_SERVE_KEY to require a key")


class _Loader:
    """Loads the models of a server, at its start and when it is told to reload."""

    def __init__(
        self,
        store: LabelStore,
        names: Sequence[str],
        precision: str,
        backend: str,
        fusion: Fusion | None,
        open_teacher: OpenTeacher | None,
        note: Note | None,
        warn: Note | None,
    ) -> None:
        self._store, self._names = store, list(names)
        self._precision, self._backend = precision, backend
        self._fusion, self._open_teacher = fusion, open_teacher
        self._note, self._warn = note or (lambda message: None), warn or (lambda message: None)
        self._weights: dict[tuple[str, str], float] = {}  # of students, by their weights' hash

    def check(self) -> None:
        """Look for each model, before a socket is bound and weights are loaded."""
        for name in self._names:
            if not name.startswith(TEACHER):
                _find(self._store, name)

    def warn_of_poor(self) -> None:
        """Warn of students that are worse than their first stage: by the store, or by their exported folder."""
        for name in self._names:
            if name.startswith(TEACHER):
                continue
            folder, _, stored = _find(self._store, name)
            if stored:
                with self._store.read() as con:
                    found = warnings_of(con, name.removeprefix("student:"))
            else:
                found = warnings_in(Path(folder))
            for warning in found:
                self._warn(warning)

    def load(self) -> "list[Model]":
        """Load every model.

        Raises:
            MsftError: a model cannot be loaded.
        """
        return [self._load(name) for name in self._names]

    def reload(self) -> "list[Model] | None":
        """Load every model anew; None if one cannot be loaded, with a warning."""
        try:
            models = self.load()
        except MsftError as error:
            self._warn(f"not reloaded, the models go on as they are: {error.message}")
            return None
        self._note(f"reloaded {', '.join(self._names)}")
        return models

    def _load(self, name: str) -> "Model":
        from students.serve.models import Model

        if name.startswith(TEACHER):
            return self._teacher(name)
        folder, max_length, facts = _find(self._store, name)
        shown = served_name(name)
        calibrated = self._calibrated(name, folder, bool(facts))
        weight = self._weight(name, facts)
        reranker = self._reranker(name, folder, max_length, bool(facts))
        info = _info(shown, reranker.precision, reranker.encoder.max_length, facts)
        if calibrated is None:
            return Model(shown, reranker, info | self._fused(weight), weight=weight)
        info |= {"calibration": calibrated}
        relevance, none_below = calibration.map_of(calibrated), calibrated.get("none_below")
        return Model(shown, reranker, info | self._fused(weight), relevance, weight, none_below)

    def _reranker(self, name: str, folder: str | Path, max_length: int | None, stored: bool) -> "Reranker":
        from students.rerank.reranker import Reranker

        if stored:
            own = name.removeprefix("student:")
            return load_reranker(
                self._store, own, precision=self._precision, backend=self._backend, any_size=True
            )
        return Reranker.load(
            folder, precision=self._precision, max_length=max_length, any_size=True, backend=self._backend
        )

    def _calibrated(self, name: str, folder: str | Path, stored: bool) -> dict[str, Any] | None:
        """Read a student's calibration from the store, an exported one's from its folder."""
        if not stored:
            return settings_of(Path(folder))
        with self._store.read() as con:
            found = calibration.of_student(con, lookup.student(con, name.removeprefix("student:")))
        return None if found is None else found.settings()

    def _teacher(self, name: str) -> "Model":
        from students.serve.models import Model

        if self._open_teacher is None:
            raise UsageError(f"{name}: this call opens no teachers", hint="name a student")
        if self._fusion is not None and self._fusion.weight is None:
            raise UsageError(
                f"the weight of {name} cannot be fixed: validation queries are scored for students alone",
                hint="give the teacher's share with --fuse-weight 0.7",
            )
        scorer, about = self._open_teacher(name.removeprefix(TEACHER))
        weight = self._fusion.weight if self._fusion else None
        info = _info(name, about["model_dtype"], about["max_input_length"], about) | self._fused(weight)
        return Model(name, scorer, info, relevance=about.get("relevance", float), weight=weight)

    def _weight(self, name: str, facts: dict[str, Any]) -> float | None:
        """Return the student's share in a fusion, fixed on validation queries once for its weights."""
        if self._fusion is None or self._fusion.weight is not None:
            return self._fusion.weight if self._fusion else None
        if not facts:
            raise DataMissing(
                f"the store has no student {name}, so its weight cannot be computed from validation queries",
                hint="give the weight with --fuse-weight 0.5, or add the student: msft students add",
            )
        own = name.removeprefix("student:")
        key = (own, facts["weights_hash"])
        if key not in self._weights:
            from labelstore.evaluation import fusion
            from students.jobs.evaluate import scorer

            found = fusion.weight_for_use(
                self._store,
                own,
                self._fusion.run,
                scorer(self._store, own, self._precision),
                on=self._fusion.on,
            )
            self._weights[key] = found.weight
            self._note(
                f"{own} is fused with {self._fusion.run}: weight {found.weight:.2f} from {found.why}; requests bring"
                f" {self._fusion.run}'s scores as `scores`"
            )
        return self._weights[key]

    def _fused(self, weight: float | None) -> dict[str, Any]:
        return {"fuse": {"run": self._fusion.run, "weight": weight}} if self._fusion else {}


def settings_of(folder: Path) -> dict[str, Any] | None:
    """Read the calibration in an exported folder; None without one, or for an id of the hub."""
    found = _kept(folder).get(CALIBRATION)
    return found if isinstance(found, dict) else None


def warnings_in(folder: Path) -> list[str]:
    """Read the warnings that an exported folder keeps of its student; none for an id of the hub."""
    found = _kept(folder).get(WARNINGS)
    return [str(warning) for warning in found] if isinstance(found, list) else []


def _kept(folder: Path) -> dict[str, Any]:
    config = folder / "config.json"
    found = json.loads(config.read_text("utf-8")) if config.is_file() else {}
    return found if isinstance(found, dict) else {}


def served_name(name: str) -> str:
    """Return the name by which requests choose a model: a folder's last part, without ``student:``."""
    name = name.removeprefix("student:")
    return Path(name).resolve().name if Path(name).is_dir() and "/" in name else name


def _info(name: str, precision: str, max_length: int, facts: dict[str, Any]) -> dict[str, Any]:
    """Make the answer of /info, in the keys of text-embeddings-inference."""
    return {
        "model_id": name,
        "model_sha": facts.get("weights_hash"),
        "model_dtype": precision,
        "model_type": {"reranker": {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}},
        "max_input_length": max_length,
        "version": metadata.version("msft"),
        **{key: value for key, value in facts.items() if key != "relevance"},
    }


def _listen(host: str, port: int) -> socket.socket:
    """Bind a socket. This happens before the model is loaded, so that a taken port is reported at once."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        raise StudentError(
            f"cannot listen on {host}:{port}: {getattr(error, 'strerror', None) or error}",
            hint="give --port 0 for a free port; --host must be an address of this machine",
        ) from error


def _find(store: LabelStore, name: str) -> tuple[str | Path, int | None, dict[str, Any]]:
    """Return a model's folder or id, its tokens per pair, and its facts from the store."""
    if store.exists:
        with store.read() as con:
            try:
                student = lookup.student(con, name.removeprefix("student:"))
            except DataMissing:
                if not ("/" in name or Path(name).exists()):
                    raise
            else:
                facts = {"regime": student.regime, "base": student.base, "weights_hash": student.weights_hash}
                return student_folder(store, student), student.max_length, facts
    return name, None, {}
