"""A student's folder is an ordinary one: sentence-transformers and transformers load it and give equal scores."""

import re
from pathlib import Path

import made_store
import numpy as np
import pytest
import tiny_models
import torch

from labelstore.errors import DataMissing, UsageError
from labelstore.evaluation import scores as evaluation
from labelstore.store import lookup
from labelstore.store.label_store import LabelStore
from students.jobs.export import export_student
from students.jobs.register import add_student
from students.jobs.rerank import rerank_run
from students.jobs.train import Sources, train_student
from students.rerank.reranker import Reranker


def trained(store: LabelStore, base: Path | str) -> lookup.Student:
    """A few steps of distillation: enough to move every weight."""
    return train_student(
        store, regime="kd", base=str(base), sources=Sources(labels=["teacher@first"]), name="tiny",
        settings={"max_steps": 3, "lists": 4, "lr": 3e-3, "max_length": 32, "valid_every": 3, "precision": "fp32"},
    )  # fmt: skip


@pytest.mark.test_all
@pytest.mark.parametrize("architecture", tiny_models.ARCHITECTURES)
def test_sentence_transformers_and_transformers_give_a_trained_students_scores(tiny, tmp_path, architecture):
    from sentence_transformers import CrossEncoder
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    store = made_store.make(tmp_path / "s.duckdb")
    student = trained(store, tiny(architecture))
    folder = tmp_path / "exported"
    export_student(store, "tiny", folder)
    query, passages = "what does water cause", tiny_models.sentences(12, 2, 60)
    ours = Reranker.load(folder, precision="fp32", device="cpu").scores([(query, passages)])[0]
    untrained = Reranker.load(tiny(architecture), precision="fp32", max_length=32, device="cpu")
    assert np.abs(ours - untrained.scores([(query, passages)])[0]).max() > 1e-2, (
        "these are the trained weights"
    )
    own = Reranker.load(store.files / student.folder, precision="fp32", device="cpu")
    assert np.array_equal(own.scores([(query, passages)])[0], ours), "the store's own folder is one too"

    theirs = CrossEncoder(str(folder), device="cpu")
    assert isinstance(theirs.activation_fn, torch.nn.Identity), "scores are logits without being asked for"
    np.testing.assert_allclose(theirs.predict([(query, p) for p in passages]), ours, atol=2e-6)

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    assert model.config.num_labels == 1
    batch = tokenizer([query] * len(passages), passages, truncation=True, padding=True, return_tensors="pt")
    assert batch["input_ids"].shape[1] == 32, "the folder carries the tokens per pair"
    with torch.inference_mode():
        np.testing.assert_allclose(model(**batch).logits.squeeze(-1).numpy(), ours, atol=2e-6)


