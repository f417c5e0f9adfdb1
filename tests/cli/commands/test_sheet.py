"""`msft data sheet` in headless Chromium: judged with the keyboard, kept over a reload, saved as qrels that import."""

import time
from pathlib import Path

import made_store
import pytest
from chromium import Browser
from report_page import opened, quiet

from cli.main import run
from labelstore.store.label_store import LabelStore

pytestmark = pytest.mark.needs("chromium")
HOSTILE = "</script><img src=x onerror=document.title='out'><b>bold</b> {{7*7}} \u202e"


def msft(store: LabelStore, *words: str) -> None:
    with pytest.raises(SystemExit) as ended:
        run([*words, "--store", str(store.path), "-q"])
    assert ended.value.code == 0, words


@pytest.fixture
def store(tmp_path: Path) -> LabelStore:
    return made_store.make(tmp_path / "s.duckdb", n_documents=50, n_queries=8)


@pytest.fixture
def sheet(store: LabelStore, tmp_path: Path) -> Path:
    file = tmp_path / "sheet.html"
    msft(store, "data", "sheet", "c/train", "--run", "first", "--depth", "5", "-o", str(file))
    return file


def shown(browser: Browser) -> tuple[str, str, str]:
    return tuple(browser.run("['query', 'text', 'count'].map(id => document.getElementById(id).textContent)"))


def fresh(browser: Browser, sheet: Path) -> None:
    """Open a sheet of which the browser has kept nothing; sheets of the same pairs share their grades."""
    opened(browser, sheet)
    browser.run("localStorage.clear()")
    opened(browser, sheet)


def saved(browser: Browser, folder: Path) -> Path:
    browser.send("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder))
    browser.key("s")
    deadline = time.monotonic() + 20
    while not (found := list(folder.glob("*.qrels.txt"))):
        assert time.monotonic() < deadline, list(folder.iterdir())
        time.sleep(0.05)
    return found[0]


def test_twenty_judgments_by_keyboard_survive_a_reload_and_import_as_qrels(
    browser: Browser, store: LabelStore, sheet: Path, tmp_path: Path
) -> None:
    fresh(browser, sheet)
    items = browser.run("JSON.parse(document.getElementById('data').textContent).items")
    given = {}
    for k in range(20):
        if k == 11:
            before = shown(browser)
            opened(browser, sheet)
            assert shown(browser)[1:] == before[1:], "a reload goes on where it was"
        query, text, count = shown(browser)
        item = items[k]
        assert (query, text) == (item["query"], item["text"])
        assert count == f"{k} of {len(items)}"
        given[item["query_id"], item["doc_id"]] = k * 7 % 4
        browser.key(str(k * 7 % 4))
    assert browser.run("document.getElementById('bar').value") == 20
    folder = tmp_path / "downloads"
    folder.mkdir()
    file = saved(browser, folder)
    quiet(browser, sheet)
    lines = [line.split() for line in file.read_text("utf-8").splitlines()]
    assert {(query, doc): int(grade) for query, _, doc, grade in lines} == given
    msft(store, "data", "add", "c/judged", "--qrels", str(file), "--collection", "c", "--role", "test")
    with store.read() as con:
        held = con.execute(
            "SELECT query_id, doc_id, relevance FROM judgments WHERE dataset = 'c/judged'"
        ).fetchall()
    assert {(query, doc): grade for query, doc, grade in held} == given


def test_undo_takes_back_one_grade_after_another_and_grades_can_change(browser: Browser, sheet: Path) -> None:
    fresh(browser, sheet)
    for key in "012":
        browser.key(key)
    third = shown(browser)
    browser.key("ArrowLeft")
    assert browser.run("document.querySelector('[aria-pressed=true]').dataset.grade") == "2"
    browser.key("3")  # instead of 2
    assert shown(browser) == third
    grades = "[...JSON.parse(localStorage.getItem(data.key)).grades].map(([, grade]) => grade)"
    assert browser.run(grades) == [0, 1, 3]
    for expected in ([0, 1, 2], [0, 1], [0], []):
        browser.key("u")
        assert browser.run(grades) == expected
    browser.key("u")
    assert "Nothing to undo" in browser.run("document.getElementById('said').textContent")
    browser.key("s")
    assert "Nothing is judged yet" in browser.run("document.getElementById('said').textContent")
    quiet(browser, sheet)


def test_hostile_texts_are_inert(browser: Browser, store: LabelStore, tmp_path: Path) -> None:
    with store.write() as con:
        con.execute("UPDATE documents SET text = ?, title = ?", [HOSTILE, HOSTILE])
        con.execute("UPDATE queries SET text = ?", [HOSTILE])
    file = tmp_path / "hostile.html"
    msft(store, "data", "sheet", "c/train", "--run", "first", "-o", str(file))
    fresh(browser, file)
    assert shown(browser)[:2] == (HOSTILE, HOSTILE)
    browser.key("1")
    assert browser.run("document.title") == "Judge c/train · msft"
    assert browser.run("document.querySelectorAll('main img, main b').length") == 0
    quiet(browser, file)
    refused = browser.run(
        """new Promise(done => { const s = document.createElement('script'); s.textContent = 'window.ran = 1';
           document.body.append(s); setTimeout(() => done(window.ran === undefined), 50); })"""
    )
    assert refused, "the policy allows no other script"


def test_two_sheets_keep_their_grades_apart(
    browser: Browser, store: LabelStore, sheet: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.html"
    msft(store, "data", "sheet", "c/train", "--run", "first", "--depth", "3", "-o", str(other))
    fresh(browser, sheet)
    browser.key("2")
    opened(browser, other)
    assert shown(browser)[2].startswith("0 of ")
