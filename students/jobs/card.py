"""The model card: what a student is, how it was made and how it measures, in the Hub's metadata format."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msft.host.hub import spdx_id

if TYPE_CHECKING:
    from huggingface_hub import ModelCardData


@dataclass(frozen=True)
class StageFacts:
    """The card's facts about one stage."""

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
    generated: list[str] = field(default_factory=list)  # who wrote the queries that have generated positives
    judging: str | None = None  # the LLM judge whose grades are labels


@dataclass(frozen=True)
class Measured:
    """The value of one measure of one system over the candidates of a first stage."""

    dataset: str
    first_stage: str | None
    measure: str
    value: float
    n_queries: int
    system: str
    alone: bool  # the student's own ranking, not one fused with another system's


@dataclass(frozen=True)
class CardFacts:
    """All facts on the card."""

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
    # where the student is worse than its first stage, and what to use instead
    warnings: list[str] = field(default_factory=list)
    frame: str | None = None  # name of a decoder's text frame
    instruction: str = ""
    long: str = "first"  # how msft scores passages beyond max_length
    base_licence: str | None = None
    calibration: Mapping[str, Any] | None = None  # as an export's config.json keeps it


def write_card(folder: Path, facts: CardFacts) -> None:
    """Write ``README.md`` into a model's folder, with the settings that its files hold."""
    (folder / "README.md").write_text(card(_with_settings(facts, folder)), encoding="utf-8")


def _with_settings(facts: CardFacts, folder: Path) -> CardFacts:
    """Add a decoder's frame and the way of long passages, as the model's files have them."""
    held: dict[str, dict[str, Any]] = {}
    for name in ("config.json", "tokenizer_config.json"):
        path = folder / name
        held[name] = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    long, frame = (
        held["config.json"].get("msft_long", "first"),
        held["tokenizer_config.json"].get("msft_frame"),
    )
    if frame is None:
        return replace(facts, long=long)
    return replace(facts, long=long, frame=frame["name"], instruction=" ".join(frame["instruction"].split()))


def card(facts: CardFacts) -> str:
    """Fill the card's template, metadata first."""
    from huggingface_hub import ModelCard

    template = Path(__file__).with_name("card.md.jinja").read_text(encoding="utf-8")
    return str(ModelCard.from_template(_metadata(facts), template_str=template, facts=facts))


def is_hub_id(base: str) -> bool:
    """Return True if a base's name can be an id of the Hub. The card's metadata must not name a local folder."""
    return base.count("/") == 1 and not base.startswith((".", "/", "~")) and not Path(base).exists()


def _metadata(facts: CardFacts) -> "ModelCardData":
    """Collect the metadata that the Hub shows and searches."""
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
    spdx = spdx_id(facts.licence)
    return ModelCardData(
        library_name="sentence-transformers",
        pipeline_tag="text-ranking",
        license=spdx or ("other" if facts.licence else None),
        license_name="inherited-from-base-and-labels" if facts.licence and not spdx else None,
        base_model=facts.base if is_hub_id(facts.base) else None,
        tags=["cross-encoder", "reranker", "msft", facts.architecture, f"regime:{facts.regime}"],
        msft_sources=sorted({source for stage in facts.stages for source in stage.sources}) or None,
        model_name=facts.name if own else None,
        eval_results=own or None,
    )
