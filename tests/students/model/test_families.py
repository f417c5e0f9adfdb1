"""Every family in the table of docs/guides/training.md trains, is saved, and scores the same in sentence-transformers."""

import re
from pathlib import Path

import numpy as np
import pytest
import tiny_families
import tiny_models
import tiny_views
from safetensors.torch import load_file

from students.cpu.bert import FusedEncoder
from students.model import packed_attention
from students.model.encoder import CrossEncoder
from students.recipes.read import make_recipe
from students.rerank.reranker import Reranker
from students.train.run import train

pytestmark = pytest.mark.test_all

PAGE = Path(__file__).resolve().parents[3] / "docs/guides/training.md"
FAMILIES = (*tiny_models.ARCHITECTURES, *tiny_families.CONFIGS)
QUERY, PASSAGES = "what is volcano energy", [*tiny_models.sentences(12, seed=4, longest=60), "naïve (14.5%)"]


def table() -> dict[str, list[str]]:
    """The rows of the table, by the type in their second column."""
    section = PAGE.read_text("utf-8").partition("| family | ")[2].partition("\n\n")[0]
    rows = [[c.strip() for c in line.split("|")[1:-1]] for line in section.splitlines()[2:]]
    return {kind.strip("`"): cells for _, kind, *cells in rows}


@pytest.fixture(scope="module")
def view(tmp_path_factory):
    return tiny_views.write(tmp_path_factory.mktemp("view") / "kd", "distillation")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_trains_is_saved_and_scores_the_same_in_sentence_transformers(family, view, tmp_path):
    from sentence_transformers import CrossEncoder as Theirs

    base = tiny_families.make(family, tmp_path / "base")
    recipe = make_recipe(
        {
            "base": str(base), "regime": "kd", "max_length": 48, "lr": 1e-3, "lists": 4, "epochs": 0,
            "max_steps": 3, "precision": "fp32", "keep": "last", "hidden_dropout": 0.0, "attention_dropout": 0.0,
        }
    )  # fmt: skip
    result = train(recipe, [view], tmp_path / "out")
    old, new = (load_file(folder / "model.safetensors") for folder in (base, result.folder))
    assert old.keys() == new.keys()
    assert sum(bool((old[name] != new[name]).any()) for name in new) > 0.8 * len(new)
    student = CrossEncoder.load(result.folder, precision="fp32", device="cpu")
    scores = student.score(QUERY, PASSAGES)
    assert len(np.unique(scores)) == len(PASSAGES)
    (again,) = Reranker(student).scores([(QUERY, PASSAGES)])
    np.testing.assert_allclose(again, scores, atol=1e-5, rtol=1e-5)
    saved = CrossEncoder.load(student.save(tmp_path / "saved"), precision="fp32", device="cpu")
    np.testing.assert_array_equal(saved.score(QUERY, PASSAGES), scores)
    theirs = Theirs(str(tmp_path / "saved"), device="cpu")
    np.testing.assert_allclose(
        theirs.predict([(QUERY, passage) for passage in PASSAGES]), scores, atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_the_table_says_where_a_family_runs_packed_or_on_the_fast_path(family, tmp_path):
    model = CrossEncoder.load(
        tiny_families.make(family, tmp_path / "base"), precision="fp32", device="cpu"
    ).model
    tokenizer, packed, fast = table()[model.config.model_type]
    backend = CrossEncoder.load(tmp_path / "base", device="cpu").tokenizer.backend_tokenizer
    assert tokenizer == type(backend.model).__name__
    assert {"yes": True, "no": False}[packed] == packed_attention.supports(model.config.model_type)
    assert {"yes": True, "no": False}[fast] == FusedEncoder.supports(model)


def test_the_table_has_every_family_and_no_other():
    assert set(table()) == set(FAMILIES)
    assert len(re.findall(r"^\| family \|", PAGE.read_text("utf-8"), re.MULTILINE)) == 1
