"""LoRA: adapters and head learn and nothing else; merged, alone and in peft they score the same."""

import json
import shutil

import numpy as np
import pytest
import tiny_decoders
import tiny_models
import tiny_views
import torch
from safetensors.torch import load_file

from msft.errors import MsftError
from students.errors import StudentError
from students.model import lora
from students.model.encoder import CrossEncoder
from students.model.head import head_parts
from students.recipes.read import load_recipe, make_recipe
from students.recipes.recipe import Lora
from students.text.frames import Framing
from students.train.run import train

pytestmark = [pytest.mark.needs("peft"), pytest.mark.test_all]

QUERY, PASSAGES = "what is volcano energy", tiny_models.sentences(12, seed=4)
KINDS = ("qwen3", *tiny_models.ARCHITECTURES)


@pytest.fixture(scope="module")
def bases(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bases")
    made = {kind: tiny(kind) for kind in tiny_models.ARCHITECTURES}
    return made | {"qwen3": tiny_decoders.make("qwen3", folder / "tiny-qwen3-reranker")}


@pytest.fixture(scope="module")
def views(tmp_path_factory):
    folder = tmp_path_factory.mktemp("views")
    return [tiny_views.write(folder / "cl", "contrastive"), tiny_views.write(folder / "kd", "distillation")]


def load(folder, **options):
    return CrossEncoder.load(folder, precision="fp32", device="cpu", max_length=130, **options)


def recipe(base, **settings):
    return make_recipe(
        {
            "base": str(base), "regime": "cl,kd", "max_length": 130, "lr": 5e-3, "lists": 4, "epochs": 0,
            "max_steps": 4, "precision": "fp32", "keep": "last", "lora": {"r": 2}, "hidden_dropout": 0.0,
            "attention_dropout": 0.0,
        }
        | settings
    )  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_merged_weights_score_as_the_adapters_beside_them(bases, kind):
    encoder = load(bases[kind]).eval()
    before = encoder.score(QUERY, PASSAGES)
    lora.adapt(encoder.model, Lora(r=4, alpha=12.0), str(bases[kind]))
    np.testing.assert_allclose(encoder.score(QUERY, PASSAGES), before, atol=1e-6)  # B is 0
    torch.manual_seed(1)
    with torch.no_grad():
        for name, weights in encoder.model.named_parameters():
            if ".lora_B" in name:
                weights.normal_(std=0.05)
    adapted = encoder.score(QUERY, PASSAGES)
    assert np.abs(adapted - before).max() > 1e-2
    lora.merge(encoder.model)
    assert not any("lora" in name for name, _ in encoder.model.named_modules())
    np.testing.assert_allclose(encoder.score(QUERY, PASSAGES), adapted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("targets", [(), "some"])
def test_two_stages_move_only_the_adapted_maps_and_the_head_and_share_one_adapter(
    bases, views, tmp_path, kind, targets
):
    """The difference from the base has the adapter's rank: the second stage went on with the first one's."""
    some = {"qwen3": ["q_proj", "mlp.down_proj"], "modernbert": ["Wqkv"]}.get(kind, ["query", "value"])
    chosen = recipe(bases[kind], lora={"r": 2, "targets": some if targets else []})
    result = train(chosen, views, tmp_path / "out")
    assert [stage["objective"] for stage in result.stages] == ["cl", "kd"]
    assert result.stages[1]["parent_hash"] == result.stages[0]["weights_hash"]
    assert all(stage["weights_moved"] > 1e-3 for stage in result.stages)
    base, after = (load(folder).model.state_dict() for folder in (bases[kind], result.folder))
    heads = tuple(f"{name}." for name in head_parts(load(bases[kind]).model))
    moved = {name for name in base if not torch.equal(base[name], after[name])}
    assert any(name.startswith(heads) for name in moved)
    adapted = {name for name in moved if not name.startswith(heads)}
    assert adapted
    for name in adapted:
        assert torch.linalg.matrix_rank((after[name] - base[name]).double(), rtol=1e-4) <= 2, name
        assert not targets or name.removesuffix(".weight").endswith(tuple(some)), name


@pytest.mark.parametrize("kind", ["qwen3", "electra"])
def test_the_adapter_alone_scores_as_the_merged_student_in_peft_and_here(bases, views, tmp_path, kind):
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    result = train(recipe(bases[kind], lora={"r": 3, "alpha": 5.0}), views, tmp_path / "out")
    scores = load(result.folder).score(QUERY, PASSAGES)
    adapter = result.folder / lora.FOLDER
    assert sum(f.stat().st_size for f in adapter.glob("*.safetensors")) < 100_000
    tokenizer = AutoTokenizer.from_pretrained(adapter)
    model = AutoModelForSequenceClassification.from_pretrained(
        bases[kind], num_labels=1, pad_token_id=tokenizer.pad_token_id
    )
    model = PeftModel.from_pretrained(model, adapter).eval()
    batch = tokenizer([QUERY] * len(PASSAGES), PASSAGES, padding=True, return_tensors="pt")
    with torch.no_grad():
        theirs = model(**batch).logits[:, 0].numpy()
    np.testing.assert_allclose(theirs, scores, atol=1e-4, rtol=1e-5)
    again = load(adapter)
    np.testing.assert_allclose(again.score(QUERY, PASSAGES), scores, atol=1e-5, rtol=1e-5)


def test_the_head_and_the_adapters_alone_learn(bases):
    encoder = load(bases["qwen3"])
    lora.adapt(encoder.model, Lora(r=2, targets=("q_proj",)), "base")
    names = {name for name, p in encoder.model.named_parameters() if p.requires_grad}
    assert names == lora.learning_names(encoder.model) == set(lora.adapter_state(encoder.model))
    assert "score.weight" in names
    assert all("q_proj.lora_" in name for name in names - {"score.weight"})
    assert len(names) == 1 + 2 * 2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("target", ["q_projection", "layers", "embeddings"])
def test_a_target_that_matches_nothing_is_refused_with_the_names_there_are(
    bases, views, tmp_path, kind, target
):
    chosen = recipe(bases[kind], lora={"r": 2, "targets": [target]})
    with pytest.raises(StudentError, match=f"'{target}' matches no linear map") as raised:
        train(chosen, views, tmp_path / "out")
    assert raised.value.exit_code == 2
    assert ("q_proj" if kind == "qwen3" else "Wqkv" if kind == "modernbert" else "query") in (
        raised.value.hint or ""
    )


def test_an_adapter_without_its_base_says_which_one(bases, views, tmp_path):
    base = shutil.copytree(bases["qwen3"], tmp_path / "tiny-qwen3-reranker")
    result = train(recipe(base, regime="cl"), views[:1], tmp_path / "out")
    adapter = shutil.copytree(result.folder / lora.FOLDER, tmp_path / "adapter")
    shutil.rmtree(base)
    with pytest.raises(StudentError, match=f"model not found: {base}, the base of the adapter") as raised:
        load(adapter)
    assert raised.value.exit_code == 4
    assert "base_model_name_or_path" in (raised.value.hint or "")
    config = json.loads((adapter / lora.CONFIG).read_text("utf-8"))
    (adapter / lora.CONFIG).write_text(json.dumps(config | {"base_model_name_or_path": None}))
    with pytest.raises(StudentError, match="names no base") as raised:
        load(adapter)
    assert "base_model_name_or_path" in (raised.value.hint or "")
    (adapter / lora.CONFIG).write_text(json.dumps(config | {"base_model_name_or_path": str(bases["bert"])}))
    with pytest.raises(StudentError, match="the adapter does not fit its base"):
        load(adapter)


def test_gradient_checkpointing_trains_to_the_same_weights(bases, views, tmp_path):
    one, two = (
        load_file(
            train(recipe(bases["qwen3"], gradient_checkpointing=on), views, tmp_path / str(on)).folder
            / "model.safetensors"
        )
        for on in (False, True)
    )
    for name, weights in one.items():
        torch.testing.assert_close(two[name], weights, rtol=1e-5, atol=1e-6)


def test_a_frozen_part_has_adapters_that_do_not_learn(bases, views, tmp_path):
    result = train(recipe(bases["qwen3"], freeze=["layers:0"]), views, tmp_path / "out")
    base, after = (load(folder).model.state_dict() for folder in (bases["qwen3"], result.folder))
    moved = {name for name in base if not torch.equal(base[name], after[name])}
    assert any(".layers.1." in name for name in moved)
    assert not any(".layers.0." in name for name in moved)


def test_an_adapter_over_a_decoder_keeps_the_frame(bases, views, tmp_path):
    chosen = recipe(bases["qwen3"], regime="cl", instruction="rank water")
    folder = train(chosen, views[:1], tmp_path / "out").folder / lora.FOLDER
    assert chosen.framing == Framing("", "rank water")
    from students.text.frames import frame_of

    assert frame_of(load(folder).tokenizer).instruction == "rank water"


def test_settings_come_from_a_table_a_text_and_single_keys(tmp_path):
    file = tmp_path / "r.toml"
    file.write_text('regime = "cl"\n[lora]\nr = 8\ntargets = ["q_proj"]\n')
    assert load_recipe(file).lora == Lora(r=8, targets=("q_proj",))
    assert load_recipe(file, {"lora": "r=16,alpha=64"}).lora == Lora(16, 64.0, 0.0, ("q_proj",))
    assert load_recipe(file, {"lora.dropout": 0.1}).lora == Lora(8, 0.0, 0.1, ("q_proj",))
    text = "r=4,targets=q_proj,v_proj,dropout=0.2"
    assert make_recipe({"lora": text}).lora == Lora(4, 0.0, 0.2, ("q_proj", "v_proj"))
    assert "lora" not in make_recipe({}).flat()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"lora": "32"}, "expected KEY=VALUE, found '32'"),
        ({"lora": {"rank": 3}}, "unknown setting 'rank'"),
        ({"lora": {"alpha": 3}}, "need a rank"),
        ({"lora": {"r": -1}}, "must not be negative"),
        ({"lora": {"r": 2, "dropout": 1.0}}, r"dropout must be in \[0, 1\)"),
        ({"lora": 5}, "must be a table"),
        ({"lora": "r=two"}, "r must be a whole number"),
    ],
)
def test_wrong_settings_are_listed(settings, says):
    with pytest.raises(MsftError, match=says) as raised:
        make_recipe(settings)
    assert raised.value.exit_code == 2
