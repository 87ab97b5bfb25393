"""Cross-layer equalization: channels of an activation get like ranges, by scales that weights on either side take up.

Nagel et al. 2019 (arXiv:1906.04721, section 4.1): `W2 relu(W1 x) = (W2 S) relu(S^-1 W1 x)` for positive scales `S`.
They balance the ranges of two weights, which have one step each. Here weights have a step for every output channel,
so what suffers from unlike channels is the activation between them, which has one; it is balanced against the columns
of the weight that reads it, by the ranges that calibration saw (as in Xiao et al. 2022, arXiv:2211.10438).

A place is left alone where the noise that quantization makes there, as far as it can be foreseen, would fall by less
than `LEAST_GAIN`. Rows of a weight can be scaled without a loss, so places do not concern each other: one pass over
them is the fixed point. Scales do not go through Clip, whose upper bound would have to be another for each channel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgekit.context import Progress
from edgekit.errors import UsageError
from edgekit.quant.channels import Batches, Channels, channel_statistics
from edgekit.quant.layers import Layer, layers
from edgekit.quant.view import GraphView, attribute

if TYPE_CHECKING:
    import onnx

Array = npt.NDArray[Any]

HOMOGENEOUS = frozenset(
    {"AveragePool", "Dropout", "Flatten", "GlobalAveragePool", "GlobalMaxPool", "Identity", "LeakyRelu", "MaxPool",
     "PRelu", "Relu"}
)  # fmt: skip
"""Operators that a positive factor for each channel goes through."""

LEAST_GAIN = 4.0
"""In dB: a place is equalized where the noise that is foreseen falls by so much."""

STRENGTHS = (0.25, 0.5, 0.75, 1.0)
"""Exponents of the activation's range in a channel's scale that are tried; the weight's has the rest."""

MACS = 2e10
"""Ranges of channels are taken from all samples where that costs no more multiply-accumulates, else from `FEW`."""

FEW = 32

LARGEST = 2**24
"""Weights with more values are left alone: weighing their columns against each other would take minutes."""

FURTHEST = 1e4
"""A channel is scaled by at most this or its inverse, against the others."""


@dataclass(frozen=True)
class Place:
    """An activation whose channels can be scaled: `makers` take the inverse up, `readers` the scale.

    `repeat` is how many columns of a reader belong to one channel, where a Flatten lies between. `vectors` are
    constants, one number a channel, that take the inverse up in place of makers.
    """

    tensor: str
    rank: int
    axis: int
    makers: tuple[Layer, ...]
    readers: tuple[Layer, ...]
    repeat: int = 1
    vectors: tuple[str, ...] = ()


@dataclass(frozen=True)
class Equalized:
    """The new graph, and how much less noise is foreseen at each activation that was equalized, in dB."""

    proto: onnx.ModelProto
    gains_db: Mapping[str, float] = field(default_factory=dict)


def equalize(
    proto: onnx.ModelProto,
    batches: Batches,
    total: int,
    *,
    always: bool = False,
    seen: Mapping[str, Channels] | None = None,
    progress: Progress | None = None,
    where: Sequence[Place] | None = None,
) -> Equalized:
    """A graph that computes the same in float. `batches` hold `total` samples; `always` takes every gain.

    `seen` of an earlier pass, with every activation in `places`, saves one. `where` are other places than those of
    `places`.
    """
    found = places(proto) if where is None else where
    if not found:
        return Equalized(proto)
    if seen is None or any(place.tensor not in seen for place in found):
        seen = _looked_at(proto, found, batches, total, progress)
    weights: dict[str, Array] = {}
    gains: dict[str, float] = {}
    for place in found:
        readers = [(layer, weights.get(layer.weight, layer.value)) for layer in place.readers]
        with np.errstate(all="ignore"):
            scale, gain = best_scale(readers, seen[place.tensor], place.repeat)
        if scale is None or gain < (0.01 if always else LEAST_GAIN):
            continue
        gains[place.tensor] = gain
        absorb(place, scale, weights, GraphView(proto.graph))
    if not gains:
        return Equalized(proto)
    from edgekit.graph.tools import with_initializers

    return Equalized(with_initializers(proto, {k: v.astype(np.float32) for k, v in weights.items()}), gains)


