"""Charts as inline SVG: scales, a scatter plot, lines and histograms. Colours and shapes are classes of the page."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgekit.report.markup import Markup, el

WIDTH, HEIGHT = 460, 320
LEFT, RIGHT, TOP, BOTTOM = 76, 14, 14, 46


@dataclass(frozen=True)
class Scale:
    """Data to a share of the axis in [0, 1], linear or logarithmic."""

    low: float
    high: float
    log: bool = False

    def at(self, value: float) -> float:
        """Where `value` lies, 0 at the low end."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self, most: int = 6) -> list[float]:
        """Round values along the axis."""
        return _log_ticks(self.low, self.high, most) if self.log else _linear_ticks(self.low, self.high, most)


def scale(values: Sequence[float], *, log: bool | None = None, margin: float = 0.06) -> Scale:
    """A scale that covers `values`; logarithmic where they span a factor of 6, unless said otherwise."""
    low, high = min(values), max(values)
    if log is None:
        log = low > 0 and high / low > 6
    if log:
        room = max((high / low) ** margin, 1.05)
        return Scale(low / room, high * room, log=True)
    room = (high - low) * margin or abs(high) * 0.05 or 1.0
    return Scale(low - room, high + room)


@dataclass(frozen=True)
class Point:
    """One mark: `series` picks the colour, `shape` the form, `title` is read and shown on hover."""

    x: float
    y: float
    low: float
    high: float
    series: int
    shape: str
    title: str
    ring: bool = False


@dataclass(frozen=True)
class Axis:
    """A named axis and how its ticks are written."""

    label: str
    show: Callable[[float], str]


def scatter(
    points: Sequence[Point],
    x: Axis,
    y: Axis,
    label: str,
    *,
    log: bool | None = None,
    limit: tuple[str, float] | None = None,
) -> Markup:
    """Points with vertical intervals; those of one series are joined in order.

    `log` is that of the horizontal scale; `limit` draws a line across with its name.
    """
    across = scale([p.x for p in points], log=log)
    up = scale([v for p in points for v in (p.low, p.high)] + ([limit[1]] if limit else []), log=False)
    paths = []
    for series in sorted({p.series for p in points if p.series >= 0}):
        corners = " ".join(f"{_x(across, p.x):.1f},{_y(up, p.y):.1f}" for p in points if p.series == series)
        paths.append(el("polyline", points=corners, class_=f"trail s{series}"))
    marks = [_mark(p, _x(across, p.x), _y(up, p.low), _y(up, p.y), _y(up, p.high)) for p in points]
    line = _limit(limit, _y(up, limit[1]), WIDTH - RIGHT) if limit else []
    return _frame([_grid(across, up, x, y), *line, *paths, *marks], label)


def lines(series: Sequence[tuple[str, Sequence[float], Sequence[float]]], x: Axis, y: Axis, label: str) -> Markup:
    """One line for each (name, x values, y values)."""
    across = scale([v for _, xs, _ in series for v in xs], log=False, margin=0.03)
    up = scale([v for _, _, ys in series for v in ys], log=False)
    drawn = []
    for i, (name, xs, ys) in enumerate(series):
        at = [(_x(across, a), _y(up, b)) for a, b in zip(xs, ys, strict=True)]
        corners = " ".join(f"{a:.1f},{b:.1f}" for a, b in at)
        drawn.append(el("polyline", el("title", name), points=corners, class_=f"line s{i}"))
        drawn += [
            el("circle", el("title", f"{name}: {y.show(v)}"), cx=a, cy=b, r=3, class_=f"dot s{i}")
            for (a, b), v in zip(at, ys, strict=True)
        ]
    return _frame([_grid(across, up, x, y), *drawn], label)


@dataclass(frozen=True)
class Bar:
    """One bar: its height in data, the number of its colour, and what is shown on hover."""

    value: float
    series: int
    title: str


