"""Import labels from files, and export a labeling to files."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

from labelstore.labels import dataset_card, import_file
from labelstore.labels import export as label_export
from labelstore.labels.staging import LabelsToImport
from labelstore.store.label_store import LabelStore
from teachers.prompts import passages as texts
from teachers.prompts import replies as reader
from teachers.prompts import template as prompts


def import_labels(
    store: LabelStore,
    file: str | Path,
    *,
    dataset: str | None = None,
    run: str | None = None,
    name: str | None = None,
    progress: Callable[[int, int | None], None] | None = None,
    **options: Any,
) -> import_file.Imported:
    """Import labels from a file; importing the same file again changes nothing.

    Args:
        file: plain, .gz or .zst.
        dataset: dataset of the queries; by default the only one.
        run: the run that was labelled; its ranks are the initial ranks.
        name: the labeling's name; by default TEACHER@FIRST_STAGE.
        progress: called with (lists read, total or None).
        options: other fields of :class:`labelstore.labels.staging.LabelsToImport`: model, layout, first_stage, replies,
            with_texts, licence, replace.

    Returns:
        Each labeling with its counts, and the number of refused lists by reason, with an example.

    Raises:
        DataMissing: if the file, the dataset or the run is not found.
        BadInput: if no list of the file can be used, or one contradicts a labeling in the store.
    """
    if isinstance(options.get("replies"), str):
        options["replies"] = Path(options["replies"])
    request = LabelsToImport(dataset=dataset, run=run, name=name, **options)
    return import_file.import_labels(store, Path(file), request, reader, progress)


def write_dataset(store: LabelStore, labels: str, folder: Path, *, licence: str | None = None) -> None:
    """Write a labeling as a folder with Parquet and a card, as the Hugging Face Hub has datasets.

    Args:
        licence: the terms of labels that have none on record.

    Raises:
        UsageError: the labels have other terms.
    """
    folder.mkdir(parents=True)
    n, _ = export_labels(store, labels, folder / "labels.parquet", layout="parquet")
    with store.read() as con:
        text = dataset_card.card(con, labels, n, licence)
    (folder / "README.md").write_text(text, encoding="utf-8")


def export_labels(
    store: LabelStore,
    labels: str,
    file: str | Path | None = None,
    *,
    layout: str | None = None,
    prompt: str = "rankzephyr-train-variable",
    stdout: IO[str] | None = None,
) -> tuple[int, list[Path]]:
    """Export a labeling in a layout that other tools read.

    Args:
        file: the file; .gz compresses. None: write to `stdout`, for layouts that are one text file.
        layout: as for :func:`import_labels`; by default chosen by the file's name, otherwise permutations.
        prompt: the prompt that shows the passages in conversations.

    Returns:
        The number of lists, and the files written.

    Raises:
        DataMissing: if the labeling is not found, or lacks data that the layout needs.
        UsageError: if the layout or prompt is unknown, or the layout needs a file.
    """
    template = prompts.template(prompt)
    neutralise = texts.neutraliser()

    def messages(query: str, passages: Sequence[str]) -> list[dict[str, str]]:
        shown = [texts.passage(None, passage, neutralise) for passage in passages]
        return template.render(texts.query(query, neutralise), shown)

    out = None if file is None else Path(file)
    return label_export.export(store, labels, out, layout, stdout=stdout, render=messages)
