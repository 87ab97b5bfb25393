"""What was accepted, as one small YAML a model and target that people review: schema version 1.

Units are in the names: seconds, bytes, joules; shares are fractions of one. What was not measured does not stand there.
The bundle and its predictions lie in a store, by the sha256 of their files.
"""

from __future__ import annotations

import io
import math
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from edgekit.errors import UsageError
from edgekit.model import Precision, Role
from edgekit.report.report import DeviceInfo, Latency, Report, Result, write_text
from edgekit.report.values import Bounds, Interval, Metrics, Observed, Value
from edgekit.yamlfile import MAX_BYTES, Document, parse_yaml, read_yaml

SCHEMA_VERSION = 1
LONGEST_HISTORY = 50
"""Entries that were replaced; older ones are in git."""

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Hash = Annotated[str, StringConstraints(pattern=r"^([0-9a-f]{16,128})?$")]
Text = Annotated[str, StringConstraints(max_length=4096)]
Count = Annotated[int, Field(ge=0, le=2**63)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]

PERCENTILES = ("p50", "p90", "p95", "p99")
AVERAGES = ("precision", "recall", "f1", "loss", "calibration_error")


class Part(Value):
    """A value whose text never says NaN, and whose numbers are numbers: `true` or "1" is none."""

    model_config = Value.model_config | {"strict": True}


class Range(Part):
    """A value with its 95 % interval, which holds it; `n` samples where that is told."""

    value: float
    low: float
    high: float
    n: Count | None = None

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.low <= self.value <= self.high:
            raise ValueError(f"the interval [{self.low:g}, {self.high:g}] does not hold the value {self.value:g}.")
        return self


class Time(Range):
    """Seconds."""

    low: NotNegative


class ShareRange(Range):
    """A share in [0, 1]."""

    low: NotNegative
    high: Annotated[float, Field(le=1)]
    n: Count


class Times(Part):
    """Percentiles of single inferences, from `n` samples."""

    n: Count
    p50: Time | None = None
    p90: Time | None = None
    p95: Time | None = None
    p99: Time | None = None


class Where(Part):
    """What must be equal for two sessions' numbers to be held against each other."""

    name: Text
    fingerprint: Text
    threads: Annotated[int, Field(ge=1)] | None = None
    governor: Text | None = None
    power_mode: Text | None = None
    emulated: bool = False
    versions: dict[str, Text] = Field(default_factory=dict)


class Scored(Part):
    """The samples that metrics come from."""

    name: Text
    split: Text
    sha256: Hash = ""


class User(Range):
    """A metric that somebody else measured, in `unit`."""

    unit: Text = ""


class Past(Part):
    """A few numbers of an entry, and how they compare with the entry before it.

    `p50_ratio` is null where the two were not measured under the same conditions, `accuracy_change` (a difference of
    shares, negative is worse) where they were not scored on the same samples.
    """

    created: Text
    bundle_sha256: Sha256
    size_bytes: Count | None = None
    accuracy: Share | None = None
    p50_s: Positive | None = None
    p50_ratio: Positive | None = None
    accuracy_change: Annotated[float, Field(ge=-1, le=1)] | None = None


class Entry(Part):
    """What ships for one backend: see `edgekit.report.report.Result`.

    `created` is when its report was made (when and by whom it was accepted is what git knows), `edgekit` the version.
    `bundle_sha256` is the digest that the bundle is sealed with, `bundle_object` the sha256 of its file, by which it
    lies in `store`; `predictions_object` that of the predictions file. `history` has what was accepted before, newest
    first.
    """

    created: Text
    reason: Text = ""
    edgekit: Text
    bundle: Text
    bundle_sha256: Sha256
    bundle_object: Sha256
    predictions_object: Sha256 | None = None
    store: Text
    role: Role
    precision: Precision
    measured_on: Text | None = None
    device: Where | None = None
    invalid: Text = ""
    absolute_invalid: Text = ""
    size_bytes: Count | None = None
    bundle_bytes: Count | None = None
    latency_s: Times | None = None
    load_s: NotNegative | None = None
    first_inference_s: NotNegative | None = None
    peak_rss_bytes: Count | None = None
    energy_j: NotNegative | None = None
    energy_net_j: float | None = None
    energy_meter: Text = ""
    accuracy: ShareRange | None = None
    metrics: dict[Literal["precision", "recall", "f1", "loss", "calibration_error"], Range] = Field(
        default_factory=dict
    )
    agreement: Share | None = None
    agreement_n: Count | None = None
    snr_db: float | None = None
    int8_nodes: Count | None = None
    float_nodes: Count | None = None
    user: dict[str, User] = Field(default_factory=dict)
    data: Scored | None = None
    p50_ratio: Positive | None = None
    accuracy_change: Annotated[float, Field(ge=-1, le=1)] | None = None
    history: list[Past] = Field(default_factory=list, max_length=LONGEST_HISTORY)

    @property
    def p50_s(self) -> float | None:
        """The median latency in seconds, where it was measured."""
        return self.latency_s.p50.value if self.latency_s and self.latency_s.p50 else None

    def past(self) -> Past:
        """Its own line of history."""
        return Past(
            created=self.created,
            bundle_sha256=self.bundle_sha256,
            size_bytes=self.size_bytes,
            accuracy=self.accuracy.value if self.accuracy else None,
            p50_s=self.p50_s or None,
            p50_ratio=self.p50_ratio,
            accuracy_change=self.accuracy_change,
        )

    def line(self) -> tuple[Past, ...]:
        """This entry and those before it, newest first."""
        return (self.past(), *self.history)


