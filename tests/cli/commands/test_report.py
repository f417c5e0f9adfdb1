"""`msft report` in headless Chromium: what it draws are the store's numbers, and it asks for nothing."""

from pathlib import Path

import pytest
import report_store
from chromium import Browser
from report_page import LIMIT, OPEN_DATASETS, opened, quiet, report, rows

from labelstore.labels import quality as label_quality
from labelstore.store.label_store import LabelStore

pytestmark = pytest.mark.needs("chromium")


def test_the_leaderboard_has_the_stores_values(browser: Browser, made: tuple[LabelStore, Path]) -> None:
    store, file = made
    opened(browser, file)
    assert file.stat().st_size < LIMIT
    shown = browser.run(
        """[...document.querySelectorAll('table.leaderboard')].flatMap(t => [...t.querySelectorAll('tbody tr[data-name]')]
            .map(r => [t.dataset.measure, r.dataset.name, Number(r.dataset.value), Number(r.querySelector('svg.interval').dataset.value)]))"""
    )
    expected = {
        (measure, student if kind == "student" else system): value
        for measure, system, kind, student, value in rows(
            store,
            "SELECT measure, system, kind, student, value FROM results WHERE measure IN ('nDCG@10', 'RR@10')",
        )
    }
    assert {(measure, name) for measure, name, *_ in shown} == set(expected)
    assert len(shown) == len(expected) == 14
    for measure, name, value, drawn in shown:
        assert value == pytest.approx(expected[measure, name], abs=1e-12)
        assert drawn == pytest.approx(value, rel=1e-4)
    # A re-ranking's difference is to its first stage, and recall stands beside it.
    cells = browser.run(
        "[...document.querySelector('tr[data-name=\"kd-12\"]').cells].map(c => [c.dataset.label || '', c.innerText])"
    )
    difference = expected["nDCG@10", "kd-12"] - expected["nDCG@10", "bm25"]
    ((recall,),) = rows(store, "SELECT value FROM results WHERE system = 'kd-12@bm25' AND measure = 'R@20'")
    assert dict(cells)["Δ"].startswith(f"{difference:+.3f}")
    assert dict(cells)["recall@20"] == f"{recall:.3f}"
    assert dict(cells)["verdict"].split() == ["better", "p", "<", "0.001"]
    quiet(browser, file)


def test_cost_plots_have_a_mark_for_every_student(browser: Browser, made: tuple[LabelStore, Path]) -> None:
    store, file = made
    opened(browser, file)
    marks = browser.run(
        """[...document.querySelectorAll('#cost figure.chart')].map(f => [f.querySelector('strong').textContent,
            [...f.querySelectorAll('.mark')].map(m => [m.dataset.key, Number(m.dataset.x), Number(m.dataset.y)])])"""
    )
    plots = dict(marks)
    values = dict(
        rows(
            store,
            "SELECT coalesce(student, system), value FROM results WHERE measure = 'nDCG@10' AND kind = 'student'",
        )
    )
    tokens = {
        name: sum(report_store.TOKENS) * report_store.LABELS.get(name, 0) for name in report_store.STUDENTS
    }
    seconds = dict(rows(store, "SELECT student, sum(seconds) FROM student_stages GROUP BY student"))
    expected = {"teacher tokens behind its labels": tokens, "seconds of training": seconds}
    # calls and price are the tokens times a factor: the same plot, with another unit
    assert {title for title in plots if " against " in title} == {
        f"nDCG@10 against {label}" for label in expected
    }
    for label, by_student in expected.items():
        found = {name: (x, y) for name, x, y in plots[f"nDCG@10 against {label}"]}
        assert set(found) == {*report_store.STUDENTS, "kd-12+bm25"}
        for name, x in by_student.items():
            assert found[name] == pytest.approx((x, values[name]), rel=1e-4)
    assert "nDCG@10 of the teachers themselves" not in plots, "one teacher alone has no trade-off"
    growth = plots["nDCG@10 by labelled lists"]
    assert [(x, y) for _, x, y in growth] == [
        pytest.approx((n, values[name]), rel=1e-4) for name, n in report_store.LABELS.items()
    ]
    quiet(browser, file)


