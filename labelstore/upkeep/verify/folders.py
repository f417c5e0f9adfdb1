"""Check the companion folder: view folders, students' weights, and files that killed processes left.

The folders are also checked by themselves, so that a damaged table of views or students hides no fault.
"""

import json
import os
import re
import shlex
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from labelstore.errors import BadInput, DataMissing, StoreDamaged
from labelstore.store import foreign
from labelstore.store.keys import file_hash
from labelstore.store.label_store import LabelStore
from labelstore.upkeep.verify.findings import Finding
from labelstore.views import folder as export
from labelstore.views.parameters import KINDS

# Working files are named after the process that made them, a training's folder after what it trains.
_MADE_BY = re.compile(r"-(\d+)(?:-[0-9a-f]{8})?(?:\.\w+)?$|\.(\d+)\.work$")
_TRAINING = re.compile(r"^\..+\.[0-9a-f]{12}$")
_QUIET = 60.0  # seconds without a change after which a working file that names no process may have been left
_WEIGHTS = "model.safetensors"
_MERGE = "`msft merge OTHER.duckdb` copies it from a store that has it"


def folders(store: LabelStore) -> Iterator[Finding]:
    """Find views and students whose folders differ from their rows, and folders that no row names."""
    yield from _views(
        store,
        _rows(store, "SELECT name, kind, view_hash, folder, n_lists, n_pairs, parameters, seed FROM views"),
    )
    yield from _students(store, _rows(store, "SELECT name, folder, weights_hash FROM students"))


def _rows(store: LabelStore, sql: str) -> list[tuple[Any, ...]] | None:
    """Read the store's rows; None if the table is damaged."""
    try:
        with store.read() as con:
            return con.execute(sql + " ORDER BY name").fetchall()
    except StoreDamaged:
        return None


# --------------------------------------------------------------------------------------------------------- views
def _views(store: LabelStore, rows: list[tuple[Any, ...]] | None) -> Iterator[Finding]:
    known = set()
    for name, kind, view_hash, folder, n_lists, n_pairs, parameters, seed in rows or ():
        known.add(view_hash)
        try:
            where = foreign.own_folder(store.files, "view", name, folder, view_hash)
        except BadInput as error:
            yield Finding("view", f"{name} {view_hash}", error.message, error.hint or "")
            continue
        hint = _rebuild(where, name, kind, json.loads(parameters), seed)
        if hint is None:
            yield Finding(
                "view", f"{name} {view_hash}", f"no view has the kind {kind!r} and the parameters {parameters}",
                "put back a copy of the store; use nothing of this row",
            )  # fmt: skip
            continue
        if not where.is_dir():
            yield Finding(
                "view", f"{name} {view_hash}", f"its folder is not at {where}", f"{hint}; or {_MERGE}"
            )
            continue
        wrong = view_problems(where, view_hash, kind)
        if not wrong:
            manifest = export.read_manifest(where)
            wrong = [
                f"its row says {n} {what}, its manifest {manifest.get('n_' + what)}"
                for what, n in (("lists", n_lists), ("pairs", n_pairs))
                if manifest.get(f"n_{what}") != n
            ]
        if wrong:
            yield Finding("view", f"{name} {view_hash}", "; ".join(wrong), hint)
    for where in _visible(store.files / "views"):
        if where.name in known:
            continue
        if rows is None:
            yield from _by_itself(where)
        else:
            yield Finding(
                "view",
                where.name,
                f"{where} is a folder that no view of the store names",
                "`msft views build` with the same options takes it up again; or rm -r "
                + shlex.quote(str(where)),
            )


def view_problems(folder: Path, view_hash: str, kind: str) -> list[str]:
    """List the faults of a view's files, by the manifest and the content hash."""
    try:
        return export.findings(folder, view_hash, kind)
    except BadInput as error:
        return [error.message]


def _by_itself(folder: Path) -> Iterator[Finding]:
    """Check a view folder by its manifest and its name, if the store has no row for it."""
    kind = "contrastive"
    with suppress(BadInput, DataMissing, KeyError):  # named below
        kind = export.read_manifest(folder)["kind"]
    wrong = view_problems(folder, folder.name, kind)
    if wrong:
        yield Finding("view", folder.name, "; ".join(wrong), f"put back a copy of the folder; {_MERGE}")


