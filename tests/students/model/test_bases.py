"""Short names of base models; a hub that cannot be reached is asked once; heads that lie in modules of their own."""

import json
import re
import socket
from pathlib import Path

import pytest
import torch
from shelves import msft

from labelstore.store.label_store import LabelStore
from students.errors import StudentError
from students.model import hub
from students.model.bases import TABLE
from students.model.encoder import CrossEncoder, resolve_base

QUERY = "what is neural ranking"
PASSAGES = ["the river and the mountain", "a neural model to rank a passage", "music of the city"]


def test_short_names_name_models_and_are_listed(tmp_path: Path) -> None:
    store = LabelStore(tmp_path / "s.duckdb")
    rows = json.loads(msft(store, "students", "bases", "--format", "json").out)
    assert {row["base"] for row in rows} == {base.base for base in TABLE}
    for row in rows:
        assert row["base"] == "minilm" or resolve_base(row["base"]) == row["model"]
        assert re.fullmatch(r"MIT|Apache-2\.0", row["licence"])
        assert row["size_mb"] == 4 * row["millions"]
    table = msft(store, "students", "bases").out
    assert max(map(len, table.splitlines())) <= 80
    assert not store.exists


@pytest.mark.parametrize("way", ["refused", "unknown host", "proxy"])
def test_a_hub_out_of_reach_is_not_retried(monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]  # closed again below, so that connections are refused
    endpoint = f"http://127.0.0.1:{port}" if way == "refused" else "https://hub.invalid"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.delenv("https_proxy", raising=False)
    monkeypatch.delenv("HTTPS_PROXY", raising=False)
    if way == "proxy":
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{port}")
    hub._reachable.cache_clear()
    try:
        assert hub.local_only("google/electra-base-discriminator")
        with pytest.raises(StudentError, match="model not found: electra") as raised:
            CrossEncoder.load("electra")
    finally:
        hub._reachable.cache_clear()
    assert raised.value.exit_code == 4
    assert "msft students bases" in str(raised.value.hint)


def test_a_hub_in_reach_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(
            "huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}"
        )
        monkeypatch.delenv("HF_HUB_OFFLINE")
        monkeypatch.delenv("https_proxy", raising=False)
        monkeypatch.delenv("HTTPS_PROXY", raising=False)
        hub._reachable.cache_clear()
        try:
            assert not hub.local_only("google/electra-base-discriminator")
        finally:
            hub._reachable.cache_clear()


def modular(folder: Path, target: Path, *, seed: int, pooling: str = "cls", norm: bool = True) -> Path:
    """A re-ranker as sentence-transformers saves one with a head of modules."""
    from sentence_transformers import CrossEncoder as Theirs
    from sentence_transformers.base.modules import Dense, Transformer
    from sentence_transformers.sentence_transformer.modules import LayerNorm, Pooling

    torch.manual_seed(seed)
    transformer = Transformer(str(folder), transformer_task="feature-extraction")
    n = transformer.get_embedding_dimension()
    parts = [transformer, Pooling(n, pooling_mode=pooling)]
    parts.append(Dense(n, n, bias=False, activation_function=torch.nn.GELU()))
    if norm:
        parts.append(LayerNorm(n))
    parts.append(Dense(n, 1, activation_function=torch.nn.Identity(), module_output_name="scores"))
    Theirs(modules=parts, device="cpu").save_pretrained(str(target))
    return target


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_head_of_modules_scores_as_sentence_transformers_does(tiny, tmp_path: Path, seed: int) -> None:
    from sentence_transformers import CrossEncoder as Theirs

    folder = modular(tiny("modernbert"), tmp_path / "modular", seed=seed)
    own = CrossEncoder.load(folder, precision="fp32", device="cpu", seed=7)
    raw = torch.nn.Identity()
    theirs = Theirs(str(folder), device="cpu").predict([(QUERY, p) for p in PASSAGES], activation_fn=raw)
    assert own.score(QUERY, PASSAGES) == pytest.approx(theirs, abs=1e-4)
    again = CrossEncoder.load(own.save(tmp_path / "saved"), precision="fp32", device="cpu")
    assert len({round(float(score), 5) for score in theirs}) == len(PASSAGES)
    assert again.score(QUERY, PASSAGES) == pytest.approx(theirs, abs=1e-4)


@pytest.mark.parametrize(
    ("architecture", "options"),
    [("modernbert", {"pooling": "mean"}), ("modernbert", {"norm": False}), ("bert", {})],
)  # fmt: skip
def test_another_head_of_modules_is_refused_not_made_anew(
    tiny, tmp_path: Path, architecture, options
) -> None:
    folder = modular(tiny(architecture), tmp_path / "modular", seed=1, **options)
    with pytest.raises(StudentError, match="its head is") as raised:
        CrossEncoder.load(folder, precision="fp32", device="cpu")
    assert raised.value.exit_code == 2
