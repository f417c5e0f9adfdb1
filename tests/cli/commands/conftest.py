from collections.abc import Iterator
from pathlib import Path

import pytest
import report_store
from chromium import Browser
from report_page import report

from labelstore.store.label_store import LabelStore


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[LabelStore, Path]:
    folder = tmp_path_factory.mktemp("report")
    store = report_store.make(folder / "toy.duckdb")
    return store, report(store, folder / "report.html")
