"""What `edgekit profile` finds out: a versioned value for every bundle on every device, and its text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from edgekit.report import words
from edgekit.report.quantities import show, show_interval
from edgekit.report.report import DeviceInfo, Latency

VERSION: Literal[1] = 1
SHOWN_LAYERS = 10


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class LayerTime(_Value):
    """A kernel as the runtime names it: seconds of one inference (median), and its share of all kernels' time."""

    name: str
    type: str
    seconds: float
    share: float


class Profiled(_Value):
    """One bundle on one device.

    `error` says why nothing was measured, `invalid` why nothing counts, `absolute_invalid` why times do not count as
    they are; each is empty where that is not so. Times are seconds, sizes bytes, energies joules of one inference.
    """

    bundle: str
    sha256: str
    model: str
    target: str
    backend: str
    role: str
    precision: str
    size_bytes: int
    device_name: str
    threads: int
    emulated: bool = False
    """True: the device is an emulator, and nothing is timed there."""
    device: DeviceInfo | None = None
    latency_s: Latency | None = None
    samples_s: tuple[float, ...] = ()
    """Every single inference, in order."""
    load_s: float | None = None
    first_inference_s: float | None = None
    to_first_answer_s: float | None = None
    """From the start of a fresh process, Python and the check of the bundle included."""
    peak_rss_bytes: int | None = None
    energy_j: float | None = None
    energy_net_j: float | None = None
    energy_meter: str | None = None
    energy_reason: str | None = None
    layers: tuple[LayerTime, ...] | None = None
    layers_reason: str = ""
    notes: tuple[str, ...] = ()
    absolute_invalid: str = ""
    invalid: str = ""
    error: str = ""
    exit_code: int = 0


class Profiles(_Value):
    """All that one call measured, version 1."""

    version: Literal[1] = VERSION
    edgekit: str
    created: str
    results: tuple[Profiled, ...]

    def to_json(self) -> dict[str, Any]:
        """Ready for `json.dumps`."""
        return self.model_dump(mode="json")


def title(seen: Profiled) -> str:
    """Which bundle it is, in words; the file's name where none was made of it."""
    if not seen.backend:
        return seen.bundle
    return f"{seen.model}, {words.backend(seen.backend)} {seen.role} {seen.precision} for {seen.target}"


def text(seen: Profiles) -> str:
    """Plain lines: a paragraph for every bundle on every device."""
    return "\n\n".join("\n".join(_lines(one)) for one in seen.results)


def _lines(seen: Profiled) -> Iterator[str]:
    threads = f" with {seen.threads} thread{'s' if seen.threads > 1 else ''}" if seen.threads else ""
    yield f"{title(seen)}, on {seen.device_name}{' (emulated)' if seen.emulated else ''}{threads}"
    if seen.error:
        yield f"  failed         {seen.error}"
        return
    if seen.invalid:
        yield f"  invalid        {seen.invalid}"
        return
    yield from _times(seen)
    yield f"  peak memory    {show(seen.peak_rss_bytes, 'bytes')}; files {show(seen.size_bytes, 'bytes')}"
    if seen.energy_j is not None:
        yield f"  energy         {show(seen.energy_j, 'J')} an inference ({seen.energy_meter})"
    else:
        yield f"  energy         not known: {seen.energy_reason}"
    if seen.absolute_invalid:
        yield f"  beware         {seen.absolute_invalid}: times do not count as they are"
    yield from (f"  beware         {note}" for note in seen.notes)
    yield from _layers(seen)


def _times(seen: Profiled) -> Iterator[str]:
    latency = seen.latency_s
    if latency is None:
        return
    known = {name: getattr(latency, name) for name in ("p50", "p90", "p95", "p99")}
    shown = [f"{name} {show_interval(value, 's')}" for name, value in known.items() if value is not None]
    yield f"  latency        {', '.join(shown[:2])}; n = {latency.n:,}"
    if shown[2:]:
        yield f"                 {', '.join(shown[2:])}"
    yield (
        f"  cold start     load {show(seen.load_s, 's')}, first inference {show(seen.first_inference_s, 's')}, "
        f"first answer of a fresh process {show(seen.to_first_answer_s, 's')}"
    )


def _layers(seen: Profiled) -> Iterator[str]:
    if seen.layers is None:
        if seen.layers_reason:
            yield f"  layers         not known: {seen.layers_reason}"
        return
    ranked = sorted(seen.layers, key=lambda layer: -layer.seconds)
    for place, layer in enumerate(ranked[:SHOWN_LAYERS]):
        label = "layers" if not place else ""
        yield f"  {label:14s} {show(layer.seconds, 's'):>9s} {layer.share:6.1%}  {layer.type}  {layer.name}"
    if ranked[SHOWN_LAYERS:]:
        yield f"                 and {len(ranked) - SHOWN_LAYERS} more (--json has all)"
