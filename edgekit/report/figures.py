"""The report's charts: what is drawn from which numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from edgekit.report import words
from edgekit.report.charts import Axis, Point, Scale, histogram, lines, scale, scatter, shape
from edgekit.report.markup import Markup, el
from edgekit.report.quantities import show, show_interval
from edgekit.report.report import Report, Result, StageInfo

SHAPES = {"reference": "circle", "float": "square", "quantized": "diamond"}
COLOURS = 6
_NOT_CURVES = {"epoch", "step", "seconds", "lr", "learning_rate", "time", "samples_per_second"}
Samples = Mapping[str, npt.NDArray[np.float64]]


def colours(report: Report) -> dict[str, int]:
    """Backend -> number of its colour, in order of appearance."""
    return {name: i % COLOURS for i, name in enumerate(dict.fromkeys(r.backend for r in report.results))}


def tradeoffs(report: Report) -> Markup | None:
    """Accuracy against size, and against latency for every target that was timed."""
    figures = []
    sized = [r for r in report.results if r.accuracy and r.size_bytes]
    if sized:
        points = [_point(report, r, r.size_bytes or 0, show(r.size_bytes, "bytes")) for r in sized]
        source = words.source_accuracy(report)
        if source:
            title = f"source: {show_interval(source, 'share')}, {show(report.source.size_bytes, 'bytes')}"
            size = float(report.source.size_bytes)
            points.append(Point(size, source.value, source.low, source.high, -1, "cross", title))
        axis = Axis("size of the compiled model", lambda v: _short(v, "bytes"))
        figures.append(_tradeoff(report, "Accuracy against size", points, axis, source is not None))
    for target in dict.fromkeys(r.target for r in report.results):
        timed = [r for r in report.results if r.target == target and r.accuracy and r.latency_s and r.latency_s.p50]
        if timed:
            points = [_point(report, r, r.latency_s.p50.value, words.percentile(r, "p50")) for r in timed]  # type: ignore[union-attr]
            axis = Axis("median latency", lambda v: _short(v, "s"))
            figures.append(_tradeoff(report, f"Accuracy against latency on {target}", points, axis, False))
    return el("div", figures, class_="figures") if figures else None


def _point(report: Report, result: Result, x: float, shown: str) -> Point:
    seen = result.accuracy
    assert seen is not None
    ships = ", ships" if result.ships else ""
    title = (
        f"{words.backend(result.backend)} {result.role} {result.precision} on {result.target}{ships}: "
        f"{show_interval(seen, 'share')}, {shown}"
    )
    series = colours(report)[result.backend]
    return Point(x, seen.value, seen.low, seen.high, series, SHAPES[result.role], title, ring=result.ships)


def _tradeoff(report: Report, title: str, points: Sequence[Point], axis: Axis, source: bool) -> Markup:
    chart = scatter(points, axis, Axis("accuracy", lambda v: f"{100 * v:.4g} %"), title)
    return el(
        "figure", el("h3", title), chart, _legend(report, {p.series for p in points}, {p.shape for p in points}, source)
    )


def _legend(report: Report, series: set[int], shapes: set[str], source: bool) -> Markup:
    items = [
        key(words.backend(name), el("rect", x=1, y=3, width=14, height=10, rx=2, fill=f"var(--s{i})"))
        for name, i in colours(report).items()
        if i in series
    ]
    items += [
        key(role, shape(kind, 8, 8, class_=f"mark {kind} source")) for role, kind in SHAPES.items() if kind in shapes
    ]
    items.append(key("ships", el("circle", cx=8, cy=8, r=7, class_="ring source")))
    if source:
        items.append(key("source model", shape("cross", 8, 8, class_="mark cross source")))
    return el("div", items, class_="legend")


def key(name: str, mark: Markup) -> Markup:
    """An entry of a legend."""
    return el("span", el("svg", mark, viewbox="0 0 16 16", aria_hidden="true"), name)


def latencies(report: Report, samples: Samples) -> Markup | None:
    """For every target a histogram of each bundle's raw samples on one scale."""
    figures = []
    for target in dict.fromkeys(r.target for r in report.results):
        timed = [r for r in report.results if r.target == target and len(samples.get(r.key, ()))]
        if timed:
            figures.append(_latency_figure(report, target, timed, samples))
    return el("div", figures) if figures else None


