"""`msft verify`, `merge`, `export-store`, `import-store`, `show lineage` as a user runs them."""

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import made_store
import pytest

from cli.main import run
from labelstore.store import keys
from labelstore.store.label_store import LabelStore
from labelstore.views import build as views


def msft(capsys: pytest.CaptureFixture[str], store: Path, *arguments: object) -> tuple[int, str, str]:
    """Exit code, stdout, stderr of one command in this process."""
    with pytest.raises(SystemExit) as ended:
        run([*(str(a) for a in arguments), "--store", str(store)])
    captured = capsys.readouterr()
    return int(ended.value.code or 0), captured.out, captured.err


def rows(capsys: pytest.CaptureFixture[str], store: Path, *arguments: object) -> list[dict[str, Any]]:
    _, out, _ = msft(capsys, store, *arguments, "--format", "json")
    found: list[dict[str, Any]] = json.loads(out)
    return found


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made_store.make(tmp_path / "s.duckdb")
    return tmp_path / "s.duckdb"


def hash_of(capsys: pytest.CaptureFixture[str], store: Path) -> str:
    code, out, _ = msft(capsys, store, "verify", "--hash", "-q")
    assert code == 0
    return out.strip()


@pytest.mark.test_all
def test_verify_of_a_sound_store(path: Path, capsys) -> None:
    code, out, err = msft(capsys, path, "verify", "--format", "json")
    assert (code, json.loads(out)) == (0, [])
    assert f"verify hash {hash_of(capsys, path)}" in err
    assert "is sound" in err


@pytest.mark.test_all
def test_verify_names_what_is_wrong_and_exits_1(path: Path, capsys) -> None:
    store = LabelStore(path)
    view = views.build(store, "distillation", labels=["teacher@first"], name="kd")
    (store.files / view.folder / "lists.parquet").write_bytes(b"")
    with store.write() as con:
        con.execute("UPDATE documents SET text = 'other' WHERE doc_id = 'd3'")
    code, out, err = msft(capsys, path, "verify", "--format", "json")
    assert code == 1
    found = json.loads(out)
    assert [(row["what"], row["name"]) for row in found] == [
        ("documents", "c d3"),
        ("view", f"kd {view.view_hash}"),
    ]
    assert all(
        list(row) == ["what", "name", "problem", "hint"] and row["problem"] and row["hint"] for row in found
    )
    assert "2 findings" in err
    code, out, _ = msft(capsys, path, "verify", "--hash", "-q")
    assert code == 1
    assert len(out.strip()) == 32


@pytest.mark.test_all
def test_the_hint_of_a_damaged_view_is_a_command_that_mends_it(path: Path, capsys) -> None:
    store = LabelStore(path)
    for kind, options in (
        ("distillation", {"labels": ["teacher@first"], "depth": 7, "valid_fraction": 0.2, "max_lists": 6}),
        (
            "contrastive",
            {
                "datasets": ["c/train"],
                "runs": ["first"],
                "per_query": 5,
                "positives": "all",
                "allow_overlap": True,
            },
        ),
        ("rerank", {"datasets": ["c/test"], "runs": ["first"], "depth": 9}),
    ):
        view = views.build(store, kind, name=f"my {kind}", seed=7, **options)
        (store.files / view.folder / "queries.parquet").write_bytes(b"not parquet")
    found = rows(capsys, path, "verify")
    assert [row["what"] for row in found] == ["view"] * 3
    for row in found:
        remove, build = re.fullmatch(r"rm -rf (\S+), then `msft (.*)`", row["hint"]).groups()
        shutil.rmtree(remove)
        code, _, err = msft(capsys, path, *shlex.split(build))
        assert code == 0, err
    assert rows(capsys, path, "verify") == []


def test_verify_names_journals_that_wait(path: Path, capsys) -> None:
    from teachers.journal.segments import Journal

    folder = path.with_name("s.files") / "journal"
    with Journal(folder, "job", {"labeling": {"name": "t@first"}}) as writer:
        writer.append({"t": "call", "status": "ok"})
        assert msft(capsys, path, "verify")[0] == 0, "one that is being written is nobody's fault"
    (segment,) = folder.glob("*.calls")
    with segment.open("ab") as file:
        file.write(b"torn")
    (found,) = rows(capsys, path, "verify")
    assert (found["what"], found["name"]) == ("journal", segment.name)
    assert found["problem"] == "1 calls wait to be merged into the store, 4 bytes of an unfinished last line"
    assert "t@first" in found["hint"]


def test_verify_without_a_store(tmp_path: Path, capsys) -> None:
    code, out, err = msft(capsys, tmp_path / "none.duckdb", "verify")
    assert (code, out) == (4, "")
    assert "hint:" in err


