"""Show label quality by teacher: statuses, repairs, position bias, agreement; by the shipped analyses, within bounds."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import duckdb
from markupsafe import Markup

from labelstore.labels import quality as label_quality
from labelstore.report import plots
from labelstore.report.plots import Figure, Line
from labelstore.store import keys
from labelstore.store.rows import fetch

Row = dict[str, object]
MAX_PAIRS = (
    150_000_000  # passage pairs that agreement may compare; beyond, the page names the command that does
)
MAX_MATRIX = 30  # labelings in an agreement table
STATUSES = ("ok", "repaired", "quarantined", "other")


@dataclass(frozen=True)
class Labeling:
    """A row of the label-quality table."""

    number: int
    name: str
    teacher: str
    first_stage: str | None
    strategy: str
    depth: int
    reliable_depth: int | None
    lists: int
    repairs: int
    quarantined: int
    calls: int
    tokens: int | None
    cost: float | None  # None: no price known
    position_bias: float | None
    untouched: float | None
    licence: str | None
    counts: dict[str, int]  # lists by status
    statuses: Markup
    says: str
    ndcg: float | None = None
    tau: float | None = None
    shared_passages: int = 0


@dataclass
class Labels:
    """The labelings of one dataset.

    Attributes:
        reference: the labeling that `tau` compares with.
        agreement: (row, column) -> tau, by the labelings' numbers.
        bias: the plot of places by position shown.
    """

    dataset: str
    rows: list[Labeling]
    reference: str | None = None
    agreement: dict[tuple[int, int], float] = field(default_factory=dict)
    bias: Figure | None = None
    statuses: list[str] = field(default_factory=list)  # those that occur
    notes: list[str] = field(default_factory=list)


def of_datasets(con: duckdb.DuckDBPyConnection, datasets: Sequence[str]) -> list[Labels]:
    """Collect the label quality of each dataset that has labelings."""
    found = fetch(con, "SELECT * FROM labeling_quality ORDER BY dataset, labeling")
    bias: dict[int, list[Row]] = {}  # by the number of positions that are taken together
    made = []
    for dataset in datasets:
        rows = [row for row in found if row["dataset"] == dataset]
        if rows:
            bucket = 1 if max(_number(row["depth"]) for row in rows) <= 20 else 5
            if bucket not in bias:
                bias[bucket] = label_quality.analysis(con, "position_bias", bucket=bucket)
            made.append(_labels(con, dataset, rows, bias[bucket]))
    return made


def _labels(con: duckdb.DuckDBPyConnection, dataset: str, rows: Sequence[Row], bias: Sequence[Row]) -> Labels:
    made = Labels(dataset, [])
    quality: dict[object, Row] = {}
    agreed: list[Row] = []
    n_pairs = _pairs(con, dataset)
    if n_pairs * len(rows) <= MAX_PAIRS:
        quality = {
            row["labeling"]: row for row in label_quality.analysis(con, "label_quality", dataset=dataset)
        }
        made.reference = next((str(q["reference"]) for q in quality.values() if q["reference"]), None)
    else:
        made.notes.append(
            f"Agreement and nDCG@10 would compare {n_pairs * len(rows):,} pairs: "
            f"msft sql @label_quality --param dataset={dataset} does"
        )
    if len(rows) > 1 and quality and n_pairs * len(rows) ** 2 / 2 <= MAX_PAIRS:
        agreed = label_quality.analysis(con, "agreement", dataset=dataset)
    order = sorted(
        rows, key=lambda r: (-_number(quality.get(r["labeling"], {}).get("nDCG@10")), str(r["labeling"]))
    )
    made.rows = [_row(n, row, quality.get(row["labeling"], {})) for n, row in enumerate(order, 1)]
    made.statuses = [s for s in STATUSES if any(row.counts[s] for row in made.rows)]
    numbers = {row.name: row.number for row in made.rows if row.number <= MAX_MATRIX}
    for pair in agreed:
        one, other = numbers.get(str(pair["labeling"])), numbers.get(str(pair["other"]))
        if one and other and pair["tau"] is not None:
            made.agreement[one, other] = made.agreement[other, one] = _number(pair["tau"])
    if agreed and len(made.rows) > MAX_MATRIX:
        made.notes.append(f"Agreement is shown for the first {MAX_MATRIX} of {len(made.rows)} labelings")
    made.bias = _bias(f"bias-{keys.content_key('figure', dataset)[:8]}", made.rows, bias, made.notes)
    return made


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 0.0


def _pairs(con: duckdb.DuckDBPyConnection, dataset: str) -> int:
    """Count passage pairs within the lists of a dataset's largest labeling."""
    ((n,),) = con.execute(
        """SELECT coalesce(max(n), 0)::BIGINT FROM (
               SELECT sum(size * (size - 1) // 2) AS n FROM (
                   SELECT p.labeling, p.permutation, count(*) AS size FROM permutations p JOIN permutation_items i USING (permutation)
                   JOIN labelings l USING (labeling) JOIN datasets d ON d.dataset = l.dataset WHERE d.name = ? GROUP BY ALL
               ) GROUP BY labeling)""",
        [dataset],
    ).fetchall()
    return int(n)