@pytest.mark.test_all
def test_a_trained_student_has_the_terms_of_its_base_and_its_labels(tiny, tmp_path):
    """MIT of the base that was added, and the labels' own terms, as in the message that refuses other terms."""
    store = made_store.make(tmp_path / "s.duckdb")
    add_student(store, str(tiny("bert")), name="published", licence="MIT")
    student = trained(store, "student:published")
    with store.read() as con:
        ((labels,),) = con.execute("SELECT DISTINCT licence FROM views").fetchall()
    assert labels
    assert student.licence == f"{labels}; MIT"
    with pytest.raises(UsageError, match=f"under {re.escape(labels)}; MIT, of its base or its labels"):
        export_student(store, "tiny", tmp_path / "out", licence="apache-2.0")
    export_student(store, "tiny", tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text("utf-8")
    assert f"- Terms inherited from its base and its labels: {labels}; MIT\n" in text


@pytest.mark.test_all
def test_the_hubs_own_reader_takes_the_card_of_a_trained_and_measured_student(tiny, tmp_path):
    from huggingface_hub import ModelCard, metadata_load

    store = made_store.make(tmp_path / "s.duckdb")
    student = trained(store, tiny("bert"))
    rerank_run(store, student="tiny", dataset="c/test", run="first", precision="fp32")
    evaluation.evaluate(store, "c/test", measures=["nDCG@10", "R@30"])
    export_student(store, "tiny", tmp_path / "out")
    path = tmp_path / "out" / "README.md"
    card = ModelCard.load(path)
    assert card.data.model_name == "tiny"
    found = {(r.dataset_type, r.metric_type): r.metric_value for r in card.data.eval_results}
    with store.read() as con:
        measured = con.execute("SELECT measure, value FROM results WHERE student = 'tiny'").fetchall()
    assert found == {("c/test", measure): pytest.approx(value, abs=1e-5) for measure, value in measured}
    assert {"nDCG@10", "R@30"} <= {measure for _, measure in found}
    assert max(found.values()) > 0
    assert all("over first" in r.dataset_name for r in card.data.eval_results)
    assert (card.data.library_name, card.data.pipeline_tag) == ("sentence-transformers", "text-ranking")
    assert (card.data.license, card.data.license_name) == ("other", "inherited-from-base-and-labels")
    with store.read() as con:
        ((view_hash, licence),) = con.execute(
            "SELECT g.view_hash, s.licence FROM stages g JOIN students s USING (student)"
        ).fetchall()
    assert licence
    for fact in (
        str(tiny("bert")),
        "`kd`",
        view_hash,
        "teacher@first",
        licence,
        "32 tokens",
        student.weights_hash,
    ):
        assert fact in card.text, fact
    # what the hub's tools write anew from what they read says the same again; they put a dataset's measures together
    ModelCard(str(card)).save(tmp_path / "again.md")
    assert ModelCard.load(tmp_path / "again.md").data.eval_results == card.data.eval_results
    written, again = ({**metadata_load(file), "model-index": None} for file in (path, tmp_path / "again.md"))
    assert again == written


def test_the_folder_holds_safetensors_and_no_code(tiny, tmp_path):
    store = made_store.make(tmp_path / "s.duckdb")
    add_student(store, str(tiny("bert")), name="tiny")
    export_student(store, "tiny", tmp_path / "out")
    names = {path.suffix for path in (tmp_path / "out").iterdir()}
    assert ".safetensors" in names
    assert not names & {".bin", ".pt", ".pkl", ".py"}


@pytest.mark.needs("peft")
def test_a_lora_student_is_exported_merged_or_as_its_adapter_alone(tiny, tmp_path):
    store = made_store.make(tmp_path / "s.duckdb")
    trained(store, tiny("electra"))
    with pytest.raises(DataMissing, match="'tiny' has no adapter"):
        export_student(store, "tiny", tmp_path / "none", form="adapter")
    settings = {"max_steps": 3, "lists": 4, "lr": 3e-3, "max_length": 32, "precision": "fp32", "lora": "r=2"}
    train_student(
        store, regime="kd", base=str(tiny("electra")), sources=Sources(labels=["teacher@first"]), name="adapted",
        settings=settings,
    )  # fmt: skip
    for form in ("hf", "adapter"):
        export_student(store, "adapted", tmp_path / form, form=form)
    assert not (tmp_path / "hf/adapter").exists()
    assert not (tmp_path / "adapter/model.safetensors").exists()
    lists = [("what does water cause", tiny_models.sentences(12, 2, 60))]
    merged, alone = (
        Reranker.load(tmp_path / form, precision="fp32", max_length=32, device="cpu").scores(lists)[0]
        for form in ("hf", "adapter")
    )
    np.testing.assert_allclose(alone, merged, atol=1e-5)
    again = add_student(store, str(tmp_path / "adapter"), name="again", max_length=32)
    own = Reranker.load(store.files / again.folder, precision="fp32", device="cpu").scores(lists)[0]
    np.testing.assert_allclose(own, merged, atol=1e-5)
