"""The model card: what a student is, what it was made from and how it measures, in the hub's metadata form."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class StageFacts:
    """One stage as the card tells it."""

    objective: str
    loss: str
    view: str | None
    view_hash: str
    steps: int
    pairs: int
    weights_moved: float
    settings: Mapping[str, Any]
    n_lists: int | None
    licence: str | None
    sources: list[str]


@dataclass(frozen=True)
class Measured:
    """One value of one measure: of which system, over which first stage's candidates."""

    dataset: str
    first_stage: str | None
    measure: str
    value: float
    n_queries: int
    system: str
    alone: bool  # the student's own ranking, not one fused with another system's


@dataclass(frozen=True)
class CardFacts:
    """All that the card says."""

    name: str
    base: str
    base_revision: str | None
    architecture: str
    regime: str
    max_length: int
    seed: int
    licence: str | None
    weights_hash: str
    stages: list[StageFacts] = field(default_factory=list)
    measured: list[Measured] = field(default_factory=list)
    warnings: list[str] = field(
        default_factory=list
    )  # where it is worse than its first stage, and what is better


def write_card(folder: Path, facts: CardFacts) -> Path:
    """Write ``README.md`` into a model's folder."""
    path = folder / "README.md"
    path.write_text(card(facts), encoding="utf-8")
    return path


def card(facts: CardFacts) -> str:
    """The card's Markdown, metadata first."""
    parts = [
        f"---\n{_metadata(facts)}\n---",
        f"# {facts.name}",
        "\n\n".join([_summary(facts), *(f"> **Warning:** {warning}." for warning in facts.warnings)]),
        "## Use\n" + _usage(facts),
        "## Training\n" + _training(facts),
        "## Measures\n" + _measures(facts),
        "## Limits\n" + _limits(facts),
    ]
    return "\n\n".join(parts) + "\n"


def is_hub_id(base: str) -> bool:
    """Whether a base's name is one that the hub could have: the card's metadata may name no local folder."""
    return base.count("/") == 1 and not base.startswith((".", "/", "~")) and not Path(base).exists()


def _metadata(facts: CardFacts) -> str:
    """The YAML that the hub reads, by its own library."""
    from huggingface_hub import EvalResult, ModelCardData

    own = [
        EvalResult(
            task_type="text-ranking",
            task_name="re-ranking",
            dataset_type=row.dataset,
            dataset_config=row.first_stage,  # the library keeps one result for each dataset and config
            dataset_name=row.dataset + (f" over {row.first_stage}" if row.first_stage else ""),
            metric_type=row.measure,
            metric_name=row.measure,
            metric_value=round(row.value, 5),
        )
        for row in facts.measured
        if row.alone
    ]
    data = ModelCardData(
        library_name="sentence-transformers",
        pipeline_tag="text-ranking",
        license="other" if facts.licence else None,
        license_name="inherited-from-labels" if facts.licence else None,
        base_model=facts.base if is_hub_id(facts.base) else None,
        tags=["cross-encoder", "reranker", "msft", facts.architecture, f"regime:{facts.regime}"],
        msft_sources=sorted({source for stage in facts.stages for source in stage.sources}) or None,
        model_name=facts.name if own else None,
        eval_results=own or None,
    )
    return data.to_yaml()


def _summary(facts: CardFacts) -> str:
    revision = f" (revision `{facts.base_revision}`)" if facts.base_revision else ""
    how = (
        "not fine-tuned: its head is new, so its scores mean nothing yet"
        if facts.regime == "none"
        else f"fine-tuned in the regime `{facts.regime}` (cl: contrastive on human judgments, kd: distilled from a"
        " teacher's rankings)"
    )
    return (
        f"A cross-encoder that scores a query with a passage; higher is more relevant. Made by msft from"
        f" `{facts.base}`{revision}, {facts.architecture}, {how}. One raw logit per pair, no activation;"
        f" {facts.max_length} tokens per pair; seed {facts.seed}; weights `{facts.weights_hash}`."
    )


def _usage(facts: CardFacts) -> str:
    return f"""
```python
from sentence_transformers import CrossEncoder

model = CrossEncoder("{facts.name}", max_length={facts.max_length})
scores = model.predict([("what is a cross-encoder", "It reads query and passage together.")])
```

or `AutoModelForSequenceClassification`, or `msft students serve {facts.name}`."""


def _training(facts: CardFacts) -> str:
    if not facts.stages:
        return "\nNone recorded."
    lines = [
        "",
        "| stage | objective | loss | view | view hash | lists | steps | pairs | lr | weights moved |",
    ]
    lines.append("|---|---|---|---|---|---|---|---|---|---|")
    for number, stage in enumerate(facts.stages, 1):
        rate = stage.settings.get("lr", "")
        lists = "" if stage.n_lists is None else f"{stage.n_lists:,}"
        lines.append(
            f"| {number} | {stage.objective} | {stage.loss} | {stage.view or ''} | `{stage.view_hash}` | {lists}"
            f" | {stage.steps:,} | {stage.pairs:,} | {rate} | {stage.weights_moved:.2e} |"
        )
    for number, stage in enumerate(facts.stages, 1):
        if stage.sources:
            lines.append(f"\nStage {number} was made from: {', '.join(stage.sources)}.")
    return "\n".join(lines)


def _measures(facts: CardFacts) -> str:
    if not facts.measured:
        return "\nNone recorded yet: `msft eval` measures, `msft students export` writes them here."
    lines = ["", "| dataset | over | system | measure | value | queries |", "|---|---|---|---|---|---|"]
    lines += [
        f"| {row.dataset} | {row.first_stage or ''} | {_system(row)} | {row.measure} | {row.value:.4f} | {row.n_queries:,} |"
        for row in facts.measured
    ]
    return "\n".join(lines)


def _system(row: Measured) -> str:
    return f"{row.system}, {'the student alone' if row.alone else 'fused'}"


def _limits(facts: CardFacts) -> str:
    lines = [
        "",
        f"- Pairs beyond {facts.max_length} tokens are cut, the longer text first.",
        "- Scores order the passages of one query; they are no probabilities and do not compare across queries.",
        "- It re-ranks what a first stage found, and was measured only on what the table above names.",
        "- Language and domain are those of its base model and of the texts it was trained on.",
    ]
    if facts.licence:
        lines.append(f"- Terms inherited from its labels: {facts.licence}")
    else:
        lines.append("- The terms of its labels are not recorded; check them before use beyond research.")
    return "\n".join(lines)