def _rebuild(folder: Path, name: str, kind: str, parameters: Any, seed: int) -> str | None:
    """Write the commands that make a view's folder again, from the same sources with the same options; None if unknown."""
    sources = parameters.get("sources", []) if isinstance(parameters, dict) else None
    if kind not in KINDS or not isinstance(sources, list) or not all(map(_is_source, sources)):
        return None
    flags = {"dataset": "--dataset", "run": "--run", "mining": "--negatives", "labeling": "--labels"}
    words = ["msft", "views", "build", "--kind", kind]
    for source in sources:
        if source["kind"] in flags:
            plain = source["name"].rsplit("/", 1)[-1] if source["kind"] == "run" else source["name"]
            words += [flags[source["kind"]], plain]
    for key, default in asdict(KINDS[kind]()).items():
        value = parameters.get(key, default)
        if value != default and isinstance(
            value, int | float | str
        ):  # None and lists cannot be given on the command line
            option = key.replace("_", "-")
            if value is False:  # a switch whose default is neither on nor off
                words.append(f"--no-{option}")
            else:
                words += [f"--{option}", *([] if value is True else [str(value)])]
    build = shlex.join([*words, "--seed", str(seed), "--name", name])
    return f"rm -rf {shlex.quote(str(folder))}, then `{build}`"


def _is_source(source: Any) -> bool:
    return (
        isinstance(source, dict)
        and isinstance(source.get("kind"), str)
        and isinstance(source.get("name"), str)
    )


# ------------------------------------------------------------------------------------------------------ students
def _students(store: LabelStore, rows: list[tuple[Any, ...]] | None) -> Iterator[Finding]:
    known = set()
    for name, folder, weights_hash in rows or ():
        try:
            where = foreign.own_folder(store.files, "student", name, folder)
        except BadInput as error:
            yield Finding("student", name, error.message, error.hint or "")
            continue
        known.add(where.resolve())
        for problem in student_problems(where, weights_hash):
            yield Finding("student", name, problem, f"put it back from a copy; {_MERGE}")
    for where in _visible(store.files / "students"):
        if where.resolve() in known:
            continue
        if rows is None:
            for problem in student_problems(where, None):
                yield Finding("student", where.name, problem, f"put it back from a copy; {_MERGE}")
        else:
            yield Finding(
                "student",
                where.name,
                f"{where} is a folder that no student of the store names",
                f"`msft students add {shlex.quote(str(where))} --name NAME` takes it in; or rm -r it",
            )


def student_problems(folder: Path, weights_hash: str | None) -> list[str]:
    """List the faults of a student's folder."""
    weights = folder / _WEIGHTS
    if not folder.is_dir():
        return [f"its folder is not at {folder}"]
    wrong = [
        f"{folder / name} is missing" for name in ("config.json", _WEIGHTS) if not (folder / name).is_file()
    ]
    if weights.is_file() and weights_hash is not None and (found := file_hash(weights)) != weights_hash:
        wrong.append(f"{weights} has the hash {found}, its row says {weights_hash}")
    return wrong


def _visible(folder: Path) -> list[Path]:
    return (
        sorted(p for p in folder.glob("*") if p.is_dir() and not p.name.startswith("."))
        if folder.is_dir()
        else []
    )


# ------------------------------------------------------------------------------------------------------ leftovers
def leftovers(store: LabelStore) -> Iterator[Finding]:
    """Find working files of ended processes; an interrupted training is not one, since its command continues it."""
    for path in leftover_files(store):
        yield Finding(
            "leftover",
            path.name,
            f"{path} was left by a process that has ended",
            f"rm -rf {shlex.quote(str(path))}, or `msft clean`; nothing of it is needed",
        )


def leftover_files(store: LabelStore) -> Iterator[Path]:
    """List working files of ended processes."""
    places = [
        (store.path.parent, ".msft-*"),
        (store.path.parent, f".{store.path.name}-*"),
        (store.files, ".*"),
    ]
    places += [(store.files / sub, ".*") for sub in ("views", "students", "indexes", "tokens")]
    places += [(store.files / "journal", "*.work")]
    for folder, pattern in places:
        for path in sorted(folder.glob(pattern)):
            if not is_training(path) and not _in_use(path):
                yield path


def is_training(path: Path) -> bool:
    """Tell whether a path is the working folder of a training."""
    return _TRAINING.search(path.name) is not None and path.is_dir() and not path.is_symlink()


def _in_use(path: Path) -> bool:
    """Tell whether the process in a working file's name is alive or, without a name, whether a process has it open."""
    named = _MADE_BY.search(path.name)
    if named:
        return _alive(int(named[1] or named[2]))
    try:
        newest = max(p.stat().st_mtime for p in (path, *path.rglob("*")))
    except FileNotFoundError:  # removed during the check
        return True
    return time.time() - newest < _QUIET or _open_somewhere(path)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _open_somewhere(path: Path) -> bool:
    """Tell whether a visible process has a file at or below `path` open (Linux; elsewhere always no)."""
    own = str(path.resolve())
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        with suppress(OSError):  # it was closed, or is another user's
            target = os.readlink(link)
            if target == own or target.startswith(own + os.sep):
                return True
    return False
