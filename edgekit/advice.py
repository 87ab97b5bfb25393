"""What to change where int8 is not what one hoped for: plain lines from what was seen."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from edgekit.agent import state
from edgekit.report.explanation import Explanation, Layer

SMALL_S = 5e-6
"""A kernel that takes less than this spends it on being started."""

NOTICED = 0.1
"""A share of the time, or of the layers, that is worth a line."""

CLIPPED = 0.01
"""A share of clipped values that is worth a line."""

REMEDIES = (
    ("kept float by the recipe", "take them out of `keep_float`, if accuracy allows"),
    ("kept float for accuracy", "allow a larger `max_drop`, or a smaller `min_snr`, if the task does"),
    ("no 8-bit form", "replace the operator in the model by one with an 8-bit kernel, such as Relu or HardSwish"),
    ("among float operators", "they follow once their neighbours run in 8 bits"),
    ("its weight is not constant", "make the weight a constant of the graph"),
    ("though its tensors are quantized", "list them in `keep_float`: float without conversions around it is faster"),
    ("only moves data", "it costs little; nothing to do"),
)
"""How a reason begins or what it holds, and what helps."""


def advice(seen: Explanation) -> Iterator[str]:
    """Why int8 is not faster, if it isn't, and where its accuracy goes."""
    slow = seen.latency is not None and not seen.latency.faster
    if slow:
        yield from _slow(seen)
    elif seen.latency is None or seen.float_layers:
        yield from _floats(seen)
    yield from _noise(seen)


def _slow(seen: Explanation) -> Iterator[str]:
    found = [*_floats(seen), *_conversions(seen), *_layouts(seen), *_slower(seen), *_small(seen), *_processor(seen)]
    if not found:
        found = ["no single cause stands out: the layers in 8 bits gain as much as conversions cost. Ship float here"]
    yield from found


def _floats(seen: Explanation) -> Iterator[str]:
    """Layers in float, by cause."""
    groups: dict[str, list[Layer]] = defaultdict(list)
    for layer in seen.layers:
        if layer.runs != "int8":
            remedy = next((what for part, what in REMEDIES if part in (layer.reason or "")), "")
            groups[remedy or layer.reason or ""].append(layer)
    for remedy, layers in groups.items():
        names = ", ".join(layer.name for layer in layers[:5]) + (", ..." if len(layers) > 5 else "")
        known = [layer.seconds for layer in layers if layer.seconds is not None]
        took = f", {_share(sum(known), seen):.0%} of the time" if known else ""
        yield f"{_count(len(layers), 'layer')} in float ({names}{took}): {remedy}"


def _conversions(seen: Explanation) -> Iterator[str]:
    share = _share(seen.conversion_seconds or 0.0, seen)
    if share > NOTICED:
        yield (
            f"{share:.0%} of the time goes to {seen.conversions} conversions between float and 8 bits: let more "
            "neighbours run in 8 bits, or keep the whole block around them float"
        )


def _layouts(seen: Explanation) -> Iterator[str]:
    share = _share(seen.layout_seconds or 0.0, seen)
    if share > NOTICED:
        yield f"{share:.0%} of the time goes to changes of layout, which the runtime puts around 8-bit kernels"


def _slower(seen: Explanation) -> Iterator[str]:
    """Layers that lose in 8 bits."""
    pairs = [(la, la.seconds, la.float_seconds) for la in seen.layers if la.runs == "int8"]
    lost = [(a - b, la.name) for la, a, b in pairs if a is not None and b is not None and a > 1.1 * b]
    names = [name for _, name in sorted(lost, reverse=True)[:5]]
    if names and _share(sum(lost_s for lost_s, _ in lost), seen) > NOTICED:
        yield f"slower in 8 bits than in float: {', '.join(names)}. Try them in `keep_float`, and compare"


def _small(seen: Explanation) -> Iterator[str]:
    known = [layer.seconds for layer in seen.layers if layer.seconds is not None]
    if known and sum(second < SMALL_S for second in known) > len(known) / 2:
        yield (
            f"more than half of the layers take less than {SMALL_S * 1e6:.0f} µs: starting a kernel costs as much as "
            "its arithmetic, which is all that 8 bits save. A network of this size gains in bytes, not in time"
        )


def _processor(seen: Explanation) -> Iterator[str]:
    machine = state.machine()
    if state.saturates(machine["arch"], machine["features"]):
        yield "this processor has no 8-bit dot product (VNNI): 8-bit kernels gain little here"
    if machine["arch"] == "aarch64" and "asimddp" not in machine["features"]:
        yield "this processor has no 8-bit dot product (asimddp): 8-bit kernels gain little here"


def _noise(seen: Explanation) -> Iterator[str]:
    """Where the output is too far from float's."""
    if seen.output_snr_db is None or seen.output_snr_db >= seen.threshold_db:
        return
    worst = max((la for la in seen.layers if la.clipped), key=lambda la: la.clipped or 0.0, default=None)
    if worst is not None and (worst.clipped or 0.0) > CLIPPED:
        yield (
            f"{worst.clipped:.1%} of the values of {worst.name} lie outside of its range: calibrate on samples like "
            "these, or with `calibration: minmax`"
        )
    if seen.largest_drop is not None:
        yield f"{seen.largest_drop.layer} loses most: list it in `keep_float`, or set `max_drop` and let edgekit choose"


def _share(seconds: float, seen: Explanation) -> float:
    every = [layer.seconds for layer in seen.layers if layer.seconds is not None]
    total = sum(every) + (seen.conversion_seconds or 0.0) + (seen.layout_seconds or 0.0)
    return seconds / total if total else 0.0


def _count(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"
