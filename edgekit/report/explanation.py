"""What `edgekit explain` finds out: a versioned value, and its text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict

VERSION: Literal[1] = 1


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Layer(_Value):
    """An operator of the source's graph with those that the runtime computes along with it."""

    name: str
    type: str
    with_it: tuple[str, ...] = ()
    """Operators after it that the same kernels compute, such as its activation."""
    runs: Literal["int8", "float", "mixed"]
    kernels: tuple[str, ...]
    reason: str | None = None
    """Why it does not run in 8 bits, None where it does."""
    snr_db: float | None = None
    """Signal-to-noise ratio of its output against the float model's; None without a float bundle."""
    clipped: float | None = None
    """Share of the float model's values of its output that lie outside of the range of its grid."""
    seconds: float | None = None
    float_seconds: float | None = None
    """The same layer in the float bundle."""


class Island(_Value):
    """Neighbouring layers in float, and why each is."""

    layers: tuple[str, ...]
    causes: tuple[str, ...]
    seconds: float | None = None


class Divergence(_Value):
    """A layer and what its output's signal-to-noise ratio is; `before_db` is the lowest among its inputs."""

    layer: str
    snr_db: float
    before_db: float | None = None


class Timed(_Value):
    """The int8 bundle's time divided by the float bundle's, with its 95 % interval, from interleaved rounds."""

    ratio: float
    low: float
    high: float
    rounds: int

    @property
    def faster(self) -> bool:
        """Whether int8 is shown to be faster."""
        return self.high < 1.0


class Explanation(_Value):
    """Everything, version 1."""

    version: Literal[1] = VERSION
    bundle: str
    sha256: str
    model: str
    target: str
    backend: str
    precision: str
    runtime: str
    against: str | None
    samples: int
    int8_layers: int
    float_layers: int
    int8_share: float
    """Of the layers that the runtime computes, those wholly in 8-bit kernels."""
    conversions: int
    """Kernels that convert between float and 8 bits; one at each float input and output of the network is normal."""
    conversion_seconds: float | None
    layout_seconds: float | None
    layers: tuple[Layer, ...]
    islands: tuple[Island, ...]
    threshold_db: float
    first_divergent: Divergence | None
    largest_drop: Divergence | None
    output_snr_db: float | None
    latency: Timed | None
    advice: tuple[str, ...]
    notes: tuple[str, ...]


def text(seen: Explanation, *, every: bool = False) -> str:
    """The explanation in plain lines; `every` lists all layers and not only those that stand out."""
    return "\n".join(_lines(seen, every))


def _lines(seen: Explanation, every: bool) -> Iterator[str]:
    yield f"{seen.model} for {seen.target}, {seen.backend}, {seen.precision}, looked at with {seen.runtime}"
    total = seen.int8_layers + seen.float_layers
    yield f"  in 8 bits      {seen.int8_layers} of {total} layers ({seen.int8_share:.0%})"
    took = f", {_micro(seen.conversion_seconds)}" if seen.conversion_seconds else ""
    yield f"  conversions    {seen.conversions} between float and 8 bits{took}"
    if seen.output_snr_db is not None:
        yield f"  output         {seen.output_snr_db:.1f} dB against {seen.against} on {seen.samples} samples"
    if seen.latency:
        t = seen.latency
        word = "faster" if t.faster else "slower" if t.low > 1 else "not shown to be faster"
        yield f"  time           {t.ratio:.2f} [{t.low:.2f}, {t.high:.2f}] of the float bundle's: {word}"
    if seen.output_snr_db is not None:
        yield f"  diverges       {_diverges(seen)}"
    if seen.islands:
        yield ""
        yield "Float islands"
    for island in seen.islands:
        took = f" ({_micro(island.seconds)})" if island.seconds else ""
        yield f"  {', '.join(island.layers)}{took}"
        yield from (f"    {cause}" for cause in island.causes)
    yield ""
    yield from _table(_chosen(seen, every), len(seen.layers))
    for heading, lines in (("What to change", seen.advice), ("Notes", seen.notes)):
        if lines:
            yield ""
            yield heading
            yield from (f"  {line}" for line in lines)


def _diverges(seen: Explanation) -> str:
    first, drop = seen.first_divergent, seen.largest_drop
    parts = [
        f"{first.layer} is the first below {seen.threshold_db:g} dB, at {first.snr_db:.1f}"
        if first
        else f"no layer is below {seen.threshold_db:g} dB"
    ]
    if drop and drop.before_db is not None:
        parts.append(f"{drop.layer} loses most, from {drop.before_db:.1f} to {drop.snr_db:.1f} dB")
    return "; ".join(parts)


SHOWN = 12


def _chosen(seen: Explanation, every: bool) -> Sequence[Layer]:
    """All layers, or those in float, the noisiest and the slowest."""
    if every or len(seen.layers) <= SHOWN:
        return seen.layers
    by_noise = sorted((la for la in seen.layers if la.snr_db is not None), key=lambda la: la.snr_db or 0.0)
    by_time = sorted((la for la in seen.layers if la.seconds), key=lambda la: -(la.seconds or 0.0))
    floats = [la for la in seen.layers if la.runs != "int8"]
    picked = {la.name for la in (*floats[: SHOWN // 3], *by_noise[: SHOWN // 3], *by_time[: SHOWN // 3])}
    return [la for la in seen.layers if la.name in picked]


def _table(layers: Sequence[Layer], total: int) -> Iterator[str]:
    head = ("layer", "operator", "runs", "dB", "clipped", "time", "in float")
    rows = [
        (
            la.name,
            la.type,
            la.runs,
            "" if la.snr_db is None else f"{la.snr_db:.1f}",
            "" if la.clipped is None else f"{la.clipped:.2%}",
            _micro(la.seconds),
            _micro(la.float_seconds),
        )
        for la in layers
    ]
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    left = 3
    for row in (head, *rows):
        cells = [c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        yield "  ".join(cells).rstrip()
    if len(layers) < total:
        yield f"... of {total} layers; --layers lists all"


def _micro(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds * 1e6:.1f} µs"
