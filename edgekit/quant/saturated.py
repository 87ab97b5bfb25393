"""Which clipped tensors reach their bound: the calibration pass need not look for their extremes."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgekit.quant.session import open_session
from edgekit.quant.view import GraphView, clip_bounds

if TYPE_CHECKING:
    import onnx

Array = npt.NDArray[Any]


def one_sample(proto: onnx.ModelProto, view: GraphView, batch: Sequence[Array]) -> Sequence[Array]:
    """The first sample of a batch, or the batch where the graph fixes its size."""
    dims = [item.type.tensor_type.shape.dim for item in proto.graph.input if item.name in view.inputs]
    fixed = any(not dim or dim[0].HasField("dim_value") for dim in dims)
    return batch if fixed else [array[:1] for array in batch]


def saturated(proto: onnx.ModelProto, view: GraphView, batch: Sequence[Array]) -> dict[str, float]:
    """Tensors between zero and an upper bound, such as ReLU6 makes, that reach the bound on this batch; the bound.

    Nothing can lie beyond, so that the pass need not look for their extremes, which is a sixth of its time in a
    network of such. None where ONNX Runtime is not installed.
    """
    import onnx

    tops = {node.output[0]: bounds[1] for node in view.nodes if (bounds := clip_bounds(node, view)) and not bounds[0]}
    wanted = {name: top for name, top in tops.items() if np.isfinite(top)}
    if not wanted or importlib.util.find_spec("onnxruntime") is None:
        return {}
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    del copy.graph.output[:]
    for name in wanted:
        copy.graph.node.append(onnx.helper.make_node("ReduceMax", [name], [f"{name}/edgekit/most"], keepdims=0))
        value = onnx.helper.make_tensor_value_info(f"{name}/edgekit/most", onnx.TensorProto.FLOAT, [])
        copy.graph.output.append(value)
    reached = open_session(copy, runtime="onnxruntime")(batch)
    return {name: top for (name, top), most in zip(wanted.items(), reached, strict=True) if most == np.float32(top)}
