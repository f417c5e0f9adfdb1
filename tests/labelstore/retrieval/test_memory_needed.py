"""An index that does not fit into memory is refused before it is begun, with the first stage that fits."""

from pathlib import Path

import made_store
import pytest

from labelstore import retrieval
from labelstore.errors import DataMissing
from labelstore.retrieval import memory_needed
from labelstore.store.label_store import LabelStore


@pytest.fixture
def store(tmp_path: Path) -> LabelStore:
    return made_store.make(tmp_path / "s.duckdb", labels=False)


@pytest.mark.parametrize(("room", "refused"), [(100, True), (10**9, False), (None, False)])
def test_both_numbers_and_the_way_that_fits_are_told(
    store: LabelStore, monkeypatch: pytest.MonkeyPatch, room: int | None, refused: bool
) -> None:
    monkeypatch.setattr(memory_needed, "SMALL", 1)
    monkeypatch.setattr(memory_needed, "available", lambda: room)
    if not refused:
        assert retrieval.retrieve(store, "c/test", depth=3).depth == 3
        return
    with pytest.raises(DataMissing, match="60 passages of c") as error:
        retrieval.retrieve(store, "c/test", depth=3)
    assert "GB are free" in error.value.message
    assert "--retriever bm25" in str(error.value.hint)
    assert not list(store.folder("indexes").glob("*"))


def test_the_estimate_grows_with_passages_and_lengths_and_ms_marco_needs_gigabytes() -> None:
    marco = memory_needed.estimate(8_841_823, 335)
    assert 8e9 < marco < 16e9
    assert memory_needed.estimate(8_841_823, 670) > 1.8 * marco - 1e9
    assert memory_needed.estimate(1_000_000, 335) == pytest.approx(marco / 8.841823, rel=0.01)


def test_the_system_says_what_is_free() -> None:
    room = memory_needed.available()
    assert room is None or 10**7 < room < 10**14
