"""The output folder of a training: one training at a time, and what the machine refuses there is named."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import forked
import pytest
import tiny_models
import tiny_views

from msft.errors import MsftError
from students.recipes.read import load_recipe
from students.train.run import train

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> dict[str, Path]:
    """A view, a model of a few megabytes, and a recipe that writes a checkpoint at every step."""
    folder = tmp_path_factory.mktemp("made")
    view = tiny_views.write(folder / "view", "contrastive", n_lists=40, longest=40)
    base = tiny_models.make("electra", folder / "base", layers=3, hidden=64)
    settings = {
        "base": str(base), "regime": "cl", "max_length": 64, "lists": 4, "epochs": 1, "precision": "fp32",
        "checkpoint_every": 1, "valid_every": 0,
    }  # fmt: skip
    text = "".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items())
    (folder / "recipe.toml").write_text(text)
    return {"view": view, "recipe": folder / "recipe.toml"}


def words(made: dict[str, Path], out: Path | str, *more: str) -> list[str]:
    folder = ["--view", str(made["view"]), "--recipe", str(made["recipe"]), "--out", str(out)]
    return [sys.executable, "-m", "students.train", *folder, "--device", "cpu", *more]


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def run(command: list[str], cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    start = forked.run if command[0] == sys.executable else subprocess.run
    return start(
        command, cwd=cwd, env=environment(), capture_output=True, text=True, timeout=900
    )  # fmt: skip


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 600
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.test_all
def test_a_second_training_in_one_folder_is_told_who_holds_it_and_goes_on_after_a_kill(made, tmp_path):
    out = tmp_path / "out"
    (tmp_path / "link").symlink_to(out)
    first = forked.Popen(
        words(made, out, "--set", "epochs=2000"),
        cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        wait_for(out / "training.json", first)
        seconds = [
            run(words(made, out, "--set", "epochs=2000")),
            run(words(made, tmp_path / "link", "--set", "epochs=2000")),
            run(words(made, "out", "--set", "epochs=1"), cwd=tmp_path),
        ]
    finally:
        first.send_signal(signal.SIGKILL)
        first.communicate()
    for second in seconds:
        assert second.returncode == 3, second.stderr
        assert "a student is being trained in" in second.stderr
        assert f"by another process (PID {first.pid})" in second.stderr
        assert "hint: wait for it or end it" in second.stderr
        assert second.stdout == ""
    after = run(words(made, out, "--set", "epochs=2000", "--set", "max_steps=1"))
    assert after.returncode == 2  # no lock is left; another recipe is another training
    assert "holds another training" in after.stderr


@pytest.mark.test_all
@pytest.mark.parametrize(
    ("limit", "said"),
    [
        ("ulimit -f 100", "there is no room in"),  # kB: less than the weights
        ("ulimit -n 12", "no more files"),
    ],
)
def test_a_limit_of_the_machine_ends_a_training_with_a_plain_error(made, tmp_path, limit, said):
    done = run(["bash", "-c", f'{limit}; exec "$@"', "bash", *words(made, tmp_path / "out")])
    assert done.returncode == 1, done.stderr
    assert said in done.stderr
    assert "hint: " in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.test_all
@pytest.mark.parametrize("limit", ["-n 24", "-n 14"])
def test_a_training_under_a_limit_ends_well_or_names_it(made, tmp_path, limit):
    done = run(["bash", "-c", f'ulimit {limit}; exec "$@"', "bash", *words(made, tmp_path / "out")])
    assert done.returncode in (0, 1), done.stderr
    assert (done.returncode == 0) == (tmp_path / "out/model/model.safetensors").exists()
    if done.returncode:
        assert "no more files" in done.stderr, done.stderr
        assert "hint: " in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.test_all
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a disk takes root")
@pytest.mark.parametrize(
    "size",
    [
        "2m",
        pytest.param("300k", marks=pytest.mark.slow),
        pytest.param("5m", marks=pytest.mark.slow),
    ],
)
def test_a_training_on_a_full_disk_says_so_and_goes_on_once_there_is_room(made, tmp_path, size):
    disk = tmp_path / "disk"
    disk.mkdir()
    command = " ".join(f"'{word}'" for word in words(made, disk / "out"))
    script = (
        f"mount -t tmpfs -o size={size} none '{disk}' || exit 99\n"
        f"{command}; code=$?; mount -o remount,size=200m '{disk}'; {command} > /dev/null; echo $code $?\n"
    )
    done = run(["unshare", "-m", "bash", "-c", script])
    if done.returncode == 99 or "unshare" in done.stderr:
        pytest.skip("this machine lets nobody mount")
    assert done.stdout.split() == ["1", "0"], done.stderr
    assert f"there is no room in {disk / 'out'}" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["file", "file/out", "loop", "x" * 300])
def test_an_output_folder_that_cannot_be_made_is_named(made, tmp_path, name):
    (tmp_path / "file").write_text("x")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(MsftError, match="cannot be used") as raised:
        train(load_recipe(made["recipe"], {}), [made["view"]], tmp_path / name, device="cpu")
    assert raised.value.exit_code == 1
    assert raised.value.hint
    assert (tmp_path / "file").read_text() == "x"
