"""Training in processes of its own: killed and resumed bit for bit, two against one, on a node without the store."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import forked
import pytest
import tiny_decoders
import tiny_models
import tiny_views

from students.train import __main__ as train_command
from students.train.run import TrainingResult

pytestmark = pytest.mark.test_all

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """Views, and a model large enough that a step takes a moment."""
    folder = tmp_path_factory.mktemp("trained")
    return {
        "cl": tiny_views.write(folder / "cl", "contrastive", n_lists=76, longest=60),
        "kd": tiny_views.write(folder / "kd", "distillation", n_lists=76, longest=60),
        "base": tiny_models.make("electra", folder / "base", layers=3, hidden=64),
    }


def recipe(folders, path: Path, **settings) -> Path:
    lines = {
        "base": str(folders["base"]), "regime": "cl,kd", "max_length": 64, "lists": 6, "epochs": 4, "lr": 1e-3,
        "valid_every": 5, "checkpoint_every": 3, "log_every": 1, "memory_tokens": 700, "batch_tokens": 500,
        "precision": "fp32", "stop_on": "loss", "patience": 0,
    } | settings  # fmt: skip
    path.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in lines.items()))
    return path


def command(folders, recipe: Path, out: Path, *more: str) -> list[str]:
    views = [argument for name in ("cl", "kd") for argument in ("--view", str(folders[name]))]
    return [
        "-m",
        "students.train",
        *views,
        "--recipe",
        str(recipe),
        "--out",
        str(out),
        "--device",
        "cpu",
        *more,
    ]


def environment(**more: str) -> dict[str, str]:
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths} | more


def finish(arguments: list[str], **more: str) -> subprocess.CompletedProcess[str]:
    start = (
        forked.run if arguments[0] == "-m" else subprocess.run
    )  # what `-c` runs looks at what was imported
    done = start(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        env=environment(**more),
        cwd=ROOT,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def outcome(out: Path) -> tuple[bytes, list[dict], list[dict]]:
    """Weights, and stages and log without the seconds."""
    stages = json.loads((out / "stages.json").read_text())
    log = [json.loads(line) for line in (out / "training_log.jsonl").read_text().splitlines()]
    for row in (*stages, *log):
        row.pop("seconds")
    return (out / "model/model.safetensors").read_bytes(), stages, log


def kill_at(arguments: list[str], out: Path, stage: int, step: int, delay: float) -> bool:
    """Start a training and SIGKILL it ``delay`` seconds after its checkpoint of that step or a later one is there."""
    process = forked.Popen(
        [sys.executable, *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment(),
        cwd=ROOT,
    )
    deadline = time.monotonic() + 300
    try:
        while process.poll() is None and time.monotonic() < deadline:
            there = [p.name.split("-")[1:] for p in out.glob("checkpoint-*")]
            if any((int(s), int(n)) >= (stage, step) for s, n in there):
                time.sleep(delay)
                break
            time.sleep(0.005)
    finally:
        killed = process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
    return killed


def kill_and_compare(folders, tmp_path: Path, trials: list[tuple[int, int, float]], **settings) -> int:
    """Kill one training again and again; its end must equal that of one that nobody killed. Returns the kills."""
    chosen = recipe(folders, tmp_path / "recipe.toml", **settings)
    finish(command(folders, chosen, tmp_path / "whole", "-q"))
    arguments = command(folders, chosen, tmp_path / "killed", "-q")
    kills = sum(kill_at(arguments, tmp_path / "killed", *trial) for trial in trials)
    finish(arguments)
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "whole")
    left = sorted(p.name for p in (tmp_path / "killed").iterdir())
    assert left == [".lock", "model", "stages.json", "training.json", "training_log.jsonl"]
    return kills


def test_a_killed_training_resumes_to_the_same_bits(folders, tmp_path):
    """Dropout is on, the best weights are kept, gradients come in several micro-batches, the second stage is killed too."""
    assert kill_and_compare(folders, tmp_path, [(1, 12, 0.11), (2, 6, 0.02)]) == 2


@pytest.mark.parametrize(
    "lora",
    [
        pytest.param(None, marks=pytest.mark.slow),  # adapters resume by the same code, and more of it
        pytest.param("r=4,dropout=0.1", marks=pytest.mark.needs("peft")),
    ],
)
def test_a_killed_training_of_a_decoder_resumes_to_the_same_bits(folders, tmp_path, lora):
    base = tiny_decoders.make("qwen3", tmp_path / "base", attention_dropout=0.1)
    settings = {"base": str(base), "frame": "qwen3-reranker", "max_length": 130, "epochs": 1}
    settings |= {"lora": lora} if lora else {}
    assert kill_and_compare(folders, tmp_path, [(1, 6, 0.05), (2, 3, 0.02)], **settings) == 2


@pytest.mark.slow
def test_a_training_killed_at_many_random_points(folders, tmp_path):
    rng = random.Random(5)
    trials = sorted((rng.randint(1, 2), rng.randint(1, 34), rng.uniform(0, 0.4)) for _ in range(20))
    kills = kill_and_compare(folders, tmp_path, trials)
    print(f"{kills} kills, 0 differences")
    assert kills >= 12


def test_two_processes_learn_what_one_does(folders, tmp_path):
    """Without dropout, as each process draws its own. (`accelerate launch` starts several CPU processes by MPI alone.)"""
    chosen = recipe(
        folders, tmp_path / "recipe.toml", lr=2e-4, hidden_dropout=0.0, attention_dropout=0.0, lists=5
    )
    finish(command(folders, chosen, tmp_path / "one", "-q"))
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    done = finish(torchrun + command(folders, chosen, tmp_path / "two", "-q"))
    assert len(json.loads(done.stdout)) == 2, "the stages are printed once"
    (_, stages, log), (_, by_two, log_of_two) = outcome(tmp_path / "one"), outcome(tmp_path / "two")
    assert [s["hyperparameters"]["processes"] for s in by_two] == [2, 2]
    for name in ("steps", "pairs", "lists_skipped", "truncated_pairs"):
        assert [s[name] for s in stages] == [s[name] for s in by_two]
    assert [(r["stage"], r["step"], r["measure"]) for r in log] == [
        (r["stage"], r["step"], r["measure"]) for r in log_of_two
    ]
    losses = [
        (row, other)
        for row, other in zip(log, log_of_two, strict=True)
        if row["measure"] in ("loss", "valid_loss")
    ]
    assert len(losses) > 80
    valid = [row["value"] for row, _ in losses if row["measure"] == "valid_loss" and row["stage"] == 1]
    assert valid[0] - valid[-1] > 1e-3, "a tolerance of 1e-4 is small against what was learnt"
    for row, other in losses:
        assert other["value"] == pytest.approx(row["value"], abs=1e-4), row


def test_what_libraries_print_does_not_come_between_the_stages_that_scripts_read(
    monkeypatch, tmp_path, capfd
):
    """Gloo of torch 2.9 tells stdout who is connected, from C++."""

    def chatty(*_: object, **__: object) -> TrainingResult:
        os.write(1, b"[Gloo] Rank 1 is connected to 1 peer ranks\n")
        return TrainingResult(tmp_path, [{"stage": 1}], [])

    monkeypatch.setattr("students.train.run.train", chatty)
    assert train_command.main(["--view", "v", "--regime", "cl", "--base", "b", "--out", str(tmp_path)]) == 0
    said = capfd.readouterr()
    assert json.loads(said.out) == [{"stage": 1}]
    assert "[Gloo]" in said.err


# ------------------------------------------------------------------------------------- without the store
NODE = """
import sys
for name in ("duckdb polars typer rich jinja2 ir_measures ir_datasets bm25s Stemmer ftfy scipy sklearn statsmodels zstandard "
             "pytz sentence_transformers datasets labelstore teachers cli").split():
    sys.modules[name] = None  # importing it fails, and looking for it finds nothing
