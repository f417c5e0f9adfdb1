import json

import numpy as np
import pytest
import tiny_models
import torch

from students.errors import StudentError
from students.model.encoder import CrossEncoder, choose_precision, resolve_base

QUERY = "what is energy"
PASSAGES = tiny_models.sentences(7, 9, 30)


@pytest.mark.parametrize("architecture", tiny_models.ARCHITECTURES)
def test_scores_equal_transformers_own(tiny, architecture):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    encoder = CrossEncoder.load(tiny(architecture), precision="fp32", max_length=32, device="cpu")
    assert encoder.architecture == architecture
    tokenizer = AutoTokenizer.from_pretrained(tiny(architecture))
    model = AutoModelForSequenceClassification.from_pretrained(tiny(architecture)).eval()
    inputs = tokenizer(
        [QUERY] * 7, PASSAGES, truncation=True, max_length=32, padding=True, return_tensors="pt"
    )
    with torch.no_grad():
        expected = model(**inputs).logits.squeeze(-1).numpy()
    np.testing.assert_allclose(encoder.score(QUERY, PASSAGES), expected, atol=1e-5)
    assert np.ptp(expected) > 1e-3


@pytest.mark.parametrize("architecture", tiny_models.ARCHITECTURES)
def test_a_saved_folder_gives_the_same_scores_everywhere(tiny, tmp_path, architecture):
    from sentence_transformers import CrossEncoder as Theirs

    encoder = CrossEncoder.load(tiny(architecture), precision="fp32", max_length=40, device="cpu")
    folder = encoder.save(tmp_path / "student")
    assert {p.name for p in folder.iterdir()} >= {"config.json", "model.safetensors", "tokenizer.json"}
    assert not list(folder.glob("*.bin"))
    mine = encoder.score(QUERY, PASSAGES)
    again = CrossEncoder.load(folder, precision="fp32", device="cpu")
    assert again.max_length == 40
    assert again.weights_hash() == encoder.weights_hash()
    np.testing.assert_array_equal(again.score(QUERY, PASSAGES), mine)
    theirs = Theirs(str(folder), device="cpu").predict([(QUERY, p) for p in PASSAGES])
    np.testing.assert_allclose(theirs, mine, atol=1e-5)


def test_a_base_without_a_head_gets_one_that_the_seed_decides(tiny, tmp_path):
    from transformers import AutoModel

    folder = tmp_path / "base"
    AutoModel.from_pretrained(tiny("bert")).save_pretrained(folder)
    tiny_models.wordpiece().save_pretrained(folder)
    one, same, other = (CrossEncoder.load(folder, seed=s, device="cpu").weights_hash() for s in (1, 1, 2))
    assert one == same != other


def test_a_model_that_is_not_there(tmp_path):
    with pytest.raises(StudentError, match="model not found: no/such-model") as caught:
        CrossEncoder.load("no/such-model")
    assert caught.value.exit_code == 4
    assert caught.value.hint
    (tmp_path / "empty").mkdir()
    with pytest.raises(StudentError) as caught:
        CrossEncoder.load(tmp_path / "empty")
    assert caught.value.exit_code == 4


def test_pickled_weights_are_not_read(tiny, tmp_path):
    encoder = CrossEncoder.load(tiny("bert"), device="cpu")
    folder = encoder.save(tmp_path / "pickled")
    (folder / "model.safetensors").unlink()
    torch.save(encoder.model.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(StudentError) as caught:
        CrossEncoder.load(folder)
    assert caught.value.exit_code == 4
    assert "safetensors" in (caught.value.hint or "")


def test_code_that_comes_with_a_model_is_not_run(tiny, tmp_path):
    folder = CrossEncoder.load(tiny("bert"), device="cpu").save(tmp_path / "code")
    marker = tmp_path / "ran"
    (folder / "configuration_evil.py").write_text(f"open({str(marker)!r}, 'w')\nclass Evil: pass\n")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "configuration_evil.Evil"}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(StudentError):
        CrossEncoder.load(folder)
    assert not marker.exists()


def test_a_head_of_several_outputs_is_refused(tiny, tmp_path):
    from transformers import AutoModelForSequenceClassification

    AutoModelForSequenceClassification.from_pretrained(
        tiny("bert"), num_labels=3, ignore_mismatched_sizes=True
    ).save_pretrained(tmp_path / "three")
    tiny_models.wordpiece().save_pretrained(tmp_path / "three")
    with pytest.raises(StudentError, match="three"):
        CrossEncoder.load(tmp_path / "three")


def test_max_length_stays_within_the_positions(tiny):
    assert CrossEncoder.load(tiny("roberta"), device="cpu").max_length == 512
    with pytest.raises(StudentError, match="512 positions"):
        CrossEncoder.load(tiny("roberta"), max_length=513, device="cpu")


def test_precision_is_what_was_asked_and_auto_asks_the_machine(monkeypatch):
    cpu = torch.device("cpu")
    assert choose_precision("bf16", cpu) == "bf16"
    assert choose_precision("fp32", cpu) == "fp32"
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True}, raising=False)
    assert choose_precision("auto", cpu) == "bf16"
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": False}, raising=False)
    assert choose_precision("auto", cpu) == "fp32"


def test_bf16_scores_are_near_and_fp32(tiny):
    exact = CrossEncoder.load(tiny("bert"), precision="fp32", device="cpu").score(QUERY, PASSAGES)
    rough = CrossEncoder.load(tiny("bert"), precision="bf16", device="cpu").score(QUERY, PASSAGES)
    assert rough.dtype == np.float32
    np.testing.assert_allclose(rough, exact, atol=0.1)
    assert not np.array_equal(rough, exact)


def test_aliases():
    assert resolve_base("electra") == "google/electra-base-discriminator"
    assert resolve_base("some/model") == "some/model"
    assert resolve_base("minilm").endswith("model")
