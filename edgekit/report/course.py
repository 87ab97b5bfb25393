"""Latency over time and, beside it, what the device told of its heat, clocks and power meanwhile."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.report.charts import Axis, lines
from edgekit.report.figures import key
from edgekit.report.markup import Markup, el

STRETCHES = 60
"""A course is drawn as the medians of so many stretches of it at most."""

COLOURS = 6
STATES = (
    ("temperature_c", "hottest zone", "°C", 1.0),
    ("cpu_mhz", "fastest core", "GHz", 1e-3),
    ("gpu_mhz", "GPU", "GHz", 1e-3),
)
"""What of the watched state is drawn: its field, what its highest value is called, unit and factor."""

SECONDS = Axis("seconds", lambda v: f"{v:g}")


def course(name: str, samples: Sequence[float] | npt.NDArray[np.float64], state: Mapping[str, Any]) -> Markup:
    """The charts of one timing.

    Args:
        name: what was timed, in words.
        samples: latencies in seconds, in order.
        state: the device's, as the agent tells it: `during` and `timed_s` among it.
    """
    drawn = [_latency(name, np.asarray(samples)), *_watched(name, state)]
    if rails := _rails(state):
        axis = Axis("power, W", lambda v: f"{v:.4g}")
        names = [
            key(rail, el("rect", x=1, y=6, width=14, height=4, rx=2, fill=f"var(--s{i % COLOURS})"))
            for i, (rail, _, _) in enumerate(rails)
        ]
        chart = lines(rails[:COLOURS], SECONDS, axis, f"power of each rail while {name} was timed")
        drawn.append(el("div", chart, el("div", names[:COLOURS], class_="legend")))
    return el("div", drawn, class_="figures")


def _latency(name: str, taken: npt.NDArray[np.float64]) -> Markup:
    at = np.cumsum(taken) - taken
    parts = [part for part in np.array_split(np.arange(len(taken)), min(STRETCHES, len(taken))) if len(part)]
    middle = [float(np.median(taken[part])) for part in parts]
    starts = [float(at[part[0]]) for part in parts]
    axis = Axis("latency, ms", lambda v: f"{1e3 * v:.4g}")
    return lines([("median latency", starts, middle)], SECONDS, axis, f"Latency over time of {name}")


def _watched(name: str, state: Mapping[str, Any]) -> Iterator[Markup]:
    for what, label, unit, factor in STATES:
        told = [(at, factor * max(_numbers(value))) for at, value in _looks(state, what) if _numbers(value)]
        if len(told) > 1:
            axis = Axis(f"{label}, {unit}", lambda v: f"{v:.4g}")
            xs, ys = [at for at, _ in told], [value for _, value in told]
            yield lines([(label, xs, ys)], SECONDS, axis, f"{label} while {name} was timed")


def _rails(state: Mapping[str, Any]) -> list[tuple[str, list[float], list[float]]]:
    looks = [(at, value) for at, value in _looks(state, "rails_w") if isinstance(value, Mapping)]
    names = dict.fromkeys(rail for _, value in looks for rail in value)
    found = []
    for rail in names:
        told = [(at, float(value[rail])) for at, value in looks if rail in value]
        if len(told) > 1:
            found.append((str(rail), [at for at, _ in told], [watts for _, watts in told]))
    return found


def _looks(state: Mapping[str, Any], what: str) -> Iterator[tuple[float, Any]]:
    """Seconds since the timing began, and the value of a field there."""
    begun = (state.get("timed_s") or [0.0])[0]
    for look in state.get("during") or ():
        if look.get(what) is not None:
            yield float(look["time_s"]) - begun, look[what]


def _numbers(value: Any) -> list[float]:
    """A number, a list of them, or those of a mapping."""
    values = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else [value]
    return [float(one) for one in values if one is not None]
