"""Bases of other kinds: heads compute in fp32, and what a student cannot be made of says so."""

import numpy as np
import pytest
import tiny_models
import torch
from transformers import (
    AutoModelForSequenceClassification,
    DistilBertConfig,
    LlamaConfig,
    T5Config,
    T5ForSequenceClassification,
)

from students.errors import StudentError
from students.model.encoder import CrossEncoder
from students.model.head import HeadStart, head_parts
from students.train import checkpoints
from students.train.optimiser import freeze

CONFIGS = {
    "distilbert": lambda n: DistilBertConfig(vocab_size=n, dim=32, n_layers=2, n_heads=2, hidden_dim=64),
    "llama": lambda n: LlamaConfig(
        vocab_size=n, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        pad_token_id=None,
    ),
    "t5": lambda n: T5Config(
        vocab_size=n, d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2, eos_token_id=3, pad_token_id=0,
        decoder_start_token_id=0,
    ),
}  # fmt: skip
PASSAGES = tiny_models.sentences(100, seed=5)


def other(kind: str, folder, labels: int = 1):
    torch.manual_seed(3)
    tokenizer = tiny_models.wordpiece()
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    config = CONFIGS[kind](len(tokenizer))
    config.num_labels = labels
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("attention", [None, "packed_varlen"])
@pytest.mark.parametrize("architecture", tiny_models.ARCHITECTURES)
def test_no_scores_tie_under_autocast(tiny, architecture, attention):
    encoder = CrossEncoder.load(tiny(architecture), precision="bf16", device="cpu", attention=attention)
    scores = encoder.score("water energy", PASSAGES)
    assert len(np.unique(scores)) == len(set(PASSAGES))


@pytest.mark.parametrize("scale", [0.5, 3, 20])
@pytest.mark.parametrize("architecture", tiny_models.ARCHITECTURES)
def test_only_a_new_head_is_scaled(tiny, tmp_path, architecture, scale):
    def scores(folder, **options):
        encoder = CrossEncoder.load(folder, precision="fp32", device="cpu", **options)
        return encoder.score("water energy", PASSAGES[:20])

    with_head = tiny(architecture)
    body = tmp_path / "body"
    whole = CrossEncoder.load(with_head, precision="fp32", device="cpu")
    whole.model.base_model.save_pretrained(body)
    whole.tokenizer.save_pretrained(body)
    np.testing.assert_array_equal(scores(with_head, head=HeadStart(scale)), scores(with_head))
    plain = scores(body, seed=7)
    np.testing.assert_allclose(
        scores(body, seed=7, head=HeadStart(scale)), scale * plain, rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("architecture", tiny_models.ARCHITECTURES)
def test_a_new_head_begins_as_the_identity_and_a_trained_one_stays(tiny, tmp_path, architecture):
    def square(folder, **options):
        encoder = CrossEncoder.load(folder, precision="fp32", device="cpu", seed=7, **options)
        parts = head_parts(encoder.model).values()
        layers = [layer for part in parts for layer in part.modules() if isinstance(layer, torch.nn.Linear)]
        return [layer for layer in layers if layer.in_features == layer.out_features]

    with_head = tiny(architecture)
    whole = CrossEncoder.load(with_head, precision="fp32", device="cpu")
    before = square(with_head)
    for drawn, kept in zip(before, square(with_head, head=HeadStart(identity=True)), strict=True):
        assert torch.equal(drawn.weight, kept.weight)
    assert before, "each of these architectures has such a layer"
    body = tmp_path / "body"
    whole.model.base_model.save_pretrained(body)
    whole.tokenizer.save_pretrained(body)
    assert not any(torch.equal(layer.weight, torch.eye(layer.in_features)) for layer in square(body))
    assert all(
        torch.equal(layer.weight, torch.eye(layer.in_features))
        for layer in square(body, head=HeadStart(identity=True))
    )
    if architecture != "bert":
        return
    trained = tmp_path / "trained"  # a pooler that somebody trained has a bias
    with torch.no_grad():
        whole.model.bert.pooler.dense.bias[0] = 0.1
    whole.model.base_model.save_pretrained(trained)
    whole.tokenizer.save_pretrained(trained)
    (pooler,) = square(trained, head=HeadStart(identity=True))
    assert torch.equal(pooler.weight, whole.model.bert.pooler.dense.weight)


@pytest.mark.parametrize("kind", ["distilbert", "llama"])
def test_no_scores_tie_under_autocast_whatever_the_family(kind, tmp_path):
    encoder = CrossEncoder.load(other(kind, tmp_path / "m"), precision="bf16", device="cpu", max_length=64)
    assert len(np.unique(encoder.score("water energy", PASSAGES))) >= 0.98 * len(set(PASSAGES))


def test_a_decoder_takes_its_padding_from_its_tokenizer(tmp_path):
    encoder = CrossEncoder.load(other("llama", tmp_path / "m"), precision="fp32", device="cpu", max_length=64)
    assert encoder.model.config.pad_token_id == encoder.tokenizer.pad_token_id
    together = encoder.score("river", PASSAGES[:9])
    each = [encoder.score("river", [passage])[0] for passage in PASSAGES[:9]]
    np.testing.assert_allclose(together, each, atol=1e-5)


@pytest.mark.parametrize(("kind", "labels"), [("distilbert", 2), ("llama", 3), ("distilbert", 7), ("t5", 0)])
def test_a_base_with_several_labels_says_which_and_what_to_do(kind, labels, tmp_path):
    with pytest.raises(StudentError, match=f"its head has {labels} labels") as raised:
        CrossEncoder.load(other(kind, tmp_path / "m", labels), device="cpu", max_length=64)
    assert raised.value.exit_code == 2
    assert "without its head" in (raised.value.hint or "")


@pytest.mark.parametrize("layers", [1, 2, 9])
def test_layers_of_a_model_of_two_stacks_are_refused(layers, tmp_path):
    with pytest.raises(StudentError, match="layers = ") as raised:
        CrossEncoder.load(other("t5", tmp_path / "m"), device="cpu", max_length=64, layers=layers)
    assert raised.value.hint == "leave layers out"


@pytest.mark.parametrize(("kind", "part"), [
    ("llama", "word_embeddings"), ("t5", "position_embeddings"), ("llama", "pooler"),
])  # fmt: skip
def test_a_part_of_another_architecture_does_not_freeze(kind, part, tmp_path):
    model = AutoModelForSequenceClassification.from_pretrained(other(kind, tmp_path / "m"))
    with pytest.raises(StudentError, match=part) as raised:
        freeze(model, [part])
    assert raised.value.hint


def test_tensors_that_two_names_share_are_saved_and_read_back(tmp_path):
    torch.manual_seed(1)
    config = CONFIGS["t5"](120)
    one, two = T5ForSequenceClassification(config), T5ForSequenceClassification(config)
    checkpoints.save_weights(one, tmp_path / "w.safetensors")
    checkpoints.load_weights(two, tmp_path / "w.safetensors")
    for name, value in one.state_dict().items():
        assert torch.equal(two.state_dict()[name], value), name
    from students.train.diagnostics import weights_moved

    assert weights_moved(two, tmp_path / "w.safetensors") == 0.0
    with torch.no_grad():
        two.classification_head.out_proj.weight.add_(1.0)
    assert weights_moved(two, tmp_path / "w.safetensors") > 0
