"""Gather the store's content, render it by the templates beside this file, and write one HTML file.

The page loads nothing: style, script and data stand in it, and its content security policy allows no other script and no
request. Texts from the store are escaped by Jinja; the script's data is JSON with ``<``, ``>`` and ``&`` escaped,
and the script puts texts into the page as text alone.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb
import jinja2
from markupsafe import Markup, escape
from scipy import stats

from labelstore.errors import MsftError
from labelstore.evaluation import comparison
from labelstore.evaluation import measures as measuring
from labelstore.files import html_page
from labelstore.files.whole_file import appearing
from labelstore.report import (
    boards,
    calibration,
    costs,
    curves,
    explorer,
    lineage,
    plots,
    stage_question,
    svg,
)
from labelstore.report import label_quality as labels
from labelstore.report.boards import Board
from labelstore.report.label_quality import Labels
from labelstore.report.plots import Figure
from labelstore.store import lookup
from labelstore.store.label_store import LabelStore

MAX_BYTES = 5_000_000
MAX_DATASETS = 12
MAX_VALUES = 150_000  # per-query values that the page carries, over all systems and measures
MAX_QUERY_TEXT = 160  # characters of a query beside its difference; fewer where there are many queries
MAX_ROWS = 900  # leaderboard rows over all measures; beyond, only each dataset's first measure is drawn
SCRIPTS = ("marks.js", "differences.js", "explorer.js", "page.js")
# The explorer's size, tried until the page fits: (queries of a dataset, characters of a passage).
_ROOM = ((100, 1500), (60, 1200), (40, 800), (20, 600), (10, 400), (5, 200))
_PASSAGES, _USUAL_LENGTH = 40, 400  # the usual number of a query's passages, and of their characters

Row = dict[str, Any]


@dataclass
class Part:
    """A dataset's sections; each measure of `drawn` has a leaderboard."""

    board: Board
    drawn: list[str]
    effectiveness: list[Figure] = field(default_factory=list)
    by_labels: list[Figure] = field(default_factory=list)


@dataclass
class Page:
    """The data of the templates."""

    store: str
    as_of: str | None
    totals: list[tuple[str, int]]
    parts: list[Part] = field(default_factory=list)
    curves: list[Figure] = field(default_factory=list)
    curve_notes: list[str] = field(default_factory=list)
    labels: list[Labels] = field(default_factory=list)
    students: list[lineage.Student] = field(default_factory=list)
    n_students_left: int = 0
    left_out: list[str] = field(default_factory=list)
    boards: list[Board] = field(default_factory=list)  # of all datasets shown, measured or not
    differences: list[Row] = field(default_factory=list)
    question: stage_question.Answer | None = None
    calibrated: list[calibration.Calibrated] = field(default_factory=list)
    n_calibrated_left: int = 0
    suggested: "Suggested" = field(default_factory=lambda: Suggested())

    @property
    def costs_alike(self) -> bool:
        """Tell whether trained students are measured; without a plot their costs are then equal or not known."""
        return any(
            row.system.regime not in (None, "none") for part in self.measured for row in part.board.rows
        )

    @property
    def measured(self) -> list[Part]:
        return [part for part in self.parts if part.board.rows]


@dataclass(frozen=True)
class Suggested:
    """The names and sizes that commands in empty sections are given, from the store where it has them."""

    dataset: str = "DATASET"
    train: str = "TRAIN"
    run: str = "RUN"
    negatives: str = "NEGATIVES"
    labels: str = "LABELS"
    depth: int = 100  # of a retrieval: at most the collection's passages
    lists: tuple[int, int] = (1000, 4000)  # few and many labelled lists

    @property
    def growth(self) -> list[str]:
        """The commands that train from few and from many labels."""
        return [
            f"msft students train --regime kd --labels {self.labels} --max-lists {n} --name kd-{n}"
            for n in self.lists
        ]


@dataclass(frozen=True)
class Written:
    """The file, and a row per section: section, dataset, shown, note."""

    path: Path
    n_bytes: int
    rows: list[Row]


