"""Draw the page's plots as inline SVG. Every mark has its data in words, and a table under each plot repeats it."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from labelstore.report.svg import Scale, element, fitting_scale, percent, scale, short

COLOURS = 8  # the style sheet has as many series colours, s0 … s7
MARKER_ROOM = 16.0  # pixels; a numbered marker hides what is nearer than this
MARKER_WIDTH = 4.0  # the same across, in per cent of the plot
HEIGHT = 260  # pixels; the style sheet's
LABEL_ROOM = 9.0  # pixels between a stack and its label
CHARACTER = 2.2  # width of a label's character on a phone, in per cent of the plot
PHONE = 300  # pixels of the plot's width on a phone
MAX_STACKED = 4  # numbers that a stack's label lists
MAX_NAMED = 16  # marks that a legend names; only the table names more


@dataclass(frozen=True)
class Figure:
    """A plot with its alternative text.

    Attributes:
        key: the plot's id in the page.
        title, about: what it shows, and how to read it.
        drawing: the SVG.
        x_label, y_label: the axes' names.
        columns, table: the plotted data as a table.
        legend: (class, number, label) of each series; without a number a line of its class is shown.
    """

    key: str
    title: str
    about: str
    drawing: Markup
    x_label: str
    y_label: str
    columns: tuple[str, ...]
    table: tuple[tuple[str, ...], ...]
    legend: tuple[tuple[str, str, str], ...] = ()


@dataclass(frozen=True)
class Point:
    """A mark of a scatter plot: `label` stands in it, `says` is its tooltip."""

    label: str
    name: str
    kind: str  # a class of the style sheet: first_stage, teacher, student, fused
    x: float
    y: float
    low: float
    high: float
    says: str


@dataclass(frozen=True)
class Line:
    """A series of a line plot.

    Attributes:
        classes: of the style sheet, for colour and dash.
        marks: whether each point is drawn.
    """

    name: str
    classes: str
    points: tuple[tuple[float, float], ...]
    marks: bool = False
    unit: str = ""


def interval(
    value: float, low: float, high: float, axis: Scale, kind: str, base: float | None, says: str
) -> Markup:
    """Draw a table cell's mean with its interval, and a tick at the first stage."""
    parts = [
        element("line", class_="grid", x1=percent(axis.at(t)), x2=percent(axis.at(t)), y1="0", y2="100%")
        for t in axis.ticks
    ]
    if base is not None:
        at = percent(axis.at(base))
        parts.append(element("line", class_="base", x1=at, x2=at, y1="0", y2="100%"))
    ends = [percent(min(100.0, max(0.0, axis.at(v)))) for v in (low, high)]
    parts.append(element("line", class_="whisker", x1=ends[0], x2=ends[1], y1="50%", y2="50%"))
    parts.append(element("circle", class_="dot", cx=percent(axis.at(value)), cy="50%", r="4.5"))
    return element(
        "svg", *parts, class_=f"interval {kind}", role="img", aria_label=says,
        data_value=value, data_low=low, data_high=high,
    )  # fmt: skip


def axis_labels(axis: Scale) -> Markup:
    """Draw the ticks' labels over a column of :func:`interval` cells."""
    labels = [
        element("text", axis.label(t), class_="tick", x=percent(axis.at(t)), y="70%", text_anchor="middle")
        for t in axis.ticks
    ]
    return element("svg", *labels, class_="interval axis", aria_hidden="true")


def scatter(
    key: str,
    title: str,
    about: str,
    points: Sequence[Point],
    x_label: str,
    y_label: str,
    baselines: Sequence[Point],
) -> Figure:
    """Draw numbered marks with their intervals; first stages are dashed lines, numbered at their end.

    Every mark stands at its values. Marks that would hide each other are a stack: dots under one label with all numbers.

    Args:
        baselines: drawn as lines at their y.
    """
    across = fitting_scale([p.x for p in points])
    up = scale([v for p in (*points, *baselines) for v in (p.low, p.high)], floor=0.0)
    parts = _grid(across, up)
    for base in baselines:
        at = percent(100 - up.at(base.y))
        parts.append(
            element(
                "line", class_="baseline", x1="0", x2="100%", y1=at, y2=at, data_key=base.name, data_y=base.y
            )
        )
        parts.append(element("text", base.label, class_="tick", x="100%", y=at, dx="7", dy="4"))
    stacks = _stacks(points, across, up)
    for stack in stacks:
        parts += [_marker(p, across, up, alone=len(stack) == 1) for p in stack]
    parts += _stack_labels(stacks, across, up)
    named = [*points, *baselines]
    return Figure(
        key, title, about, _canvas(parts, f"{title}. {about}".strip()), x_label, y_label,
        ("", "system", x_label, y_label, "95 % interval"),
        tuple((p.label, p.name, f"{p.x:,.6g}", f"{p.y:.4f}", f"{p.low:.4f} to {p.high:.4f}") for p in points),
        tuple((f"number {p.kind}", p.label, p.name) for p in named) if len(named) <= MAX_NAMED else (),
    )  # fmt: skip


