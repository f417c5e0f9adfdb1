"""The report without a browser: its bounds, its escapes, what it refuses; and the scales of its plots."""

import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest
import report_store

from cli.main import run
from labelstore.errors import MsftError
from labelstore.evaluation import comparison
from labelstore.report import boards, costs, page, plots, svg
from labelstore.store import lookup
from labelstore.store.label_store import LabelStore


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> LabelStore:
    return report_store.make(tmp_path_factory.mktemp("store") / "toy.duckdb")


def data(file: Path) -> dict[str, Any]:
    found = re.search(
        r'<script type="application/json" id="data">(.*?)</script>', file.read_text("utf-8"), re.DOTALL
    )
    assert found is not None
    return json.loads(found[1])


@pytest.mark.test_all
def test_one_store_gives_one_page(store: LabelStore, tmp_path: Path) -> None:
    first = page.write(store, tmp_path / "a.html")
    again = page.write(store, tmp_path / "b.html")
    assert first.path.read_bytes() == again.path.read_bytes()
    assert first.n_bytes == first.path.stat().st_size
    assert [row["section"] for row in first.rows if row["dataset"] == "toy/test"] == [
        "leaderboard", "cost plots", "labels", "queries",
    ]  # fmt: skip
    assert not list(tmp_path.glob("*.part"))


def test_no_text_leaves_its_place(store: LabelStore, tmp_path: Path) -> None:
    html = page.write(store, tmp_path / "a.html").path.read_text("utf-8")
    assert html.count("<script") == 2
    assert html.count("</script>") == 2
    assert "<img" not in html
    assert "<i>one" not in html
    assert "http://" not in html.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in html
    held = data(tmp_path / "a.html")["explorers"][0]["passages"]
    shown = {passage["text"][: len(report_store.HOSTILE[1])] for passage in held}
    assert report_store.HOSTILE[1] in shown


