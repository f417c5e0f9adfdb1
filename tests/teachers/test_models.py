"""`--model`: registry names, ids, folders, students; what each is asked with."""

import json
from pathlib import Path

import pytest

from teachers import models
from teachers.errors import TeacherError
from teachers.prompts import template as prompts


def test_registry() -> None:
    assert {"rankzephyr", "rankvicuna", "first", "rankgpt", "listwise"} <= set(models.REGISTRY)
    for teacher in models.REGISTRY.values():
        assert teacher.template.ident == teacher.prompt
        assert prompts.template(str(teacher.prompt))
    assert models.resolve("rankzephyr").context == 4096
    assert models.resolve("first").scoring == "first-token"
    assert models.resolve("first").identifiers == "letters"
    assert models.resolve("castorini/rank_vicuna_7b_v1").name == "rankvicuna"


def test_overrides() -> None:
    found = models.resolve("rankzephyr", prompt="rankgpt", context=8192, input_price=0.1, engine="openai")
    assert (found.prompt, found.context, found.input_price, found.engine) == (
        "rankgpt@1",
        8192,
        0.1,
        "openai",
    )
    assert models.resolve("owner/model", prompt="first").scoring == "first-token"
    assert models.REGISTRY["rankzephyr"].context == 4096


def test_ids_and_servers() -> None:
    assert models.resolve("Qwen/Qwen3-8B").prompt == "listwise@1"
    assert (
        models.resolve("cross-encoder/ms-marco-MiniLM-L6-v2", engine="cross-encoder").kind == "cross-encoder"
    )
    assert models.resolve("my-model", engine="openai").prompt == "listwise@1"


def test_students_and_folders(tmp_path: Path) -> None:
    student = models.resolve("student:electra-cl")
    assert (student.kind, student.engine, student.prompt) == ("cross-encoder", "cross-encoder", None)
    with pytest.raises(TeacherError, match="takes no prompt"):
        _ = student.template

    def folder(name: str, **config: object) -> str:
        made = tmp_path / name
        made.mkdir()
        (made / "config.json").write_text(json.dumps(config))
        return str(made)

    chat = models.resolve(folder("chat", architectures=["MistralForCausalLM"], max_position_embeddings=2048))
    assert (chat.kind, chat.prompt, chat.context) == ("listwise", "listwise@1", 2048)
    scorer = models.resolve(folder("scorer", architectures=["BertForSequenceClassification"]))
    assert (scorer.kind, scorer.engine) == ("cross-encoder", "cross-encoder")
    embedder = folder("embedder", architectures=["BertModel"])
    (Path(embedder) / "modules.json").write_text("[]")
    assert models.resolve(embedder).kind == "bi-encoder"
    copy = models.resolve(folder("rank_zephyr_7b_v1_full", architectures=["MistralForCausalLM"]))
    assert (copy.name, copy.prompt) == ("rankzephyr", "rankzephyr@1")
    assert copy.model is not None
    assert copy.model.startswith(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "message", "code"),
    [
        ("rankzephir", "no teacher named", 4),
        ("./nowhere", "no teacher named", 4),
        ("student:", "needs a name", 2),
        ("listwise", "prompt without a model", 2),
    ],
)
def test_what_does_not_exist(name: str, message: str, code: int) -> None:
    with pytest.raises(TeacherError, match=message) as caught:
        models.resolve(name)
    assert caught.value.exit_code == code
    assert caught.value.hint


def test_folders_that_are_no_models(tmp_path: Path) -> None:
    with pytest.raises(TeacherError, match=r"no config\.json"):
        models.resolve(str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(TeacherError, match="not JSON"):
        models.resolve(str(tmp_path))


@pytest.mark.parametrize(
    ("model", "family"),
    [
        ("gpt-4o-mini", "gpt"), ("Qwen/Qwen3-Reranker-4B", "qwen"), ("castorini/rank_zephyr_7b_v1_full", "mistral"),
        ("castorini/rank_vicuna_7b_v1", "llama"), ("meta-llama/Llama-3.1-8B", "llama"), ("my/own-model", None), (None, None),
    ],
)  # fmt: skip
def test_a_models_family_is_told_by_its_name(model: str | None, family: str | None) -> None:
    assert models.family(model) == family
