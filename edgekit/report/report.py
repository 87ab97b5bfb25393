"""What a run did and measured, as one value: `report.json`, schema version 1.

Units are in the names: seconds, bytes, decibels; shares and points are fractions of one (0.01 = 1 pp). Paths are
relative to the report's own folder. No number is ever NaN or infinite: what could not be measured is null.
"""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from edgekit.model import Precision, Role
from edgekit.report.jsonfile import read_versioned
from edgekit.report.robust import Robustness
from edgekit.report.values import (
    MOST,
    Amount,
    Bounds,
    Decibels,
    Interval,
    Metrics,
    Number,
    Numbers,
    Observed,
    Share,
    Value,
    holds,
)
from edgekit.report.verdicts import Judgement

SCHEMA_VERSION = 1
LARGEST = 256_000_000
"""Bytes of the largest report.json that is read."""


Status = Literal["measured", "built", "emitted", "failed"]


class ClassMetrics(Value):
    """One class against the rest. `accuracy` is one against the rest too; `support` counts its samples."""

    name: str
    accuracy: float
    precision: float
    recall: float
    f1: float
    support: int


class Latency(Value):
    """Percentiles of single inferences in seconds; one that too few samples allow is null."""

    p50: Bounds | None = None
    p90: Bounds | None = None
    p95: Bounds | None = None
    p99: Bounds | None = None
    n: int = Field(ge=0, le=MOST)
    samples_file: str | None = None

    @model_validator(mode="after")
    def _positive(self) -> Self:
        for name in ("p50", "p90", "p95", "p99"):
            seen = getattr(self, name)
            if seen is not None:
                if seen.low < 0:
                    raise ValueError(f"{name}: {seen.low:g} s is negative")
                holds(seen)
        return self


class Paired(Value):
    """This result's latency over that of the `vs` bundle, from interleaved rounds: below 1 is faster."""

    vs: Role
    statistic: str
    ratio: float = Field(gt=0)
    low: float = Field(gt=0)
    high: float = Field(gt=0)
    rounds: int = Field(ge=0)
    samples_file: str | None = None

    @model_validator(mode="after")
    def _held(self) -> Self:
        if not self.low <= self.ratio <= self.high:
            raise ValueError(f"the interval [{self.low:g}, {self.high:g}] does not hold the ratio {self.ratio:g}")
        if self.rounds == 0 and self.ratio != 1:
            raise ValueError(f"a ratio of {self.ratio:g} from no rounds: only the same model is not measured, with 1")
        return self


class DeviceInfo(Value):
    """Where it was measured. Two results compare only if `fingerprint` and `threads` are equal.

    `emulated` is true where no processor of that kind was there: what was computed counts, and nothing was timed.
    """

    name: str
    fingerprint: str
    emulated: bool = False
    threads: int | None = None
    state: dict[str, Any] = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=dict)
    details: dict[str, Any] = Field(default_factory=dict)

    @classmethod
    def of(cls, described: Mapping[str, Any], **more: Any) -> DeviceInfo:
        """From `Device.describe()`: what has no field of its own goes to `details`."""
        rest = {k: v for k, v in described.items() if k not in cls.model_fields}
        own = {k: v for k, v in described.items() if k in cls.model_fields} | more
        details = {**rest, **own.pop("details", {})}
        return cls(**own, details=details)


class Result(Value):
    """One bundle: what it is, where it was measured and how it did.

    `invalid` says why timings don't count (a throttled device, for one) and is empty where they do;
    `absolute_invalid` why absolute times don't, though interleaved comparisons do (other load).
    `bundle_sha256` is the digest that the bundle is sealed with: one with another is not the one that was measured.
    `size_bytes` counts the compiled model's files alone, `bundle_bytes` the whole `.edge` file. `user` holds metrics
    that somebody else measured and added to the report, by name: a gate judges them as `user.NAME`.
    """

    target: str
    backend: str
    precision: Precision
    role: Role
    status: Status
    reason: str = ""
    invalid: str = ""
    absolute_invalid: str = ""
    measured_on: str | None = None
    device: DeviceInfo | None = None
    bundle: str | None = None
    bundle_sha256: str | None = None
    size_bytes: int | None = Field(default=None, ge=0)
    bundle_bytes: int | None = Field(default=None, ge=0)
    predictions_file: str | None = None
    metrics: Metrics | None = None
    per_class: tuple[ClassMetrics, ...] = ()
    robustness: Robustness | None = None
    latency_s: Latency | None = None
    paired: tuple[Paired, ...] = ()
    load_s: Amount = None
    first_inference_s: Amount = None
    peak_rss_bytes: int | None = Field(default=None, ge=0)
    energy_j: Amount = None
    energy_net_j: Number = None
    energy_meter: str = ""
    energy_reason: str = ""
    int8_nodes: int | None = Field(default=None, ge=0, le=MOST)
    float_nodes: int | None = Field(default=None, ge=0, le=MOST)
    float_reasons: dict[str, str] = Field(default_factory=dict)
    agreement: Share = None
    agreement_n: int | None = Field(default=None, ge=0, le=MOST)
    snr_db: Decibels = None
    ships: bool = False
    ships_reason: str = ""
    notes: tuple[str, ...] = ()
    user: dict[str, Observed] = Field(default_factory=dict)

    @property
    def key(self) -> str:
        """What tells results apart: `x86-64/onnxruntime/quantized/int8`."""
        return f"{self.target}/{self.backend}/{self.role}/{self.precision}"

    @property
    def accuracy(self) -> Interval | None:
        """The accuracy, where there are labels."""
        return self.metrics.accuracy if self.metrics else None

    def paired_with(self, vs: str, statistic: str = "p50") -> Paired | None:
        """The interleaved comparison with another role on one statistic, if it was made."""
        return next((p for p in self.paired if p.vs == vs and p.statistic == statistic), None)


