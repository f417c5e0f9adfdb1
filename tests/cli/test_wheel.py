"""The wheel and the sdist have every file; test_demo walks the demo in an empty environment of the wheel."""

import re
import shutil
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
from built_wheel import PACKAGES, ROOT, build, run

pytestmark = pytest.mark.test_all


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("wheel"))


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
