"""Find a student's base on this machine, and tell whether its head was trained.

Nothing is downloaded: an evaluation shows a base that is here, in the revision that the student began from.
"""

import json
from pathlib import Path
from typing import Any

from labelstore.errors import DataMissing, UsageError
from labelstore.evaluation.bases import BASE, UNTRAINED, Start
from labelstore.store import lookup
from labelstore.store.label_store import LabelStore
from students.errors import ExitCode, StudentError
from students.jobs.rerank import student_folder
from students.model.bases import BASES, ENCODER, TABLE
from students.text.frames import Framing, named, of_base

_STUDENT = "student:"
_HEAD = "ForSequenceClassification"  # how transformers ends the name of a class with such a head


def short_name(base: str) -> str:
    """Return the name of a base for people: its short name, or the last part of its id or path."""
    known = next((entry.base for entry in TABLE if base in (entry.base, entry.model)), None)
    return known or Path(base.removeprefix(_STUDENT).rstrip("/")).name


def kind_of(store: LabelStore, start: Start) -> str:
    """Tell whether a base ranks as it is (``base``), or has a head that was never trained (``untrained``).

    A base cut to its first layers does not rank as it is.

    Raises:
        StudentError, DataMissing: the base is not on this machine.
    """
    if start.layers:
        return UNTRAINED
    known = next((entry for entry in TABLE if start.base in (entry.base, entry.model)), None)
    if known is not None:
        return UNTRAINED if known.kind == ENCODER else BASE
    if start.base.startswith(_STUDENT):
        return BASE
    return BASE if _has_head(folder_of(store, start), start) else UNTRAINED


def folder_of(store: LabelStore, start: Start) -> Path:
    """Find the folder of a base: the user's, a student's, or that of the revision in the Hub's cache.

    Raises:
        StudentError, DataMissing: the base is not on this machine (exit code 4).
    """
    if start.base.startswith(_STUDENT):
        with store.read() as con:
            return student_folder(store, lookup.student(con, start.base.removeprefix(_STUDENT)))
    if start.base == "minilm":
        from students.model.encoder import resolve_base

        return Path(resolve_base(start.base))
    model = BASES.get(start.base, start.base)
    if Path(model).is_dir():
        return Path(model)
    found = _cached(model, start.revision)
    if found is None:
        raise StudentError(
            f"{start.base} is not on this machine",
            hint="put it where it was when the student began, or leave its row out with --no-untrained",
            exit_code=ExitCode.DATA_MISSING,
        )
    return found


def check_unchanged(folder: Path, start: Start) -> None:
    """Refuse a folder whose weights have changed since the student began from it.

    Raises:
        UsageError: the weights are others.
        DataMissing: the folder has none.
    """
    from students.jobs.register import base_revision

    if not folder.is_dir():
        raise DataMissing(f"{folder} is not a folder")
    found = base_revision(str(folder))
    # A revision of the Hub is a commit, of another length than a hash of weights. The two cannot be compared.
    comparable = found is not None and start.revision is not None and len(found) == len(start.revision)
    if comparable and found != start.revision:
        raise UsageError(f"{start.base} has other weights now than when the student began from it")


def framing_of(start: Start) -> Framing:
    """Return the settings of a decoder's text frame; in the Hub's cache the folder's name does not say the frame."""
    frame = start.frame
    if not frame and (by_name := of_base(BASES.get(start.base, start.base))) is not None:
        frame = by_name.name
    return Framing(frame, start.instruction, start.answers, start.instructions)


def _cached(model: str, revision: str | None) -> Path | None:
    """Find the folder of a revision in the Hub's cache; None if the cache lacks it, or the name cannot be an id."""
    import huggingface_hub

    try:
        found = huggingface_hub.try_to_load_from_cache(model, "config.json", revision=revision)
    except ValueError:
        return None
    return Path(found).parent if isinstance(found, str) else None


def _has_head(folder: Path, start: Start) -> bool:
    config = _json(folder / "config.json")
    if config is None:
        return (folder / "adapter_config.json").is_file()  # an adapter of a student has the student's head
    if any(str(name).endswith(_HEAD) for name in config.get("architectures") or ()):
        return True
    modules = [module for module in _json(folder / "modules.json") or () if module["type"].endswith(".Dense")]
    if modules and (_json(folder / modules[-1]["path"] / "config.json") or {}).get("out_features") == 1:
        return True
    framing = framing_of(start)
    return bool(start.answers or (framing.frame and named(framing.frame).answers))


def _json(path: Path) -> Any:
    return json.loads(path.read_text("utf-8")) if path.is_file() else None
