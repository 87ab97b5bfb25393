"""Quantization simulated in float64: what an emitted graph should compute, found without the emitters.

A float graph is computed node by node, weights as their integers stand for, and every activation that a backend keeps
in 8 bits is rounded to its grid: fake quantization as in Jacob et al. 2018 (arXiv:1712.05877). A runtime's kernel may
break a tie otherwise, and one step in the middle may grow on the way to the output; so `observed` values of the
runtime can stand in for the simulated ones: then each operator is judged alone, by what it makes of what it really got.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgekit.quant.active import active_nodes, is_shift
from edgekit.quant.build import NO_KERNEL
from edgekit.quant.plan import WEIGHTED
from edgekit.quant.spec import Grid, QuantSpec, Variant
from edgekit.quant.view import GraphView
from edgekit.quant.weights import dequantize_weight, quantize_bias, quantize_weight, scale_array

if TYPE_CHECKING:
    import onnx

Array = npt.NDArray[Any]
Compute = Callable[["onnx.ModelProto", Sequence[Array]], Sequence[Array]]
"""Runs a model of one node on float64 (or integer) inputs."""

INTEGER_BIAS = frozenset({"onnxruntime", "litert"})
"""Backends whose biases are 32-bit integers at the scale of input times weight."""

_OPENVINO_READERS = WEIGHTED | {"Add"}
_SYMMETRIC_READERS = WEIGHTED | {"Add", "AveragePool", "GlobalAveragePool", "MaxPool"}


def simulate(
    proto: onnx.ModelProto,
    spec: QuantSpec,
    variant: Variant,
    backend: str,
    inputs: Sequence[Array],
    *,
    observed: Mapping[str, Array] | None = None,
    compute: Compute | None = None,
) -> dict[str, Array]:
    """Every tensor of the graph in float64, on its grid where `backend` keeps it in 8 bits.

    `proto` and `spec` are those that belong together (see `edgekit.quant.qdq.rewritten` for a backend that computes
    some operators in other ways). `inputs` are in the graph's order. Where `observed` has a tensor, the nodes behind
    it read that value; the result still holds what was expected there. `compute` runs one node: the torch view in
    double precision if none is given.

    Raises:
        BuildError: an operator that the torch view lacks.
    """
    return _Simulator(proto, spec, variant, backend, observed or {}, compute or by_torch).run(inputs)


def fake_quantize(values: Array, grid: Grid) -> Array:
    """The values of `grid` nearest to `values`, in float64; ties go to even integers.

    >>> fake_quantize(np.array([-1.0, 0.24, 0.26, 9.0]), Grid(scale=0.5, zero_point=1, low=0, high=3))
    array([-0.5,  0. ,  0.5,  1. ])
    """
    integers = np.clip(np.rint(values.astype(np.float64) / grid.scale) + grid.zero_point, grid.low, grid.high)
    result: Array = (integers - grid.zero_point) * grid.scale
    return result


def by_torch(model: onnx.ModelProto, inputs: Sequence[Array]) -> list[Array]:
    """The outputs of a graph by its torch view, in double precision."""
    import torch

    from edgekit.graph.torch_view import torch_view

    with torch.no_grad():
        made = torch_view(model).double()(*(torch.from_numpy(np.array(value)) for value in inputs))
    return [np.asarray(value) for value in (made if isinstance(made, tuple) else (made,))]


class _Simulator:
    def __init__(
        self,
        proto: onnx.ModelProto,
        spec: QuantSpec,
        variant: Variant,
        backend: str,
        observed: Mapping[str, Array],
        compute: Compute,
    ) -> None:
        self.proto, self.spec, self.variant, self.backend = proto, spec, variant, backend
        self.observed, self.compute = observed, compute
        self.view = GraphView(proto.graph)
        self.active = active_nodes(self.view, spec, backend)
        self.raw: dict[str, Array] = {}
        self.rounded: dict[str, Array] = {}
        self.expected: dict[str, Array] = {}

    def run(self, inputs: Sequence[Array]) -> dict[str, Array]:
        for name, value in zip(self.view.inputs, inputs, strict=True):
            self.keep(name, value.astype(np.float64) if value.dtype.kind == "f" else value)
        for node in self.view.nodes:
            for name, value in zip(node.output, self.node(node), strict=False):
                if name:
                    self.keep(name, value)
        return self.expected

    def keep(self, name: str, value: Array) -> None:
        """Note what a tensor holds, and what it holds for its 8-bit readers."""
        self.raw[name] = self.expected[name] = value
        if self.in_eight_bits(name):
            self.rounded[name] = fake_quantize(value, self.spec.grid(name, self.variant))
            if self.is_active(self.view.producer.get(name)):
                self.raw[name] = self.rounded[name]
            self.expected[name] = self.rounded[name]
        if name in self.observed:
            seen = self.observed[name].reshape(value.shape)
            self.rounded[name] = seen if name in self.rounded else value
            self.raw[name] = seen if self.is_active(self.view.producer.get(name)) else value

    def is_active(self, node: onnx.NodeProto | None) -> bool:
        return node is not None and node.name in self.active

    def in_eight_bits(self, name: str) -> bool:
        """Whether the backend keeps a tensor on the grid that the spec has for it."""
        if name not in self.spec.tensors:
            return False
        readers = [node for node in self.view.consumers[name] if self.is_active(node)]
        if self.variant != "symmetric" and self.backend != "openvino":
            return bool(readers) or self.is_active(self.view.producer.get(name))
        readers = [node for node in readers if not is_shift(node, self.view)]
        if self.backend == "openvino":
            return any(node.op_type in _OPENVINO_READERS for node in readers)
        return any(node.op_type in _SYMMETRIC_READERS and not self.is_fused(name, node) for node in readers)

    def is_fused(self, name: str, node: onnx.NodeProto) -> bool:
        """Whether an Add takes `name` from the convolution that it is fused into: the first of its operands such."""
        if node.op_type != "Add":
            return False
        made = {source: self.view.producer.get(source) for source in node.input}
        own = [
            source
            for source, maker in made.items()
            if maker is not None and maker.op_type in WEIGHTED and self.view.only_consumer(source) is not None
        ]
        return own[:1] == [name]

    def node(self, node: onnx.NodeProto) -> Sequence[Array]:
        """The outputs of one operator from what its inputs hold for it."""
        active = self.is_active(node)
        constants = {name: value for name in node.input if (value := self.view.constant(name)) is not None}
        stored = active or (node.name in self.spec.nodes and node.op_type in NO_KERNEL.get(self.backend, ()))
        if node.op_type in WEIGHTED and stored:
            constants |= self.weights(node, constants)
        if active and self.variant != "symmetric":
            for name in constants.keys() & self.spec.tensors.keys():
                constants[name] = fake_quantize(constants[name], self.spec.grid(name, self.variant)).astype(np.float32)
        values = self.rounded if active else self.raw
        given = {
            name: values.get(name, self.raw.get(name))
            for name in dict.fromkeys(node.input)
            if name and name not in constants
        }
        arrays = {name: value for name, value in given.items() if value is not None}
        return self.compute(_alone(node, arrays, constants, self.proto), list(arrays.values()))

    def weights(self, node: onnx.NodeProto, constants: Mapping[str, Array]) -> dict[str, Array]:
        """What a weight's integers stand for, and a bias where the backend rounds that too."""
        name = node.input[1]
        scales = self.spec.weights.get(name)
        if scales is None or name not in constants:
            return {}
        integers = quantize_weight(constants[name], scales, self.variant)
        found: dict[str, Array] = {name: dequantize_weight(integers, scales, self.variant)}
        bias = node.input[2] if len(node.input) > 2 else ""
        ranged = node.input[0] in self.spec.tensors and self.is_active(node)
        if bias in constants and self.backend in INTEGER_BIAS and ranged:
            step = self.spec.grid(node.input[0], self.variant).scale
            steps = scale_array(scales, self.variant)
            whole, steps = quantize_bias(constants[bias].reshape(-1), step, steps)
            found[bias] = (whole * steps.astype(np.float64)).astype(np.float32).reshape(constants[bias].shape)
        return found


def _alone(
    node: onnx.NodeProto, arrays: Mapping[str, Array], constants: Mapping[str, Array], proto: onnx.ModelProto
) -> onnx.ModelProto:
    """A model of one node; its inputs have the types and shapes of `arrays`."""
    import onnx

    kinds = onnx.helper.np_dtype_to_tensor_dtype
    given = [onnx.helper.make_tensor_value_info(n, kinds(a.dtype), a.shape) for n, a in arrays.items()]
    made = [onnx.helper.make_value_info(name, onnx.TypeProto()) for name in node.output if name]
    known = {value.name: value for value in (*proto.graph.value_info, *proto.graph.output)}
    typed = [known.get(value.name, value) for value in made]
    stored = [onnx.numpy_helper.from_array(np.ascontiguousarray(v) if v.ndim else v, n) for n, v in constants.items()]
    graph = onnx.helper.make_graph([node], node.name, given, typed, stored)
    return onnx.helper.make_model(graph, opset_imports=proto.opset_import, ir_version=proto.ir_version)
