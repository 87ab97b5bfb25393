"""What a bundle and the report on it say together: the same facts for its bill of materials and its model card.

Whatever comes from a manifest or a report is text that others wrote: each of the renderers escapes it in its own way.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from edgekit.bundle import Bundle, TensorEntry, unlike
from edgekit.errors import IntegrityError, UsageError
from edgekit.extras import DISTRIBUTION
from edgekit.report import words
from edgekit.report.quantities import show, show_interval
from edgekit.report.report import Report, Result
from edgekit.report.values import Bounds, Interval

RUNTIMES = {
    "onnxruntime": ("onnxruntime",),
    "openvino": ("openvino",),
    "litert": ("ai-edge-litert", "tflite-runtime"),
    "tensorrt": ("tensorrt",),
}
"""How the packages begin that a bundle of each backend needs where it runs; others converted the model."""

_METRICS = (
    ("precision", "share"),
    ("recall", "share"),
    ("f1", "share"),
    ("loss", "nats"),
    ("calibration_error", "share"),
)
_PLAIN = (
    ("agreement", "share", "agreement with the reference"),
    ("snr_db", "dB", "signal-to-noise ratio against the reference"),
    ("size_bytes", "bytes", "size of the model"),
    ("bundle_bytes", "bytes", "size of the bundle"),
    ("load_s", "s", "load time"),
    ("first_inference_s", "s", "first inference"),
    ("peak_rss_bytes", "bytes", "peak memory"),
    ("energy_j", "J", "energy of one inference"),
)


@dataclass(frozen=True)
class Metric:
    """One figure in `unit` (see `edgekit.report.quantities`), perhaps of one class alone."""

    name: str
    seen: Bounds
    unit: str
    of_class: str = ""

    @property
    def shown(self) -> str:
        """As people read it, with its interval where it has one."""
        return show_interval(self.seen, self.unit)


@dataclass(frozen=True)
class Library:
    """A package: `runs` where the bundle needs it, else it took part in making it. `version` "" is any."""

    name: str
    version: str
    licence: str
    runs: bool


@dataclass(frozen=True)
class Facts:
    """A bundle, what it is made of, and how it did. Without a report there are no figures."""

    bundle: Bundle
    file_sha256: str
    libraries: tuple[Library, ...]
    report: Report | None = None
    result: Result | None = None
    metrics: tuple[Metric, ...] = ()
    limits: tuple[str, ...] = ()
    tradeoffs: tuple[str, ...] = ()
    task: str = ""
    licences: dict[str, str] = field(default_factory=dict)


def facts(bundle: Bundle, report: Report | None = None) -> Facts:
    """Everything that is known of a bundle.

    Args:
        bundle: an opened one.
        report: of the run that made it.

    Raises:
        UsageError: the report has no result for such a bundle.
        IntegrityError: it has one, and that is of another file.
    """
    result = measured(bundle, report) if report else None
    manifest = bundle.manifest
    task = manifest.data.get("task", "") or (report.data.task if report and report.data else "")
    with bundle.path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Facts(
        bundle=bundle,
        file_sha256=digest,
        libraries=tuple(_libraries(bundle, result)),
        report=report,
        result=result,
        metrics=tuple(_metrics(result)) if result else (),
        limits=tuple(_limits(bundle, result)),
        tradeoffs=tuple(_tradeoffs(report, result)) if report and result else (),
        task="" if task == "none" else task,
        licences=dict(manifest.licences),
    )


def described(tensors: Sequence[TensorEntry]) -> list[str]:
    """Inputs or outputs in a line each: `image: float32 [batch, 1, 28, 28]`."""
    return [f"{t.name}: {t.dtype} [{', '.join(map(str, t.shape))}]" for t in tensors]


def measured(bundle: Bundle, report: Report) -> Result:
    """The result of a bundle in a report.

    Raises:
        UsageError: the report has no result for such a bundle.
        IntegrityError: it has one, and that is of another file.
    """
    wanted = bundle.manifest
    exact = next((r for r in report.results if r.bundle_sha256 == bundle.sha256), None)
    key = f"{wanted.target}/{wanted.backend}/{wanted.role}/{wanted.precision}"
    found = exact or next((r for r in report.results if r.key == key), None)
    if found is None:
        raise UsageError(f"the report has no result for {key!r}, which {bundle.path} is. Give the report of its run.")
    if reason := unlike(bundle, found.bundle_sha256):
        raise IntegrityError(f"{bundle.path}: {reason}.")
    return found


def _libraries(bundle: Bundle, result: Result | None) -> Iterator[Library]:
    manifest, runtimes = bundle.manifest, RUNTIMES.get(bundle.manifest.backend)
    if manifest.edgekit:
        yield Library(DISTRIBUTION, manifest.edgekit, manifest.licences.get(DISTRIBUTION, ""), True)
    numpy = result.device.versions.get("numpy", "") if result and result.device else ""
    yield Library("numpy", numpy, manifest.licences.get("numpy", ""), True)
    for name, version in manifest.versions.items():
        if name.strip("/ ") and name != "compute_capability":  # of a GPU, not of a package
            runs = runtimes is None or name.replace("_", "-").startswith(runtimes)
            yield Library(name, version, manifest.licences.get(name, ""), runs)


def _metrics(result: Result) -> Iterator[Metric]:
    if result.metrics:
        if result.metrics.accuracy:
            yield Metric("accuracy", result.metrics.accuracy, "share")
        for name, unit in _METRICS:
            value = getattr(result.metrics, name)
            if value is not None:
                low, high = result.metrics.intervals.get(name, (value, value))
                yield Metric(name.replace("_", " "), Bounds(value=value, low=low, high=high), unit)
        for name, score in result.metrics.scores.items():
            yield Metric(name.replace("_", " "), score, score.unit)
    for name, own in result.user.items():
        yield Metric(name, own, own.unit)
    if result.robustness:
        if result.robustness.mean:
            yield Metric("accuracy on corrupted samples", result.robustness.mean, "share")
        for condition in result.robustness.conditions:
            yield Metric(f"accuracy under {condition.name}", condition.accuracy, "share")
    for name in ("p50", "p90", "p95", "p99"):
        bounds = getattr(result.latency_s, name, None)
        if bounds and not result.invalid and not result.absolute_invalid:
            yield Metric(f"latency {name}", bounds, "s")
    for paired in result.paired:
        if not result.invalid:
            seen = Interval(value=paired.ratio, low=paired.low, high=paired.high, n=paired.rounds)
            yield Metric(f"latency {paired.statistic} over that of {paired.vs}", seen, "ratio")
    for name, unit, told in _PLAIN:
        value = getattr(result, name)
        timed = unit != "s" or not (result.invalid or result.absolute_invalid)
        if value is not None and timed:
            yield Metric(told, Bounds(value=value, low=value, high=value), unit)
    for one in result.per_class:
        for name in ("precision", "recall", "f1"):
            value = getattr(one, name)
            yield Metric(name, Bounds(value=value, low=value, high=value), "share", one.name)


def _limits(bundle: Bundle, result: Result | None) -> Iterator[str]:
    """What whoever uses the bundle should know; nothing that edgekit does not know itself."""
    manifest = bundle.manifest
    yield f"It was built for {manifest.target}, and runs by {words.backend(manifest.backend)} alone."
    given = manifest.preprocess
    if given.scale != (1.0,) or given.offset != (0.0,):
        yield "Raw samples go through the manifest's preprocessing (value * scale + offset), as in training."
    if manifest.status == "emitted":
        yield "Its engine is built on the device: what it gives there was not seen when the bundle was made."
    if result is None:
        yield "No report was at hand: how accurate or fast it is stands nowhere here."
        return
    if result.device and result.device.emulated:
        yield "It ran on an emulated processor alone: correctness was seen, time was not."
    elif result.status != "measured":
        yield "It was not timed on a device of its target."
    if result.invalid:
        yield f"No time counts: {result.invalid}."
    elif result.absolute_invalid:
        yield f"Absolute times do not count, comparisons do: {result.absolute_invalid}."
    if result.metrics is None:
        yield "It was not scored on labelled samples."
    if result.float_nodes and result.int8_nodes:
        yield f"{result.float_nodes} of its {result.float_nodes + result.int8_nodes} operators compute in float."
    yield from result.notes


def _tradeoffs(report: Report, result: Result) -> Iterator[str]:
    reference = report.result(result.target, result.backend, "reference")
    if reference is None or result.role == "reference":
        return
    if result.size_bytes and reference.size_bytes:
        yield f"Size {show(result.size_bytes, 'bytes')}; as it came {show(reference.size_bytes, 'bytes')}."
    if result.accuracy and reference.accuracy:
        mine, its = result.accuracy.value, reference.accuracy.value
        yield f"Accuracy {show(mine, 'share')}; as it came {show(its, 'share')}."
    paired = result.paired_with("reference")
    if paired and not result.invalid:
        seen = Bounds(value=paired.ratio, low=paired.low, high=paired.high)
        yield f"Time of one inference over that of the model as it came: {show_interval(seen, 'ratio')}."