def _latency_figure(report: Report, target: str, timed: Sequence[Result], samples: Samples) -> Markup:
    ends = [end for r in timed for end in np.quantile(samples[r.key], [0.0, 0.995])]
    across = scale([max(float(end), 1e-9) for end in ends], margin=0.03)
    beyond = sum(int(np.sum(samples[r.key] > across.high)) for r in timed)
    total = sum(len(samples[r.key]) for r in timed)
    worst = max(float(samples[r.key].max()) for r in timed)
    rows: list[Markup] = []
    for result in timed:
        rows += _latency_row(report, result, samples[result.key], across)
    ruler = [
        el("span", _short(v, "s"), style=f"left:{100 * across.at(v):.2f}%") for v in across.ticks(7)
    ]  # fmt: skip
    note = "Solid line: p50, dashed: p90. Heights grow with the square root of the count, so that tails show. "
    note += f"{total:,} samples"
    note += f", {beyond:,} of them beyond the axis (at most {show(worst, 's')})." if beyond else "."
    device = timed[0].device.name if timed[0].device else target
    return el(
        "figure",
        el("h3", f"Latency on {target} ({device})"),
        el("div", rows, el("div", ruler, class_="ruler"), class_="rows"),
        el("figcaption", note),
        style="margin-top:14px",
    )  # fmt: skip


def _latency_row(report: Report, result: Result, samples: npt.NDArray[np.float64], across: Scale) -> list[Markup]:
    latency = result.latency_s
    marks = [(name, getattr(latency, name).value) for name in ("p50", "p90") if latency and getattr(latency, name)]
    inside = [(name, value) for name, value in marks if across.low <= value <= across.high]
    label = f"{words.backend(result.backend)} {result.role} {result.precision}"
    ships = [" ", el("span", "ships", class_="chip pass")] if result.ships else None
    p50, p90 = words.percentile(result, "p50"), words.percentile(result, "p90")
    colour = colours(report)[result.backend]
    return [
        el("div", label, ships, class_="name"),
        el("div", histogram(samples, across, inside, f"Latency of {label}: p50 {p50}, p90 {p90}"), class_=f"s{colour}"),
        el("div", el("b", p50), f" p50, {p90} p90", class_="num"),
    ]


def curves(stage: StageInfo) -> list[Markup]:
    """The convergence of a stage: entries that share a last word (`train_loss`, `val_loss`) share a chart."""
    names = [n for n in dict.fromkeys(key for entry in stage.curve for key in entry) if n not in _NOT_CURVES]
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(name.rpartition("_")[2], []).append(name)
    return [_curve(stage, group, members) for group, members in groups.items()]


def _curve(stage: StageInfo, group: str, members: Sequence[str]) -> Markup:
    series = []
    for name in members:
        at = [(entry.get("epoch", float(i + 1)), entry[name]) for i, entry in enumerate(stage.curve) if name in entry]
        series.append((name, [x for x, _ in at], [y for _, y in at]))
    share = group in ("accuracy", "agreement", "top1", "recall", "precision", "f1")
    y = Axis(group, (lambda v: f"{100 * v:.4g} %") if share else (lambda v: f"{v:.3g}"))
    chart = lines(series, Axis("epoch", lambda v: f"{v:g}"), y, f"{stage.name}: {group} by epoch")
    keys = [
        key(name.replace("_", " "), el("rect", x=1, y=6, width=14, height=4, rx=2, fill=f"var(--s{i % COLOURS})"))
        for i, (name, _, _) in enumerate(series)
    ]
    return el("figure", el("h3", f"Convergence of {stage.name}: {group}"), chart, el("div", keys, class_="legend"))


def placement(report: Report) -> Markup | None:
    """How many operators of every bundle run in int8, and why the others don't."""
    placed = [r for r in report.results if r.role == "quantized" and r.int8_nodes is not None]
    rows = [row for result in placed for row in _placement_row(report, result)]
    if not rows:
        return None
    return el("figure", el("div", rows, class_="rows"), [_reasons(r) for r in placed if r.float_reasons])


def _placement_row(report: Report, result: Result) -> list[Markup]:
    whole, rest = result.int8_nodes or 0, result.float_nodes or 0
    total = max(whole + rest, 1)
    label = f"{whole} of {whole + rest} operators in int8"
    parts = [
        el("i", style=f"width:{100 * whole / total:.2f}%"),
        el("i", class_="rest", style=f"width:{100 * rest / total:.2f}%"),
    ]
    colour = colours(report)[result.backend]
    bar = el("div", parts, class_=f"bar s{colour}", role="img", aria_label=label)
    name = f"{words.backend(result.backend)}, {result.target}"
    return [el("div", name, class_="name"), bar, el("div", el("b", whole), f" int8, {rest} float", class_="num")]


def _reasons(result: Result) -> Markup:
    by_reason: dict[str, list[str]] = {}
    for node, why in result.float_reasons.items():
        by_reason.setdefault(why, []).append(node)
    items = [el("li", f"{why}: ", el("code", ", ".join(nodes))) for why, nodes in by_reason.items()]
    head = f"Float operators of {words.backend(result.backend)} on {result.target}"
    return el("details", el("summary", head), el("ul", items))


def _short(value: float, unit: str) -> str:
    """A tick: as few digits as it needs."""
    if unit == "bytes":
        return f"{value / 1e6:.3g} MB" if value >= 1e6 else f"{value / 1e3:.3g} kB"
    return f"{value:.3g} s" if value >= 1 else f"{value * 1e3:.3g} ms" if value >= 1e-3 else f"{value * 1e6:.3g} µs"
