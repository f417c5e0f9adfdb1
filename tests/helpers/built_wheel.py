"""A wheel of the checkout, and environments that have it alone of msft."""

import os
import shutil
import site
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("msft", "labelstore", "teachers", "students", "cli")


def run(*command: str, where: Path, **env: str) -> str:
    """Run a command that must succeed, without the checkout on its path, and return its stdout."""
    clean = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(command, cwd=where, capture_output=True, text=True, env=clean | env, timeout=1000)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build(folder: Path) -> Path:
    """Build the wheel from a copy, so that the checkout stays as it is."""
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


def installed(wheel: Path, folder: Path) -> Path:
    """Install it in an empty environment and return the folder of its commands.

    The environment has the wheel alone; the libraries come from the test's own environment.
    """
    run(sys.executable, "-m", "venv", "--without-pip", "env", where=folder)
    commands = folder / "env" / "bin"
    python = str(commands / "python")
    run(
        sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-index", str(wheel),
        where=folder,
    )  # fmt: skip
    place = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", where=folder).strip()
    # paths in a .pth are added, but the .pth files in them are not read: the checkout stays out of reach
    Path(place, "libraries.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    home = run(python, "-c", "import msft, cli; print(msft.__file__, cli.__file__)", where=folder)
    assert str(ROOT) not in home
    return commands
