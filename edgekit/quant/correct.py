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
from edgekit.quant.layers import Layer, layers
from edgekit.quant.observe import Batches, Observed
from edgekit.quant.rounding import compensated
from edgekit.quant.spec import QuantSpec, Variant
from edgekit.quant.weights import WEIGHT_LIMIT

if TYPE_CHECKING:
    import onnx

Array = npt.NDArray[Any]
Corrections = dict[Variant, dict[str, npt.NDArray[np.float32]]]
BiasCorrection = Literal["none", "fast", "full"]
Rounding = Literal["auto", "nearest", "compensated", "learned"]

FEW = 32
"""So many samples tell the means of outputs well enough: more moved the result by less than another 32 did."""

BATCH = 8


def correct(
    proto: onnx.ModelProto,
    spec: QuantSpec,
    variants: Iterable[Variant],
    batches: Batches,
    observed: Observed,
    *,
    bias: BiasCorrection = "fast",
    rounding: Rounding = "auto",
    progress: Progress | None = None,
) -> Corrections:
    """The initializers that `variants` replace, from what the pass for ranges observed.

    `batches` are read again by "full" bias correction alone, a few of them. "auto" rounds compensated.
    """
    found: Corrections = {}
    chosen = layers(proto, spec.nodes)
    careful = rounding != "nearest"
    if not chosen or (bias == "none" and not careful):
        return found
    few = thinned(batches, int(spec.source.get("samples", FEW)), proto)[1]
    done: dict[int, dict[str, npt.NDArray[np.float32]]] = {}
    with (progress or Silent()).task("rounding weights"):
        for variant in dict.fromkeys(variants):
            key = WEIGHT_LIMIT[variant]
            if key not in done or bias == "full":
                weights = _weights(chosen, spec, variant, observed, rounding, progress) if careful else {}
                done[key] = {**weights, **_biases(proto, spec, variant, few, bias, observed.means, weights)}
            if done[key]:
                found[variant] = done[key]
    return found


def _weights(
    chosen: Sequence[Layer],
    spec: QuantSpec,
    variant: Variant,
    observed: Observed,
    rounding: Rounding,
    progress: Progress | None,
) -> dict[str, npt.NDArray[np.float32]]:
    if rounding == "learned":
        from edgekit.quant.learned import learned

        return learned(chosen, spec, variant, observed.moments, progress=progress)
    return compensated(chosen, spec, variant, observed.moments)


def _biases(
    proto: onnx.ModelProto,
    spec: QuantSpec,
    variant: Variant,
    few: Batches,
    how: BiasCorrection,
    means: biases.Means,
    weights: dict[str, npt.NDArray[np.float32]],
) -> dict[str, npt.NDArray[np.float32]]:
    if how == "fast":
        return biases.fast(proto, spec, variant, means, weights)
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
