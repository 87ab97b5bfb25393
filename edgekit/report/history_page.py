"""The history of gates as a page: every metric with its interval over the gates, and what each gate said."""

from __future__ import annotations

from collections.abc import Sequence

from edgekit.report import words
from edgekit.report.charts import Axis, Point, scatter
from edgekit.report.history import Entry, History
from edgekit.report.history import Point as Seen
from edgekit.report.html import POLICY, asset, moment, section
from edgekit.report.markup import Content, Markup, el
from edgekit.report.quantities import show, show_interval
from edgekit.report.tables import chip, table

GATES = 200
"""Gates that are drawn, the last ones."""
CHARTS = 60
_SHAPES = {"pass": "circle", "fail": "cross", "missing": "cross"}
_NOTE = (
    "Circles passed, crosses failed, diamonds are neither. Bars are the intervals that were judged, the dashed line is "
    "the last limit. Gates are numbered as in the table below."
)


def render(history: History) -> str:
    """The whole page; it needs nothing from anywhere else."""
    entries = history.entries[-GATES:]
    numbered = list(enumerate(entries, len(history.entries) - len(entries) + history.left_out + 1))
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", http_equiv="Content-Security-Policy", content=POLICY),
        el("title", "edgekit history"),
        el("style", asset("report.css")),
    )
    top = el(
        "header",
        el("div", el("h1", "Gates"), el("button", "Light / dark", id="theme", type="button"), class_="title"),
        el("p", _lead(history, len(entries)), class_="lead"),
        class_="top",
    )
    content = [section("Metrics", _charts(numbered), _NOTE), section("Gates", _gates(numbered))]
    foot = el("footer", "Intervals are at the confidence of their clause. MB = 10^6 bytes.")
    body = el("body", top, el("main", content), foot, el("script", asset("report.js")))
    return f"<!DOCTYPE html>\n{el('html', head, body, lang='en')}\n"


def _lead(history: History, shown: int) -> str:
    total = len(history.entries) + history.left_out
    parts = [f"{words.plural(total, 'gate')}, the last {shown} shown" if shown < total else words.plural(total, "gate")]
    if history.skipped:
        parts.append(f"{words.plural(history.skipped, 'line')} of the file could not be read")
    return f"{'; '.join(parts)}."


def _charts(numbered: Sequence[tuple[int, Entry]]) -> Content:
    series: dict[tuple[str | None, ...], list[tuple[int, Entry, Seen]]] = {}
    for number, entry in numbered:
        for point in entry.points:
            if point.observed:
                series.setdefault((entry.model, *point.series), []).append((number, entry, point))
    drawn = [_figure(points) for points in list(series.values())[:CHARTS]]
    more = len(series) - len(drawn)
    rest = el("p", f"{more} more are in the file.", class_="quiet") if more else None
    return [el("div", drawn, class_="figures"), rest] if drawn else None


def _figure(points: Sequence[tuple[int, Entry, Seen]]) -> Markup:
    """One metric of one bundle over the gates."""
    last = points[-1][2]
    unit = last.observed.unit if last.observed else ""
    against = f" vs {last.vs}" if last.vs else ""
    name = f"{last.metric or last.clause}{against}"
    place = ", ".join(part for part in (last.target, words.backend(last.backend) if last.backend else None) if part)
    marks = [_mark(number, entry, seen) for number, entry, seen in points]
    limit = (f"{last.kind} {show(last.limit, unit)}".strip(), last.limit) if last.limit is not None else None
    gates = Axis("gate", lambda v: f"{v:.0f}" if v == int(v) and v >= 1 else "")
    chart = scatter(marks, gates, Axis(name, lambda v: show(v, unit)), f"{name}, {place}", log=False, limit=limit)
    return el("figure", el("h3", name, el("small", f" {place}")), chart)


def _mark(number: int, entry: Entry, seen: Seen) -> Point:
    observed = seen.observed
    assert observed is not None
    told = f"Gate {number}, {moment(entry.created)}: {show_interval(observed, observed.unit)}: {seen.verdict}"
    shape = _SHAPES.get(seen.verdict, "diamond")
    return Point(number, observed.value, observed.low, observed.high, 0, shape, told)


def _gates(numbered: Sequence[tuple[int, Entry]]) -> Markup | None:
    rows = []
    for number, entry in reversed(numbered):
        tone = "pass" if entry.exit_code == 0 else "unsure" if entry.exit_code in (3, 4) else "fail"
        passed = sum(point.verdict == "pass" for point in entry.points)
        cells = (moment(entry.created), entry.model, f"{passed} of {len(entry.points) + entry.cut}")
        rows.append(
            el(
                "tr",
                el("th", number, scope="row"),
                el("td", chip(words.ending(entry.exit_code), tone), class_="t"),
                [el("td", cell, class_="t") for cell in cells],
                el("td", entry.device or "stored rounds", class_="t"),
                el("td", el("code", entry.report_sha256[:12]), class_="t"),
            )
        )
    heads = ("Gate", "Outcome", "When", "Model", "Passed", "Device", "Report")
    return table("Gates", heads, rows, text=range(7)) if rows else None