def test_learning_curves_have_every_logged_point(browser: Browser, made: tuple[LabelStore, Path]) -> None:
    store, file = made
    opened(browser, file)
    shown = browser.run(
        """[...document.querySelectorAll('#learning figure')].map(f => [f.querySelector('strong').textContent,
            [...f.querySelectorAll('svg.stretch')].map(s => [s.dataset.key, Number(s.dataset.points), s.querySelector('path').getAttribute('d').split('L').length]),
            [...f.querySelectorAll('circle.mark')].map(m => [m.dataset.key, Number(m.dataset.x), Number(m.dataset.y)])])"""
    )
    logged: dict[str, dict[str, list[tuple[float, float]]]] = {}
    names = {"loss": "training loss", "valid_loss": "validation loss", "valid_tau": "validation Kendall's τ"}
    for student, objective, loss, measure, pairs, value in rows(
        store,
        """SELECT s.name, g.objective, g.loss, l.measure, l.pairs, l.value FROM training_log l JOIN students s USING (student)
           JOIN stages g USING (student, stage) WHERE l.measure <> 'lr' ORDER BY l.step""",
    ):
        title = f"{objective} by {loss}: {names[measure]}"
        logged.setdefault(title, {}).setdefault(student, []).append((pairs, value))
    assert {title for title, *_ in shown} == set(logged)
    for title, lines, ends in shown:
        assert {key: (n, drawn) for key, n, drawn in lines} == {
            s: (len(p), len(p)) for s, p in logged[title].items()
        }
        for key, x, y in ends:
            assert (x, y) == pytest.approx(logged[title][key][-1], rel=1e-4)


def test_label_quality_has_the_stores_counts(browser: Browser, made: tuple[LabelStore, Path]) -> None:
    store, file = made
    opened(browser, file)
    shown = browser.run(
        """[...document.querySelectorAll('table.labelings tbody tr')].map(r => [r.dataset.name, Number(r.dataset.lists),
            Object.fromEntries([...r.querySelectorAll('rect.share')].map(s => [s.dataset.key, Number(s.dataset.value)]))])"""
    )
    assert {name: (lists, statuses) for name, lists, statuses in shown} == {
        "oracle@bm25": (14, {"ok": 12, "repaired": 1, "other": 1}),
        "train-labels": (12, {"ok": 10, "repaired": 1, "quarantined": 1, "other": 1}),
    }
    with store.read() as con:
        bias = label_quality.analysis(con, "position_bias", bucket=1, labels="oracle@bm25")
    drawn = browser.run(
        """[...document.querySelectorAll('#labels figure circle.mark')].filter(m => m.dataset.key === 'oracle@bm25')
            .map(m => [Number(m.dataset.x), Number(m.dataset.y)])"""
    )
    assert drawn == [pytest.approx((b["from_position"], b["mean_place"]), rel=1e-4) for b in bias]


def test_lineage_leads_from_each_student_to_the_prompt(
    browser: Browser, made: tuple[LabelStore, Path]
) -> None:
    _, file = made
    opened(browser, file)
    browser.run(OPEN_DATASETS)
    trees = browser.run("[...document.querySelectorAll('.student-node')].map(n => n.innerText)")
    assert len(trees) == 3
    kd = next(tree for tree in trees if "kd-12" in tree)
    positions = [
        kd.index(part)
        for part in (
            "stage 1",
            "ranknet",
            "distil-12",
            "train-labels",
            "org/oracle-7b",
            "0123456789ab",
            "rankzephyr@1",
        )
    ]
    assert positions == sorted(positions)
    assert any("contrastive" in tree and "hard" in tree and "cl-<i>one</i>" in tree for tree in trees)