@pytest.mark.test_all
def test_merge_either_way_gives_one_hash(tmp_path: Path, capsys) -> None:
    one, two = tmp_path / "one.duckdb", tmp_path / "two.duckdb"
    made_store.make(one, n_queries=8, offset=500)
    made_store.make(two, unheld=(5,))
    with LabelStore(one).write() as con:
        con.execute(
            "DELETE FROM permutation_items WHERE permutation IN (SELECT permutation FROM permutations WHERE query < 503)"
        )
        con.execute("DELETE FROM permutations WHERE query < 503")
        for table in ("runs", "candidates"):  # of other queries in each store: not the same run
            con.execute(f"DELETE FROM {table}")
        con.execute("UPDATE labelings SET run = NULL")
    with LabelStore(two).write() as con:
        con.execute("UPDATE labelings SET run = NULL")
        con.execute("DELETE FROM qrels")
        con.execute("UPDATE datasets SET qrels_hash = NULL")
        con.execute(
            "UPDATE queries SET text = (SELECT text FROM queries WHERE query_id = 'q7'), text_hash = 0, normal_hash = 0 WHERE query_id = 'q100003'"
        )
        shared = con.execute("SELECT upper(text) || '!' FROM queries WHERE query_id = 'q7'").fetchall()[0][0]
        con.execute(
            "UPDATE queries SET text = ?, text_hash = ?, normal_hash = ? WHERE query_id = 'q100003'",
            [shared, keys.text_hash(None, shared), keys.normal_hash(shared)],
        )
    assert msft(capsys, one, "verify")[0] == msft(capsys, two, "verify")[0] == 0
    first, second = tmp_path / "first.duckdb", tmp_path / "second.duckdb"
    shutil.copy(one, first)
    shutil.copy(two, second)
    code, out, err = msft(capsys, first, "merge", two, "--format", "json")
    assert code == 0
    taken = {row["table"]: row for row in json.loads(out)}
    assert taken["permutations"] == {
        "table": "permutations",
        "there": 12,
        "new": 7,
        "known": 5,
        "changed": 0,
        "left_out": 0,
    }
    assert taken["documents"]["changed"] == 0
    assert "merged" in err
    assert msft(capsys, second, "merge", one)[0] == 0
    assert hash_of(capsys, first) == hash_of(capsys, second)
    code, out, err = msft(capsys, second, "merge", one)
    assert code == 0
    assert "nothing new" in err


@pytest.mark.test_all
def test_a_contradiction_is_listed_with_both_values(path: Path, tmp_path: Path, capsys) -> None:
    other = tmp_path / "other.duckdb"
    shutil.copy(path, other)
    with LabelStore(other).write() as con:
        con.execute(
            "UPDATE documents SET text = 'another text', text_hash = ? WHERE doc_id = 'd3'",
            [keys.text_hash(None, "another text")],
        )
    before = hash_of(capsys, path)
    code, out, err = msft(capsys, path, "merge", other, "--format", "json")
    assert code == 1
    (found,) = json.loads(out)
    assert (found["what"], found["name"], found["there"]) == ("passage", "c d3", "another text")
    assert found["here"] == made_store.text_of(3)
    assert "nothing was changed" in err
    assert "--rename-suffix" in err
    assert hash_of(capsys, path) == before
    code, _, err = msft(capsys, path, "merge", other, "--rename-suffix", "@other")
    assert code == 0
    assert "dataset c/train is stored as c/train@other" in err


@pytest.mark.test_all
def test_there_and_back_as_parquet(path: Path, tmp_path: Path, capsys) -> None:
    before = hash_of(capsys, path)
    code, out, err = msft(capsys, path, "export-store", tmp_path / "archive", "--format", "json")
    assert code == 0
    assert {row["table"]: row["rows"] for row in json.loads(out)}["candidates"] == 480
    assert f"verify hash {before}" in err
    code, _, _ = msft(capsys, tmp_path / "back.duckdb", "import-store", tmp_path / "archive")
    assert code == 0
    assert hash_of(capsys, tmp_path / "back.duckdb") == before
    code, _, err = msft(capsys, path, "import-store", tmp_path / "archive")
    assert code == 2
    assert "msft merge" in err


def test_runs_go_out_with_what_made_them(path: Path, tmp_path: Path, capsys) -> None:
    code, _, err = msft(
        capsys,
        path,
        "runs",
        "export",
        "first",
        "--dataset",
        "c/test",
        "-o",
        tmp_path / "first.run.gz",
        "--actor",
        "A. Person",
    )
    assert code == 0
    beside = tmp_path / "first.run.ir_metadata.yaml"
    assert str(beside) in err
    assert "name: A. Person" in beside.read_text()
    _, out, _ = msft(capsys, path, "runs", "export", "first", "--dataset", "c/test")
    assert out.splitlines()[0].startswith("q100000 Q0 ")
    _, out, _ = msft(
        capsys, path, "runs", "export", "first", "--dataset", "c/test", "--ir-metadata", "inside"
    )
    assert out.splitlines()[0] == "# ir_metadata.start"
    code, _, _ = msft(
        capsys, path, "runs", "export", "first", "--dataset", "c/test", "--ir-metadata", "beside"
    )
    assert code == 2
    (tmp_path / "inside.run").write_text(out)
    code, _, _ = msft(
        capsys, path, "runs", "import", tmp_path / "inside.run", "--dataset", "c/test", "--name", "back"
    )
    assert code == 0
    hashes = {
        row["run"]: row["content_hash"] for row in rows(capsys, path, "runs", "list", "--dataset", "c/test")
    }
    assert hashes["back"] == hashes["first"]


def test_lineage_as_tree_and_as_rows(path: Path, capsys) -> None:
    store = LabelStore(path)
    view = views.build(store, "distillation", labels=["teacher@first"], name="kd")
    with store.write() as con:
        con.execute(
            "INSERT INTO students VALUES (1, 'tiny', 'base', NULL, 'bert', 'kd', 'students/tiny', 'w', 64, 42, NULL, NULL, 1)"
        )
        con.execute("INSERT INTO stages VALUES (1, 1, 'kd', 'ranknet', ?, ?, 'a', 'w', '{}', 4, 40, 0, 0, 1, 0.1, NULL, NULL, 'end')", [view.view, view.view_hash])  # fmt: skip
    code, out, _ = msft(capsys, path, "show", "lineage", "tiny")
    assert code == 0
    assert out.startswith("student tiny [w]")
    assert f"view kd [{view.view_hash}]" in out
    found = rows(capsys, path, "show", "lineage", "tiny")
    assert found[0]["what"] == "student"
    assert {"view", "labels", "teacher", "run", "dataset"} <= {row["what"] for row in found}
    code, _, err = msft(capsys, path, "show", "lineage", "tyni")
    assert code == 4
    assert "tiny" in err