def _looked_at(
    proto: onnx.ModelProto, found: Sequence[Place], batches: Batches, total: int, progress: Progress | None
) -> dict[str, Channels]:
    wanted = affordable(proto, total)
    if wanted < total:
        from edgekit.quant.correct import thinned

        batches = thinned(batches, total, proto, wanted)[1]
    return channel_statistics(proto, {place.tensor: (place.rank, place.axis) for place in found}, batches, progress)


def affordable(proto: onnx.ModelProto, total: int) -> int:
    """How many of `total` samples are looked at."""
    from edgekit.graph.cost import cost

    try:
        macs = cost(proto).macs
    except UsageError:
        macs = None
    return min(total, FEW) if macs is None else int(min(total, max(FEW, MACS / max(macs, 1))))


def places(proto: onnx.ModelProto) -> list[Place]:
    """Where an activation made by one weighted operator is read by weighted operators alone."""
    view = GraphView(proto.graph)
    all_layers = {layer.node.output[0]: layer for layer in layers(proto, [node.name for node in view.nodes])}
    by_input: dict[str, list[Layer]] = {}
    for layer in all_layers.values():
        by_input.setdefault(layer.source, []).append(layer)
    found = []
    for maker in all_layers.values():
        tensor, flat = _followed(maker.node.output[0], view)
        readers = by_input.get(tensor, [])
        if not readers or len(readers) != len(view.consumers[tensor]) or tensor in view.outputs:
            continue
        if max(layer.value.size for layer in (maker, *readers)) > LARGEST:
            continue
        channels = maker.outputs
        if maker.node.op_type == "MatMul" or not all(owned(layer, view) for layer in (maker, *readers)):
            continue
        widths = {layer.inputs for layer in readers}
        if any(layer.node.op_type == "MatMul" and layer.rank != maker.rank for layer in readers):
            continue
        if len(widths) != 1 or next(iter(widths)) % channels or (next(iter(widths)) != channels and not flat):
            continue
        repeat = next(iter(widths)) // channels
        found.append(Place(tensor, readers[0].rank, 1, (maker,), tuple(readers), repeat))
    return found


def _followed(tensor: str, view: GraphView) -> tuple[str, bool]:
    """The activation behind all homogeneous operators, and whether a Flatten is among them."""
    flat = False
    while True:
        reader = view.only_consumer(tensor)
        if reader is None or reader.op_type not in HOMOGENEOUS or reader.input[0] != tensor:
            return tensor, flat
        if any(name and view.consumers[name] for name in reader.output[1:]):
            return tensor, flat
        if reader.op_type == "Flatten" and attribute(reader, "axis", 1) != 1:
            return tensor, flat
        flat = flat or reader.op_type == "Flatten"
        tensor = reader.output[0]


def owned(layer: Layer, view: GraphView) -> bool:
    """Whether nothing else reads a layer's weight or bias, and both are float32 constants."""
    if layer.value.dtype != np.float32 or len(view.consumers[layer.weight]) != 1:
        return False
    bias = view.constant(layer.bias) if layer.bias else None
    return layer.bias is None or (
        bias is not None and bias.size == layer.outputs and len(view.consumers[layer.bias]) == 1
    )