def lines(
    key: str,
    title: str,
    about: str,
    series: Sequence[Line],
    x_label: str,
    y_label: str,
    *,
    bounds: tuple[float, float] | None = None,
    linear: bool = True,
) -> Figure:
    """Draw lines over one pair of axes.

    Args:
        bounds: the lowest and highest y that must be visible.
        linear: False allows a logarithmic x if its values span much.
    """
    xs = [x for line in series for x, _ in line.points]
    ys = [y for line in series for _, y in line.points]
    across, up = scale(xs, zero=True) if linear else fitting_scale(xs), scale([*ys, *(bounds or ())])
    parts = _grid(across, up)
    for line in series:
        at = [(across.at(x), 100 - up.at(y)) for x, y in line.points]
        path = "M" + "L".join(f"{x:.2f} {y:.2f}" for x, y in at)
        stretched = element("path", d=path, class_=f"line {line.classes}", vector_effect="non-scaling-stroke")
        parts.append(
            element(
                "svg", stretched, viewBox="0 0 100 100", preserveAspectRatio="none", width="100%", height="100%",
                class_="stretch", data_key=line.name, data_points=len(line.points),
            )
        )  # fmt: skip
        shown = list(zip(line.points, at, strict=True))
        for (x, y), (px, py) in shown if line.marks else shown[-1:]:
            parts.append(
                element(
                    "circle", class_=f"mark {line.classes}", cx=percent(px), cy=percent(py), r="3.5",
                    role="img", aria_label=f"{line.name}: {y_label} {y:.4g} at {short(x)} {line.unit}".rstrip(),
                    data_key=line.name, data_x=x, data_y=y,
                )
            )  # fmt: skip
    first_and_last = [(line.name, line.points[0], line.points[-1], len(line.points)) for line in series]
    if all(line.marks for line in series):
        columns: tuple[str, ...] = ("series", x_label, y_label)
        table: tuple[tuple[str, ...], ...] = tuple(
            (line.name, f"{x:,.6g}", f"{y:.4f}") for line in series for x, y in line.points
        )
    else:
        columns = ("series", "points", f"first {y_label}", f"last {y_label}", f"at {x_label}")
        table = tuple(
            (name, str(n), f"{first[1]:.4f}", f"{last[1]:.4f}", f"{last[0]:,.6g}")
            for name, first, last, n in first_and_last
        )
    return Figure(
        key, title, about, _canvas(parts, f"{title}. {about}".strip()), x_label, y_label, columns, table,
        tuple((line.classes, "", line.name) for line in series),
    )  # fmt: skip


def shares(parts: Sequence[tuple[str, int]], says: str) -> Markup:
    """Draw a bar of counts by status; the widths add up to 100 %."""
    total = sum(n for _, n in parts)
    drawn, begin = [], 0.0
    for status, n in parts:
        if n:
            width = 100 * n / total
            drawn.append(
                element(
                    "rect", class_=f"share {status}", x=percent(begin), y="0", width=percent(width), height="100%",
                    data_key=status, data_value=n,
                )
            )  # fmt: skip
            begin += width
    return element("svg", *drawn, class_="shares", role="img", aria_label=says)


def _canvas(parts: Sequence[Markup], says: str) -> Markup:
    return element("svg", *parts, class_="plot marks", role="group", aria_label=says)


