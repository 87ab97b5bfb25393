"""One line of a recipe's gate: a limit on a metric, absolute or against another bundle."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Quantity = float | str
"""A number in base units (seconds, bytes, fractions of one), or text such as "2 MB", "10 ms", "1.0pp", "5%"."""


class Clause(BaseModel):
    """What must hold for the bundle that ships for each (target, backend) it covers.

    `min` and `max` are absolute. `max_regression` (points for accuracy, a share for size and latency) and
    `max_ratio` need `vs`. `severity: warn` never breaks a run.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    metric: str
    target: str | None = None
    backend: str | None = None
    min: Quantity | None = None
    max: Quantity | None = None
    vs: Literal["reference", "float", "baseline", "previous"] | None = None
    max_regression: Quantity | None = None
    max_ratio: float | None = None
    severity: Literal["fail", "warn"] = "fail"
    on_missing: Literal["fail", "warn", "pass"] = "fail"
    on_inconclusive: Literal["inconclusive", "fail", "warn", "pass"] = "inconclusive"
    confidence: float = Field(default=0.95, gt=0.5, lt=1.0)
