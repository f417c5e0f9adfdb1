"""An index that does not fit is refused before it is begun, with the first stage that fits, or what to free."""

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


@pytest.mark.parametrize(("room", "refused"), [(100, True), (10**10, False), (None, False)])
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
    assert "end other programs" in str(error.value.hint)
    monkeypatch.setattr(memory_needed, "_PASSAGE", 10**9)
    monkeypatch.setattr(memory_needed, "available", lambda: 7 << 30)
    with pytest.raises(DataMissing) as error:
        retrieval.retrieve(store, "c/test", depth=3)
    assert "--retriever bm25" in str(error.value.hint)
    assert not list(store.folder("indexes").glob("*"))


def test_a_disk_that_is_too_small_is_told_before_the_work(
    store: LabelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_needed, "SMALL", 1)
    monkeypatch.setattr(memory_needed, "available", lambda: None)
    monkeypatch.setattr(memory_needed, "_POSTING", 10**12)
    with pytest.raises(
        DataMissing, match=r"of disk to index the 60 passages of c, and .* GB are free in"
    ) as error:
        retrieval.retrieve(store, "c/test", depth=3)
    assert "msft clean" in str(error.value.hint)
    assert not list(store.folder("indexes").glob("*"))


def test_ms_marco_needs_a_few_gigabytes_and_a_small_collection_less_than_one() -> None:
    assert 2.4e9 < memory_needed.memory(8_841_823, 335) < 4e9, "2.4 GB were measured"
    assert 0.65e9 < memory_needed.memory(200_000, 335) < 0.8e9, ".68 GB were measured"
    assert 5e9 < memory_needed.disk(8_841_823, 335) < 12e9
    assert memory_needed.disk(8_841_823, 670) == pytest.approx(
        2 * memory_needed.disk(8_841_823, 335), rel=0.01
    )


@pytest.mark.parametrize(("room", "threads"), [(None, 64), (10**11, 64), (4 * 10**9, 17), (10**6, 1)])
def test_as_many_threads_search_as_memory_allows(
    monkeypatch: pytest.MonkeyPatch, room: int | None, threads: int
) -> None:
    monkeypatch.setattr(memory_needed, "available", lambda: room)
    assert memory_needed.threads(8_841_823, 64) == threads


def test_the_system_says_what_is_free() -> None:
    room = memory_needed.available()
    assert room is None or 10**7 < room < 10**14