class SourceInfo(Value):
    """The model as it came: `metrics` and `per_class` on the host in fp32."""

    name: str
    origin: str = ""
    sha256: str = ""
    size_bytes: int
    macs: int | None = None
    parameters: int | None = None
    metrics: Metrics | None = None
    per_class: tuple[ClassMetrics, ...] = ()


class LayerInfo(Value):
    """One layer that was quantized alone, all others in float: see `edgekit.quant.mixed.Row`."""

    variant: str
    layer: str
    op: str
    snr_db: Decibels = None
    share: float
    cost: float
    unit: str
    float_s: Number = None
    int8_s: Number = None
    kept: bool = False


class StageInfo(Value):
    """One stage as it went: see `edgekit.model.Step`."""

    name: str
    config: dict[str, Any] = Field(default_factory=dict)
    seconds: float
    snr_db: Decibels = None
    agreement: Number = None
    metrics: Numbers = Field(default_factory=dict)
    macs: int | None = None
    parameters: int | None = None
    notes: tuple[str, ...] = ()
    curve: tuple[Numbers, ...] = ()
    sensitivity: tuple[LayerInfo, ...] = ()
    refused: dict[str, str] = Field(default_factory=dict)


class RecipeInfo(Value):
    """Which recipe ran: its file name and the hash of its text."""

    name: str
    path: str = ""
    sha256: str = ""
    text: str = ""


class DataInfo(Value):
    """What the metrics were computed on."""

    name: str
    split: str
    n: int
    sha256: str = ""
    task: str = "classification"
    classes: tuple[str, ...] = ()
    licence: str = ""


class TargetInfo(Value):
    """One entry of the recipe's targets; `device` is null where it is built without being timed."""

    target: str
    backends: tuple[str, ...]
    device: str | None = None


class Report(Value):
    """Everything a run did and measured."""

    schema_version: Literal[1] = 1
    edgekit: str
    created: str
    seconds: Number = None
    recipe: RecipeInfo | None = None
    data: DataInfo | None = None
    source: SourceInfo
    stages: tuple[StageInfo, ...] = ()
    targets: tuple[TargetInfo, ...] = ()
    results: tuple[Result, ...] = ()
    gate: tuple[Judgement, ...] = ()
    warnings: tuple[str, ...] = ()
    environment: dict[str, str] = Field(default_factory=dict)
    exit_code: int = 0

    def result(self, target: str, backend: str, role: str) -> Result | None:
        """The first result of that bundle, if there is one."""
        same = (r for r in self.results if (r.target, r.backend, r.role) == (target, backend, role))
        return next(same, None)

    def shipped(self, target: str, backend: str) -> Result | None:
        """The bundle that ships for a target and backend, if any does."""
        same = (r for r in self.results if (r.target, r.backend) == (target, backend))
        return next((r for r in same if r.ships), None)


def write_report(report: Report, path: Path) -> None:
    """Write `report.json`, checked once more: copies with updated fields have not been."""
    checked = Report.model_validate(report.model_dump())
    text = json.dumps(checked.model_dump(mode="json"), indent=1, allow_nan=False, ensure_ascii=False)
    write_text(path, text + "\n")


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text as `write_bytes` does; names of files may hold bytes that are no UTF-8."""
    write_bytes(path, text.encode(errors="backslashreplace"))


def is_special(path: Path) -> bool:
    """Whether a file that is renamed to `path` would take the place of a device, a pipe or a folder.

    /dev/stdout is a link, to what may be a plain file.
    """
    return (path.exists() and not path.is_file()) or (path.is_symlink() and path.absolute().is_relative_to("/dev"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write under a temporary name, then rename: the file is there as a whole or not at all.

    Raises:
        OSError: it cannot be written, or is no plain file.
    """
    if is_special(path) and not path.is_dir():  # on a folder the system refuses the renaming
        raise OSError(errno.EPERM, "it is no plain file", str(path))
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_report(path: Path) -> Report:
    """Read a `report.json`.

    Raises:
        UsageError: the file is missing, is not JSON, or is not a report of this schema version.
    """
    return read_versioned(
        path, Report, SCHEMA_VERSION, largest=LARGEST, what="the report.json of a run", again="Run the recipe again"
    )