@pytest.mark.test_all
def test_it_shrinks_until_it_fits_and_says_so(
    store: LabelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = page.write(store, tmp_path / "a.html")
    few = page.write(store, tmp_path / "b.html", n_queries=6)
    said: list[str] = []
    limit = few.n_bytes
    assert limit < whole.n_bytes
    monkeypatch.setattr(page, "MAX_BYTES", limit)
    small = page.write(store, tmp_path / "c.html", n_queries=report_store.N_TEST, note=said.append)
    assert small.n_bytes <= limit
    assert "taking fewer and shorter passages" in said[0]
    shown = {row["dataset"]: row for row in small.rows if row["section"] == "queries"}
    assert 0 < shown["toy/test"]["shown"] < report_store.N_TEST
    assert f"of {report_store.N_TEST} queries" in shown["toy/test"]["note"]
    monkeypatch.setattr(page, "MAX_BYTES", 10_000)
    before = small.path.read_bytes()
    with pytest.raises(MsftError, match="MB, more than"):
        page.write(store, small.path)
    assert small.path.read_bytes() == before


@pytest.mark.test_all
def test_queries_are_those_that_differ_most(store: LabelStore, tmp_path: Path) -> None:
    page.write(store, tmp_path / "a.html", n_queries=4)
    with store.read() as con:
        differences = dict(
            con.execute(
                """SELECT a.query_id, a.value - b.value FROM result_queries a JOIN result_queries b USING (dataset, measure, query_id)
                   WHERE measure = 'nDCG@10' AND a.system = 'kd-12+bm25' AND b.system = 'bm25'"""
            ).fetchall()
        )
    chosen = [query["id"] for query in data(tmp_path / "a.html")["explorers"][0]["queries"]]
    assert len(chosen) == 4
    values = sorted(differences.values())
    shown = [differences[query] for query in chosen]
    assert max(shown) == pytest.approx(values[-1])
    assert min(shown) == pytest.approx(values[0])


@pytest.mark.test_all
def test_texts_can_be_left_out(store: LabelStore, tmp_path: Path) -> None:
    page.write(store, tmp_path / "a.html", texts=False)
    passages = data(tmp_path / "a.html")["explorers"][0]["passages"]
    assert passages
    assert all(set(passage) == {"id"} for passage in passages)


@pytest.mark.test_all
def test_long_passages_are_cut_with_the_count(store: LabelStore, tmp_path: Path) -> None:
    page.write(store, tmp_path / "a.html")
    cut = [p for e in data(tmp_path / "a.html")["explorers"] for p in e["passages"] if p["cut"]]
    with store.read() as con:
        ((text,),) = con.execute("SELECT text FROM documents WHERE doc_id = 'd03'").fetchall()
    assert {p["id"] for p in cut} == {"d03"}
    assert cut[0]["text"] + text[-cut[0]["cut"] :] == text


def test_chosen_datasets_and_measures(store: LabelStore, tmp_path: Path) -> None:
    page.write(store, tmp_path / "a.html", datasets=["toy/test"], measures=["RR@10"])
    found = data(tmp_path / "a.html")
    assert [board["measures"] for board in found["boards"]] == [["RR@10"]]
    assert [e["dataset"] for e in found["explorers"]] == ["toy/test"]
    page.write(store, tmp_path / "b.html", measures=["P@5"])
    html = (tmp_path / "b.html").read_text("utf-8")
    assert "msft eval --dataset toy/test --measure &#39;P@5&#39;" in html


@pytest.mark.test_all
def test_values_of_replaced_rankings_are_left_out(tmp_path: Path) -> None:
    store = report_store.make(tmp_path / "toy.duckdb")
    with store.write() as con:
        con.execute("UPDATE runs SET content_hash = 'other' WHERE name = 'dense'")
    written = page.write(store, tmp_path / "a.html")
    row = next(r for r in written.rows if r["section"] == "leaderboard")
    assert row["shown"] == 6
    assert "without nDCG@10: dense" in row["note"]
    assert "msft eval --dataset toy/test" in row["note"]


@pytest.mark.test_all
def test_many_datasets_and_rows_stay_within_bounds(
    store: LabelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "MAX_DATASETS", 1)
    monkeypatch.setattr(page, "MAX_ROWS", 5)
    monkeypatch.setattr(page, "MAX_VALUES", 30)
    page.write(store, tmp_path / "a.html")
    html = (tmp_path / "a.html").read_text("utf-8")
    assert "datasets left out: toy/train" in html
    assert html.count('role="tabpanel"') == 1
    assert "differences for the best 2 of 7 systems" in html
    (board,) = data(tmp_path / "a.html")["boards"]
    assert len(board["systems"]) == 2
    assert board["measures"] == ["nDCG@10"]


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (["--dataset", "toy/tset"], 4, "toy/test"),
        (["--measure", "nGCD@10"], 2, "nGCD@10"),
        (["--queries", "0"], 2, "expected 1 or more"),
        (["-o", "/proc/nowhere/report.html"], 1, "cannot be written"),
    ],
)
def test_what_cannot_be_reported_is_named(
    store: LabelStore,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    code: int,
    says: str,
) -> None:
    with pytest.raises(SystemExit) as ended:
        run(["report", "--store", str(store.path), "-o", str(tmp_path / "r.html"), *options])
    talk = capsys.readouterr().err
    assert ended.value.code == code
    assert says in talk
    assert not (tmp_path / "r.html").exists()


def test_a_store_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run(["report", "--store", str(tmp_path / "no.duckdb"), "-o", str(tmp_path / "r.html")])
    assert ended.value.code == 4
    assert "hint:" in capsys.readouterr().err


@pytest.mark.test_all
def test_costs_that_are_not_known_are_not_drawn_as_nothing(tmp_path: Path) -> None:
    store = report_store.make(tmp_path / "toy.duckdb")
    with store.read() as con:
        before = costs.of_students(con)
    assert before["kd-12"] == costs.Cost(12, 24.0, 12 * 1050.0, pytest.approx(12 * 1100 / 1e6), 30.0)
    assert before["kd-4"].lists == 4
    assert before["cl-<i>one</i>"] == costs.Cost(0, 0.0, 0.0, 0.0, 10.0)
    with store.write() as con:  # labels that came without their calls; a view that this store does not hold
        con.execute("UPDATE permutations SET n_calls = 0, tokens_in = 0, tokens_out = 0 WHERE labeling = 2")
        con.execute("UPDATE stages SET view = NULL WHERE student = 2")
    with store.read() as con:
        after = costs.of_students(con)
        board = boards.board(con, lookup.dataset(con, "toy/test"))
    assert after["kd-12"] == costs.Cost(12, None, None, None, 30.0)
    assert after["kd-4"] == costs.Cost(0, None, None, None, 20.0)
    figures = {figure.title: figure for figure in costs.effectiveness(board, after, "k")}
    assert set(figures) == {"nDCG@10 against seconds of training"}
    assert costs.by_labels(board, after, {}, "k") == []


