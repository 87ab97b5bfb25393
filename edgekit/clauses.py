"""One line of a recipe's gate: a limit on a metric, absolute or against another bundle."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, Strict

from edgekit.errors import UsageError
from edgekit.extras import unknown
from edgekit.tasks import METRICS
from edgekit.units import parse_duration, parse_energy, parse_percent, parse_points, parse_rate, parse_size
from edgekit.yamlfile import Document, Place, read_yaml

Quantity = Annotated[float, Strict()] | str
"""A number in base units (seconds, bytes, fractions of one), or text such as "2 MB", "10 ms", "1.0pp", "5%"."""

LATENCY = re.compile(r"latency\.p(50|90|95|99(?:\.9)?)")

UNITS: dict[str, str] = {
    **dict.fromkeys(("accuracy", "precision", "recall", "f1", "worst_class", "worst_slice", "agreement"), "share"),
    **dict.fromkeys(("calibration_error", "int8_share"), "share"),
    **dict.fromkeys(("latency.p50", "latency.p90", "latency.p95", "latency.p99", "latency.p99.9"), "s"),
    **dict.fromkeys(("load", "first_inference", "cold_start"), "s"),
    **dict.fromkeys(("size", "bundle_size", "memory"), "bytes"),
    "throughput": "/s",
    "energy": "J",
    "loss": "nats",
    "snr": "dB",
    **{name: metric.unit for name, metric in METRICS.items()},
}
"""Metric in a clause -> unit. Shares are fractions of one and shown in percent."""

FAMILIES = {"robustness.": "share", "user.": ""}
"""Beginnings of the names of metrics that only the report knows, and their unit; "" where the report says it."""

RATIOS = ("latency.p50", "latency.p90", "size", "bundle_size", "memory")
"""Metrics that are compared with another bundle as a ratio."""

DIFFERENCES = (
    "accuracy", "precision", "recall", "f1", "loss", "calibration_error", "worst_class", "worst_slice", "int8_share",
    *METRICS,
)  # fmt: skip
"""Metrics that are compared with another bundle as a difference, those of samples sample by sample."""

LOWER_IS_BETTER = ("loss", "calibration_error", *(name for name, metric in METRICS.items() if metric.lower))
"""Of those, the ones whose growth is the loss."""


LIMITS = ("min", "max", "max_regression", "max_ratio")


class Clause(BaseModel):
    """What must hold for the bundle that ships for each (target, backend) it covers.

    `percentile` goes with the metric `latency`: 90 is the same as `latency.p90`. `min` and `max` are absolute.
    `max_regression` (points for accuracy, a share for size and latency) and `max_ratio` need `vs`. `severity: warn`
    never breaks a run.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    metric: str
    percentile: float | None = Field(default=None, ge=50, le=99.9)
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

    @property
    def name(self) -> str:
        """The metric in one word: `latency` with its percentile.

        >>> Clause(metric="latency", percentile=99, max="20 ms").name
        'latency.p99'
        """
        if self.metric == "latency" and self.percentile is not None:
            return f"latency.p{self.percentile:g}"
        return self.metric

    @property
    def unit(self) -> str:
        """Of the metric; "" where only the report knows it."""
        family = next((unit for start, unit in FAMILIES.items() if self.name.startswith(start)), "")
        return UNITS.get(self.name, family)

    @property
    def limits(self) -> tuple[str, ...]:
        """Which of the limits are given."""
        return tuple(name for name in LIMITS if getattr(self, name) is not None)


@dataclass(frozen=True)
class Placed:
    """A clause, and the file and line where it stands."""

    clause: Clause
    file: str | None = None
    line: int | None = None


