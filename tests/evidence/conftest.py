from pathlib import Path

import pytest
from shelves import Shelf, Small, fill

from labelstore.store.label_store import LabelStore


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(LabelStore(tmp_path / "msft.duckdb"))


@pytest.fixture
def small(shelf: Shelf) -> Small:
    return fill(shelf)