def _row(number: int, row: Row, quality: Row) -> Labeling:
    def count(key: str) -> int:
        return int(_number(row[key]))

    lists = count("lists")
    parts = {"ok": count("ok"), "repaired": count("repaired"), "quarantined": count("quarantined")}
    parts["other"] = max(0, lists - parts["ok"] - parts["repaired"])
    says = ", ".join(f"{n:,} {status}" for status, n in parts.items() if n) or "no list"
    return Labeling(
        number=number,
        name=str(row["labeling"]),
        teacher=str(row["teacher"]),
        first_stage=_text(row["first_stage"]),
        strategy=str(row["strategy"]),
        depth=count("depth"),
        reliable_depth=count("reliable_depth") if row["reliable_depth"] is not None else None,
        lists=lists,
        repairs=count("repairs"),
        quarantined=parts["quarantined"],
        calls=count("calls"),
        tokens=count("tokens_in") + count("tokens_out") if count("calls") else None,
        cost=_maybe(row["cost"]) if count("calls") else None,
        position_bias=_maybe(row["position_bias"]),
        untouched=_maybe(row["untouched"]),
        licence=_text(row["licence"]),
        counts=parts,
        statuses=plots.shares([(s, parts[s]) for s in STATUSES], says) if sum(parts.values()) else Markup(""),
        says=says,
        ndcg=_maybe(quality.get("nDCG@10")),
        tau=_maybe(quality.get("tau")),
        shared_passages=int(_number(quality.get("shared_passages"))),
    )


def _maybe(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _bias(key: str, labelings: Sequence[Labeling], found: Sequence[Row], notes: list[str]) -> Figure | None:
    """Plot where passages end up by the position that they were shown at."""
    places: dict[str, list[tuple[float, float]]] = {}
    for row in found:
        middle = (_number(row["from_position"]) + _number(row["to_position"])) / 2
        places.setdefault(str(row["labeling"]), []).append((middle, _number(row["mean_place"])))
    known = [row for row in labelings if len(places.get(row.name, ())) > 1]
    if not known:
        return None
    if len(known) > plots.COLOURS:
        notes.append(f"Position bias is drawn for the first {plots.COLOURS} of {len(known)} labelings")
    series = [
        Line(row.name, f"s{n}", tuple(places[row.name]), marks=True)
        for n, row in enumerate(known[: plots.COLOURS])
    ]
    about = (
        "Mean place (0 first, 1 last) of the passages by the position they were shown at. Over a good first stage it "
        "rises; a straight climb from 0 to 1 is a teacher that moves nothing."
    )
    return plots.lines(
        key,
        "Position shown and place given",
        about,
        series,
        "position shown",
        "mean place",
        bounds=(0.0, 1.0),
    )
