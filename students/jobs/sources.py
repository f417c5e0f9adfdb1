"""What a training learns from: the names in the store, checked before any work."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from labelstore.errors import DataMissing, UsageError
from labelstore.store import lookup
from labelstore.store.label_store import LabelStore
from labelstore.views import build as views
from labelstore.views import parameters as parameters_module
from students.recipes.recipe import KINDS, parse_regime

Note = Callable[[str], None]


@dataclass(frozen=True)
class Sources:
    """The names of the data that views are made from, and the views' parameters.

    Attributes:
        view_parameters: valid_fraction, allow_overlap, max_lists …; each view takes the ones that its kind supports.
    """

    datasets: Sequence[str] = ()
    runs: Sequence[str] = ()
    negatives: Sequence[str] = ()
    labels: Sequence[str] = ()
    view_parameters: Mapping[str, Any] | None = None


def check_sources(store: LabelStore, regime: str, sources: Sources) -> None:
    """Check the sources against the store before a model is loaded or a view is built.

    Raises:
        UsageError: no objective uses the labels or negatives, or a test set is among the sources.
        DataMissing: a name is not found.
    """
    wanted = kinds(regime)
    for given, option, kind in (
        (sources.negatives, "negatives", "contrastive"),
        (sources.labels, "labels", "distillation"),
    ):
        if given and kind not in wanted:
            raise UsageError(
                f"regime {regime} does not use --{option}",
                hint=f"leave --{option} out, or give --regime {'cl,kd' if kind == 'distillation' else 'kd,cl'}",
            )
    for kind in wanted:
        named, parameters = named_sources(store, kind, sources, None)
        views.check(store, kind, **named, **parameters)  # type: ignore[arg-type]


def kinds(regime: str) -> list[str]:
    """List the kinds of view that a regime learns from, in its order."""
    return list(dict.fromkeys(KINDS[o] for stage in parse_regime(regime) for o in stage))


def named_sources(
    store: LabelStore, kind: str, sources: Sources, note: Note | None
) -> tuple[dict[str, Sequence[str]], dict[str, Any]]:
    """Select the sources and the parameters for a kind of view."""
    known = {field.name for field in fields(parameters_module.KINDS[kind])}
    parameters = {k: v for k, v in (sources.view_parameters or {}).items() if k in known}
    if kind == "distillation":
        return {"datasets": () if sources.labels else sources.datasets, "labels": sources.labels}, parameters
    negatives = list(sources.negatives) or ([] if sources.runs else _only_minings(store, sources, note))
    return {"datasets": sources.datasets, "runs": sources.runs, "negatives": negatives}, parameters


def _only_minings(store: LabelStore, sources: Sources, note: Note | None) -> list[str]:
    """Find the only mining of each dataset. A dataset without one needs a run, which then gives the negatives."""
    with store.read() as con:
        chosen = [lookup.dataset(con, name) for name in sources.datasets] or [lookup.pick_dataset(con, None)]
        found: list[str] = []
        for dataset in chosen:
            names = [
                n
                for (n,) in con.execute(
                    "SELECT name FROM minings WHERE dataset = ? ORDER BY name", [dataset.dataset]
                ).fetchall()
            ]
            if len(names) > 1:
                raise UsageError(
                    f"{dataset.name} has several minings",
                    hint=f"choose with --negatives {' | '.join(names[:8])}",
                )
            if not names and not lookup.runs(con, dataset):
                raise DataMissing(
                    f"{dataset.name} has no negatives to contrast with",
                    hint=f"msft retrieve --dataset {dataset.name} --retriever bm25s, then"
                    f" msft negatives mine --dataset {dataset.name} --run RUN",
                )
            found += names
    if found and note is not None:
        note(f"negatives: {', '.join(found)} (the only ones)")
    return found
