"""The model card: metadata that the hub can read, and every fact it promises."""

import json

import made_store
import pytest
import yaml

from labelstore.store import lookup
from labelstore.views import build as views
from students.jobs.card import CardFacts, Measured, StageFacts, card, write_card
from students.jobs.register import card_facts, inherited
from students.model.bases import licence_of

STAGE = StageFacts(
    "kd",
    "ranknet",
    "distil",
    "0123abcd",
    120,
    96_000,
    3.2e-2,
    {"lr": 1e-5},
    4000,
    "research only",
    ["teacher@bm25"],
)


def facts(**changes) -> CardFacts:
    values = {
        "name": "electra-kd", "base": "google/electra-base-discriminator", "base_revision": "abc", "architecture": "electra",
        "regime": "kd", "max_length": 256, "seed": 7, "licence": "research only", "weights_hash": "feed",
        "stages": [STAGE], "measured": [Measured("dl19", "bm25", "nDCG@10", 0.71234, 43, "electra-kd@bm25", True)],
    }  # fmt: skip
    return CardFacts(**(values | changes))


def split(text: str) -> tuple[dict, str]:
    _, head, body = text.split("---\n", 2)
    return yaml.safe_load(head), body


def test_metadata_is_in_the_hubs_form():
    metadata, _ = split(card(facts()))
    assert metadata["pipeline_tag"] == "text-ranking"
    assert metadata["base_model"] == "google/electra-base-discriminator"
    assert metadata["license"] == "other"
    (result,) = metadata["model-index"][0]["results"]
    assert result["dataset"]["type"] == "dl19"
    assert result["metrics"] == [{"type": "nDCG@10", "name": "nDCG@10", "value": 0.71234}]
    from huggingface_hub import ModelCardData

    data = ModelCardData(**{k.replace("-", "_"): v for k, v in metadata.items() if k != "model-index"})
    assert data.base_model == "google/electra-base-discriminator"


def test_a_card_tells_a_decoders_frame_and_how_long_passages_are_scored(tmp_path):
    kept = {"name": "qwen3-reranker", "instruction": "rank\n passages"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"msft_frame": kept}))
    (tmp_path / "config.json").write_text(json.dumps({"msft_long": "max"}))
    write_card(tmp_path, facts())
    _, body = split((tmp_path / "README.md").read_text("utf-8"))
    assert 'text frame `qwen3-reranker`, with the instruction "rank passages"; no template' in body
    assert "are cut, the passage first" in body
    assert "by windows (`max`)" in body
    _, plain = split(card(facts()))
    assert "frame" not in plain
    assert "windows" not in plain
    assert "are cut, the longer text first.\n- Scores" in plain


def test_the_body_tells_data_settings_measures_limits_and_terms():
    _, body = split(card(facts()))
    for fact in (
        "`kd`",
        "0123abcd",
        "teacher@bm25",
        "96,000",
        "1e-05",
        "3.20e-02",
        "0.7123",
        "research only",
        "256 tokens",
        "seed 7",
        "feed",
    ):
        assert fact in body, fact


@pytest.mark.parametrize("warnings", [[], ["x alone is worse than bm25s on d: use bm25s"], ["one", "two"]])
def test_a_verdict_stands_above_everything_else_of_the_body(warnings):
    _, body = split(card(facts(warnings=warnings)))
    head = body.split("## Use")[0]
    assert head.count("> **Warning:**") == len(warnings)
    assert all(f"> **Warning:** {warning}.\n" in head for warning in warnings)


@pytest.mark.parametrize("fused", ["electra-kd@bm25+bm25", "hybrid", "rrf(a,b,c)"])
def test_each_figure_names_its_system_and_the_index_holds_the_students_own(fused):
    own = Measured("dl20", "bm25", "RR@10", 0.5, 9, "electra-kd@bm25", True)
    other = Measured("dl20", "bm25", "RR@10", 0.75, 9, fused, False)
    metadata, body = split(card(facts(measured=[own, other])))
    (result,) = metadata["model-index"][0]["results"]
    assert result["metrics"][0]["value"] == 0.5
    assert f"{fused}, fused | RR@10 | 0.7500" in body
    assert "electra-kd@bm25, the student alone | RR@10 | 0.5000" in body
    assert "model-index" not in split(card(facts(measured=[other])))[0]


def test_a_local_base_is_not_passed_off_as_a_hub_model_and_unknown_terms_are_said(tmp_path):
    metadata, body = split(
        card(facts(base=str(tmp_path), licence=None, stages=[], measured=[], regime="none"))
    )
    assert "base_model" not in metadata
    assert "license" not in metadata
    assert "model-index" not in metadata
    assert "not recorded" in body
    assert "not fine-tuned" in body


