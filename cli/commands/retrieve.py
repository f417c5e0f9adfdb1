"""`msft retrieve`: run a first stage over a dataset and store its run."""

from dataclasses import dataclass
from typing import Annotated

import typer

from cli.command import Context, command
from cli.output import diagnostics, fitted


def add_to(app: typer.Typer) -> None:
    """Add this module's commands."""
    command(
        app, "retrieve", example="msft retrieve --dataset dl20 --retriever bm25s --depth 100", lists=True
    )(retrieve)


@dataclass(frozen=True)
class System:
    """The settings of the retrievers. Most of them apply to one retriever only."""

    k1: Annotated[float, "BM25: saturation of term frequency."] = 0.9
    b: Annotated[float, "BM25: length normalisation."] = 0.4
    language: Annotated[str | None, "bm25s: a Snowball stemmer or none; bm25: two letters."] = None
    index: Annotated[str | None, "bm25: a Pyserini prebuilt index or a Lucene index folder."] = None
    model: Annotated[str | None, "colbert: the checkpoint, an id or a folder."] = None
    device: Annotated[str | None, "colbert: cpu, cuda …"] = None
    threads: Annotated[int, "Threads, at most; 0 takes one per core."] = 0


@dataclass(frozen=True)
class Retrieve:
    """The options of `msft retrieve`."""

    dataset: Annotated[str | None, "The dataset whose queries to rank; by default the only one."] = None
    retriever: Annotated[str, "bm25s (embedded), bm25 (Anserini), colbert (PyLate)."] = "bm25s"
    depth: Annotated[int, "Passages per query."] = 100
    name: Annotated[str | None, "The name of the run; by default the retriever's."] = None
    system: System = System()
    replace: Annotated[bool, "Overwrite a run of the same name."] = False


def retrieve(context: Context, options: Retrieve) -> None:
    """Rank a dataset's queries over its collection and store the run of candidates."""
    from labelstore import retrieval

    with diagnostics.progress(options.retriever, unit="texts") as tick:
        run = retrieval.retrieve(
            context.store,
            options.dataset,
            options.retriever,
            options.depth,
            name=options.name,
            replace=options.replace,
            progress=tick,
            note=diagnostics.note,
            **vars(options.system),
        )
    with context.store.read() as con:
        ((dataset_name,),) = con.execute(
            "SELECT name FROM datasets WHERE dataset = ?", [run.dataset]
        ).fetchall()
    fitted.listed(
        [
            {
                "dataset": dataset_name,
                "run": run.name,
                "system": run.system,
                "depth": run.depth,
                "n_queries": run.n_queries,
                "n_candidates": run.n_candidates,
                "content_hash": run.content_hash,
            }
        ],
        context.format,
        keys=("run",),
    )
