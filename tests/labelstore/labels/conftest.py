import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import made_store
import pytest

from labelstore.store.label_store import LabelStore


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_store.make(tmp_path_factory.mktemp("made") / "s.duckdb", labels=False, unheld=(7,)).path


@pytest.fixture
def store(tmp_path: Path, made: Path) -> LabelStore:
    return LabelStore(shutil.copy(made, tmp_path / "s.duckdb"))


@pytest.fixture
def file(tmp_path: Path) -> Callable[..., Path]:
    def write(*rows: Any, name: str = "labels.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
        return path

    return write