def best_scale(readers: Sequence[tuple[Layer, Array]], seen: Channels, repeat: int = 1) -> tuple[Array | None, float]:
    """The scales of the channels that leave least noise at the readers' outputs, and the gain in dB."""
    if repeat > 1:
        fold = (-1, repeat)
        seen = Channels(*(a.reshape(fold) for a in (seen.low, seen.high, seen.square)))
        seen = Channels(seen.low.min(1), seen.high.max(1), seen.square.mean(1))
    columns = [_of_like_energy(_columns(layer, weight, repeat), seen.square) for layer, weight in readers]
    reach = np.maximum(np.abs(seen.low), np.abs(seen.high))
    peak = np.max([column.max(axis=0) for column in columns], axis=0)
    alive = (reach > 0) & (peak > 0)
    if alive.sum() < 2:
        return None, 0.0
    before = sum(_noise(column, seen, np.ones_like(reach)) for column in columns)
    best, least = None, before
    for strength in STRENGTHS:
        scale = np.ones_like(reach)
        scale[alive] = reach[alive] ** strength / peak[alive] ** (1 - strength)
        scale[alive] /= np.exp(np.log(scale[alive]).mean())
        # A channel that was never seen to be active must not widen the weight's range.
        silent = (reach == 0) & (peak > 0)
        scale[silent] = np.minimum(1, (peak * scale)[alive].max() / peak[silent])
        scale = np.clip(scale, 1 / FURTHEST, FURTHEST)
        noise = sum(_noise(column, seen, scale) for column in columns)
        if noise < least:
            best, least = scale, noise
    return best, float(10 * np.log10(before / least)) if least > 0 else 0.0


def _columns(layer: Layer, weight: Array, repeat: int) -> Array:
    """The largest magnitude of a weight for each output and input channel, `[outputs, channels]`.

    A grouped operator has zeros for channels of other groups.
    """
    matrix = np.abs(layer.matrix(weight.astype(np.float64)))
    groups, outputs, _ = matrix.shape
    size = layer.inputs // groups // repeat
    peaks = matrix.reshape(groups, outputs, size, -1).max(axis=3)
    full = np.zeros((groups * outputs, groups * size))
    for group in range(groups):
        full[group * outputs : (group + 1) * outputs, group * size : (group + 1) * size] = peaks[group]
    return full


def _noise(columns: Array, seen: Channels, scale: Array) -> float:
    """What rounding activation and weight adds to the output's mean square, summed over outputs of like energy."""
    # NaN and infinity in weights or samples are refused later, by name: here they make no gain.
    step = (max(float((seen.high / scale).max()), 0.0) - min(float((seen.low / scale).min()), 0.0)) / 255
    scaled = columns * scale
    activation = step**2 * np.square(scaled).sum(axis=1)
    weight = np.square(scaled.max(axis=1) / 127) * ((columns > 0) @ (seen.square / scale**2))
    return float((activation + weight).sum())


def _of_like_energy(columns: Array, square: Array) -> Array:
    """Rows scaled to outputs of mean square one: what comes of a row's scale is made good by whoever reads it."""
    energy = np.square(columns) @ square
    return columns / np.sqrt(np.where(energy > 0, energy, 1))[:, None]


def absorb(place: Place, scale: Array, weights: dict[str, Array], view: GraphView) -> None:
    """Change `weights`: makers give channels divided by `scale`, readers multiply by it."""
    for layer in place.makers:
        weights[layer.weight] = _scaled(layer, weights.get(layer.weight, layer.value), rows=1 / scale)
        if layer.bias:
            bias = weights.get(layer.bias, view.constant(layer.bias))
            assert bias is not None  # `owned` looked
            weights[layer.bias] = (bias.reshape(-1) / scale).reshape(bias.shape)
    for name in place.vectors:
        vector = weights.get(name, view.constant(name))
        assert vector is not None  # it is constant, or it would not be here
        weights[name] = vector / scale
    for layer in place.readers:
        columns = np.repeat(scale, place.repeat)
        weights[layer.weight] = _scaled(layer, weights.get(layer.weight, layer.value), columns=columns)


def _scaled(layer: Layer, weight: Array, *, rows: Array | None = None, columns: Array | None = None) -> Array:
    matrix = layer.matrix(weight.astype(np.float64))
    groups, outputs, _ = matrix.shape
    if rows is not None:
        matrix = matrix * rows.reshape(groups, outputs, 1)
    if columns is not None:
        taps = matrix.reshape(groups, outputs, layer.inputs // groups, -1)
        matrix = (taps * columns.reshape(groups, 1, -1, 1)).reshape(matrix.shape)
    return layer.unmatrix(matrix)
