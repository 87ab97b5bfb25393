"""`report.html`: the whole report as one page that needs nothing from anywhere else."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path

from edgekit.report import figures, layers, robust_table, tables, words
from edgekit.report.course import course
from edgekit.report.figures import Samples
from edgekit.report.markup import Content, Markup, el, join
from edgekit.report.predictions import read_samples
from edgekit.report.quantities import NOTHING, show
from edgekit.report.report import Report, Result
from edgekit.report.values import Interval

_SHIPS_NOTE = (
    "Against the reference: the untouched model in fp32 on the same runtime. Faster is the ratio of median latencies, "
    "from interleaved rounds. Brackets are 95 % intervals."
)
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"


def load_samples(report: Report, folder: Path) -> Samples:
    """The raw latencies of every result that has them, by `Result.key`; `folder` is that of the report."""
    files = {r.key: r.latency_s.samples_file for r in report.results if r.latency_s and r.latency_s.samples_file}
    return {key: read_samples(folder / file) for key, file in files.items() if file}


def render(report: Report, folder: Path | None = None, *, samples: Samples | None = None) -> str:
    """The page; raw latencies are read from `folder`, the report's own, unless `samples` holds them by `Result.key`."""
    if samples is None:
        samples = load_samples(report, folder) if folder else {}
    title = f"{report.source.name}: {words.outcome(report)}"
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", http_equiv="Content-Security-Policy", content=POLICY),
        el("title", title),
        el("style", asset("report.css")),
    )
    sections = [
        section("What ships", _cards(report), _SHIPS_NOTE),
        section("Worth knowing", _warnings(report)),
        section("Gate", tables.gate(report), words.counted(report).capitalize() + "."),
        section("Accuracy, size and speed", figures.tradeoffs(report), "Bars are 95 % intervals."),
        section("Every bundle", tables.results(report), tables.RESULTS_NOTE),
        section("Latency", figures.latencies(report, samples)),
        section("Latency over time", _courses(report, samples), "Medians of stretches, with the device's state."),
        section("Stages", _stages(report)),
        section("Sensitivity of layers", layers.sensitivity(report), layers.NOTE),
        section("Metrics of the task", tables.scores(report), tables.SCORES_NOTE),
        section("Classes before and after", tables.classes(report), tables.CLASSES_NOTE),
        section("Robustness", robust_table.tables(report), robust_table.NOTE),
        section("What runs in int8", _placement(report)),
        section("Environment", tables.environment(report)),
    ]
    body = el("body", _header(report), el("main", sections), _footer(report), el("script", asset("report.js")))
    return f"<!DOCTYPE html>\n{el('html', head, body, lang='en')}\n"


def asset(name: str) -> Markup:
    """A file of this package, to stand in a page."""
    return Markup(resources.files("edgekit.report").joinpath(name).read_text(encoding="utf-8"))


def section(title: str, content: Content, note: str = "") -> Markup | None:
    """A part of a page; None where there is nothing to show."""
    if not content:
        return None
    return el("section", el("h2", title), el("p", note, class_="quiet") if note else None, content)


def _header(report: Report) -> Markup:
    chip = "pass" if report.exit_code == 0 else "unsure" if report.exit_code in (3, 4) else "fail"
    recipe = report.recipe.name if report.recipe else None
    data = report.data
    meta = [
        f"Recipe {recipe}" if recipe else None,
        f"Scored on {data.n:,} samples of {data.name} ({data.split})" if data else None,
        f"Finished {moment(report.created)}",
        f"edgekit {report.edgekit}",
    ]
    return el(
        "header",
        el(
            "div",
            el("h1", report.source.name),
            el("span", words.outcome(report), class_=f"chip big {chip}"),
            el("button", "Light / dark", id="theme", type="button"),
            class_="title",
        ),
        el("p", f"{words.done(report)} {_sentence(words.counted(report))}", class_="lead"),
        el("div", [el("span", line) for line in meta if line], class_="meta"),
        class_="top",
    )


def moment(created: str) -> str:
    """An ISO 8601 time as people write it; any other text as it is."""
    try:
        return f"{datetime.fromisoformat(created).astimezone(UTC):%Y-%m-%d %H:%M} UTC"
    except ValueError:
        return created


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _cards(report: Report) -> Markup | None:
    pairs = list(dict.fromkeys((r.target, r.backend) for r in report.results))
    cards = []
    for target, backend in pairs:
        shipped = report.shipped(target, backend)
        cards.append(_card(report, shipped) if shipped else _empty_card(report, target, backend))
    return el("div", cards, class_="cards") if cards else None


