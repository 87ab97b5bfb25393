"""A float graph and its QuantSpec to an ONNX graph with QuantizeLinear and DequantizeLinear, in a backend's grid."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgekit.errors import BuildError
from edgekit.quant.active import active_nodes, is_shift
from edgekit.quant.build import NO_KERNEL
from edgekit.quant.legal import check_graph, check_spec
from edgekit.quant.plan import ACTIVATIONS, WEIGHTED
from edgekit.quant.rewrite import for_onnxruntime, pad_before_pooling
from edgekit.quant.spec import Grid, PerChannel, QuantSpec, Variant
from edgekit.quant.view import GraphView, attribute, clip_bounds, within
from edgekit.quant.weights import quantize_bias, quantize_weight, scale_array

if TYPE_CHECKING:
    import onnx

MIN_OPSET = 13
"""The first opset whose DequantizeLinear takes a scale for each channel."""

_TENSORRT_INPUTS = WEIGHTED | {"Add", "AveragePool", "GlobalAveragePool", "MaxPool"}
"""Operators that want their inputs in 8 bits on TensorRT; all others take what the fusion around them gives."""

_OPENVINO_INPUTS = WEIGHTED | {"Add"}
"""The same on OpenVINO, which computes what stands between two of them in float within the kernel of the first.