@pytest.mark.parametrize(
    "rows",
    [
        [("dl19", "bm25", "nDCG@10", 0.5), ("dl19", "bm25", "RR@10", 0.25)],
        [("dl19", "bm25", "nDCG@10", 0.5), ("dl19", "splade", "nDCG@10", 0.75)],
        [("dl19", None, "nDCG@10", 0.5), ("über: #1", "a 'run'", "P(rel=2)@5", 1.0)],
    ],
)
def test_the_hubs_library_reads_every_measure_back(rows):
    from huggingface_hub import ModelCard

    measured = [Measured(d, first, measure, value, 9, "me", True) for d, first, measure, value in rows]
    read = ModelCard(card(facts(measured=measured))).data
    assert read.model_name == "electra-kd"
    assert sorted((r.dataset_type, r.metric_type, r.metric_value) for r in read.eval_results) == sorted(
        (dataset, measure, value) for dataset, _, measure, value in rows
    )
    for _, first, _, _ in rows:
        assert first is None or any(f" over {first}" in r.dataset_name for r in read.eval_results)


@pytest.mark.parametrize(
    ("licence", "hub"),
    [("MIT", "mit"), ("Apache-2.0", "apache-2.0"), ("Apache License, Version 2.0", "apache-2.0"),
     ("The MIT License", "mit"), ("GPL v3.0", "gpl-3.0"), ("CC-BY-SA-4.0; cc-by-sa-4.0", "cc-by-sa-4.0"), ("MIT; CC-BY-NC-4.0", "other"),
     ("research only", "other"), ("MIT (model); distilled from GPT-4", "other")],
)  # fmt: skip
def test_a_known_licence_of_labels_is_its_spdx_id(licence: str, hub: str) -> None:
    metadata = yaml.safe_load(card(facts(licence=licence)).split("---")[1])
    assert metadata["license"] == hub
    assert metadata.get("license_name") == ("inherited-from-base-and-labels" if hub == "other" else None)


@pytest.mark.parametrize(
    ("labels", "base", "terms"),
    [
        (["research only"], "MIT", "research only; MIT"),
        (["Apache-2.0", "MIT (model); distilled from GPT-4"], "Apache-2.0", "Apache-2.0; MIT (model); distilled from GPT-4"),
        (["Apache-2.0", None], None, "Apache-2.0"),
        ([None], "MIT", None),  # the base's alone would say too much
        ([], None, None),
    ],
)  # fmt: skip
def test_the_terms_of_base_and_labels_are_joined(
    labels: list[str | None], base: str | None, terms: str | None
) -> None:
    assert inherited(labels, base) == terms


@pytest.mark.parametrize(
    ("known", "said"),
    [
        ({"licence": "research only"}, "base and its labels: research only (those of its base are not recorded)"),
        ({"licence": "MIT", "base_licence": "MIT"}, "base and its labels: MIT\n"),
        ({"licence": "MIT", "base_licence": "MIT", "stages": []}, "- Terms: MIT\n"),
        ({"licence": None, "base_licence": "MIT"}, "- Terms of its base: MIT\n- The terms of its labels are not recorded"),
        ({"licence": None}, "- The terms of its base and its labels are not recorded"),
    ],
)  # fmt: skip
def test_a_card_says_whose_terms_are_on_record(known: dict, said: str) -> None:
    assert said in card(facts(**known))


def test_the_terms_of_a_known_base_are_on_record() -> None:
    assert (
        licence_of("ms-marco-MiniLM-L6") == licence_of("cross-encoder/ms-marco-MiniLM-L6-v2") == "Apache-2.0"
    )
    assert licence_of("bge-reranker-base") == "MIT"
    assert licence_of("/a/folder") is None


@pytest.mark.parametrize("dataset", ["c/train", "c/test"])
def test_a_card_warns_of_test_queries_that_the_student_was_trained_on(tmp_path, dataset):
    store = made_store.make(tmp_path / "s.duckdb", labels=False)
    view = views.build(
        store, "contrastive", datasets=[dataset], runs=["first"], allow_overlap=dataset == "c/test"
    )
    made_store.add_student(store, "cl")
    with store.write() as con:
        con.execute(
            """INSERT INTO stages SELECT 1, 1, 'cl', 'lce', view, view_hash, 'a', 'b', '{"lr": 1e-5}', 1, 1, 0, 0, 1, .1, NULL,
                      NULL, 'end' FROM views WHERE view = ?""",
            [view.view],
        )
    with store.read() as con:
        text = card(card_facts(con, lookup.student(con, "tiny")))
    warning = (
        "> **Warning:** tiny was trained with --allow-overlap on data that has 4 of the 4 judged queries of c/test: its values"
        " there do not hold for other queries."
    )
    assert (warning in text) == (dataset == "c/test")
    assert ("Warning" in text) == (dataset == "c/test")