def write(
    store: LabelStore,
    path: str | Path = "report.html",
    *,
    datasets: Sequence[str] = (),
    measures: Sequence[str] = (),
    n_queries: int | None = None,
    texts: bool = True,
    note: Callable[[str], None] | None = None,
) -> Written:
    """Write the report. The store is open, for reading, while the page is put together.

    Args:
        datasets: names. Empty: all that were measured or ranked, at most twelve.
        measures: ir-measures names, the first is the headline. Empty: the literature's for each dataset.
        n_queries: queries in the explorer, per dataset. None: as many as fit, at most 100.
        texts: False leaves passages' texts out, if their licence does not allow to pass them on.

    Raises:
        DataMissing: a dataset is not found.
        UsageError: ir-measures does not know a measure.
        MsftError: the page cannot be made smaller than 5 MB, or cannot be written.
    """
    path = Path(path)
    wanted = [measuring.canonical(name) for name in measures]
    with store.read() as con:
        page = gather(con, store.path.name, datasets, wanted)
        for count, characters in _room(len(page.boards), n_queries):
            explorers = [
                explorer.explorer(con, board, n_queries=count, n_characters=characters, texts=texts)
                for board in page.boards
            ]
            content = render(page, explorers).encode()
            if len(content) <= MAX_BYTES:
                break
            if note:
                note(
                    f"{len(content) / 1e6:.1f} MB with {count} queries a dataset: taking fewer and shorter passages"
                )
        else:
            raise MsftError(
                f"the report would have {len(content) / 1e6:.1f} MB, more than {MAX_BYTES // 10**6}",
                hint="choose fewer with --dataset and --measure",
            )
    with appearing(path) as beside:
        beside.write_bytes(content)
    return Written(path, len(content), _summary(page, explorers))


def _room(n_datasets: int, asked: int | None) -> list[tuple[int, int]]:
    """List the (queries, characters of a passage) to try in turn, from the largest that is likely to fit."""
    if asked is not None:
        return [(asked, 1200), *((min(n, asked), characters) for n, characters in _ROOM[1:])]
    likely = [
        (n, characters) for n, characters in _ROOM
        if n_datasets * n * _PASSAGES * min(characters, _USUAL_LENGTH) < 0.8 * MAX_BYTES
    ]  # fmt: skip
    return likely or list(_ROOM[-1:])


def gather(
    con: duckdb.DuckDBPyConnection, store: str, datasets: Sequence[str], measures: Sequence[str]
) -> Page:
    """Gather everything but the explorer."""
    page = Page(store, _as_of(con), _totals(con))
    chosen, left = _datasets(con, datasets)
    if left:
        page.left_out.append(f"datasets left out: {', '.join(left)} (--dataset names those to show)")
    page.suggested = _suggested(con, chosen)
    page.boards = [boards.board(con, of, measures) for of in chosen]
    page.question = stage_question.answer(con, page.boards)
    page.calibrated, page.n_calibrated_left = calibration.of_students(con)
    cost, recipes = costs.of_students(con), costs.recipes(con)
    for n, board in enumerate(page.boards):
        if board.of.qrels_hash is None:
            continue
        part = Part(board, list(board.measures))
        if board.rows:
            part.effectiveness = costs.effectiveness(board, cost, f"cost-{n}")
            part.effectiveness += costs.of_teachers(con, board, f"cost-{n}")
            part.by_labels = costs.by_labels(board, cost, recipes, f"labels-{n}")
        page.parts.append(part)
    if sum(len(part.drawn) * len(part.board.rows) for part in page.parts) > MAX_ROWS:
        for part in page.parts:
            part.drawn = part.drawn[:1]
        page.left_out.append(
            "leaderboards are drawn by each dataset's first measure alone (--measure names another)"
        )
    order = _students_by_value(page.boards)
    page.curves, page.curve_notes = curves.curves(con, order)
    page.labels = labels.of_datasets(con, [of.name for of in chosen] if datasets else _labelled(con))
    page.students, page.n_students_left = lineage.students(con, order)
    page.differences, left_out = differences(page.measured)
    page.left_out += left_out
    return page


