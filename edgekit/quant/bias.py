"""Biases that make up for what rounding does to the mean of an operator's output (Nagel et al. 2019, arXiv:1906.04721).

`fast` takes the mean from the input's: rounding changes the weights by `dW`, so the output's mean by `dW E[x]`, and
that is taken off the bias. `full` measures it: the quantized graph runs once over a subset of the samples as one
batch, in which every operator's output is brought to its float mean before the next operator sees it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgekit.quant.layers import Layer, layers
from edgekit.quant.session import open_session
from edgekit.quant.spec import QuantSpec, Variant
from edgekit.quant.view import GraphView
from edgekit.quant.weights import dequantize_weight, quantize_weight

if TYPE_CHECKING:
    import onnx

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]
Means = Mapping[str, Array]
"""Per tensor the mean of each channel over all samples and positions, `[channels]`: `Observed.means`."""


def fast(
    proto: onnx.ModelProto, spec: QuantSpec, variant: Variant, means: Means, weights: Mapping[str, Floats] | None = None
) -> dict[str, Floats]:
    """Corrected biases of `variant`. `weights` holds those that were already rounded in another way than to nearest."""
    found: dict[str, Floats] = {}
    view = GraphView(proto.graph)
    for layer in _corrected(proto, spec.nodes):
        scales, bias = spec.weights.get(layer.weight), view.constant(layer.bias or "")
        if scales is None or bias is None or layer.source not in means:
            continue
        value = (weights or {}).get(layer.weight, layer.value)
        rounded = dequantize_weight(quantize_weight(value, scales, variant), scales, variant)
        change = rounded.astype(np.float64) - layer.value
        found[str(layer.bias)] = (bias - layer.response(change, means[layer.source])).astype(np.float32)
    return found


def full(
    proto: onnx.ModelProto,
    spec: QuantSpec,
    variant: Variant,
    batch: Sequence[Array],
    weights: Mapping[str, Floats] | None = None,
) -> dict[str, Floats]:
    """Corrected biases of `variant`, measured on one batch in one pass through the float and the quantized graph.

    Rounding of activations, clipping, and all that earlier operators do to later ones is in it.
    """
    from edgekit.graph.tools import with_initializers
    from edgekit.quant.qdq import emit

    chosen = [layer for layer in _corrected(proto, spec.nodes) if layer.weight in spec.weights]
    outputs = {layer.node.output[0]: layer.rank for layer in chosen}
    wanted = open_session(_reduced(proto, outputs))(batch)
    start = with_initializers(proto, weights) if weights else proto
    simulated = emit(start, spec, variant, "openvino")
    made = {node.name: node.output[0] for node in simulated.graph.node}
    targets = {made[layer.node.name]: (layer.rank, mean) for layer, mean in zip(chosen, wanted, strict=True)}
    seen = open_session(_held_at(simulated, targets), runtime="onnxruntime")(batch)
    view = GraphView(proto.graph)
    found: dict[str, Floats] = {}
    for layer, mean, got in zip(chosen, wanted, seen, strict=True):
        bias = view.constant(str(layer.bias))
        assert bias is not None  # `_corrected` looked
        found[str(layer.bias)] = (bias + mean.astype(np.float64) - got.reshape(-1)).astype(np.float32)
    return found


def _corrected(proto: onnx.ModelProto, nodes: Sequence[str]) -> list[Layer]:
    """Operators whose bias is a vector of their own."""
    view = GraphView(proto.graph)
    found = []
    for layer in layers(proto, nodes):
        bias = view.constant(layer.bias) if layer.bias else None
        groups, outputs, _ = layer.matrix(layer.value).shape
        if bias is not None and bias.shape == (groups * outputs,) and len(view.consumers[layer.bias or ""]) == 1:
            found.append(layer)
    return found


def _reduced(proto: onnx.ModelProto, ranks: Mapping[str, int]) -> onnx.ModelProto:
    """A copy whose outputs are the channel means of the tensors in `ranks`."""
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    del copy.graph.output[:]
    for name, rank in ranks.items():
        copy.graph.node.append(_mean_node(copy, name, rank, keepdims=0))
        copy.graph.output.append(onnx.helper.make_tensor_value_info(f"{name}/mean", onnx.TensorProto.FLOAT, None))
    return copy


def _mean_node(proto: onnx.ModelProto, name: str, rank: int, keepdims: int) -> onnx.NodeProto:
    """ReduceMean of `name` over all axes but 1; they are an attribute before opset 18 and an input from there on."""
    import onnx

    from edgekit.graph.tools import opset_of

    others = [0, *range(2, rank)]
    inputs = [name]
    more: dict[str, Any] = {"keepdims": keepdims, "axes": others}
    if opset_of(proto) >= 18:
        del more["axes"]
        inputs.append(f"{name}/mean_axes")
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array(others, np.int64), inputs[1]))
    return onnx.helper.make_node("ReduceMean", inputs, [f"{name}/mean"], name=f"{name}/mean", **more)


def _held_at(proto: onnx.ModelProto, targets: Mapping[str, tuple[int, Array]]) -> onnx.ModelProto:
    """A copy that shifts tensors to a mean for each channel, and whose outputs are the means that they had before.

    `targets` holds the rank and the means of each tensor.
    """
    import onnx

    from edgekit.graph.tools import replace_nodes

    make = onnx.helper.make_node
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    del copy.graph.output[:]
    nodes: list[onnx.NodeProto] = []
    for node in copy.graph.node:
        nodes.append(node)
        name = node.output[0]
        if name not in targets:
            continue
        rank, mean = targets[name]
        node.output[0] = raw = f"{name}/raw"
        wanted = mean.astype(np.float32).reshape(-1, *[1] * (rank - 2))
        copy.graph.initializer.append(onnx.numpy_helper.from_array(wanted, f"{name}/wanted"))
        nodes += [
            _mean_node(copy, raw, rank, keepdims=1),
            make("Sub", [raw, f"{raw}/mean"], [f"{name}/centred"], name=f"{name}/centred"),
            make("Add", [f"{name}/centred", f"{name}/wanted"], [name], name=f"{name}/shifted"),
        ]
        copy.graph.output.append(onnx.helper.make_tensor_value_info(f"{raw}/mean", onnx.TensorProto.FLOAT, None))
    replace_nodes(copy.graph, nodes)
    return copy
