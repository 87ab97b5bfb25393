"""`edgekit profile --html`: latencies, their course with the device's heat and clock, layers and memory on a page."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgekit.report.charts import Axis, Bar, bars, histogram, scale
from edgekit.report.course import course
from edgekit.report.html import POLICY, asset, section
from edgekit.report.markup import Content, Markup, el
from edgekit.report.profiled import Profiled, Profiles, title
from edgekit.report.quantities import show, show_interval
from edgekit.report.tables import table
from edgekit.report.words import backend

SLOWEST = 40
"""So many layers at most stand in a chart, in the order in which they run."""


def render(seen: Profiles) -> str:
    """The whole page; it needs nothing from anywhere else."""
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", http_equiv="Content-Security-Policy", content=POLICY),
        el("title", "edgekit profile"),
        el("style", asset("report.css")),
    )
    top = el(
        "header",
        el("div", el("h1", "Profile"), el("button", "Light / dark", id="theme", type="button"), class_="title"),
        el("div", el("span", f"Measured {seen.created}"), el("span", f"edgekit {seen.edgekit}"), class_="meta"),
        class_="top",
    )
    timed = [one for one in seen.results if one.samples_s]
    content = [
        section("Every bundle", _overview(seen.results), "Brackets are 95 % intervals; energy is of one inference."),
        section("Worth knowing", _failures(seen.results)),
        section("Latency", _latencies(timed)),
        section("Latency over time", [_course(one) for one in timed], "Medians of stretches, with the device's state."),
        section("Layers", [_layers(one) for one in timed if one.layers]),
    ]
    foot = el("footer", "MB = 10^6 bytes. The numbers, and every single latency, are in --json.")
    body = el("body", top, el("main", content), foot, el("script", asset("report.js")))
    return f"<!DOCTYPE html>\n{el('html', head, body, lang='en')}\n"


def _name(one: Profiled) -> str:
    emulated = " (emulated)" if one.emulated else ""
    what = f"{backend(one.backend)} {one.role} {one.precision}" if one.backend else one.bundle
    return f"{what} on {one.device_name}{emulated}"


def _overview(results: Sequence[Profiled]) -> Markup | None:
    heads = (
        "Bundle", "Device", "p50", "p90", "p99", "Load", "First answer", "Peak memory", "Size", "Energy",
    )  # fmt: skip
    rows = []
    for one in results:
        latency = one.latency_s
        known = [getattr(latency, name) if latency else None for name in ("p50", "p90", "p99")]
        cells = [show_interval(value, "s") if value else "-" for value in known]
        cells += [show(one.load_s, "s"), show(one.to_first_answer_s, "s"), show(one.peak_rss_bytes, "bytes")]
        cells += [show(one.size_bytes, "bytes"), show(one.energy_j, "J")]
        rows.append(
            el("tr", el("th", title(one), scope="row"), el("td", one.device_name), [el("td", cell) for cell in cells])
        )
    return table("Every bundle", heads, rows, text=(0, 1)) if rows else None


def _failures(results: Sequence[Profiled]) -> Content:
    told = [(one, one.error or one.invalid) for one in results]
    told += [
        (one, f"{one.absolute_invalid}: times do not count as they are") for one in results if one.absolute_invalid
    ]
    told += [(one, note) for one in results for note in one.notes]
    items = [el("li", f"{_name(one)}: {why}") for one, why in told if why]
    return el("ul", items, class_="warnings") if items else None


def _latencies(timed: Sequence[Profiled]) -> Content:
    if not timed:
        return None
    samples = [np.asarray(one.samples_s) for one in timed]
    ends = [max(float(end), 1e-9) for taken in samples for end in np.quantile(taken, [0.0, 0.995])]
    across = scale(ends, margin=0.03)
    rows: list[Markup] = []
    for i, (one, taken) in enumerate(zip(timed, samples, strict=True)):
        latency = one.latency_s
        marks = [(p, getattr(latency, p).value) for p in ("p50", "p90") if latency and getattr(latency, p)]
        inside = [(p, value) for p, value in marks if across.low <= value <= across.high]
        shown = dict(marks)
        drawn = histogram(taken, across, inside, f"Latency of {_name(one)}")
        rows += [
            el("div", _name(one), class_="name"),
            el("div", drawn, class_=f"s{i % 6}"),
            el("div", el("b", show(shown.get("p50"), "s")), f" p50, {show(shown.get('p90'), 's')} p90", class_="num"),
        ]
    ruler = [el("span", show(v, "s"), style=f"left:{100 * across.at(v):.2f}%") for v in across.ticks(7)]
    note = "Solid line: p50, dashed: p90. Heights grow with the square root of the count, so that tails show."
    return el("figure", el("div", rows, el("div", ruler, class_="ruler"), class_="rows"), el("figcaption", note))


def _course(one: Profiled) -> Markup:
    drawn = course(_name(one), one.samples_s, one.device.state if one.device else {})
    return el("figure", el("h3", _name(one)), drawn, style="margin-top:14px")


def _layers(one: Profiled) -> Markup:
    layers = one.layers or ()
    slow = sorted(layers, key=lambda layer: -layer.seconds)[:SLOWEST]
    shown = [layer for layer in layers if layer in slow]
    drawn = [Bar(x.seconds, 0, f"{x.name} ({x.type}): {show(x.seconds, 's')}, {x.share:.1%}") for x in shown]
    name = f"Time by layer of {_name(one)}"
    chart = bars(drawn, Axis("ms", lambda v: f"{1e3 * v:.3g}"), "layer, in the order of running", name)
    left = len(layers) - len(shown)
    note = el("figcaption", f"The {len(shown)} slowest; {left} more are not drawn.") if left else None
    scrolled = el("div", chart, class_="wide", tabindex="0", role="region", aria_label=name)
    return el("figure", el("h3", _name(one)), scrolled, note, style="margin-top:14px")