def _suggested(con: duckdb.DuckDBPyConnection, chosen: Sequence[lookup.Dataset]) -> Suggested:
    """Choose what suggested commands name: what the store holds, in its sizes."""
    ((train, run, mining, labels, n_lists, n_documents),) = con.execute(
        """WITH train AS (SELECT dataset, name FROM datasets WHERE role = 'train' ORDER BY dataset LIMIT 1)
           SELECT (SELECT name FROM train),
                  (SELECT r.name FROM runs r JOIN train USING (dataset) WHERE r.kind IN ('first_stage', 'imported')
                   ORDER BY r.run LIMIT 1),
                  (SELECT m.name FROM minings m JOIN train USING (dataset) ORDER BY m.mining LIMIT 1),
                  (SELECT labeling FROM labeling_quality q JOIN train t ON t.name = q.dataset
                   ORDER BY lists DESC, labeling LIMIT 1),
                  (SELECT max(lists) FROM labeling_quality q JOIN train t ON t.name = q.dataset),
                  (SELECT min(n) FROM (SELECT count(*) AS n FROM documents GROUP BY collection))"""
    ).fetchall()
    usual = Suggested()
    few_and_many = usual.lists if not n_lists or n_lists < 4 else (n_lists // 4, n_lists)
    return Suggested(
        chosen[0].name if chosen else usual.dataset,
        train or usual.train,
        run or usual.run,
        mining or usual.negatives,
        labels or usual.labels,
        min(usual.depth, n_documents or usual.depth),
        few_and_many,
    )


def _as_of(con: duckdb.DuckDBPyConnection) -> str | None:
    """Return when the store was last written, so that one store always gives the same page."""
    ((value,),) = con.execute("SELECT max(started_at) FROM provenance").fetchall()
    return value.strftime("%-d %B %Y, %H:%M") if value is not None else None


def _totals(con: duckdb.DuckDBPyConnection) -> list[tuple[str, int]]:
    counts = (
        ("passages", "SELECT count(text_hash) FROM documents"), ("queries", "SELECT count(*) FROM queries"),
        ("judgments", "SELECT count(*) FROM qrels"), ("runs", "SELECT count(*) FROM runs"),
        ("labelled lists", "SELECT count(*) FROM permutations"), ("model calls", "SELECT count(*) FROM calls"),
        ("students", "SELECT count(*) FROM students"), ("evaluations", "SELECT count(*) FROM evaluations"),
    )  # fmt: skip
    return [(name, int(con.execute(sql).fetchall()[0][0])) for name, sql in counts]


def _datasets(con: duckdb.DuckDBPyConnection, named: Sequence[str]) -> tuple[list[lookup.Dataset], list[str]]:
    """Choose the page's datasets: the named ones, or all with a ranking, test sets and measured ones first."""
    if named:
        return [lookup.dataset(con, name) for name in dict.fromkeys(named)], []
    names = [
        name for (name,) in con.execute(
            """SELECT d.name FROM datasets d
               WHERE d.dataset IN (SELECT dataset FROM evaluations) OR d.dataset IN (SELECT dataset FROM labelings)
                  OR (d.role = 'test' AND d.dataset IN (SELECT dataset FROM runs))
               ORDER BY d.dataset NOT IN (SELECT dataset FROM evaluations), d.role <> 'test', d.role <> 'dev', d.name"""
        ).fetchall()
    ]  # fmt: skip
    return [lookup.dataset(con, name) for name in names[:MAX_DATASETS]], names[MAX_DATASETS:]


def _labelled(con: duckdb.DuckDBPyConnection) -> list[str]:
    sql = "SELECT DISTINCT d.name FROM labelings JOIN datasets d USING (dataset) ORDER BY d.name"
    return [name for (name,) in con.execute(sql).fetchall()]


def _students_by_value(found: Sequence[Board]) -> list[str]:
    ranked = [row for board in found for row in board.of_kind("student", "fused")]
    ranked.sort(key=lambda row: row.number)
    return list(dict.fromkeys(row.system.student for row in ranked if row.system.student))


# ---------------------------------------------------------------------------------------------------------- rendering
def render(page: Page, explorers: Sequence[explorer.Explorer]) -> str:
    """Render the HTML."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("labelstore.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "places": _places,
        "p": _p,
        "signed": _signed,
        "short": svg.short,
        "breakable": _breakable,
    }
    script = "\n".join(_asset(name) for name in SCRIPTS)
    return environment.get_template("page.html.jinja").render(
        page=page,
        explorers=explorers,
        cell=_cell,
        axis=_axis,
        axis_labels=plots.axis_labels,
        style=Markup(_asset("style.css")),
        script=Markup(script),
        policy=html_page.policy(script),
        data=Markup(
            html_page.embedded(
                {
                    "boards": page.differences,
                    "explorers": [e.data() for e in explorers if e.queries],
                    "students": bool(page.students),
                }
            )
        ),
        verdict=_verdict,
        margin=comparison.MARGIN,
        currency=costs.CURRENCY,
    )


def _asset(name: str) -> str:
    return html_page.asset("report/templates", name)


def differences(parts: Sequence[Part]) -> tuple[list[Row], list[str]]:
    """Collect per-query values of each measured dataset, as the page's script reads them, and note what was left out.

    If there are too many, the measures after the first are left out, then the last systems.
    """
    rows, left_out, room = [], [], MAX_VALUES
    for board in (part.board for part in parts):
        n = len(board.queries)
        measures = [
            m for k, m in enumerate(board.measures) if k == 0 or n * len(board.rows) * (k + 1) <= room
        ]
        systems = board.rows[: max(2, room // max(1, n))]
        room = max(0, room - n * len(systems) * len(measures))
        if len(measures) < len(board.measures):
            left_out.append(f"{board.of.name}: differences per query by {', '.join(measures)} alone")
        if len(systems) < len(board.rows):
            left_out.append(
                f"{board.of.name}: differences for the best {len(systems)} of {len(board.rows)} systems"
            )
        by_run = {row.system.run: row.number for row in systems if row.system.run is not None}
        rows.append(
            {
                "dataset": board.of.name,
                "measures": measures,
                "t": float(stats.t.ppf(0.975, max(1, n - 1))),
                "queries": [[query_id, text[: max(24, min(MAX_QUERY_TEXT, 300_000 // n))]] for query_id, text in board.texts],
                "systems": [
                    {
                        "number": row.number, "name": row.name, "kind": row.system.kind,
                        "base": by_run.get(row.system.source_run) if row.system.source_run is not None else None,
                    }
                    for row in systems
                ],
                "scores": {
                    m: [_rounded(board, row, m) for row in systems] for m in measures
                },
            }
        )  # fmt: skip
    return rows, left_out


def _rounded(board: Board, row: boards.Row, measure: str) -> list[float] | None:
    values = board.scores.get((row.system, measure))
    return None if values is None else [round(float(v), 4) for v in values]


def _axis(board: Board, measure: str) -> svg.Scale:
    values = [row.values[measure] for row in board.rows if measure in row.values]
    return svg.scale([v for x in values for v in (x.low, x.high)], floor=0.0, count=5)


def _cell(board: Board, row: boards.Row, measure: str, axis: svg.Scale) -> Markup:
    value = row.values.get(measure)
    if value is None:
        return Markup("")
    base = next(
        (r for r in board.rows if r.system.run == row.system.source_run and r.system.run is not None), None
    )
    at = base.values[measure].mean if base is not None and measure in base.values else None
    says = f"{row.name}: {measure} {value.mean:.3f}, 95 % interval {value.low:.3f} to {value.high:.3f}"
    return plots.interval(value.mean, value.low, value.high, axis, row.system.kind, at, says)


def _breakable(name: str) -> Markup:
    """Allow line breaks in a name after dots, at signs and the like."""
    return Markup(re.sub(r"([._@/+])(?=.)", r"\1<wbr>", str(escape(name))))


def _places(value: float | None, n: int = 3) -> str:
    return "–" if value is None or value != value else f"{value:.{n}f}"


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")


def _p(value: float) -> str:
    return "–" if value != value else "< 0.001" if value < 0.001 else f"{value:.3f}"


def _verdict(board: Board) -> list[str]:
    """Describe the board in a sentence or two: the best system, and the best student against its first stage."""
    best = board.rows[0]
    value = best.values[board.headline]
    said = [
        f"{best.name} leads {len(board.rows)} systems with {board.headline} {value.mean:.3f} [{value.low:.3f}, {value.high:.3f}]."
    ]
    student = next((row for row in board.of_kind("student")), None)
    if student is not None and (difference := student.values[board.headline].difference) is not None:
        said.append(
            f"The best student alone, {student.name}, lies {_signed(difference.mean)} "
            f"[{_signed(difference.low)}, {_signed(difference.high)}] from {student.system.first_stage}: "
            f"{difference.verdict}."
        )
    return said


def _summary(page: Page, explorers: Sequence[explorer.Explorer]) -> list[Row]:
    """Make a row per section and dataset: how much it shows, and what was left out."""

    def row(section: str, dataset: str | None, shown: int, notes: Sequence[str]) -> Row:
        return {"section": section, "dataset": dataset, "shown": shown, "note": "; ".join(notes) or None}

    rows = [row("datasets", None, len(page.boards), page.left_out)]
    if page.calibrated:
        rows.append(row("calibration", None, len(page.calibrated), []))
    if page.question:
        rows.append(row("one stage or two", None, len(page.question.rows), [page.question.says]))
    rows += [
        row("leaderboard", part.board.of.name, len(part.board.rows), part.board.notes) for part in page.parts
    ]
    rows += [
        row("cost plots", p.board.of.name, len(p.effectiveness) + len(p.by_labels), []) for p in page.measured
    ]
    rows.append(row("learning curves", None, len(page.curves), page.curve_notes))
    rows += [row("labels", item.dataset, len(item.rows), item.notes) for item in page.labels]
    left = [f"{page.n_students_left} more students"] if page.n_students_left else []
    rows.append(row("lineage", None, len(page.students), left))
    rows += [row("queries", e.dataset, len(e.queries), e.notes) for e in explorers if e.queries]
    return rows