def test_differences_are_per_query_and_the_keyboard_walks_them(
    browser: Browser, made: tuple[LabelStore, Path]
) -> None:
    store, file = made
    opened(browser, file)
    expected = dict(
        rows(
            store,
            """SELECT a.query_id, a.value - b.value FROM result_queries a JOIN result_queries b USING (dataset, measure, query_id)
               WHERE measure = 'nDCG@10' AND a.system = 'kd-12@bm25' AND b.system = 'bm25'""",
        )
    )
    bars = browser.run(
        "[...document.querySelectorAll('#d-plot .bar')].map(b => [b.dataset.query, Number(b.dataset.d)])"
    )
    assert len(bars) == report_store.N_TEST
    assert dict(bars) == {query: pytest.approx(d, abs=2e-4) for query, d in expected.items()}
    assert [d for _, d in bars] == sorted((d for _, d in bars), reverse=True)
    mean = sum(expected.values()) / len(expected)
    assert f"mean {mean:+.3f}" in browser.run("document.getElementById('d-summary').textContent")

    browser.run("document.getElementById('d-plot').focus()")
    browser.key("ArrowRight")
    browser.key("ArrowRight")
    said = browser.run("document.getElementById('d-query').textContent")
    assert f"({bars[1][0]})" in said
    browser.key("End")
    assert f"({bars[-1][0]})" in browser.run("document.getElementById('d-query').textContent")
    browser.key("Enter")
    assert browser.run("document.querySelector('#e-title .id').textContent") == bars[-1][0]
    assert browser.run("document.activeElement.id") == "e-list"

    # Another pair is drawn anew.
    browser.run(
        """(() => { const s = document.getElementById('d-system'), b = document.getElementById('d-baseline');
            const value = (select, name) => [...select.options].find(o => o.textContent.endsWith(name)).value;
            s.value = value(s, 'oracle@bm25'); s.dispatchEvent(new Event('change'));
            b.value = value(b, 'dense'); b.dispatchEvent(new Event('change')); })()"""
    )
    other = browser.run("[...document.querySelectorAll('#d-plot .bar')].map(b => Number(b.dataset.d))")
    ((oracle,), (dense,)) = rows(
        store,
        "SELECT value FROM results WHERE measure = 'nDCG@10' AND system IN ('oracle@bm25', 'dense') ORDER BY system DESC",
    )
    assert sum(other) / len(other) == pytest.approx(oracle - dense, abs=1e-3)
    quiet(browser, file)


def test_the_explorer_shows_the_rankings_side_by_side(
    browser: Browser, made: tuple[LabelStore, Path]
) -> None:
    store, file = made
    opened(browser, file)
    ids = browser.run("[...document.querySelectorAll('#e-list [role=option]')].length")
    assert ids == report_store.N_TEST
    for step in range(3):
        query_id = browser.run("document.querySelector('#e-title .id').textContent")
        columns = browser.run(
            """[...document.querySelectorAll('#e-columns .column')].map(c => [c.dataset.kind, (c.querySelector('select') || {}).value || null,
                [...c.querySelectorAll('.passage')].map(p => p.querySelector('.id').textContent)])"""
        )
        assert [kind for kind, *_ in columns] == ["first_stage", "teacher", "student", "judgments"]
        for kind, run_name in (("first_stage", "bm25"), ("student", "kd-12@bm25")):
            (shown,) = [ids for k, _, ids in columns if k == kind]
            stored = rows(
                store,
                "SELECT doc_id FROM ranked WHERE dataset = 'toy/test' AND run = ? AND query_id = ? AND rank <= 10 ORDER BY rank",
                run_name,
                query_id,
            )
            assert shown == [doc for (doc,) in stored]
        (labelled,) = [ids for k, _, ids in columns if k == "teacher"]
        stored = rows(
            store,
            """SELECT doc_id FROM labels WHERE labeling = 'oracle@bm25' AND query_id = ? AND rank <= 10 AND status IN ('ok', 'repaired')
               ORDER BY rank""",
            query_id,
        )
        assert labelled == [doc for (doc,) in stored]
        (relevant,) = [ids for k, _, ids in columns if k == "judgments"]
        stored = rows(
            store,
            "SELECT doc_id FROM judgments WHERE dataset = 'toy/test' AND query_id = ? AND relevance > 0 ORDER BY relevance DESC",
            query_id,
        )
        assert relevant == [doc for (doc,) in stored]
        browser.run("document.getElementById('e-list').focus()")
        browser.key("ArrowDown")
        assert (
            browser.run("document.querySelector('#e-list [aria-selected=true]').id") == f"e-query-{step + 1}"
        )
        assert (
            browser.run("document.getElementById('e-list').getAttribute('aria-activedescendant')")
            == f"e-query-{step + 1}"
        )
    browser.key("End")
    assert browser.run("document.querySelector('#e-list [aria-selected=true]').id") == f"e-query-{ids - 1}"
    # A passage opens with Enter, and is found again in the other lists when it has the focus.
    browser.run("document.querySelector('#e-columns [data-kind=student] .passage').focus()")
    browser.key("Enter")
    assert browser.run("document.activeElement.getAttribute('aria-expanded')") == "true"
    assert browser.run("document.querySelectorAll('.passage.same').length") >= 2
    browser.run(
        "(() => { const f = document.getElementById('e-find'); f.value = 'q7'; f.dispatchEvent(new Event('input')); })()"
    )
    assert browser.run("document.querySelector('#e-title .id').textContent") == "q7"
    assert (
        browser.run("document.getElementById('e-count').textContent") == f"1 of {report_store.N_TEST} queries"
    )
    quiet(browser, file)