from students.train.__main__ import main
raise SystemExit(main(sys.argv[1:]))
"""


def test_a_node_needs_the_view_folder_and_a_handful_of_libraries(folders, tmp_path):
    chosen = recipe(folders, tmp_path / "recipe.toml", epochs=1, checkpoint_every=0)
    arguments = command(folders, chosen, tmp_path / "out")[2:]
    done = finish(["-c", NODE, *arguments])
    stages = json.loads(done.stdout)
    assert [stage["objective"] for stage in stages] == ["cl", "kd"]
    assert "electra, fp32, padded on cpu" in done.stderr
    assert (tmp_path / "out/model/model.safetensors").is_file()


def test_the_command_says_what_is_wrong_without_a_traceback(folders, tmp_path):
    chosen = recipe(folders, tmp_path / "recipe.toml")

    def fails(arguments: list[str]) -> tuple[int, str]:
        done = forked.run(
            [sys.executable, *arguments], capture_output=True, text=True, env=environment(), cwd=ROOT
        )
        assert "Traceback" not in done.stderr
        assert done.stdout == ""
        return done.returncode, done.stderr

    code, said = fails(command(folders, chosen, tmp_path / "out", "--set", "loss=margin_mse"))
    assert code == 2
    assert "margin_mse needs a teacher score" in said
    assert "hint: choose a loss that fits" in said
    code, said = fails(command(folders, chosen, tmp_path / "out", "--set", "lr"))
    assert (code, "--set lr: expected KEY=VALUE" in said) == (2, True)
    code, said = fails(
        ["-m", "students.train", "--view", str(tmp_path), "--recipe", str(chosen), "--out", "x"]
    )
    assert (code, "is not a view folder" in said) == (4, True)
    assert not (tmp_path / "out").exists()