def test_seeds_of_one_size_are_one_point(store: LabelStore) -> None:
    with store.read() as con:
        board = boards.board(con, lookup.dataset(con, "toy/test"))
        own, recipes = costs.of_students(con), costs.recipes(con)
    recipes["cl-<i>one</i>"] = recipes["kd-4"]  # as if it were a second seed of kd-4
    own["cl-<i>one</i>"] = own["kd-4"]
    lists, tokens = costs.by_labels(board, own, recipes, "k")
    means = {row.name: row.values["nDCG@10"].mean for row in board.rows}
    few = (means["kd-4"] + means["cl-<i>one</i>"]) / 2
    assert [row[1:] for row in lists.table] == [("4", f"{few:.4f}"), ("12", f"{means['kd-12']:.4f}")]
    assert [row[1] for row in tokens.table] == ["4,200", "12,600"]


@pytest.mark.test_all
def test_verdicts_follow_the_rule_of_compare(store: LabelStore) -> None:
    with store.read() as con:
        board = boards.board(con, lookup.dataset(con, "toy/test"))
    found = {row.name: row.values["nDCG@10"].difference for row in board.rows}
    names = [name for name, difference in found.items() if difference]
    assert len(names) == 5
    for row in comparison.compare(store, ["bm25", *names], ["toy/test"], measures=["nDCG@10"]):
        difference = found[row["system"]]
        assert difference is not None
        assert (difference.mean, difference.low, difference.high) == pytest.approx(
            (row["difference"], row["ci95_low"], row["ci95_high"])
        )
        assert difference.p_holm == pytest.approx(row["p_holm"])
        assert difference.verdict == row["verdict"]


# -------------------------------------------------------------------------------------------------------------- plots
@pytest.mark.parametrize(
    ("values", "options", "ticks"),
    [
        ([0.40, 0.50], {}, ["0.40", "0.42", "0.44", "0.46", "0.48", "0.50"]),
        ([0.0, 700.0], {"zero": True}, ["0", "200", "400", "600"]),
        ([12_600.0], {"zero": True}, ["0", "2 k", "4 k", "6 k", "8 k", "10 k", "12 k"]),
        ([5_000.0], {"zero": True}, ["0", "1,000", "2,000", "3,000", "4,000", "5,000"]),
        ([-0.2, 0.3], {}, ["-0.2", "-0.1", "0.0", "0.1", "0.2", "0.3"]),
        ([1.0, 9.0], {"zero": True}, ["0", "2", "4", "6", "8"]),
        ([0.41, 0.95], {"floor": 0.0}, ["0.4", "0.5", "0.6", "0.7", "0.8", "0.9"]),
        ([326_835.0], {"zero": True}, ["0", "50 k", "100 k", "150 k", "200 k", "250 k", "300 k"]),
        ([], {}, ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
    ],
)
def test_ticks_are_round_and_read_well(
    values: list[float], options: dict[str, Any], ticks: list[str]
) -> None:
    axis = svg.scale(values, **options)
    assert [axis.label(tick) for tick in axis.ticks] == ticks
    assert all(0 <= axis.at(v) <= 100 for v in values)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (0, "0"),
        (950, "950"),
        (9_999, "9,999"),
        (12_345, "12.3 k"),
        (3.4e6, "3.4 M"),
        (1.9e9, "1.9 G"),
        (0.0123, "0.0123"),
    ],
)
def test_counts_in_few_characters(value: float, says: str) -> None:
    assert svg.short(value) == says


def test_wide_spans_are_logarithmic_and_a_single_value_has_room() -> None:
    axis = svg.fitting_scale([10.0, 100_000.0])
    assert axis.logarithmic
    assert axis.at(1000.0) == pytest.approx(50, abs=1e-9)
    assert not svg.fitting_scale([0.0, 100_000.0]).logarithmic
    alone = svg.scale([0.5])
    assert alone.low < 0.5 < alone.high