def bars(
    values: Sequence[Bar],
    y: Axis,
    x_label: str,
    label: str,
    limit: tuple[str, float] | None = None,
    *,
    from_zero: bool = False,
) -> Markup:
    """Bars in order on a wide chart, from the floor of the scale up; `limit` draws a line across with its name."""
    heights = [bar.value for bar in values] + ([limit[1]] if limit else [])
    up = Scale(0.0, 1.1 * max(heights) or 1.0) if from_zero else scale(heights, log=False, margin=0.1)
    width, floor, right = 2 * WIDTH, HEIGHT - BOTTOM, 2 * WIDTH - RIGHT
    step = (right - LEFT) / len(values)
    parts = []
    for value in up.ticks(6):
        at = _y(up, value)
        parts.append(el("line", x1=LEFT, x2=right, y1=at, y2=at, class_="grid"))
        parts.append(el("text", y.show(value), x=LEFT - 8, y=at + 4, class_="tick end"))
    every = max(1, _nice(len(values) / 20))
    parts += [
        el("text", i + 1, x=LEFT + (i + 0.5) * step, y=floor + 18, class_="tick mid")
        for i in range(every - 1, len(values), every)
    ]
    for i, bar in enumerate(values):
        top, left = _y(up, bar.value), LEFT + (i + 0.12) * step
        form = el("rect", x=left, y=top, width=0.76 * step, height=max(floor - top, 0.5), class_="fill")
        parts.append(el("g", el("title", bar.title), form, class_=f"point s{bar.series}", tabindex="0", role="img"))
    if limit:
        parts += _limit(limit, _y(up, limit[1]), right)
    parts.append(el("line", x1=LEFT, x2=right, y1=floor, y2=floor, class_="axis"))
    parts.append(el("text", x_label, x=(LEFT + right) / 2, y=HEIGHT - 8, class_="label mid"))
    side = (TOP + floor) / 2
    parts.append(el("text", y.label, x=12, y=side, transform=f"rotate(-90 12 {side:g})", class_="label mid"))
    return _frame(parts, label, width)


def _limit(limit: tuple[str, float], at: float, right: float) -> list[Markup]:
    line = el("line", x1=LEFT, x2=right, y1=at, y2=at, class_="limit")
    return [line, el("text", limit[0], x=right, y=at - 5, class_="tick end")]


def _nice(value: float) -> int:
    """1, 2 or 5 times a power of ten, not below `value`."""
    power = 10 ** math.floor(math.log10(value)) if value >= 1 else 1
    return int(next(factor * power for factor in (1, 2, 5, 10) if factor * power >= value))


def histogram(
    samples: npt.NDArray[np.float64], across: Scale, marks: Sequence[tuple[str, float]], label: str
) -> Markup:
    """A filled histogram on a shared scale, stretched to its box, with a vertical line for each (class, value)."""
    width, height, bins = 1000, 48, 120
    edges = [across.low * (across.high / across.low) ** (i / bins) for i in range(bins + 1)]
    if not across.log:
        edges = list(np.linspace(across.low, across.high, bins + 1))
    counts = np.histogram(samples, edges)[0]
    tall = max(int(counts.max()), 1)
    corners = [f"0,{height}"]
    for i, count in enumerate(counts):
        top = height - (height - 4) * math.sqrt(count / tall)
        corners += [f"{i * width / bins:.1f},{top:.1f}", f"{(i + 1) * width / bins:.1f},{top:.1f}"]
    corners.append(f"{width},{height}")
    ticks = [
        el("line", x1=across.at(v) * width, x2=across.at(v) * width, y1=0, y2=height, class_=name) for name, v in marks
    ]
    return el(
        "svg", el("title", label), el("polygon", points=" ".join(corners)), ticks, role="img", class_="hist",
        viewbox=f"0 0 {width} {height}", preserveaspectratio="none",
    )  # fmt: skip


