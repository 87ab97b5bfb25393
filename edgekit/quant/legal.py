"""What must hold before and after Q/DQ go in: a QuantSpec that fits its graph, and a graph that its runtime takes.

A QuantSpec may come from a file that someone edited, and an emitter from a third party. What does not fit is refused
where the graph is emitted, by the names of the nodes, rather than fused wrongly or not at all by a runtime.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from edgekit.errors import BuildError
from edgekit.quant.plan import ACTIVATIONS, WEIGHTED, weight_axis
from edgekit.quant.spec import PerChannel, QuantSpec
from edgekit.quant.view import GraphView

if TYPE_CHECKING:
    import onnx

QUANTIZERS = frozenset({"QuantizeLinear", "DequantizeLinear"})
BIASED = frozenset({"Conv", "ConvTranspose", "Gemm"})
"""Operators whose third input is a bias."""


@dataclass(frozen=True)
class Rules:
    """What a runtime asks of Q/DQ beyond constant scales and symmetric weights.

    `signed`: s8 around zero point 0 everywhere. `bias`: "float" (never behind DequantizeLinear) or "product" (at the
    scale of input times weight, which the runtime takes for granted). All of them want activations per tensor: the
    kernels of TensorRT and LiteRT have no other, and ONNX Runtime and OpenVINO fall back to float.
    """

    title: str
    signed: bool = False
    bias: Literal["any", "float", "product"] = "any"


RULES: Mapping[str, Rules] = {
    "onnxruntime": Rules("ONNX Runtime", bias="product"),
    "openvino": Rules("OpenVINO"),
    "tensorrt": Rules("TensorRT", signed=True, bias="float"),
}


def check_spec(proto: onnx.ModelProto, spec: QuantSpec, backend: str) -> None:
    """The QuantSpec fits the graph: what runs in integers is there and has ranges and scales.

    It may know of more tensors than `proto` has: parts of a graph are emitted by the spec of the whole.

    Raises:
        BuildError: it does not; every node that it fails at is named, with what is wrong.
    """
    view = GraphView(proto.graph)
    nodes = {node.name: node for node in view.nodes}
    strange = [name for name in spec.nodes if name not in nodes]
    if strange:
        raise BuildError(
            f"The QuantSpec belongs to another graph: it has no node {strange[0]!r}. Quantize this one again."
        )
    wrong: dict[str, str] = {}
    for name in spec.nodes:
        if spec.is_float(name, backend) is None:
            fault = next(_lacks(nodes[name], view, spec), None)
            if fault is not None:
                wrong[name] = fault
    for group in spec.ties:
        ranges = {(spec.tensors[name].low, spec.tensors[name].high) for name in group if name in spec.tensors}
        if len(ranges) > 1:
            maker = next((view.producer[name] for name in group[1:] if name in view.producer), None)
            wrong[maker.name if maker else group[0]] = f"{', '.join(group)} are tied and have {len(ranges)} ranges"
    _refuse("The QuantSpec does not fit the graph", wrong)


def _lacks(node: onnx.NodeProto, view: GraphView, spec: QuantSpec) -> Iterator[str]:
    """What an integer operator misses in the spec."""
    for name in (*node.input, *node.output):
        if name and view.is_float(name) and not view.is_constant(name) and name not in spec.tensors:
            reader = view.only_consumer(name)
            if reader is None or reader.op_type not in ACTIVATIONS:
                yield f"its tensor {name!r} has no range"
    weight = node.input[1] if node.op_type in WEIGHTED else ""
    if weight not in view.initializers:
        return
    scales, extents = spec.weights.get(weight), tuple(view.initializers[weight].dims)
    if scales is None:
        yield f"its weight {weight!r} has no scales"
    elif isinstance(scales, PerChannel):
        axis = weight_axis(node, len(extents))
        if scales.axis != axis:
            wanted = "one for all" if axis is None else f"one a channel of axis {axis}"
            yield f"its weight {weight!r} has scales along axis {scales.axis}; kernels take {wanted}"
        elif len(scales.scales) != extents[axis]:
            yield f"its weight {weight!r} has {len(scales.scales)} scales for {extents[axis]} channels"


def check_graph(proto: onnx.ModelProto, backend: str) -> None:
    """An emitted graph keeps the rules of `backend`; one that is not in `RULES` only those that all have.

    Raises:
        BuildError: some node breaks one; all that do are named, each with what is wrong.
    """
    rules = RULES.get(backend, Rules(backend))
    judge = _Judge(GraphView(proto.graph), rules)
    faults = ((node.name, judge.fault(node)) for node in proto.graph.node)
    _refuse(f"The graph is outside {rules.title}'s grid", {name: fault for name, fault in faults if fault})


def _refuse(what: str, wrong: Mapping[str, str]) -> None:
    if wrong:
        seen = "; ".join(f"{name}: {fault}" for name, fault in wrong.items())
        raise BuildError(f"{what}. {seen}.", wrong)


@dataclass(frozen=True)
class _Judge:
    view: GraphView
    rules: Rules

    def fault(self, node: onnx.NodeProto) -> str | None:
        """What is wrong with a node, in words, or None."""
        if node.op_type in BIASED and len(node.input) > 2:
            return self.bias(node)
        if node.op_type not in QUANTIZERS:
            return None
        if node.input[1] not in self.view.initializers:
            return "its scale is computed while the model runs"
        return self.zero_point(node) or self.scale(node)

    def zero_point(self, node: onnx.NodeProto) -> str | None:
        import onnx

        if len(node.input) < 3 or not node.input[2]:
            # Without a zero point a QuantizeLinear writes uint8.
            unsigned = self.rules.signed and node.op_type == "QuantizeLinear"
            return "it has no zero point, which means uint8" if unsigned else None
        tensor = self.view.initializers.get(node.input[2])
        if tensor is None:
            return "its zero point is computed while the model runs"
        of_weight = tensor.data_type == onnx.TensorProto.INT8 and self.is_constant(node)
        if self.rules.signed and tensor.data_type != onnx.TensorProto.INT8:
            return f"its integers are {onnx.TensorProto.DataType.Name(tensor.data_type)}, not INT8"
        values = onnx.numpy_helper.to_array(tensor).reshape(-1)
        zero = self.rules.signed or of_weight or tensor.data_type == onnx.TensorProto.INT32
        return f"its zero point is {values[values != 0][0]}, not 0" if zero and values.any() else None

    def scale(self, node: onnx.NodeProto) -> str | None:
        """Only constants may have one scale a channel: an activation's DQ follows a Q, or a graph input."""
        values = self.array(node.input[1])
        if not (np.isfinite(values) & (values > 0)).all():
            return f"its scale is {values.reshape(-1)[0]:g}, which makes no grid"
        if self.is_constant(node) or values.size == 1:
            return None
        return f"it has {values.size} scales for an activation, one a channel"

    def bias(self, node: onnx.NodeProto) -> str | None:
        behind = self.view.producer.get(node.input[2])
        if behind is None or behind.op_type not in QUANTIZERS or self.rules.bias == "any":
            return None
        if self.rules.bias == "float":
            return f"its bias is quantized by {behind.name}"
        data, weight = (self.view.producer.get(name) for name in node.input[:2])
        sources = [one for one in (data, weight) if one is not None and one.op_type in QUANTIZERS]
        if len(sources) < 2 or any(one.input[1] not in self.view.initializers for one in (*sources, behind)):
            return f"its bias is quantized by {behind.name}, and its input or weight is not"
        step, steps, own = (self.array(one.input[1]).reshape(-1) for one in (*sources, behind))
        if step.size != 1:
            return None  # the fault of its input
        if own.size == steps.size and np.allclose(own, step * steps, rtol=1e-6, atol=0):
            return None
        return f"the scale of its bias, by {behind.name}, is not that of its input times that of its weight"

    def is_constant(self, node: onnx.NodeProto) -> bool:
        """Whether a Q or DQ works on a constant, directly or behind a Q."""
        maker = self.view.producer.get(node.input[0])
        behind = maker.input[0] if maker is not None and maker.op_type == "QuantizeLinear" else node.input[0]
        return behind in self.view.initializers

    def array(self, name: str) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        import onnx

        value: np.ndarray[tuple[int, ...], np.dtype[np.float32]]
        value = onnx.numpy_helper.to_array(self.view.initializers[name])
        return value