def _grid(across: Scale, up: Scale) -> list[Markup]:
    parts = []
    for tick in up.ticks:
        at = percent(100 - up.at(tick))
        parts.append(element("line", class_="grid", x1="0", x2="100%", y1=at, y2=at))
        parts.append(
            element("text", up.label(tick), class_="tick", x="0", y=at, dx="-8", dy="4", text_anchor="end")
        )
    for tick in across.ticks:
        at = percent(across.at(tick))
        parts.append(element("line", class_="notch", x1=at, x2=at, y1="100%", y2="100%"))
        parts.append(
            element("text", across.label(tick), class_="tick", x=at, y="100%", dy="18", text_anchor="middle")
        )
    parts.append(element("line", class_="axis", x1="0", x2="100%", y1="100%", y2="100%"))
    return parts


def _marker(point: Point, across: Scale, up: Scale, *, alone: bool) -> Markup:
    """Draw a mark with its interval: a number in a circle, or a dot if a stack's label names it."""
    x, y = percent(across.at(point.x)), percent(100 - up.at(point.y))
    ends = [percent(100 - up.at(v)) for v in (point.low, point.high)]
    number = [element("text", point.label, x=x, y=y, dy="3.5", text_anchor="middle")] if alone else []
    return element(
        "g",
        element("line", class_="whisker", x1=x, x2=x, y1=ends[0], y2=ends[1]),
        element("circle", cx=x, cy=y, r="9" if alone else "4"),
        *number,
        class_=f"mark {point.kind}", role="img", aria_label=point.says,
        data_key=point.name, data_x=point.x, data_y=point.y,
    )  # fmt: skip


def _stack_labels(stacks: Sequence[Sequence[Point]], across: Scale, up: Scale) -> list[Markup]:
    """List each stack's numbers from the highest mark to the lowest, at the side where they hide least."""
    labels = []
    drawn: list[tuple[float, float]] = []  # labels so far: per cent across, pixels up
    for stack in stacks:
        if len(stack) == 1:
            continue
        top = max(stack, key=lambda p: p.y)
        numbers = [p.label for p in sorted(stack, key=lambda p: -p.y)]
        more = len(numbers) - MAX_STACKED + 1
        shown = numbers if len(numbers) <= MAX_STACKED else [*numbers[: MAX_STACKED - 1], f"+{more}"]
        text = " · ".join(shown)
        place, height = across.at(top.x), up.at(top.y) / 100 * HEIGHT
        wide = 100 * LABEL_ROOM / PHONE + CHARACTER * len(text)
        others = [
            (across.at(p.x), up.at(p.y) / 100 * HEIGHT)
            for other in stacks
            if other is not stack
            for p in other
        ]
        right = _right_is_better(place, height, wide, [*others, *drawn])
        ends = [place + share * wide * (1 if right else -1) for share in (0.25, 0.5, 0.75, 1)]
        drawn += [(end, height) for end in ends]
        side = (
            {"dx": f"{LABEL_ROOM:g}", "text_anchor": "start"}
            if right
            else {"dx": f"{-LABEL_ROOM:g}", "text_anchor": "end"}
        )
        labels.append(
            element(
                "text", text, class_="stack", x=percent(place), y=percent(100 - up.at(top.y)), dy="4",
                data_stack=" ".join(numbers), **side,
            )
        )  # fmt: skip
    return labels


def _right_is_better(place: float, height: float, wide: float, marks: Sequence[tuple[float, float]]) -> bool:
    """Choose the side of a label: within the plot, then over few marks, then to the right, but for the plot's last part.

    Args:
        place, wide: of the label, in per cent across; `height` in pixels up, as `marks`.
    """

    def faults(right: bool) -> tuple[bool, int, bool]:
        low, high = (place, place + wide) if right else (place - wide, place)
        hidden = [
            x
            for x, y in marks
            if low - MARKER_WIDTH < x < high + MARKER_WIDTH and abs(y - height) < MARKER_ROOM
        ]
        return low < 0 or high > 100, len(hidden), right != (place < 60)

    return faults(True) <= faults(False)


def _stacks(points: Sequence[Point], across: Scale, up: Scale) -> list[list[Point]]:
    """Group the points whose markers would hide each other, in the order of their first points."""
    stacks: list[list[Point]] = []

    def near(a: Point, b: Point) -> bool:
        return (
            abs(across.at(a.x) - across.at(b.x)) < MARKER_WIDTH
            and abs(up.at(a.y) - up.at(b.y)) / 100 * HEIGHT < MARKER_ROOM
        )

    for point in points:
        stack = next((s for s in stacks if any(near(point, other) for other in s)), None)
        if stack is None:
            stacks.append([point])
        else:
            stack.append(point)
    return stacks
