"""The wheel outside of the checkout: every file of the packages is in it, and an empty environment walks the demo."""

import json
import os
import re
import shutil
import site
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("msft", "labelstore", "teachers", "students", "cli")

pytestmark = pytest.mark.test_all


def run(*command: str, where: Path, **env: str) -> str:
    clean = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(command, cwd=where, capture_output=True, text=True, env=clean | env, timeout=1000)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build it from a copy, so that the checkout stays as it is."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in (*PACKAGES, "pyproject.toml", "README.md"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    run(
        sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(folder), str(source),
        where=folder,
    )  # fmt: skip
    (found,) = folder.glob("msft-*.whl")
    return found


def test_every_file_of_the_packages_is_in_it(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    there = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".pyc"
    }
    assert held == there


def test_the_sdist_holds_the_whole_project_and_makes_the_same_wheel(wheel: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    left_out = shutil.ignore_patterns(
        ".git", ".venv*", "__pycache__", "*.egg-info", "build", ".*cache", "*.duckdb"
    )
    shutil.copytree(ROOT, source, ignore=left_out, symlinks=True)
    build = "import sys; from setuptools import build_meta; print(build_meta.build_sdist(sys.argv[1]))"
    name = run(sys.executable, "-c", build, str(tmp_path), where=source).splitlines()[-1]
    with tarfile.open(tmp_path / name) as archive:
        held = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
        archive.extractall(tmp_path / "out", filter="data")
    for folder in (*PACKAGES, "docs", "tests", "benchmarks"):
        there = {
            path.relative_to(ROOT).as_posix()
            for path in (ROOT / folder).rglob("*")
            if path.is_file() and "__pycache__" not in path.parts and path.suffix not in (".pyc", ".pyo")
        }
        assert there <= held, f"{folder}: {sorted(there - held)[:5]}"
    assert {"constraints.txt", "Makefile", "Dockerfile", "LICENSE", "CHANGELOG.md", "pyproject.toml"} <= held
    (unpacked,) = (tmp_path / "out").iterdir()
    run(
        sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(tmp_path), str(unpacked),
        where=tmp_path,
    )  # fmt: skip
    (again,) = tmp_path.glob("msft-*.whl")
    with zipfile.ZipFile(again) as one, zipfile.ZipFile(wheel) as other:
        files = ({n for n in archive.namelist() if ".dist-info/" not in n} for archive in (one, other))
        assert next(files) == next(files)


def test_the_versions_declared_are_those_of_the_workflows_matrix() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["classifiers"]
    versions = [line.rpartition(" ")[2] for line in declared if "Python :: 3." in line]
    (workflow,) = (ROOT / ".github/workflows").glob("*.yml")
    (matrix,) = re.findall(r"python: \[(.*)\]", workflow.read_text())
    assert [text.strip(' "') for text in matrix.split(",")] == versions
    assert versions[0] == "3.11"


def test_an_empty_environment_walks_the_short_demo(wheel: Path, tmp_path: Path) -> None:
    """The environment has the wheel alone; the libraries come from the test's own environment."""
    run(sys.executable, "-m", "venv", "--without-pip", "env", where=tmp_path)
    python = str(tmp_path / "env" / "bin" / "python")
    run(
        sys.executable,
        "-m",
        "pip",
        "--python",
        python,
        "install",
        "-q",
        "--no-deps",
        "--no-index",
        str(wheel),
        where=tmp_path,
    )
    place = run(
        python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", where=tmp_path
    ).strip()
    # paths in a .pth are added, but the .pth files in them are not read: the checkout stays out of reach
    Path(place, "libraries.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    home = run(python, "-c", "import msft, cli; print(msft.__file__, cli.__file__)", where=tmp_path)
    assert str(ROOT) not in home
    shown = run(
        str(tmp_path / "env" / "bin" / "msft"), "demo", "--profile", "short", "--format", "json", "-q",
        where=tmp_path, HF_HUB_OFFLINE="1", OMP_NUM_THREADS=os.environ.get("OMP_NUM_THREADS", "1"),
    )  # fmt: skip
    rows = json.loads(shown)
    assert {row["kind"] for row in rows if "kind" in row} >= {"first_stage", "student", "fused"}
    version = run(str(tmp_path / "env" / "bin" / "msft"), "--version", where=tmp_path)
    assert version.startswith("msft ")