def shape(kind: str, x: float, y: float, size: float = 6.0, **attributes: object) -> Markup:
    """A circle, square, diamond or cross centred on a point."""
    if kind == "circle":
        return el("circle", cx=x, cy=y, r=size, **attributes)
    if kind == "square":
        return el("rect", x=x - size * 0.9, y=y - size * 0.9, width=size * 1.8, height=size * 1.8, **attributes)
    if kind == "diamond":
        s = size * 1.3
        return el("path", d=f"M{x:.1f} {y - s:.1f}l{s:.1f} {s:.1f}l{-s:.1f} {s:.1f}l{-s:.1f} {-s:.1f}z", **attributes)
    s = size * 0.9
    d = f"M{x - s:.1f} {y - s:.1f}l{2 * s:.1f} {2 * s:.1f}M{x - s:.1f} {y + s:.1f}l{2 * s:.1f} {-2 * s:.1f}"
    return el("path", d=d, **attributes)


def _mark(point: Point, x: float, low: float, y: float, high: float) -> Markup:
    colour = f"s{point.series}" if point.series >= 0 else "source"
    interval = el("line", x1=x, x2=x, y1=low, y2=high, class_="interval") if low != high else None
    ring = el("circle", cx=x, cy=y, r=12, class_="ring") if point.ring else None
    form = shape(point.shape, x, y, class_=f"mark {point.shape}")
    return el("g", el("title", point.title), interval, ring, form, class_=f"point {colour}", tabindex="0", role="img")


def _frame(content: Sequence[Markup], label: str, width: int = WIDTH) -> Markup:
    return el(
        "svg", el("title", label), content, viewbox=f"0 0 {width} {HEIGHT}", role="group", class_="chart",
        aria_label=label,
    )  # fmt: skip


def _grid(across: Scale, up: Scale, x: Axis, y: Axis) -> Markup:
    floor, middle = HEIGHT - BOTTOM, (LEFT + WIDTH - RIGHT) / 2
    parts = []
    for value in up.ticks(6):
        at = _y(up, value)
        parts.append(el("line", x1=LEFT, x2=WIDTH - RIGHT, y1=at, y2=at, class_="grid"))
        parts.append(el("text", y.show(value), x=LEFT - 8, y=at + 4, class_="tick end"))
    for value in across.ticks(6):
        at = _x(across, value)
        parts.append(el("line", x1=at, x2=at, y1=floor, y2=floor + 4, class_="axis"))
        parts.append(el("text", x.show(value), x=at, y=floor + 18, class_="tick mid"))
    parts.append(el("line", x1=LEFT, x2=WIDTH - RIGHT, y1=floor, y2=floor, class_="axis"))
    parts.append(el("text", x.label, x=middle, y=HEIGHT - 8, class_="label mid"))
    side = (TOP + floor) / 2
    parts.append(el("text", y.label, x=12, y=side, transform=f"rotate(-90 12 {side:g})", class_="label mid"))
    return el("g", parts)


def _x(across: Scale, value: float) -> float:
    return LEFT + across.at(value) * (WIDTH - RIGHT - LEFT)


def _y(up: Scale, value: float) -> float:
    return HEIGHT - BOTTOM - up.at(value) * (HEIGHT - BOTTOM - TOP)


def _linear_ticks(low: float, high: float, most: int) -> list[float]:
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    for step in (1 * power, 2 * power, 5 * power, 10 * power, 20 * power):
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first < most:
            break
    return [i * step for i in range(first, last + 1)]


def _log_ticks(low: float, high: float, most: int) -> list[float]:
    for factors in ((1, 1.5, 2, 3, 4, 5, 6, 8), (1, 2, 3, 5), (1, 2, 5), (1, 3), (1,)):
        powers = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
        found = [f * 10.0**p for p in powers for f in factors if low <= f * 10.0**p <= high]
        if len(found) <= most:
            return found
    return found