def test_marks_that_hide_each_other_are_stacked_where_their_values_are() -> None:
    values = [(5.0, 0.5), (5.0, 0.501), (9.0, 0.5), (5.0, 0.2), (5.0, 0.5)]
    points = [
        plots.Point(str(n), f"s{n}", "student", x, y, y - 0.1, y + 0.1, "") for n, (x, y) in enumerate(values)
    ]
    drawing = plots.scatter("k", "title", "", points, "x", "y", []).drawing
    assert "translate" not in drawing
    assert re.findall(r'data-stack="([^"]*)"', drawing) == ["1 0 4"]  # the highest first
    circles = re.findall(r'<circle cx="([\d.]+)%" cy="([\d.]+)%" r="(\d)"/>', drawing)
    assert sorted(r for *_, r in circles) == ["4", "4", "4", "9", "9"]
    assert len({x for x, *_ in circles}) == 2  # one place across for each cost
    assert len({y for _, y, _ in circles}) == 3


@pytest.mark.parametrize(
    ("others", "side"),
    [
        ([], "start"),
        ([(380.0, 0.452)], "end"),  # a mark at the right, where the label would be
        ([(380.0, 0.452), (200.0, 0.447)], "start"),  # one at each side: no reason to leave the usual one
        ([(380.0, 0.49)], "start"),  # far above
        ([(380.0, 0.452), (900.0, 0.4), (-400.0, 0.4)], "end"),
    ],
)
def test_a_stacks_label_hides_no_other_mark_if_a_side_is_free(
    others: list[tuple[float, float]], side: str
) -> None:
    values = [(265.0, 0.447), (275.0, 0.445), (880.0, 0.47), (0.0, 0.42), *others]
    points = [
        plots.Point(str(n + 10), f"s{n}", "student", x, y, y - 0.03, y + 0.03, "")
        for n, (x, y) in enumerate(values)
    ]
    drawing = plots.scatter("k", "title", "", points, "x", "y", []).drawing
    assert re.findall(r'data-stack="10 11"', drawing)
    (label,) = re.findall(r'<text [^>]*class="stack"[^>]*>', drawing)
    assert f'text-anchor="{side}"' in label


def test_labels_of_two_stacks_do_not_meet() -> None:
    """They stand at one height; the first would go to the right, and the second to the left."""
    places = (50.0, 50.5, 62.0, 62.5, 0.0, 100.0)
    points = [
        plots.Point(str(n + 10), f"s{n}", "student", x, 0.5, 0.4, 0.6, "") for n, x in enumerate(places)
    ]
    drawing = plots.scatter("k", "title", "", points, "x", "y", []).drawing
    assert re.findall(
        r'text-anchor="(\w+)"[^>]*data-stack|data-stack="[^"]*"[^>]*text-anchor="(\w+)"', drawing
    )
    sides = [
        re.search(r'text-anchor="(\w+)"', label)[1]
        for label in re.findall(r'<text [^>]*class="stack"[^>]*>', drawing)
    ]  # type: ignore[index]
    assert sides == ["end", "start"]


@pytest.mark.parametrize("n", [2, 3, 4, 5, 20])
def test_a_stack_lists_a_few_numbers_and_counts_the_rest(n: int) -> None:
    points = [plots.Point(str(k), f"s{k}", "student", 5.0, 0.5, 0.4, 0.6, "") for k in range(n)]
    drawing = plots.scatter("k", "title", "", points, "x", "y", []).drawing
    (shown,) = re.findall(r'class="stack"[^>]*>([^<]*)<', drawing)
    listed = shown.split(" · ")
    assert len(listed) == min(n, plots.MAX_STACKED)
    assert listed[-1] == (f"+{n - plots.MAX_STACKED + 1}" if n > plots.MAX_STACKED else str(n - 1))