def test_hostile_texts_stay_text(browser: Browser, made: tuple[LabelStore, Path]) -> None:
    _, file = made
    opened(browser, file)
    assert browser.run("document.scripts.length") == 2
    assert (
        browser.run(
            "document.querySelectorAll('main img, main i, main b, main script, [onload], [onerror]').length"
        )
        == 0
    )
    seen = set()
    for _ in range(report_store.N_TEST):
        seen |= set(
            browser.run(
                "[...document.querySelectorAll('.passage .body, .passage .title, #e-title, #e-list .text')].map(e => e.textContent)"
            )
        )
        browser.run("document.getElementById('e-list').focus()")
        browser.key("ArrowDown")
    for text in report_store.HOSTILE:
        assert any(text in shown for shown in seen), text
    assert browser.run("window.hacked === undefined")
    assert (
        browser.run("document.querySelector('.leaderboard tr[data-name^=cl] .name').textContent")
        == "cl-<i>one</i>"
    )
    # Even if a text became an element, the page's policy would not run it.
    browser.run(
        "(() => { const s = document.createElement('script'); s.textContent = 'window.hacked = 9'; document.body.append(s); })()"
    )
    assert browser.run("window.hacked === undefined")
    assert any("Content Security Policy" in problem for problem in browser.problems)


def test_an_almost_empty_store_says_what_fills_it(browser: Browser, tmp_path: Path) -> None:
    store = LabelStore(tmp_path / "new.duckdb")
    with store.write():
        pass
    file = report(store, tmp_path / "empty.html")
    opened(browser, file)
    commands = browser.run("[...document.querySelectorAll('.empty code')].map(c => c.textContent)")
    for command in (
        "msft data add",
        "msft retrieve",
        "msft eval",
        "msft students train",
        "msft teachers generate",
    ):
        assert any(c.startswith(command) for c in commands), command
    sections = browser.run(
        "[...document.querySelectorAll('main section')].map(s => Boolean(s.querySelector('.empty')))"
    )
    assert sections == [True] * 7
    quiet(browser, file)


@pytest.mark.needs("shared")
def test_the_real_runs_and_labelings_of_dl19(browser: Browser, shared: Path, tmp_path: Path) -> None:
    from labelstore.datasets.add import NewDataset
    from labelstore.datasets.from_folder import add_folder
    from labelstore.evaluation import scores as evaluation
    from labelstore.labels import import_file as label_import
    from labelstore.labels.staging import LabelsToImport as LabelRequest
    from labelstore.runs import import_run
    from teachers.prompts import replies

    store, folder = LabelStore(tmp_path / "dl19.duckdb"), shared / "dl19-passage"
    add_folder(store, folder, NewDataset(name="dl19"))
    for run_file in sorted(folder.glob("runs/*.run.gz")):
        import_run.import_run(store, run_file, "dl19", run_file.name.removesuffix(".run.gz"))
    label_import.import_labels(store, folder / "permutations.jsonl.gz", LabelRequest("dl19"), replies)
    evaluation.evaluate(store, "dl19", measures=["nDCG@10", "AP(rel=2)"])
    file = report(store, tmp_path / "dl19.html")
    opened(browser, file)
    assert file.stat().st_size < LIMIT
    assert browser.run("document.querySelectorAll('#panel-0-0 tr[data-name]').length") == 7 + 19
    assert browser.run(
        "document.querySelectorAll('#panel-0-0 tr[data-name=bm25] svg')[0].dataset.value"
    ).startswith("0.5058")
    assert browser.run("document.querySelectorAll('.matrix td[style]').length") == 19 * 18
    assert browser.run("document.querySelectorAll('.labelings tbody tr').length") == 19
    assert browser.run("document.querySelectorAll('#d-plot .bar').length") == 43
    assert browser.run("document.querySelectorAll('#e-list [role=option]').length") == 43
    assert browser.run("document.querySelectorAll('#e-columns .passage').length") >= 20
    quiet(browser, file)