class ClausesFile(BaseModel):
    """A `gate.yaml`: clauses, apart from a recipe."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    version: Literal[1]
    gate: tuple[Clause, ...]


def load_clauses(path: Path) -> tuple[Placed, ...]:
    """The clauses of a `gate.yaml`, or of a recipe, of which only `gate` is read.

    Raises:
        UsageError: `gate.yaml:3: gate[0].max: ...`: it cannot be read, a clause could never be judged, or two of them
            contradict one another.
    """
    return placed_clauses(read_yaml(path, "gate file"))


def placed_clauses(document: Document) -> tuple[Placed, ...]:
    """`load_clauses` of a file that was read."""
    value: dict[str, Any] = document.value
    if "model" in value:  # a recipe: its other keys are another reader's
        value = {key: value[key] for key in ("version", "gate") if key in value}
        value.setdefault("gate", [])
    clauses = document.validate(ClausesFile, value).gate
    check_all(document, clauses)
    file = str(document.path)
    return tuple(Placed(clause, file, document.line(("gate", index))) for index, clause in enumerate(clauses))


def check_all(document: Document, clauses: Sequence[Clause]) -> None:
    """`check` of every clause under `gate`, and of those on the same thing against one another.

    Raises:
        UsageError: with file and line.
    """
    for index, clause in enumerate(clauses):
        try:
            check(clause)
        except UsageError as error:
            raise document.error(("gate", index), str(error)) from None
    subjects: dict[tuple[Any, ...], dict[str, int]] = {}
    for index, clause in enumerate(clauses):
        subject = (clause.name, clause.target, clause.backend, clause.vs, clause.severity)
        before = subjects.setdefault(subject, {})
        place: Place = ("gate", index)
        for name in clause.limits:
            if name in before:
                first = document.line(("gate", before[name]))
                raise document.error(
                    place, f"{name} of {clause.name!r} is limited twice, first in line {first}. Keep one."
                )
            before[name] = index
        if clause.vs is None and {"min", "max"} <= set(before):
            least, most = (read_limit(clauses[before[name]], name) for name in ("min", "max"))
            if least > most:
                raise document.error(place, f"no {clause.name!r} is at least {least:g} and at most {most:g}.")


def check(clause: Clause) -> None:
    """Refuse a clause that could never be judged, before anything long starts.

    Raises:
        UsageError: an unknown metric, no limit or one of the wrong kind, or a limit that cannot be read.
    """
    _check_name(clause)
    names = ("max_regression", "max_ratio") if clause.vs else ("min", "max")
    if not clause.limits or not set(clause.limits) <= set(names):
        raise UsageError(
            f"the gate clause on {clause.name!r} {'with' if clause.vs else 'without'} 'vs' needs "
            f"{' or '.join(names)}, got {', '.join(clause.limits) or 'no limit'}."
        )
    if clause.vs:
        _check_comparable(clause)
    known = clause.name in UNITS or clause.unit != ""
    limits = {name: read_limit(clause, name) for name in clause.limits if known or name == "max_ratio"}
    signed = clause.unit == "dB" or (clause.name in METRICS and METRICS[clause.name].signed)
    for name, limit in limits.items():
        if limit < 0 and not signed and name in ("min", "max"):
            raise UsageError(f"{getattr(clause, name)!r} cannot be a limit: {clause.name} is never negative.")
    if limits.get("min", 0) > limits.get("max", math.inf):
        raise UsageError(f"min {clause.min!r} is more than max {clause.max!r}: nothing could pass.")


def _check_name(clause: Clause) -> None:
    if clause.metric == "latency" and clause.percentile is None:
        raise UsageError("the metric 'latency' needs a percentile. Use latency.p50, or add `percentile: 50`.")
    if clause.metric != "latency" and clause.percentile is not None:
        raise UsageError(f"only the metric 'latency' has a percentile, not {clause.metric!r}.")
    if any(clause.name.startswith(start) and clause.name != start for start in FAMILIES):
        return
    if clause.metric == "latency" and clause.name not in UNITS:
        raise UsageError(f"percentile {clause.percentile:g} is not measured. Use 50, 90, 95, 99 or 99.9.")
    if clause.name not in UNITS:
        raise UsageError(unknown("gate metric", clause.name, UNITS))


def _check_comparable(clause: Clause) -> None:
    name, family = clause.name, clause.name.partition(".")[0] + "."
    if name not in (*RATIOS, *DIFFERENCES) and family not in FAMILIES:
        raise UsageError(
            f"{name!r} is not compared between bundles, so it cannot have 'vs'. Give min or max, or compare "
            f"{', '.join(RATIOS)}, {', '.join(DIFFERENCES)}."
        )
    if family == "user." and clause.max_regression is not None:
        raise UsageError(f"edgekit does not know whether more of {name!r} is better. Give max_ratio.")
    if clause.max_ratio is not None and name not in RATIOS and family != "user.":
        raise UsageError(f"{name!r} has no max_ratio: bundles are compared by its difference. Give max_regression.")


def read_limit(clause: Clause, name: str, unit: str | None = None) -> float:
    """The limit `name` of a clause in the metric's own unit; a regression of a time or a size is a share.

    `unit` is that of a metric whose unit only the report knows.

    >>> read_limit(Clause(metric="size", max="2 MB"), "max")
    2000000

    Raises:
        UsageError: it is not a quantity of that kind.
    """
    written, unit = getattr(clause, name), clause.unit if unit is None else unit
    if name == "max_ratio":
        return float(written)
    if name == "max_regression" and unit in ("s", "bytes"):
        return _no_factor(written, parse_percent(written))
    if name == "max_regression" and unit == "share":
        return _below_one(written, parse_points(written), "1.0pp")
    parse: dict[str, Callable[[float | str], float]] = {
        "share": parse_percent, "s": parse_duration, "bytes": parse_size, "J": parse_energy, "/s": parse_rate,
    }  # fmt: skip
    limit = parse[unit](written) if unit in parse else _plain(written, unit)
    return _below_one(written, limit, "92%") if unit == "share" else limit


def _below_one(written: Quantity, share: float, example: str) -> float:
    """A bare 1.0 that was meant as one point would let everything pass."""
    if not -1 < share < 1:
        raise UsageError(f"{written!r} cannot be a limit: that is {100 * share:g} %. Write it like {example!r}.")
    return share


def _no_factor(written: Quantity, share: float) -> float:
    """A bare 5 that was meant as 5 % would let six times the time pass."""
    if share <= -1 or (share >= 1 and not str(written).strip().endswith("%")):
        raise UsageError(f"{written!r} cannot be a limit: that is {100 * share:g} %. Write it like '5%', or max_ratio.")
    return share


def _plain(written: float | str, unit: str) -> float:
    """A number, with the metric's own unit behind it or with none."""
    try:
        number = float(written.strip().removesuffix(unit) if isinstance(written, str) else written)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise UsageError(f"{written!r} is not a number{f' of {unit}' if unit else ''}. Write it like 0.5.")
    return number