@pytest.mark.parametrize(
    ("tokens", "calls", "drawn"),
    [
        ((0, 4200, 12600), (0, 8, 24), ["tokens"]),  # the same plot twice
        ((0, 4200, 12600), (0, 24, 24), ["tokens", "calls"]),
        ((5000, 5000, 5050), (2, 3, 4), ["calls"]),  # a column of marks
        ((0, 0, 0), (0, 0, 0), []),
    ],
)
def test_a_cost_is_plotted_where_it_differs(
    store: LabelStore, tokens: tuple[float, ...], calls: tuple[float, ...], drawn: list[str]
) -> None:
    with store.read() as con:
        board = boards.board(con, lookup.dataset(con, "toy/test"))
    own = {
        name: costs.Cost(4, float(c), float(t), None, 10.0)
        for name, t, c in zip(report_store.STUDENTS, tokens, calls, strict=True)
    }
    found = [figure.key for figure in costs.effectiveness(board, own, "k")]
    assert found == [f"k-{what}" for what in drawn]


def test_prices_have_their_currency(store: LabelStore, tmp_path: Path) -> None:
    html = page.write(store, tmp_path / "a.html").path.read_text("utf-8")
    assert re.search(r'>price <span class="unit">USD</span></th>', html)


def test_the_explorers_legend_says_where_things_are(store: LabelStore, tmp_path: Path) -> None:
    html = page.write(store, tmp_path / "a.html").path.read_text("utf-8")
    legend = re.search(r'<ul class="quiet where">(.*?)</ul>', html, re.DOTALL)
    assert legend is not None
    text = " ".join(re.sub(r"<[^>]+>", "", legend[1]).split())
    for part in (
        "Queries stand at the left", "Rankings stand at the right", "A passage has its rank, its grade in a box",
        "Judgments stand in the last column",
    ):  # fmt: skip
        assert part in text
    empty = LabelStore(tmp_path / "empty.duckdb")
    with empty.write():
        pass
    assert 'class="quiet where"' not in page.write(empty, tmp_path / "b.html").path.read_text("utf-8")


def test_calls_of_a_bi_encoder_are_model_calls(tmp_path: Path) -> None:
    store = report_store.make(tmp_path / "toy.duckdb")
    with store.write() as con:
        con.execute(
            "UPDATE teachers SET engine = 'bi-encoder', model = 'sentence-transformers/all-MiniLM-L6-v2'"
        )
        ((calls,),) = con.execute("SELECT count(*) FROM calls").fetchall()
    html = page.write(store, tmp_path / "a.html").path.read_text("utf-8")
    assert calls > 0
    totals = html.partition('<dl class="totals">')[2].partition("</dl>")[0]
    assert "model calls" in totals
    assert "LLM calls" not in html


def test_commands_name_what_the_store_holds_in_its_sizes(tmp_path: Path) -> None:
    store = report_store.make(tmp_path / "toy.duckdb")
    with store.write() as con:
        for table in ("stages", "training_log", "students", "evaluations", "query_scores"):
            con.execute(f"DELETE FROM {table}")
        con.execute("DELETE FROM runs WHERE kind IN ('student', 'fused')")
    html = page.write(store, tmp_path / "a.html").path.read_text("utf-8")
    assert "msft students train --regime kd --labels train-labels --max-lists 3 --name kd-3" in html
    assert "--labels train-labels --max-lists 12 --name kd-12" in html
    assert "msft students train --regime cl --dataset toy/train --negatives hard" in html
    for placeholder in ("NEGATIVES", "LABELS", "TRAIN", "--run RUN"):
        assert placeholder not in html
    empty = LabelStore(tmp_path / "empty.duckdb")
    with empty.write():
        pass
    html = page.write(empty, tmp_path / "b.html").path.read_text("utf-8")
    assert "--labels LABELS --max-lists 1000" in html
    assert "--depth 100" in html


def test_svg_escapes_what_it_is_given() -> None:
    drawn = svg.element("text", "<b>&", class_='a"b', aria_label="<x>", x=1.0, y=None)
    assert drawn == '<text class="a&#34;b" aria-label="&lt;x&gt;" x="1">&lt;b&gt;&amp;</text>'


def test_curves_are_thinned_evenly_and_keep_their_ends() -> None:
    from labelstore.report.curves import thinned

    points = [(float(n), n / 2) for n in range(10_000)]
    kept = thinned(points, 300)
    assert len(kept) == 300
    assert (kept[0], kept[-1]) == (points[0], points[-1])
    steps = {round(b[0] - a[0]) for a, b in itertools.pairwise(kept)}
    assert steps <= {33, 34}
    assert thinned(points[:10], 300) == tuple(points[:10])