def _card(report: Report, result: Result) -> Markup:
    seen, change, times = result.accuracy, words.points(report, result), words.smaller(report, result)
    reference = words.reference_of(report, result)
    before = reference.size_bytes if reference and reference.size_bytes else report.source.size_bytes
    status = "pass" if result.status == "measured" else "plain"
    from_to = (f"{show(before, 'bytes')} to", show(result.size_bytes, "bytes"))
    size = _fact("Size", show(result.size_bytes, "bytes"))
    if times and result.role != "reference":
        size = (
            _fact("Smaller", f"{times:.1f}x", *from_to)
            if times >= 1
            else _fact("Larger", f"{1 / times:.2f}x", *from_to)
        )
    moved = words.signed_points(change) if change is not None else words.share(seen)
    facts = [
        size,
        _fact("Accuracy", moved, *_range(seen, moved), *_scored_on(result)),
        _speed_fact(result),
    ]
    why = el("p", _sentence(result.ships_reason), class_="why") if result.ships_reason else None
    head = _card_head(result.backend, result.target, f"{result.precision}, {words.status(result)}", status)
    return el("div", head, el("dl", facts), why, class_="card")


def _card_head(backend: str, target: str, said: str, tone: str) -> Markup:
    name = el("h3", words.backend(backend), el("small", target))
    return el("div", name, el("span", said, class_=f"chip {tone}"), class_="head")


def _range(seen: Interval | None, shown: str) -> tuple[str, ...]:
    if seen is None:
        return ("not measured",)
    value, ends = words.share(seen), f"[{100 * seen.low:.2f}, {100 * seen.high:.2f}]"
    return (ends,) if value == shown else (value, ends)


def _scored_on(result: Result) -> tuple[str, ...]:
    return (f"on {result.measured_on}",) if result.accuracy and result.status != "measured" else ()


def _fact(name: str, value: str, *below: str) -> Markup:
    return el("div", el("dt", name), el("dd", el("b", value), [el("span", line) for line in below]))


def _speed_fact(result: Result) -> Markup:
    pair = result.paired_with("reference")
    latency = words.percentile(result, "p50")
    if pair and result.role != "reference":
        if pair.ratio > 1:
            return _fact("Slower", f"{pair.ratio:.2f}x", f"[{pair.low:.2f}, {pair.high:.2f}]", f"p50 {latency}")
        return _fact("Faster", f"{1 / pair.ratio:.2f}x", f"[{1 / pair.high:.2f}, {1 / pair.low:.2f}]", f"p50 {latency}")
    if latency != NOTHING:
        return _fact("Speed", latency, "median latency")
    emulated = result.device is not None and result.device.emulated
    unseen = "no device" if result.status != "measured" else "not measured"
    return _fact("Speed", latency, "emulated: not timed" if emulated else unseen)


def _empty_card(report: Report, target: str, backend: str) -> Markup:
    same = [r for r in report.results if (r.target, r.backend) == (target, backend)]
    why = "; ".join(dict.fromkeys(r.reason for r in same if r.reason)) or "No bundle was built."
    head = _card_head(backend, target, "nothing ships", "fail")
    return el("div", head, el("p", why, class_="why"), class_="card")


def _warnings(report: Report) -> Content:
    """What did not help, and what was derived."""
    return el("ul", [el("li", line) for line in report.warnings], class_="warnings") if report.warnings else None


def _placement(report: Report) -> Content:
    """Where operators run, and the notes of the builds, each said once."""
    notes: dict[str, list[str]] = {}
    for result in report.results:
        for note in result.notes:
            notes.setdefault(note, []).append(f"{words.backend(result.backend)} on {result.target}")
    said = [f"{', '.join(dict.fromkeys(where))}: {note}" for note, where in notes.items()]
    listed = el("ul", [el("li", line) for line in said], class_="quiet") if said else None
    placed = figures.placement(report)
    return [part for part in (placed, listed) if part is not None]


def _courses(report: Report, samples: Samples) -> Content:
    """The course of every timing; those of bundles that ship are open."""
    timed = [r for r in report.results if len(samples.get(r.key, ()))]
    found = []
    for result in timed:
        name = f"{words.backend(result.backend)} {result.role} {result.precision} on {result.target}"
        drawn = course(name, samples[result.key], result.device.state if result.device else {})
        found.append(el("details", el("summary", name), drawn, open=result.ships))
    return found


def _stages(report: Report) -> Content:
    if not report.stages:
        return None
    charts: Sequence[Markup] = [chart for stage in report.stages for chart in figures.curves(stage)]
    config = [
        el(
            "details",
            el("summary", f"Settings of {stage.name}"),
            el("pre", json.dumps(stage.config, indent=1, ensure_ascii=False)),
        )
        for stage in report.stages
        if stage.config
    ]
    return join([tables.stages(report), el("div", charts, class_="figures curves") if charts else None, config])


def _footer(report: Report) -> Markup:
    return el(
        "footer",
        "Intervals are 95 %. Sizes count the compiled model's files alone; MB = 10^6 bytes. Ratios come from "
        f"interleaved rounds on the same device. Made by edgekit {report.edgekit}; the numbers are in report.json.",
    )