Residual networks take 3 % longer where only one operand of their additions is in 8 bits.
"""


def emit(proto: onnx.ModelProto, spec: QuantSpec, variant: Variant, backend: str) -> onnx.ModelProto:
    """The quantized graph of `backend` ("onnxruntime", "openvino", "tensorrt", ...) in the grid of `variant`.

    Weights become int8 initializers behind DequantizeLinear, the same bytes for every backend of a variant. Graph
    inputs and outputs stay float32 under their names. ONNX Runtime gets 32-bit biases, the others keep float ones.
    A backend that the spec gives another form than static int8 gets that one.

    Raises:
        BuildError: the graph is older than opset 13, the spec does not fit it, or the runtime forbids the result.
    """
    if spec.form(backend) != "int8" or (spec.tables and variant != "symmetric"):
        from edgekit.quant import forms

        if spec.form(backend) != "int8":
            return forms.emit_form(proto, spec, variant, backend)
        proto = forms.rewritten(proto, spec, variant, backend, None)
    copy, spec, direct = rewritten(proto, spec, variant, backend)
    _Emitter(copy, spec, variant, backend, direct).run()
    check_graph(copy, backend)
    return copy


def rewritten(
    proto: onnx.ModelProto, spec: QuantSpec, variant: Variant, backend: str
) -> tuple[onnx.ModelProto, QuantSpec, frozenset[str]]:
    """What `emit` puts Q/DQ into: a copy of the float graph in forms that `backend` has 8-bit kernels for.

    It computes what `proto` computes. Beside it the QuantSpec that fits it, and the names of operators that work on
    the integers themselves.

    Raises:
        BuildError: the graph is older than opset 13, or the spec does not fit it.
    """
    import onnx

    opset = next(entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx"))
    if opset < MIN_OPSET:
        raise BuildError(f"Q/DQ needs opset {MIN_OPSET} or later, this graph has {opset}: normalise it first")
    check_spec(proto, spec, backend)
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    direct: frozenset[str] = frozenset()
    if variant != "symmetric":
        spec = pad_before_pooling(copy, spec, backend)
    if backend == "onnxruntime" and variant != "symmetric":
        spec, direct = for_onnxruntime(copy, spec)
    return copy, spec, direct


class _Emitter:
    """Changes one private copy of a graph. `direct` names operators that work on the integers themselves."""

    def __init__(
        self, proto: onnx.ModelProto, spec: QuantSpec, variant: Variant, backend: str, direct: frozenset[str]
    ) -> None:
        self.graph = proto.graph
        self.spec = spec
        self.variant = variant
        self.backend = backend
        self.direct = direct
        self.view = GraphView(proto.graph)
        self.active = active_nodes(self.view, spec, backend)
        self.before: dict[str, list[onnx.NodeProto]] = {}
        self.after: dict[str, list[onnx.NodeProto]] = {}
        self.first: list[onnx.NodeProto] = []
        self.added: set[str] = set()
        self.parameters: set[str] = set()
        self.source: dict[str, str] = {}
        self.gone: list[onnx.NodeProto] = []

    def run(self) -> None:
        """Activations that the grid absorbs go, then activations, weights and biases get their Q/DQ."""
        if self.variant != "symmetric" and self.backend != "openvino":
            self.drop_absorbed()
        if self.backend == "onnxruntime":
            self.guard_float()
        direct = [(node, self.operand(node)) for node in self.graph.node if node.name in self.direct]
        for name in self.spec.tensors:
            if self.view.is_constant(name):
                self.constant(name)
            elif self.wanted(name):
                self.activation(name)
        for node in self.graph.node:
            if self.has_integer_weight(node):
                self.weight(node)
        for node, source in direct:
            self.on_integers(node, source)
        nodes = list(self.first)
        for node in self.graph.node:
            kept = () if any(node is one for one in self.gone) else (node,)
            nodes += [*self.before.get(node.name, ()), *kept, *self.after.get(node.name, ())]
        copies = [type(node).FromString(node.SerializeToString()) for node in nodes]
        del self.graph.node[:]
        self.graph.node.extend(copies)
        self.clean()

    def grid(self, tensor: str) -> Grid:
        return self.spec.grid(tensor, self.variant)

    def is_active(self, node: onnx.NodeProto | None) -> bool:
        return node is not None and node.name in self.active

    def has_integer_weight(self, node: onnx.NodeProto) -> bool:
        """Whether the weight is stored in 8 bits: of an operator that the backend has no kernel for too."""
        if node.op_type not in WEIGHTED or node.name not in self.spec.nodes or node.input[1] not in self.spec.weights:
            return False
        return self.is_active(node) or node.op_type in NO_KERNEL.get(self.backend, ())

    def drop_absorbed(self) -> None:
        """Remove a Relu or Clip whose bounds the integer grid of its output keeps anyway."""
        gone: list[onnx.NodeProto] = []
        for node in self.graph.node:
            if node.op_type not in ACTIVATIONS or not self.is_active(node) or node.input[0] in self.spec.tensors:
                continue
            producer, bounds = self.view.producer[node.input[0]], clip_bounds(node, self.view)
            if bounds is None or self.view.only_consumer(node.input[0]) is None or not self.is_active(producer):
                continue
            if within(self.grid(node.output[0]), bounds):
                producer.output[list(producer.output).index(node.input[0])] = node.output[0]
                gone.append(node)
        for node in gone:
            self.graph.node.remove(node)
        self.view = GraphView(self.graph)

    def wanted(self, tensor: str) -> bool:
        """Whether an activation gets Q/DQ."""
        readers = self.view.consumers[tensor]
        producer = self.view.producer.get(tensor)
        if self.backend != "openvino" and self.variant != "symmetric":
            return self.is_active(producer) or any(self.is_active(node) for node in readers)
        return any(self.is_active(node) and self.wants_integers(node, tensor) for node in readers)

    def wants_integers(self, node: onnx.NodeProto, tensor: str) -> bool:
        """Whether an operator is computed on the integers of its input `tensor`, rather than within another kernel."""
        if is_shift(node, self.view):
            return False
        if self.backend == "openvino":
            return node.op_type in _OPENVINO_INPUTS
        return node.op_type in _TENSORRT_INPUTS and not self.is_main_branch(tensor, node)

    def is_main_branch(self, tensor: str, node: onnx.NodeProto) -> bool:
        """Whether `tensor` is the operand of an Add that TensorRT fuses into the convolution that makes it."""
        if node.op_type != "Add":
            return False
        for name in node.input:
            producer = self.view.producer.get(name)
            if producer is not None and producer.op_type in WEIGHTED and self.view.only_consumer(name) is not None:
                return bool(name == tensor)
        return False

    def activation(self, tensor: str) -> None:
        """Quantize and dequantize `tensor` where it is made; the float original lives on only for float readers."""
        producer = self.view.producer.get(tensor)
        if self.is_active(producer) and producer is not None:
            direct = producer.name in self.direct
            raw = f"{tensor}/quantized" if direct else f"{tensor}/float"
            producer.output[list(producer.output).index(tensor)] = raw
            nodes = self.pair(raw, tensor, tensor)
            self.after.setdefault(producer.name, []).extend(nodes[1:] if direct else nodes)
            return
        dequantized = f"{tensor}/dequantized"
        self.source[dequantized] = tensor
        self.rewire(tensor, dequantized)
        nodes = self.pair(tensor, tensor, dequantized)
        if producer is None:
            self.first.extend(nodes)
        else:
            self.after.setdefault(producer.name, []).extend(nodes)

    def pair(self, source: str, tensor: str, result: str) -> list[onnx.NodeProto]:
        import onnx

        grid = self.grid(tensor)
        kind = np.int8 if self.variant == "symmetric" else np.uint8
        scale = self.parameter(f"{tensor}/scale", np.asarray(grid.scale, np.float32))
        zero = self.parameter(f"{tensor}/zero_point", np.asarray(grid.zero_point, kind))
        integers = f"{tensor}/quantized"
        return [
            onnx.helper.make_node("QuantizeLinear", [source, scale, zero], [integers], name=integers),
            onnx.helper.make_node("DequantizeLinear", [integers, scale, zero], [result], name=f"{tensor}/dequantize"),
        ]

    def constant(self, tensor: str) -> None:
        """A constant operand of an Add, Mul or Concat: 8-bit like an activation. TensorRT takes it in float."""
        value = self.view.constant(tensor)
        if self.variant == "symmetric" or value is None:
            return
        if self.backend == "openvino" and value.size == 1 and not self.wanted(tensor):
            return  # every grid holds the number, and OpenVINO's fusion of Swish throws where it is dequantized
        grid = self.grid(tensor)
        integers = np.clip(np.rint(value / np.float32(grid.scale)) + grid.zero_point, grid.low, grid.high)
        scale = np.asarray(grid.scale, np.float32)
        zero = np.asarray(grid.zero_point, np.uint8)
        if any(self.is_active(node) for node in self.view.consumers[tensor]):
            self.rewire(tensor, self.dequantize(tensor, integers.astype(np.uint8), scale, zero, None))

    def guard_float(self) -> None:
        """ONNX Runtime quantizes the float weights of an operator between Q/DQ by itself: keep it from doing so.

        It looks for DequantizeLinear right before the operator; a Clip without effect stands in between.
        """
        import onnx

        for node in list(self.graph.node):
            if node.op_type not in WEIGHTED or self.is_active(node) or self.has_integer_weight(node):
                continue
            if not self.is_active(self.view.producer.get(node.input[0])):
                continue
            guarded = f"{node.name}/input"
            self.before[node.name] = [onnx.helper.make_node("Clip", [node.input[0]], [guarded], name=guarded)]
            node.input[0] = guarded

    def rewire(self, tensor: str, result: str) -> None:
        """Let the integer readers of `tensor` read `result`."""
        for node in self.view.consumers[tensor]:
            if self.is_active(node):
                for i, name in enumerate(node.input):
                    if name == tensor:
                        node.input[i] = result

    def operand(self, node: onnx.NodeProto) -> str:
        """The first input that is computed."""
        return next(str(name) for name in node.input if name and not self.view.is_constant(name))

    def on_integers(self, node: onnx.NodeProto, source: str) -> None:
        """Let an operator read the integers of `source`; what it gives are those of its output's grid."""
        node.input[0] = f"{source}/quantized"
        if node.op_type in ("DepthToSpace", "SpaceToDepth"):
            return
        if node.op_type == "Pad":
            if attribute(node, "mode", b"constant") == b"constant":
                while len(node.input) < 3:
                    node.input.append("")
                node.input[2] = f"{source}/zero_point"
            return
        grid = self.grid(node.output[0].removesuffix("/quantized"))
        bounds = (0.0, 1.0) if node.op_type == "HardSigmoid" else clip_bounds(node, self.view)
        if bounds is None or (node.op_type == "HardSigmoid" and grid.scale * (254 - grid.zero_point) < bounds[1]):
            # The integers of its input are those of its output, to one step beyond 1.
            self.after[node.name][0].input[0] = node.input[0]
            self.gone.append(node)
            return
        limits = [np.clip(np.rint(bound / grid.scale) + grid.zero_point, 0, 255).astype(np.uint8) for bound in bounds]
        names = [
            self.add(f"{node.name}/{end}", np.asarray(limit))
            for end, limit in zip(("low", "high"), limits, strict=True)
        ]
        del node.attribute[:]
        del node.input[1:]
        node.input.extend(names)
        node.op_type = "Clip"

    def weight(self, node: onnx.NodeProto) -> None:
        """Weights of an operator, and its bias where the backend wants that in 32 bits."""
        name = node.input[1]
        scales, value = self.spec.weights.get(name), self.view.constant(name)
        if scales is None or value is None:
            return
        steps = scale_array(scales, self.variant)
        axis = scales.axis if isinstance(scales, PerChannel) else None
        integers = quantize_weight(value, scales, self.variant)
        node.input[1] = self.dequantize(name, integers, steps, np.zeros(steps.shape, np.int8), axis)
        has_bias = len(node.input) > 2 and bool(node.input[2])
        source = self.source.get(node.input[0], node.input[0])
        if self.backend != "onnxruntime" or not self.is_active(node) or not has_bias or source not in self.spec.tensors:
            return
        bias = self.view.constant(node.input[2])
        if bias is not None:
            flat = bias.reshape(-1) if axis is not None else bias
            values, bias_steps = quantize_bias(flat, self.grid(source).scale, steps)
            zero = np.zeros(bias_steps.shape, np.int32)
            node.input[2] = self.dequantize(
                f"{node.name}/bias", values, bias_steps, zero, 0 if axis is not None else None
            )

    def dequantize(
        self,
        name: str,
        integers: npt.NDArray[Any],
        scale: npt.NDArray[np.float32],
        zero: npt.NDArray[Any],
        axis: int | None,
    ) -> str:
        """An integer initializer behind DequantizeLinear; the name of the float tensor."""
        import onnx

        result = f"{name}/dequantized"
        if result in self.added:
            return result
        self.added.add(result)
        inputs = [
            self.add(f"{name}/quantized", integers),
            self.parameter(f"{name}/scale", scale),
            self.parameter(f"{name}/zero_point", zero),
        ]
        extra: dict[str, Any] = {} if axis is None else {"axis": axis}
        self.first.append(
            onnx.helper.make_node("DequantizeLinear", inputs, [result], name=f"{name}/dequantize", **extra)
        )
        return result

    def parameter(self, name: str, value: npt.NDArray[Any]) -> str:
        """A scale or zero point."""
        self.parameters.add(name)
        return self.add(name, value)

    def add(self, name: str, value: npt.NDArray[Any]) -> str:
        import onnx

        self.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
        return name

    def clean(self) -> None:
        """Drop float weights and DequantizeLinear that nothing reads any more, and shapes, which are out of date."""
        from edgekit.graph.tools import reads

        used = {name for node in self.graph.node for name in reads(node)} | {item.name for item in self.graph.output}
        for i in reversed(range(len(self.graph.node))):
            node = self.graph.node[i]
            if node.op_type == "DequantizeLinear" and node.output[0] not in used:
                del self.graph.node[i]
        used = {name for node in self.graph.node for name in reads(node)} | {item.name for item in self.graph.output}
        del self.graph.value_info[:]
        for i in reversed(range(len(self.graph.initializer))):
            if self.graph.initializer[i].name not in used:
                del self.graph.initializer[i]
        for i in reversed([i for i, item in enumerate(self.graph.input) if item.name in self.view.initializers]):
            del self.graph.input[i]
        self.share()

    def share(self) -> None:
        """Store scales and zero points once that are the same: there are thousands, most of the zero points zeros."""
        kept: dict[tuple[int, tuple[int, ...], bytes], str] = {}
        same: dict[str, str] = {}
        for item in self.graph.initializer:
            if item.name in self.parameters:
                first = kept.setdefault((item.data_type, tuple(item.dims), item.raw_data), item.name)
                if first != item.name:
                    same[item.name] = first
        for i in reversed(range(len(self.graph.initializer))):
            if self.graph.initializer[i].name in same:
                del self.graph.initializer[i]
        for node in self.graph.node:
            for i, name in enumerate(node.input):
                if name in same:
                    node.input[i] = same[name]
