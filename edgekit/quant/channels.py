"""Statistics of each channel of activations, reduced inside the runtime."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgekit.context import Progress, Silent
from edgekit.quant.session import open_session

if TYPE_CHECKING:
    import onnx

Array = npt.NDArray[Any]
Batches = Callable[[], Iterable[Sequence[Array]]]
OPS = ("ReduceMin", "ReduceMax", "ReduceMean")


@dataclass
class Channels:
    """Smallest and largest value, and mean square, of each channel of a tensor, `[channels]` each."""

    low: Array
    high: Array
    square: Array


def reduce_node(
    proto: onnx.ModelProto, op: str, name: str, output: str, axes: Sequence[int], keepdims: int
) -> onnx.NodeProto:
    """A reduction of tensor `name`; its axes are an attribute before opset 18 and an initializer from there on."""
    import onnx

    from edgekit.graph.tools import opset_of

    inputs = [name]
    more: dict[str, Any] = {"keepdims": keepdims, "axes": list(axes)}
    if opset_of(proto) >= 18:
        del more["axes"]
        inputs.append(f"{output}_axes")
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array(axes, np.int64), inputs[1]))
    return onnx.helper.make_node(op, inputs, [output], name=output, **more)


def channel_statistics(
    proto: onnx.ModelProto, axes: Mapping[str, tuple[int, int]], batches: Batches, progress: Progress | None = None
) -> dict[str, Channels]:
    """Of the tensors in `axes`, which says the rank and the axis of the channels of each, over all samples."""
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    del copy.graph.output[:]
    for name, (rank, axis) in axes.items():
        others = [i for i in range(rank) if i != axis % rank]
        squared = f"{name}/square"
        copy.graph.node.append(onnx.helper.make_node("Mul", [name, name], [squared], name=squared))
        for op, source in zip(OPS, (name, name, squared), strict=True):
            copy.graph.node.append(reduce_node(copy, op, source, f"{name}/{op}", others, 0))
            value = onnx.helper.make_tensor_value_info(f"{name}/{op}", onnx.TensorProto.FLOAT, None)
            copy.graph.output.append(value)
    session = open_session(copy)
    found: dict[str, Channels] = {}
    samples = 0
    with (progress or Silent()).task("equalizing: channels") as task:
        for batch in batches():
            count = len(batch[0])
            values = [value.astype(np.float64) for value in session(batch)]
            for tensor, low, high, square in zip(axes, values[::3], values[1::3], values[2::3], strict=True):
                old = found.get(tensor, Channels(low, high, np.zeros_like(square)))
                found[tensor] = Channels(
                    np.minimum(old.low, low), np.maximum(old.high, high), old.square + square * count
                )
            samples += count
            task.advance(count)
    return {tensor: Channels(c.low, c.high, c.square / max(samples, 1)) for tensor, c in found.items()}