class Baseline(Part):
    """`<model>-<target>.yaml`."""

    version: Literal[1] = 1
    model: Text
    target: Text
    backends: dict[str, Entry]


def file_name(model: str, target: str) -> str:
    """The file of a model and target; what no file name should hold becomes `_`.

    >>> file_name("../a b", "x86-64")
    '_._a_b-x86-64.yaml'
    """
    return re.sub(r"^\.|[^A-Za-z0-9._-]+", "_", f"{model}-{target}"[:200]) + ".yaml"


def read_baseline(path: Path) -> Baseline:
    """Read an accepted baseline.

    Raises:
        UsageError: with file and line: no such file, not YAML, another schema version, unknown keys, a hash that is
            missing or none, a number that is not finite or makes no sense.
    """
    return _validated(read_yaml(path, "baseline"))


def parse_baseline(text: str, path: Path) -> Baseline:
    """`read_baseline` of text that came from `path`."""
    return _validated(parse_yaml(text, path, "baseline"))


def _validated(document: Document) -> Baseline:
    version = document.value.get("version")
    if version != SCHEMA_VERSION or isinstance(version, bool):
        raise document.error(
            ("version",),
            f"is {version!r}, this edgekit reads {SCHEMA_VERSION}. Accept the baseline again with this version.",
        )
    return document.validate(Baseline, document.value)


def write_baseline(baseline: Baseline, path: Path) -> bool:
    """Write it, whole or not at all, and say whether anything changed. The same value gives the same bytes.

    Raises:
        UsageError: it would be too large to be read again.
        OSError: the folder cannot be written.
    """
    text = baseline_text(baseline)
    if len(text.encode()) > MAX_BYTES:
        raise UsageError(f"{path}: the baseline would be larger than {MAX_BYTES} bytes.")
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return False
    write_text(path, text)
    return True


def baseline_text(baseline: Baseline) -> str:
    """The YAML: fields in the order of the schema, backends and other maps by name, nothing that is not known."""
    from ruamel.yaml import YAML

    checked = Baseline.model_validate(baseline.model_dump())
    plain = checked.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
    plain["backends"] = {name: _tidy(entry) for name, entry in sorted(plain["backends"].items())}
    writer = YAML(typ="safe", pure=True)
    writer.default_flow_style = False
    writer.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    writer.allow_unicode = False  # line separators and marks of other scripts come back as they were
    writer.width = 2**20  # no folding: it would take spaces away
    buffer = io.StringIO()
    writer.dump({"version": SCHEMA_VERSION, **{k: v for k, v in plain.items() if k != "version"}}, buffer)
    return f"# Written by `edgekit baseline accept`; see docs/baselines.md.\n{buffer.getvalue()}"


def _tidy(entry: dict[str, Any]) -> dict[str, Any]:
    maps = {key: dict(sorted(entry[key].items())) for key in ("metrics", "user") if entry.get(key)}
    if versions := entry.get("device", {}).get("versions"):
        maps["device"] = {**entry["device"], "versions": dict(sorted(versions.items()))}
    return {**entry, **maps}


