"""Another's store is data: folders that escape and views in tables' places are refused."""

from pathlib import Path

import pytest

from labelstore.errors import BadInput
from labelstore.store.label_store import LabelStore
from labelstore.upkeep.merge.job import merge_stores
from labelstore.upkeep.verify.verify import verify


@pytest.fixture
def store(tmp_path: Path) -> LabelStore:
    made = LabelStore(tmp_path / "other.duckdb")
    with made.write():
        pass
    return made


@pytest.mark.parametrize(
    "folder", ["students/../../precious", "/etc", "students/a/../../b", "views/a", "students/.x", ""]
)
def test_a_folder_that_escapes_is_refused_and_reported(
    store: LabelStore, tmp_path: Path, folder: str
) -> None:
    with store.write() as con:
        con.execute(
            "INSERT INTO students VALUES (1, 's', 'b', NULL, 'bert', 'kd', ?, 'h', 64, 42, NULL, NULL, 1)",
            [folder],
        )
    with pytest.raises(BadInput, match="is not students/NAME"):
        merge_stores(LabelStore(tmp_path / "own.duckdb"), store)
    assert any("leads out" in finding.problem for finding in verify(store).findings)


@pytest.mark.parametrize(
    "sql",
    [
        "DROP TABLE qrels; CREATE VIEW qrels AS SELECT * FROM read_text('/etc/hosts')",
        "CREATE MACRO f(x) AS x + 1",
        "CREATE VIEW more AS SELECT 1",
        "CREATE TABLE more (a INTEGER)",
    ],
)
def test_a_file_of_another_shape_is_refused(store: LabelStore, tmp_path: Path, sql: str) -> None:
    with store.write() as con:
        con.execute(sql)
    with pytest.raises(BadInput, match=r"which a store has not|other tables"):
        merge_stores(LabelStore(tmp_path / "own.duckdb"), store)
