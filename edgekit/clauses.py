"""One line of a recipe's gate: a limit on a metric, absolute or against another bundle."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, Strict

from edgekit.errors import UsageError
from edgekit.extras import unknown
from edgekit.units import parse_duration, parse_percent, parse_points, parse_size

Quantity = Annotated[float, Strict()] | str
"""A number in base units (seconds, bytes, fractions of one), or text such as "2 MB", "10 ms", "1.0pp", "5%"."""

UNITS: dict[str, str] = {
    **dict.fromkeys(("accuracy", "precision", "recall", "f1", "agreement"), "share"),
    **dict.fromkeys(("latency.p50", "latency.p90", "latency.p95", "latency.p99", "load", "first_inference"), "s"),
    **dict.fromkeys(("size", "bundle_size", "memory"), "bytes"),
    "loss": "nats",
    "snr": "dB",
}
"""Metric in a clause -> unit. Shares are fractions of one and shown in percent."""

RATIOS = ("latency.p50", "latency.p90", "size", "bundle_size")
"""Metrics that are compared with another bundle as a ratio."""

DIFFERENCES = ("accuracy", "precision", "recall", "f1", "loss")
"""Metrics that are compared with another bundle sample by sample, as a difference."""


class Clause(BaseModel):
    """What must hold for the bundle that ships for each (target, backend) it covers.

    `min` and `max` are absolute. `max_regression` (points for accuracy, a share for size and latency) and
    `max_ratio` need `vs`. `severity: warn` never breaks a run.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    metric: str
    target: str | None = None
    backend: str | None = None
    min: Quantity | None = None
    max: Quantity | None = None
    vs: Literal["reference", "float", "baseline", "previous"] | None = None
    max_regression: Quantity | None = None
    max_ratio: float | None = Field(default=None, gt=0)
    severity: Literal["fail", "warn"] = "fail"
    on_missing: Literal["fail", "warn", "pass"] = "fail"
    on_inconclusive: Literal["inconclusive", "fail", "warn", "pass"] = "inconclusive"
    confidence: float = Field(default=0.95, gt=0.5, lt=1.0)


def check(clause: Clause) -> None:
    """Refuse a clause that could never be judged, before anything long starts.

    Raises:
        UsageError: an unknown metric, no limit or one of the wrong kind, or a limit that cannot be read.
    """
    if clause.metric not in UNITS:
        raise UsageError(unknown("gate metric", clause.metric, UNITS))
    names = ("max_regression", "max_ratio") if clause.vs else ("min", "max")
    given = [n for n in ("min", "max", "max_regression", "max_ratio") if getattr(clause, n) is not None]
    if not given or not set(given) <= set(names):
        raise UsageError(
            f"the gate clause on {clause.metric!r} {'with' if clause.vs else 'without'} 'vs' needs "
            f"{' or '.join(names)}, got {', '.join(given) or 'no limit'}."
        )
    if clause.vs:
        _check_comparable(clause)
    limits = {name: read_limit(clause, name) for name in given}
    for name, limit in limits.items():
        if limit < 0 and UNITS[clause.metric] != "dB" and name in ("min", "max"):
            raise UsageError(f"{getattr(clause, name)!r} cannot be a limit: {clause.metric} is never negative.")
    if limits.get("min", 0) > limits.get("max", math.inf):
        raise UsageError(f"min {clause.min!r} is more than max {clause.max!r}: nothing could pass.")


def _check_comparable(clause: Clause) -> None:
    if clause.metric not in (*RATIOS, *DIFFERENCES):
        raise UsageError(
            f"{clause.metric!r} is not compared between bundles, so it cannot have 'vs'. Give min or max, or compare "
            f"{', '.join(RATIOS)}, {', '.join(DIFFERENCES)}."
        )
    if clause.max_ratio is not None and clause.metric not in RATIOS:
        raise UsageError(
            f"{clause.metric!r} has no max_ratio: bundles are compared by its difference. Give max_regression."
        )


def read_limit(clause: Clause, name: str) -> float:
    """The limit `name` of a clause in the metric's own unit; a regression of a time or a size is a share.

    >>> read_limit(Clause(metric="size", max="2 MB"), "max")
    2000000

    Raises:
        UsageError: it is not a quantity of that kind.
    """
    written, unit = getattr(clause, name), UNITS[clause.metric]
    if name == "max_ratio":
        return float(written)
    if name == "max_regression" and unit in ("s", "bytes"):
        return parse_percent(written)
    if name == "max_regression" and unit == "share":
        return _below_one(written, parse_points(written), "1.0pp")
    parse: dict[str, Callable[[float | str], float]] = {
        "share": parse_percent, "s": parse_duration, "bytes": parse_size, "nats": _plain, "dB": _plain,
    }  # fmt: skip
    limit = parse[unit](written)
    return _below_one(written, limit, "92%") if unit == "share" else limit


def _below_one(written: Quantity, share: float, example: str) -> float:
    """A bare 1.0 that was meant as one point would let everything pass."""
    if not -1 < share < 1:
        raise UsageError(f"{written!r} cannot be a limit: that is {100 * share:g} %. Write it like {example!r}.")
    return share


def _plain(written: float | str) -> float:
    try:
        number = float(written)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise UsageError(f"{written!r} is not a number. Write it like 0.5.")
    return number
