"""The plainest values of a report: numbers that JSON can hold, intervals, and the metrics of a task."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

MOST = 2**63
"""A count beyond this is none."""

IDENTICAL_DB = 300.0
"""The signal-to-noise ratio written for outputs that are equal bit for bit (infinite, which JSON cannot hold)."""


def finite(value: Any) -> Any:
    """`value`, or None where it is a float that JSON cannot hold.

    >>> finite(float("nan")) is None
    True
    """
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _finite_values(values: Any) -> Any:
    return {k: v for k, v in values.items() if finite(v) is not None} if isinstance(values, Mapping) else values


def _decibels(value: Any) -> Any:
    return IDENTICAL_DB if value == math.inf else finite(value)


Number = Annotated[float | None, BeforeValidator(finite)]
Decibels = Annotated[float | None, BeforeValidator(_decibels)]
Amount = Annotated[Annotated[float, Field(ge=0)] | None, BeforeValidator(finite)]
"""A time, an energy: never negative."""

Share = Annotated[Annotated[float, Field(ge=0, le=1)] | None, BeforeValidator(finite)]
"""A fraction of one: 92 % is 0.92."""

Numbers = Annotated[dict[str, float], BeforeValidator(_finite_values)]


class Value(BaseModel):
    """What every part of a report is: frozen, without unknown fields, without NaN or infinity."""

    # Values made by `model_copy` were not checked: whatever takes one in checks it, so that no infinity slips through.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, revalidate_instances="always")


def holds(seen: Bounds) -> None:
    """Raise `ValueError` for an interval beside its value: a verdict is by the interval, and people read the value."""
    if not seen.low <= seen.value <= seen.high:
        raise ValueError(f"the interval [{seen.low:g}, {seen.high:g}] does not hold the value {seen.value:g}")


class Bounds(Value):
    """A value with its 95 % interval `[low, high]`."""

    value: float
    low: float
    high: float

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"low {self.low:g} is above high {self.high:g}")
        return self


class Interval(Bounds):
    """A value with its 95 % interval, which holds it, from `n` samples."""

    n: int = Field(ge=0, le=MOST)

    @model_validator(mode="after")
    def _held(self) -> Self:
        holds(self)
        return self


def _share(seen: Interval) -> Interval:
    if not 0 <= seen.value <= 1:
        raise ValueError(f"{seen.value:g} is no share: 92 % is 0.92")
    return seen


ShareInterval = Annotated[Interval, AfterValidator(_share)]


class Observed(Interval):
    """What a clause was judged on, in `unit` ("s", "bytes", "share", "ratio", ...).

    `of` names the class or the slice where it is the worst of several, `left_out` those of too few samples to tell.
    """

    unit: str = ""
    of: str = ""
    left_out: str = ""


class Score(Interval):
    """A metric of `edgekit.tasks` with its 95 % interval, in `unit`; `lower` says that less is better."""

    unit: str = ""
    lower: bool = False

    @model_validator(mode="after")
    def _within(self) -> Self:
        if self.unit == "share":
            _share(self)
        return self


class Metrics(Value):
    """The task's metrics on one split; precision, recall and F1 are macro averages.

    `calibration_error` is the expected calibration error: see `edgekit.calibration`.
    `intervals` holds the 95 % intervals `(low, high)` of those that are plain numbers, `scores` what else the task has.
    """

    accuracy: ShareInterval | None = None
    precision: Share = None
    recall: Share = None
    f1: Share = None
    loss: Number = None
    calibration_error: Share = None
    intervals: dict[str, tuple[float, float]] = Field(default_factory=dict)
    scores: dict[str, Score] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        for name, (low, high) in self.intervals.items():
            if low > high:
                raise ValueError(f"{name}: low {low:g} is above high {high:g}")
        return self