def entry_of(report: Report, result: Result, *, store: str, bundle: str, predictions: str | None, reason: str) -> Entry:
    """What a report says of a bundle that ships, as an entry.

    Args:
        report: where it comes from.
        result: one of its results, with `bundle` and `bundle_sha256`.
        store: address of the store, without credentials.
        bundle: sha256 of the bundle's file.
        predictions: sha256 of the predictions file, where there is one.
        reason: why it is accepted.
    """
    metrics, data = result.metrics, report.data
    return Entry(
        created=report.created,
        reason=reason,
        edgekit=report.edgekit,
        bundle=Path(str(result.bundle)).name,
        bundle_sha256=str(result.bundle_sha256),
        bundle_object=bundle,
        predictions_object=predictions,
        store=store,
        device=_where(result.device),
        latency_s=_times(result.latency_s),
        accuracy=ShareRange(**metrics.accuracy.model_dump()) if metrics and metrics.accuracy else None,
        metrics=_averages(metrics) if metrics else {},
        user={name: User(**seen.model_dump(include=set(User.model_fields))) for name, seen in result.user.items()},
        data=Scored(name=data.name, split=data.split, sha256=data.sha256) if data and metrics else None,
        **{name: getattr(result, name) for name in _SAME},
    )


_SAME = (
    "role", "precision", "measured_on", "invalid", "absolute_invalid", "size_bytes", "bundle_bytes", "load_s",
    "first_inference_s", "peak_rss_bytes", "energy_j", "energy_net_j", "energy_meter", "agreement", "agreement_n",
    "snr_db", "int8_nodes", "float_nodes",
)  # fmt: skip
"""Fields of `Entry` that are those of `Result`."""


def _where(device: DeviceInfo | None) -> Where | None:
    if device is None:
        return None
    before = device.state.get("before")
    state = before if isinstance(before, dict) else {}
    shown = {name: _said(state.get(name)) for name in ("governor", "power_mode")}
    return Where(
        name=device.name,
        fingerprint=device.fingerprint,
        threads=device.threads,
        emulated=device.emulated,
        versions=dict(device.versions),
        **shown,
    )


def _said(value: object) -> str | None:
    """A governor is a list of those of all processors."""
    if isinstance(value, list):
        return ", ".join(map(str, value)) or None
    return None if value is None else str(value)


def _times(latency: Latency | None) -> Times | None:
    if latency is None:
        return None
    seen = {name: getattr(latency, name) for name in PERCENTILES}
    return Times(n=latency.n, **{name: Time(**b.model_dump()) for name, b in seen.items() if b is not None})


def _averages(metrics: Metrics) -> dict[Any, Range]:
    seen = {name: getattr(metrics, name) for name in AVERAGES if getattr(metrics, name) is not None}
    ends = {name: metrics.intervals.get(name, (value, value)) for name, value in seen.items()}
    return {n: Range(value=v, low=min(v, ends[n][0]), high=max(v, ends[n][1])) for n, v in seen.items()}


def result_of(baseline: Baseline, backend: str) -> Result:
    """The entry of a backend as the result that it was; `predictions_file` is the sha256 by which it is stored."""
    entry = baseline.backends[backend]
    times, where = entry.latency_s, entry.device
    seen: dict[str, Any] = {p: _bounds(getattr(times, p, None)) for p in PERCENTILES}
    latency = Latency(n=times.n, **seen) if times else None
    state = {n: getattr(where, n) for n in ("governor", "power_mode") if getattr(where, n, None) is not None}
    return Result(
        target=baseline.target,
        backend=backend,
        status="measured" if latency else "built",
        device=DeviceInfo(
            **where.model_dump(exclude={"governor", "power_mode"}), state={"before": state} if state else {}
        )
        if where
        else None,
        bundle=entry.bundle,
        bundle_sha256=entry.bundle_sha256,
        predictions_file=entry.predictions_object,
        latency_s=latency,
        metrics=_metrics(entry),
        user={name: Observed(**(seen.model_dump() | {"n": seen.n or 0})) for name, seen in entry.user.items()},
        ships=True,
        **{name: getattr(entry, name) for name in _SAME},
    )


def _bounds(time: Time | None) -> Bounds | None:
    return Bounds(value=time.value, low=time.low, high=time.high) if time else None


def _metrics(entry: Entry) -> Metrics | None:
    if entry.accuracy is None and not entry.metrics:
        return None
    return Metrics(
        accuracy=Interval(**entry.accuracy.model_dump()) if entry.accuracy else None,
        intervals={name: (seen.low, seen.high) for name, seen in entry.metrics.items()},
        **{str(name): seen.value for name, seen in entry.metrics.items()},  # type: ignore[arg-type]
    )


def ratio(now: float | None, then: float | None) -> float | None:
    """`now / then`, None where one is not known or there is no such ratio."""
    if not now or not then or not math.isfinite(now / then):
        return None
    return now / then
