"""A model's folder is data: no load runs code that lies in it, asks whether it may, or reads pickled weights."""

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from msft.errors import MsftError
from students.model.encoder import CrossEncoder
from students.rerank.reranker import Reranker
from teachers.engines.bi_encoder import BiEncoderEngine
from teachers.engines.cross_encoder import CrossEncoderEngine
from teachers.generate import dry_run, make_engine


def plan(folder: Path) -> Any:
    """A plan as far as the loads of a forecast read it."""
    settings = SimpleNamespace(tokenizer=str(folder))
    return SimpleNamespace(context=None, pointwise=False, location=str(folder), settings=settings)


LOADS: dict[str, Callable[[Path], Any]] = {
    "student": CrossEncoder.load,
    "re-ranker": lambda folder: Reranker.load(str(folder)),
    "bi-encoder": lambda folder: BiEncoderEngine(str(folder)),
    "cross-encoder": lambda folder: CrossEncoderEngine(str(folder)),
    "tokenizer of a teacher": lambda folder: make_engine.tokenizer(plan(folder)),
    "context of a forecast": lambda folder: dry_run.context_of(plan(folder)),
}
CODE = {
    "a configuration's": ("config.json", {"model_type": "mine", "auto_map": {"AutoConfig": "code.Mine"}}),
    "a model's": (
        "config.json",
        {"model_type": "mine", "auto_map": {"AutoModel": "code.Mine", "AutoModelForSequenceClassification": "code.Mine", "AutoConfig": "code.Mine"}},
    ),
    "a tokenizer's": (
        "tokenizer_config.json",
        {"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": ["code.Mine", "code.Mine"]}},
    ),
    "another folder's": ("config.json", {"model_type": "mine", "auto_map": {"AutoConfig": "some/repository--code.Mine"}}),
}  # fmt: skip


@pytest.fixture
def folder(tiny: Callable[[str], Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny("bert"), tmp_path / "model"))


@pytest.mark.parametrize("where", CODE)
@pytest.mark.parametrize("load", LOADS)
def test_code_in_a_models_folder_never_runs_and_nobody_is_asked(
    load: str, where: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = tmp_path / "ran"
    (folder / "code.py").write_text(f"open({str(marker)!r}, 'w')\nclass Mine: pass\n")
    file, more = CODE[where]
    known = json.loads((folder / file).read_text()) if (folder / file).exists() else {}
    (folder / file).write_text(json.dumps({**known, **more}))

    def asked(*prompt: object) -> str:
        raise AssertionError(f"somebody is asked: {prompt}")

    monkeypatch.setattr("builtins.input", asked)
    with contextlib.suppress(
        MsftError
    ):  # whether the rest of the folder is enough for a load is its own matter
        LOADS[load](folder)
    assert not marker.exists()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "pytorch_model.pth"])
@pytest.mark.parametrize("load", ["student", "re-ranker", "bi-encoder", "cross-encoder"])
def test_pickled_weights_are_never_unpickled(load: str, name: str, folder: Path, tmp_path: Path) -> None:
    marker = tmp_path / "ran"

    class Unpickled:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return Path.touch, (marker,)  # type: ignore[return-value]

    (folder / "model.safetensors").unlink()
    torch.save({"weight": Unpickled()}, folder / name)
    with pytest.raises(MsftError) as caught:
        LOADS[load](folder)
    assert caught.value.hint
    assert not marker.exists()
