"""`msft demo --profile short`: the whole path, from a wheel in an empty environment, as a newcomer runs it."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import built_wheel
import pytest
from chromium import Browser

from cli.main import run
from labelstore.store.label_store import LabelStore

pytestmark = pytest.mark.test_all


CHECKOUT = (sys.executable, "-m", "cli.main")


def demo(folder: Path, *arguments: str, msft: Sequence[str] = CHECKOUT) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} if msft != CHECKOUT else os.environ
    environment = {**clean, "HF_HUB_OFFLINE": "1", "MSFT_STORE": str(folder / "not-used.duckdb")}
    return subprocess.run(
        [*msft, "demo", "--folder", str(folder / "demo"), *arguments],
        capture_output=True, text=True, env=environment, timeout=1000,
        cwd=folder if msft != CHECKOUT else None,
    )  # fmt: skip


@pytest.fixture(scope="module")
def msft(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The command of a wheel in an empty environment."""
    folder = tmp_path_factory.mktemp("wheel")
    return str(built_wheel.installed(built_wheel.build(folder), folder) / "msft")


@pytest.fixture(scope="module")
def done(
    msft: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    folder = tmp_path_factory.mktemp("demo")
    return folder, demo(folder, "--profile", "short", "--format", "json", msft=(msft,))


def test_the_wheel_says_its_version(msft: str, tmp_path: Path) -> None:
    assert built_wheel.run(msft, "--version", where=tmp_path).startswith("msft ")


def test_the_short_demo_ends_with_an_honest_table(
    done: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    folder, ran = done
    assert ran.returncode == 0, ran.stderr
    rows: list[dict[str, Any]] = json.loads(ran.stdout)
    kinds = [row["kind"] for row in rows]
    assert sorted(kinds) == ["first_stage"] + ["fused"] * 2 + ["student"] * 2 + ["teacher"]
    assert {row["system"] for row in rows if row["kind"] == "student"} == {"minilm-kd", "minilm-kd-cl"}
    assert all(row["dataset"] == "docstrings/test" and row["n_queries"] == 60 for row in rows)
    assert all(0 < row["RR@10"] < 1 for row in rows)
    assert [row["RR@10"] for row in rows] == sorted((row["RR@10"] for row in rows), reverse=True)
    assert all((row["p_value"] is None) == (row["kind"] == "first_stage") for row in rows)
    assert not (folder / "not-used.duckdb").exists(), "the demo keeps to its own store"
    # Each step is a command that a user can type, and the talk says how each student alone stands.
    assert "$ msft data add docstrings/test --from" in ran.stderr
    assert "$ msft students train --recipe demo --regime kd,cl" in ran.stderr
    assert ran.stderr.count("(student alone)") >= 2
    assert ran.stderr.count("(teacher)") == 1
    assert "msft teachers generate --model rankzephyr" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_its_store_answers_where_the_numbers_come_from(
    done: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    folder, ran = done
    rows = {row["system"]: row for row in json.loads(ran.stdout)}
    with LabelStore(folder / "demo" / "demo.duckdb").read() as con:
        calls = con.execute("SELECT status, count(*) FROM calls GROUP BY ALL").fetchall()
        assert calls == [("ok", 200 + 60)]  # queries to learn from, and to see what the teacher knows
        stages = con.execute(
            "SELECT student, objective, stopped_by FROM student_stages ORDER BY student, stage"
        ).fetchall()
        assert [s[:2] for s in stages] == [
            ("minilm-kd", "kd"), ("minilm-kd-cl", "kd"), ("minilm-kd-cl", "cl"),
        ]  # fmt: skip
        typed = [c for (c,) in con.execute("SELECT command FROM provenance ORDER BY job").fetchall()]
        assert typed[0].startswith("msft data add docstrings/train")
        # The value shown is the one that the stored ranking has.
        ranked = con.execute(
            """SELECT avg(coalesce(1.0 / best, 0)) FROM judgments j LEFT JOIN (
                 SELECT r.query_id, min(r.rank) AS best FROM ranked r JOIN judgments j USING (dataset, query_id, doc_id)
                 WHERE r.run = 'bm25s' AND dataset = 'docstrings/test' AND r.rank <= 10 GROUP BY ALL
               ) USING (query_id) WHERE j.dataset = 'docstrings/test'"""
        ).fetchall()
        assert ranked[0][0] == pytest.approx(rows["bm25s"]["RR@10"], abs=1e-9)
        overlap = con.execute(
            """SELECT count(*) FROM dataset_query_texts a JOIN dataset_query_texts b USING (query_id)
               WHERE a.dataset = 'docstrings/test' AND b.dataset IN ('docstrings/train', 'docstrings/dev')"""
        ).fetchall()
        assert overlap == [(0,)]


def test_again_it_repeats_nothing_and_says_the_same(
    done: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    folder, ran = done
    again = demo(
        folder, "--profile", "short", "--format", "json"
    )  # of the checkout: another installation goes on
    assert again.returncode == 0, again.stderr
    assert again.stdout == ran.stdout
    assert again.stderr.count("is trained already") == 2
    other = demo(folder, "--profile", "full")
    assert other.returncode == 1
    assert "--fresh" in other.stderr
    assert other.stdout == ""


@pytest.mark.needs("chromium")
def test_its_report_draws_what_its_store_holds(
    done: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    store, file = done[0] / "demo" / "demo.duckdb", tmp_path / "report.html"
    with pytest.raises(SystemExit) as ended:
        run(["report", "--store", str(store), "-o", str(file), "-q"])
    assert ended.value.code == 0
    assert file.stat().st_size < 5_000_000
    with LabelStore(store).read() as con:
        sql = (
            "SELECT coalesce(student, system), value FROM results WHERE measure = 'RR@10' AND kind <> 'fused'"
        )
        values = dict(con.execute(sql).fetchall())
        ((losses,),) = con.execute("SELECT count(DISTINCT (objective, loss)) FROM student_stages").fetchall()
    with Browser(tmp_path / "profile") as browser:
        browser.open(file)
        drawn = browser.run(
            """[...document.querySelectorAll('table[data-measure="RR@10"] tr[data-name]:not(.fused)')]
                .map(r => [r.dataset.name, Number(r.dataset.value)])"""
        )
        assert dict(drawn) == pytest.approx(values)
        assert browser.run("document.querySelectorAll('#d-plot .bar').length") == 60
        marks = "[...document.querySelectorAll('#cost figure')].map(f => f.querySelectorAll('.mark').length)"
        # Two students, alone and fused, learnt from equal labels: only their time differs.
        assert browser.run(marks) == [4]
        titles = browser.run(
            "[...document.querySelectorAll('#learning figure strong')].map(t => t.textContent)"
        )
        assert sum(title.endswith("training loss") for title in titles) == losses == 2
        assert browser.run("document.querySelectorAll('.student-node').length") == 2
        assert browser.run("document.querySelectorAll('#e-columns .passage').length") >= 20
        assert browser.problems == []
        assert set(browser.requests) == {file.as_uri()}


def test_an_unknown_profile_is_named(tmp_path: Path) -> None:
    ran = demo(tmp_path, "--profile", "huge")
    assert ran.returncode == 2
    assert "full | short" in ran.stderr
    assert not (tmp_path / "demo").exists()
