"""Export a student as a Hugging Face folder, or for ONNX or OpenVINO, in int8 too, with its measured loss of quality."""

import json
import shutil
from dataclasses import replace as replace_fields
from pathlib import Path
from typing import Any

from labelstore.errors import BadInput, DataMissing, UsageError
from labelstore.evaluation import calibration
from labelstore.store import foreign, lookup
from labelstore.store.label_store import LabelStore
from msft.host import extras
from msft.host.permissions import as_umask
from students.jobs.candidates import Tick
from students.jobs.card import CardFacts, write_card
from students.jobs.export_check import calibration_lists, compare, sample, slower_than_student
from students.jobs.register import card_facts, warnings_of
from students.jobs.rerank import Note, student_folder

# keys in an exported config.json, which `msft students serve FOLDER` reads
CALIBRATION = "msft_calibration"
WARNINGS = "msft_warnings"
_GRAPHS = {  # by form: the backend, and whether in int8
    "onnx": ("onnx", False),
    "int8": ("onnx", True),
    "openvino": ("openvino", False),
    "openvino-int8": ("openvino", True),
}
_AS_IS = ("hf", "adapter")  # copies of the student's files
FORMS = (*_AS_IS, *_GRAPHS)
_EXPORTED = (  # one is in every export
    "model.safetensors",
    "model.onnx",
    "openvino_model.xml",
    "adapter_model.safetensors",
)
_ADAPTER = "adapter"  # the folder of a student's LoRA adapter, see students.model.lora


def export_student(
    store: LabelStore,
    name: str,
    folder: str | Path,
    *,
    form: str = "hf",
    check: bool = True,
    dataset: str | None = None,
    run: str | None = None,
    replace: bool = False,
    licence: str | None = None,
    progress: Tick | None = None,
    note: Note | None = None,
    warn: Note | None = None,
) -> list[dict[str, Any]]:
    """Write a student as a separate folder, with a card that holds the measures recorded so far.

    Args:
        form: ``hf``, ``adapter`` (the LoRA adapter alone, for peft), ``onnx`` (model.onnx, fp32), ``int8`` (model.onnx,
            dynamically quantised), ``openvino`` (openvino_model.xml, fp32) or ``openvino-int8`` (quantised by NNCF with
            activations of pairs of the store, of training queries if there are any).
        check: score candidates of the store with both and report the difference, and nDCG@10 if they are judged.
        dataset, run: what the check scores; by default the only ones. Without a fitting run the check is left out.
        replace: replace an earlier export in that folder.
        licence: the terms in the card of a student whose own are not recorded.
        warn: called with evaluations in which the student is worse than its first stage, and of an int8 graph that is slow.

    Returns:
        One row: the files written, and the results of the check.

    Raises:
        UsageError: the form is unknown, or the student has other terms than `licence`. BadInput: the folder is not empty. DataMissing: the student or its adapter is not
            found.
    """
    folder = Path(folder)
    _check_form(form)
    _check_place(folder, replace)
    with store.read() as con:
        student = lookup.student(con, name)
        facts = _with_licence(card_facts(con, student), licence)
        calibrated = calibration.of_student(con, student)
        poor = warnings_of(con, name)
        on = sample(con, dataset, run, note) if check and form not in _AS_IS else None
        calibrate = calibration_lists(con) if form == "openvino-int8" else None
    if warn is not None:
        for warning in facts.warnings:
            warn(warning)
    source = student_folder(store, student)
    foreign.check_plain(source)
    staged = folder.with_name(f".{folder.name}.exporting")
    shutil.rmtree(staged, ignore_errors=True)
    row: dict[str, Any] = {"student": name, "format": form, "folder": str(folder)}
    try:
        if form in _AS_IS:
            _copy(name, source, staged, form)
        else:
            from students.rerank.exports import export_graph

            backend, int8 = _GRAPHS[form]
            export_graph(
                source, staged, backend, max_length=student.max_length, int8=int8, calibrate=calibrate
            )
            if on is not None:
                row |= compare(source, staged, student.max_length, on, progress)
                if int8 and warn is not None and (slower := slower_than_student(row)):
                    warn(slower)
        if form != "adapter":  # it has no config.json of its own
            found = {CALIBRATION: calibrated.settings() if calibrated else None, WARNINGS: poor or None}
            _keep(staged / "config.json", found)
        write_card(staged, facts)
        as_umask(staged)
        row["megabytes"] = round(sum(f.stat().st_size for f in staged.rglob("*") if f.is_file()) / 1e6, 1)
        _put(staged, folder)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return [row]


def _with_licence(facts: CardFacts, licence: str | None) -> CardFacts:
    """Set the licence of a student that has none on record.

    Raises:
        UsageError: the student has another one, of its base or its labels.
    """
    if licence is None or licence == facts.licence:
        return facts
    if facts.licence:
        raise UsageError(
            f"{facts.name} is under {facts.licence}, of its base or its labels, not under {licence}",
            hint="leave --licence out",
        )
    return replace_fields(facts, licence=licence)


def _keep(file: Path, found: dict[str, Any]) -> None:
    """Write what the store knows of a student to its configuration. What is None is left out.

    A student that was trained from an export has the export's values in its configuration; they are not its own.
    """
    held = json.loads(file.read_text("utf-8"))
    kept = {key: value for key, value in (held | found).items() if key not in found or value is not None}
    if kept != held:
        file.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")


def _check_form(form: str) -> None:
    if form not in FORMS:
        raise UsageError(f"format {form!r} is not known", hint=f"--format {' | '.join(FORMS)}")
    if form in _GRAPHS:
        extras.require(_GRAPHS[form][0])


def _copy(name: str, source: Path, folder: Path, form: str) -> None:
    """Copy a student's folder, or its adapter's.

    Raises:
        DataMissing: the student has no adapter.
    """
    if form == "hf":
        shutil.copytree(source, folder, ignore=shutil.ignore_patterns("checkpoint*", "*.jsonl", _ADAPTER))
        return
    if not (source / _ADAPTER).is_dir():
        raise DataMissing(
            f"student {name!r} has no adapter: it was not trained with LoRA",
            hint="export it with --format hf, or train with --lora r=32",
        )
    shutil.copytree(source / _ADAPTER, folder)


def _put(staged: Path, folder: Path) -> None:
    """Move a complete export to its place; an earlier one stays until then."""
    old = folder.with_name(f".{folder.name}.replaced")
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
    staged.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _check_place(folder: Path, replace: bool) -> None:
    """Refuse a folder that is not empty; with `replace` it may hold an earlier export.

    Raises:
        BadInput: the folder holds something else.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not folder.is_dir() or not any((folder / name).is_file() for name in _EXPORTED):
        what = "is not a folder" if not folder.is_dir() else "holds something other than an exported student"
        raise BadInput(f"{folder} {what}", hint="give a new folder with -o")
    if not replace:
        raise BadInput(
            f"{folder} holds an exported student",
            hint="give --replace to replace it, or another folder with -o",
        )
