"""A student's folder is an ordinary one: sentence-transformers and transformers load it and give equal scores."""

import made_store
import numpy as np
import pytest
import tiny_models
import torch

from students.jobs.export import export_student
from students.jobs.register import add_student
from students.rerank import Reranker


@pytest.mark.parametrize("architecture", tiny_models.ARCHITECTURES)
def test_sentence_transformers_and_transformers_give_equal_scores(tiny, tmp_path, architecture):
    from sentence_transformers import CrossEncoder
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    store = made_store.make(tmp_path / "s.duckdb")
    add_student(store, str(tiny(architecture)), name="tiny", max_length=32)
    folder = tmp_path / "exported"
    export_student(store, "tiny", folder)
    query, passages = "what does water cause", tiny_models.sentences(12, 2, 60)
    ours = Reranker.load(folder, precision="fp32", device="cpu").scores([(query, passages)])[0]

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


def test_the_folder_holds_safetensors_and_no_code(tiny, tmp_path):
    store = made_store.make(tmp_path / "s.duckdb")
    add_student(store, str(tiny("bert")), name="tiny")
    export_student(store, "tiny", tmp_path / "out")
    names = {path.suffix for path in (tmp_path / "out").iterdir()}
    assert ".safetensors" in names
    assert not names & {".bin", ".pt", ".pkl", ".py"}
