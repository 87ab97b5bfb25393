"""How sensitive every layer is: a chart in the graph's order, and a table with what keeping each one costs."""

from __future__ import annotations

from collections.abc import Sequence

from edgekit.report.charts import Axis, Bar, bars
from edgekit.report.figures import key
from edgekit.report.markup import Content, Markup, el
from edgekit.report.quantities import show, show_count
from edgekit.report.report import LayerInfo, Report, StageInfo
from edgekit.report.tables import chip, table

NOTE = (
    "The error at the outputs with one layer in 8 bits and all others in float, on a few calibration samples. Kept in "
    "float are those that buy most accuracy for their time, until the bound is met. A layer without a time of its own "
    "is computed inside another."
)
MOST_ROWS = 20
GRIDS = {
    "affine": "ONNX Runtime, OpenVINO and LiteRT",
    "symmetric": "TensorRT",
    "reduced_range": "x86 without VNNI",
}


def sensitivity(report: Report) -> Content:
    """A chart and a table for every stage and grid whose layers were looked at one by one."""
    found = []
    for stage in report.stages:
        for variant in dict.fromkeys(layer.variant for layer in stage.sensitivity):
            rows = [layer for layer in stage.sensitivity if layer.variant == variant]
            found += [_chart(stage, variant, rows), _table(variant, rows)]
    return found


def _chart(stage: StageInfo, variant: str, rows: Sequence[LayerInfo]) -> Markup:
    drawn = [
        Bar(-(layer.snr_db or 0.0), int(layer.kept), f"{i}. {layer.layer} ({layer.op}): {_said(layer)}")
        for i, layer in enumerate(rows, 1)
    ]
    floor = stage.config.get("min_snr")
    limit = (f"min_snr {floor:g} dB", -float(floor)) if isinstance(floor, int | float) else None
    title = f"Error of each layer alone, {variant} grid ({GRIDS.get(variant, variant)})"
    axis = Axis("output error against output", lambda v: f"{v:g} dB")
    chart = bars(drawn, axis, "layer, in the graph's order", title, limit)
    keys = [
        key(name, el("rect", x=1, y=3, width=14, height=10, rx=2, fill=f"var(--s{i})"))
        for i, name in enumerate(("8 bits", "kept in float"))
        if any(bar.series == i for bar in drawn)
    ]
    scrolled = el("div", chart, class_="wide", tabindex="0", role="region", aria_label=title)
    return el("figure", el("h3", title), scrolled, el("div", keys, class_="legend"), style="margin-top:14px")


def _said(layer: LayerInfo) -> str:
    kept = ", kept in float" if layer.kept else ""
    return f"{show(layer.snr_db, 'dB')} alone, {show(layer.share, 'share')} of the error{kept}"


def _table(variant: str, rows: Sequence[LayerInfo]) -> Markup:
    ranked = sorted(enumerate(rows, 1), key=lambda pair: -pair[1].share)
    shown = ranked[:MOST_ROWS]
    head = (
        "Layer", "", "Number", "Operator", "SNR alone", "Share of error", "Time in float", "Time in 8 bits",
        "Cost of float",
    )  # fmt: skip
    lines = [
        el(
            "tr",
            el("th", layer.layer, scope="row"),
            el("td", chip("float", "unsure") if layer.kept else "", class_="t"),
            el("td", number),
            el("td", layer.op),
            [el("td", cell) for cell in _numbers(layer)],
            class_="ships" if layer.kept else None,
        )
        for number, layer in shown
    ]
    few = f"The {len(shown)} most sensitive of {len(rows)} layers; report.json holds all." if ranked[MOST_ROWS:] else ""
    name = f"Layers by sensitivity, {variant} grid"
    inner = table(name, head, lines, text=(0, 1), class_="sticky")
    return el("details", el("summary", name), el("p", few, class_="quiet") if few else None, inner, open=True)


def _numbers(layer: LayerInfo) -> tuple[str, ...]:
    timed = layer.unit == "s"
    cost = show(layer.cost, "s") if timed else f"{show_count(layer.cost)} MACs"
    times = (layer.float_s or None, layer.int8_s or None) if timed else (None, None)
    return (show(layer.snr_db, "dB"), show(layer.share, "share"), *(show(t, "s") for t in times), cost)
