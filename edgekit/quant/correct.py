"""Corrections of a quantized graph for each grid variant: weights rounded so that errors cancel, biases that make up.

Ranges of activations do not matter to either of the quick methods, so variants with equal weight grids share them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from edgekit.context import Progress, Silent
from edgekit.quant import bias as biases
from edgekit.quant.calibrate import Batches
from edgekit.quant.layers import layers
from edgekit.quant.spec import QuantSpec, Variant
from edgekit.quant.weights import WEIGHT_LIMIT

if TYPE_CHECKING:
    import onnx

Array = npt.NDArray[Any]
Corrections = dict[Variant, dict[str, npt.NDArray[np.float32]]]
BiasCorrection = Literal["none", "fast", "full"]
Rounding = Literal["auto", "nearest", "compensated"]

FEW = 32
"""So many samples tell means and moments well enough: more of them moved the result by less than another 32 did."""

BATCH = 8


def correct(
    proto: onnx.ModelProto,
    spec: QuantSpec,
    variants: Iterable[Variant],
    batches: Batches,
    *,
    bias: BiasCorrection = "fast",
    rounding: Rounding = "auto",
    means: biases.Means | None = None,
    progress: Progress | None = None,
) -> Corrections:
    """The initializers that `variants` replace. `means` of an earlier pass (`bias.wanted_means`) save one.

    "auto" rounds to nearest where weights have 8 bits, and compensated where they have 7.
    """
    progress = progress or Silent()
    found: Corrections = {}
    chosen = layers(proto, spec.nodes)
    wanted = tuple(dict.fromkeys(variants))
    careful = [v for v in wanted if rounding == "compensated" or (rounding == "auto" and WEIGHT_LIMIT[v] < 127)]
    if not chosen or (bias == "none" and not careful):
        return found
    samples, few = thinned(batches, int(spec.source.get("samples", FEW)), proto)
    moments: dict[str, list[npt.NDArray[np.float32]]] = {}
    if careful:
        from edgekit.quant.moments import second_moments

        fit = [layer for layer in chosen if layer.node.op_type != "ConvTranspose"]
        moments = second_moments(proto, fit, few, samples, progress)
    if bias == "fast" and means is None:
        means = biases.channel_means(proto, biases.wanted_means(proto, spec.nodes), few, progress=progress)
    done: dict[tuple[int, bool], dict[str, npt.NDArray[np.float32]]] = {}
    for variant in wanted:
        key = (WEIGHT_LIMIT[variant], variant in careful)
        if key not in done or bias == "full":
            from edgekit.quant.rounding import compensated

            weights = compensated(chosen, spec, variant, moments) if variant in careful else {}
            done[key] = {**weights, **_biases(proto, spec, variant, few, bias, means, weights)}
        if done[key]:
            found[variant] = done[key]
    return found


def _biases(
    proto: onnx.ModelProto,
    spec: QuantSpec,
    variant: Variant,
    few: Batches,
    how: BiasCorrection,
    means: biases.Means | None,
    weights: dict[str, npt.NDArray[np.float32]],
) -> dict[str, npt.NDArray[np.float32]]:
    if how == "fast":
        return biases.fast(proto, spec, variant, means or {}, weights)
    if how == "full":
        together = [np.concatenate(arrays) for arrays in zip(*few(), strict=True)]
        return biases.full(proto, spec, variant, together, weights)
    return {}


def thinned(batches: Batches, total: int, proto: onnx.ModelProto, wanted: int = FEW) -> tuple[int, Batches]:
    """About `wanted` of `total` samples, evenly spread, and how many they are; whole batches where that is fixed."""
    dims = list(proto.graph.input[0].type.tensor_type.shape.dim)
    size = dims[0].dim_value if dims else 0
    if size:
        step = max(1, total // max(size, wanted))
        count = -(-(total // size) // step) * size
        return max(count, size), lambda: (batch for i, batch in enumerate(batches()) if i % step == 0)
    step = max(1, total // wanted)
    return -(-total // step), lambda: _strided(batches(), step)


def _strided(batches: Iterable[Sequence[Array]], step: int) -> Iterator[list[Array]]:
    """Every `step`th sample of a stream, in batches of at most `BATCH`."""
    kept: list[list[Array]] = []
    seen = count = 0
    for batch in batches:
        offset = -seen % step
        seen += len(batch[0])
        part = [array[offset::step] for array in batch]
        kept.append(part)
        count += len(part[0])
        while count >= BATCH:
            joined = [np.concatenate(arrays) for arrays in zip(*kept, strict=True)]
            yield [array[:BATCH] for array in joined]
            kept = [[array[BATCH:] for array in joined]]
            count -= BATCH
    if count:
        yield [np.concatenate(arrays) for arrays in zip(*kept, strict=True)]
