"""The benchmarks of training and re-ranking beside peers, at a tiny size: what they print, what they count, equal losses."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny_models
import torch
from transformers import ElectraConfig, ElectraForSequenceClassification

pytest.importorskip("datasets")
pytest.importorskip("sentence_transformers")

from benchmarks import gpu_table, rerank, train, train_lists, train_steps
from benchmarks.real_lists import Candidates

pytestmark = pytest.mark.test_all


@pytest.fixture(scope="module")
def result() -> dict:
    sizes = ["--pairs", "40", "--per-list", "5", "--lists", "2", "--held-out", "4", "--repeats", "1"]
    return train.main(["--shape", "tiny", *sizes, "--exact-steps", "4", "--lr", "1e-3"])


def test_it_prints_its_keys_last_and_flat(result):
    again = train.summary(
        {"c": {"ours_fp32": _of(2, 1), "st_fp32": _of(6, 4), "lir_fp32": _of(8, 7)}}, {"c": 100}, 0.02
    )
    assert again["pairs_per_second"] == 50
    assert (again["speedup_default"], again["speedup_over_lightning_ir"]) == (3, 4)
    assert (again["loop_speedup_default"], again["speedup_same_precision"]) == (4, 3)
    assert again["equal_loss"] is True
    assert again.keys() - {k for k in again if k.startswith("c_")} <= result.keys()
    for key in (
        "model_flops_utilisation",
        "computed_share",
        "peak_tflops",
        "token_cache_seconds",
        "dropout",
        "loss_difference_exact",
    ):
        assert isinstance(result[key], float), key
    json.dumps(result)


def _of(seconds: float, loop: float) -> dict[str, float]:
    return {"seconds": seconds, "loop": loop, "cpu": 2 * seconds, "loss": 0.5}


def test_bf16_is_the_default_where_it_was_measured():
    names = ("ours_fp32", "ours_bf16", "st_fp32", "st_bf16")
    found = {name: _of(seconds, seconds) for name, seconds in zip(names, (4, 2, 12, 5), strict=True)}
    row = train.summary({"c": found}, {"c": 100}, 0.02)
    assert (row["precision"], row["same_precision"]) == ("bf16", "bf16")
    assert (row["speedup_default"], row["speedup_same_precision"], row["speedup_fp32"]) == (6, 2.5, 3)


def test_all_learn_the_same(result):
    assert result["loss_difference_exact"] < 1e-5, "without dropout only rounding is left"
    before = result["made-up_loss_before"]
    after = [result[f"made-up_{name}_fp32_loss"] for name in ("ours", "st")]
    assert all(abs(loss - before) > 10 * result["loss_difference_exact"] for loss in after)
    assert result["equal_loss"] is (result["loss_difference"] <= result["tolerance"])


def test_a_loss_that_differs_is_told():
    found = {"ours_fp32": _of(1, 1), "st_fp32": {**_of(1, 1), "loss": 0.6}}
    row = train.summary({"c": found}, {"c": 10}, 0.02)
    assert row["equal_loss"] is False
    assert row["loss_difference"] == pytest.approx(0.1)


def test_model_flops_by_hand():
    config = ElectraConfig(hidden_size=2, intermediate_size=4, num_hidden_layers=1, num_attention_heads=1)
    # a token: 4 maps of 2 × 2 and two of 2 × 4, 2 FLOPs a weight: 64; attention to 3: two products of 2 · 2 · 3 = 24
    assert train_lists.model_flops(config, np.array([3])) == 3 * (3 * 64 + 3 * 24)
    both = train_lists.model_flops(config, np.array([3, 3]))
    assert both == 2 * train_lists.model_flops(config, np.array([3]))


def test_model_flops_are_what_torch_counts():
    from torch.utils.flop_counter import FlopCounterMode

    n, length, h = 3, 20, 32
    config = ElectraConfig(
        hidden_size=h, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, embedding_size=h,
        vocab_size=100, num_labels=1, attn_implementation="eager",
    )  # fmt: skip
    model = ElectraForSequenceClassification(config)
    with FlopCounterMode(display=False) as counter:
        model(input_ids=torch.ones(n, length, dtype=torch.long)).logits.sum().backward()
    head = 3 * 2 * n * (h * h + h)
    assert counter.get_total_flops() == train_lists.model_flops(config, np.full(n, length)) + head


def test_the_computed_share_is_what_torch_counts(tmp_path):
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    from students.model.encoder import CrossEncoder

    folder = tiny_models.make("electra", tmp_path / "electra")
    encoder = CrossEncoder.load(folder, device="cpu", precision="fp32", attention="packed_varlen").eval()
    config = encoder.model.config
    texts = tiny_models.sentences(8, 10, 10)
    each = np.arange(8)
    batch = encoder.collate(encoder.tokenise(texts), encoder.tokenise(texts), each, each)
    lengths = np.diff(batch.boundaries.numpy())
    assert len(lengths) == batch.n_pairs  # no filler
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        encoder(batch)
    h = config.hidden_size
    around = 2 * len(each) * (h * h + h)
    if config.embedding_size != h:
        around += 2 * batch.ids.numel() * config.embedding_size * h
    share = train_lists.computed_share(config, lengths)
    assert counter.get_total_flops() - around == pytest.approx(
        share * train_lists.model_flops(config, lengths) / 3
    )
    assert 0.5 < share < 0.8  # of two layers, five sixths of one are spared


def test_the_flops_of_scoring_are_what_torch_counts(tmp_path, monkeypatch):
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    from students.cpu import operations as cpu_ops
    from students.cpu.bert import FusedEncoder
    from students.model.encoder import CrossEncoder

    monkeypatch.setattr(cpu_ops, "has_onednn", lambda *_: False)  # it counts torch's own products alone
    folder = tiny_models.make("bert", tmp_path / "bert")
    encoder = CrossEncoder.load(folder, device="cpu", precision="fp32").eval()
    forward, config = FusedEncoder(encoder.model, "fp32"), encoder.model.config
    texts, each = [" ".join(["word"] * 12)] * 6, np.arange(6)
    batch = encoder.collate(encoder.tokenise(texts), encoder.tokenise(texts), each, each)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        forward(batch)
    h = config.hidden_size
    head = 2 * len(each) * (h * h + h)
    expected = train_lists.first_token_flops(config, [batch.ids.shape[1]] * len(each))
    assert counter.get_total_flops() - head == pytest.approx(expected)


def test_the_order_is_that_of_the_training(tmp_path):
    from students.recipes.read import make_recipe
    from students.text.tokens import tokenise
    from students.train.steps import Task
    from students.train.view_folder import read_view

    base = train_lists.make_base("tiny", tmp_path / "base", 0.0)
    lists, _ = train_lists.make_lists("made-up", data=tmp_path, base=base, per_list=4, n_lists=9, n_held=1)
    view = train_lists.make_view(tmp_path / "view", lists)
    (stage,) = make_recipe({"regime": "kd", "lists": 2, "seed": 5}).stages
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    held = read_view(view)
    texts = (tokenise(tokenizer, held.queries.to_pylist()), tokenise(tokenizer, held.passages.to_pylist()))
    task = Task.of(stage.objectives[0], held, *texts)
    seen = [lists[i] for step in range(task.steps_per_epoch) for i in task.drawn(5, 1, step)[0]]
    assert train_lists.in_training_order(view, lists, 5) == seen
    assert seen != lists


def test_reranking_in_a_tiny_shape():
    found = rerank.main(["--shape", "tiny", "--queries", "2", "--depth", "5", "--repeats", "1"])
    assert found["pairs"] == 10
    assert found["score_difference"] < (0.2 if found["precision"] == "bf16" else 1e-3)
    assert (
        min(found[f"speedup_{key}"] for key in ("default", "same_precision", "over_plain_loop", "fp32")) > 0
    )
    assert found["bound_over_default"] > found["speedup_default"] > 0  # tiny products are the least of it


def test_ways_differ_from_the_reference():
    ids = [[f"d{k}" for k in range(5)]] * 2
    on = Candidates("made", ["q0", "q1"], [("q", ["p"] * 5)] * 2, ids, {q: {"d4": 1} for q in ("q0", "q1")})
    right, wrong = np.tile(np.arange(5.0), 2), np.tile(-np.arange(5.0), 2)
    found = rerank._ndcg_differences(
        on, {"same": lambda on: 3 * right, "reversed": lambda on: wrong}, lambda on: right
    )
    assert found["same"] == 0
    assert found["reversed"] == pytest.approx(1 - 1 / np.log2(6))


def test_the_plain_loop_gives_every_pair_its_score(tmp_path):
    base = train_lists.make_base("tiny", tmp_path / "base", 0.0)
    on = rerank.made_up(base, 5, 3)
    plain = rerank.plain_loop(base, torch.float32, "cpu", batch_size=4)(on)
    np.testing.assert_allclose(plain, rerank.ours(base, "fp32", "cpu")(on), atol=1e-5)


def test_the_utilisation_of_steps_has_a_line_for_each_way_and_a_profile(monkeypatch, capsys):
    monkeypatch.setattr(train_steps, "WARM_UP", 2)
    monkeypatch.setattr(train_steps, "TIMED", 4)
    sizes = ["--per-list", "6", "--lists", "2", "--repeats", "1", "--precision", "bf16", "--dropout", "0"]
    found = train.main(["--utilisation", "--shape", "tiny", *sizes])
    for way in ("pieces_of_32k", "even_pieces", "bf16_weights"):
        assert found[f"{way}_us_per_pair"] > 0
        assert found[f"{way}_share_of_peak"] > 0
    assert found["best"].replace(" ", "_") + "_us_per_pair" in found
    kinds = ("products", "attention", "elementwise", "copies", "waits")
    assert all(found[f"{kind}_ms"] >= 0 for kind in kinds)
    assert found["products_ms"] > 0
    said = capsys.readouterr()
    assert json.loads(said.out.splitlines()[-1]) == found
    assert "ms_per_step" in said.err
    assert (train_steps.WARM_UP, train_steps.TIMED) == (2, 4)


@pytest.mark.needs("peft")
def test_the_utilisation_of_a_decoder_with_lora(monkeypatch):
    monkeypatch.setattr(train_steps, "WARM_UP", 1)
    monkeypatch.setattr(train_steps, "TIMED", 2)
    sizes = ["--per-list", "4", "--lists", "2", "--repeats", "1", "--dropout", "0"]
    found = train.main(["--utilisation", "--shape", "qwen3-tiny", "--lora", "r=4", *sizes])
    assert (found["lora"], found["shape"]) == ("r=4", "qwen3-tiny")
    assert found["model_flops_utilisation"] > 0


def test_the_flops_of_a_decoder_are_what_torch_counts():
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import Qwen3Config, Qwen3ForSequenceClassification

    n, length = 2, 16
    config = Qwen3Config(
        **train_lists.DECODERS["qwen3-tiny"], num_labels=1, pad_token_id=0, attn_implementation="eager"
    )
    model = Qwen3ForSequenceClassification(config)
    with FlopCounterMode(display=False) as counter:
        model(input_ids=torch.ones(n, length, dtype=torch.long)).logits.sum().backward()
    lengths = np.full(n, length)
    queries = config.num_attention_heads * config.head_dim
    causal = config.num_hidden_layers * 3 * 4 * queries * (lengths**2).sum() / 2  # eager computes both halves
    head = 3 * 2 * n * length * config.hidden_size
    rotary = counter.get_total_flops() - head - causal - train_lists.training_flops(config, lengths)
    assert abs(rotary) / counter.get_total_flops() < 0.005
    dense = train_lists.training_flops(config, lengths) - causal
    assert train_lists.training_flops(config, lengths, adapters=True) == pytest.approx(dense * 2 / 3 + causal)


def test_kinds_of_work():
    kinds = [train_steps.kind_of(name) for name in (
        "void pytorch_flash::flash_fwd_kernel<…>", "nvjet_tst_256x128", "sm90_xmma_gemm_bf16", "aten::addmm",
        "triton_poi_fused_gelu_3", "Memcpy HtoD (Pinned -> Device)", "multi_tensor_apply_kernel",
    )]  # fmt: skip
    assert kinds == ["attention", "products", "products", "products", "elementwise", "copies", "elementwise"]


@pytest.mark.slow
def test_the_script_for_a_gpu_prints_one_table(tmp_path):
    """All of its parts on the CPU, in small shapes; each part has a test of its own above."""
    root = Path(__file__).resolve().parents[3]
    small = {"DEVICE": "cpu", "SHAPE": "tiny", "DECODER": "qwen3-tiny", "LISTS": "2", "PER_LIST": "4", "QUERIES": "2",
             "PAIRS": "16", "STEPS": "4", "SLOWER": "4", "PYTHON": sys.executable}  # fmt: skip
    results = tmp_path / "results.jsonl"
    done = subprocess.run(
        [root / "benchmarks/gpu.sh", results],
        env=os.environ | small,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert [json.loads(line)["benchmark"] for line in results.read_text().splitlines()] == [
        "train utilisation", "train utilisation", "rerank", "train",
    ]  # fmt: skip
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["figure", "measured", "wanted", "reached"]
    for figure in (
        "training: share of the measured peak",
        "decoder with LoRA: pairs/s",
        "re-ranking: pairs/s",
    ):
        assert any(line.startswith(figure) and "not measured" not in line for line in lines), figure
    assert any(line.startswith("encoder, even pieces: µs a pair") for line in lines)
    assert any(line.startswith("decoder, best way: waits, ms a step") for line in lines)


def test_a_part_of_the_table_that_failed_is_told():
    made = gpu_table.rows(
        [{"benchmark": "rerank", "pairs_per_second": 16_000, "speedup_same_precision": 3.9}]
    )
    by_figure = {row["figure"]: row for row in made}
    assert by_figure["training: pairs/s"]["measured"] == "not measured"
    assert by_figure["re-ranking: pairs/s"]["reached"] == "yes"
    assert by_figure["re-ranking: against sentence-transformers in the same precision"]["reached"] == "no"


def test_no_benchmark_turns_the_tokenizers_threads_off_for_the_others():
    code = "import os, benchmarks.train, benchmarks.rerank; print(os.environ.get('TOKENIZERS_PARALLELISM'))"
    free = {key: value for key, value in os.environ.items() if key != "TOKENIZERS_PARALLELISM"}
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run([sys.executable, "-c", code], env=free, cwd=root, capture_output=True, text=True)
    assert done.stdout.strip() == "None", done.stderr
