"""Write reports in tests, and open them in Chromium."""

from pathlib import Path
from typing import Any

import pytest
from chromium import Browser

from cli.main import run
from labelstore.store.label_store import LabelStore

LIMIT = 5_000_000
OPEN_DATASETS = "for (const e of document.querySelectorAll('details')) e.open = true"


def report(store: LabelStore, file: Path, *options: str) -> Path:
    with pytest.raises(SystemExit) as ended:
        run(["report", "--store", str(store.path), "-o", str(file), "-q", *options])
    assert ended.value.code == 0
    return file


def rows(store: LabelStore, sql: str, *values: Any) -> list[tuple[Any, ...]]:
    with store.read() as con:
        return con.execute(sql, list(values)).fetchall()


def opened(browser: Browser, file: Path, **how: Any) -> Browser:
    """The page, freshly loaded; its problems and requests are those since then."""
    browser.problems.clear()
    browser.requests.clear()
    browser.open(file, **how)
    return browser


def quiet(browser: Browser, file: Path) -> None:
    """No console error, no exception, no request but for the file."""
    assert browser.problems == []
    assert set(browser.requests) == {file.resolve().as_uri()}
