"""Small helpers on ONNX graphs: names, uses, constants, shapes. Nothing here changes a graph unless it says so."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from edgekit.errors import UsageError
from edgekit.graph.large import without_weights
from edgekit.model import EXTENT, Dim, TensorSpec

Array = npt.NDArray[Any]

INTEGER_OPERATORS = frozenset(
    {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "ConvInteger"}
    | {"MatMulIntegerToFloat", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM", "QGemm", "QAttention"}
    | {"MatMulNBits", "MatMulBnb4", "GatherBlockQuantized", "QEmbedLayerNormalization", "QMoE"}
)
"""Operators of quantized models, those of ONNX Runtime's own set among them; any `QLinear...` is one too."""


def opset_of(proto: onnx.ModelProto) -> int:
    """The version of ONNX's own operator set that the model is written in."""
    return next((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), 1)


class Constants(MutableMapping[str, Array]):
    """The initializers of a graph as arrays, by name; each is read when it is first asked for."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._tensors = {tensor.name: tensor for tensor in graph.initializer}
        self._values: dict[str, Array] = {}

    def __getitem__(self, name: str) -> Array:
        if name not in self._values:
            self._values[name] = numpy_helper.to_array(self._tensors[name])
        return self._values[name]

    def __setitem__(self, name: str, value: Array) -> None:
        self._values[name] = value

    def __delitem__(self, name: str) -> None:
        self._tensors.pop(name, None)
        self._values.pop(name, None)

    def __contains__(self, name: object) -> bool:
        return name in self._values or name in self._tensors

    def __iter__(self) -> Iterator[str]:
        return iter({**self._tensors, **self._values})

    def __len__(self) -> int:
        return len({**self._tensors, **self._values})


def initializers(graph: onnx.GraphProto) -> Constants:
    """Every initializer as an array, by name."""
    return Constants(graph)


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """The node's attributes as Python values (strings decoded, tensors and graphs as protos)."""
    values = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    return {name: value.decode() if isinstance(value, bytes) else value for name, value in values.items()}


def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The bodies of a control-flow node (If, Loop, Scan)."""
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        elif attribute.type == onnx.AttributeProto.GRAPHS:
            yield from attribute.graphs


def quantized_nodes(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """The operators that already compute on integers, or convert to and from them, in subgraphs too."""
    found = []
    for node in graph.node:
        if node.op_type in INTEGER_OPERATORS or node.op_type.startswith("QLinear"):
            found.append(node)
        for inner in subgraphs(node):
            found += quantized_nodes(inner)
    return found


def reads(node: onnx.NodeProto) -> Iterator[str]:
    """Names of all tensors that the node reads, those that its subgraphs may take from outside included."""
    yield from (name for name in node.input if name)
    for graph in subgraphs(node):
        for inner in graph.node:
            yield from reads(inner)
        yield from (output.name for output in graph.output)


def producers(graph: onnx.GraphProto) -> dict[str, onnx.NodeProto]:
    """The node that makes each tensor."""
    return {name: node for node in graph.node for name in node.output if name}


def consumers(graph: onnx.GraphProto) -> dict[str, list[onnx.NodeProto]]:
    """The nodes that read each tensor, in order; a node that reads it twice is listed twice."""
    found: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in reads(node):
            found.setdefault(name, []).append(node)
    return found


def output_names(graph: onnx.GraphProto) -> frozenset[str]:
    """The names of the graph's outputs."""
    return frozenset(output.name for output in graph.output)


def tensor_names(graph: onnx.GraphProto) -> set[str]:
    """Every tensor name in use, subgraphs included."""
    names = {value.name for value in (*graph.input, *graph.output)} | {t.name for t in graph.initializer}
    for node in graph.node:
        names.update(node.input, node.output)
        for inner in subgraphs(node):
            names |= tensor_names(inner)
    return names - {""}


def unique_name(base: str, taken: set[str]) -> str:
    """`base`, or `base_1`, `base_2`, ... whichever is free; the result is added to `taken`."""
    name, count = base, 0
    while name in taken:
        count += 1
        name = f"{base}_{count}"
    taken.add(name)
    return name


def set_initializer(graph: onnx.GraphProto, name: str, value: Array) -> None:
    """Change `graph`: add the initializer `name`, or replace its value."""
    tensor = numpy_helper.from_array(np.ascontiguousarray(value) if value.ndim else value, name)
    for present in graph.initializer:
        if present.name == name:
            present.CopyFrom(tensor)
            return
    graph.initializer.append(tensor)


def with_initializers(proto: onnx.ModelProto, values: Mapping[str, Array]) -> onnx.ModelProto:
    """A copy in which the initializers named in `values` hold those arrays; all of them exist already.

    Raises:
        KeyError: an initializer that `proto` does not have.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    present = {tensor.name: tensor for tensor in copy.graph.initializer}
    for name, value in values.items():
        present[name].CopyFrom(numpy_helper.from_array(np.ascontiguousarray(value), name))
    return copy


def transposed_apart(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model for OpenVINO: a copy where needed, in which no weight is read both as it is and transposed.

    Its kernel for processors (2026.4) packs such a weight once and computes nonsense with it the second time.
    """
    constants = {tensor.name: tensor for tensor in proto.graph.initializer}
    plain: set[str] = set()
    turned: list[int] = []
    for index, node in enumerate(proto.graph.node):
        if node.op_type not in ("MatMul", "Gemm") or node.input[1] not in constants:
            continue
        if attributes(node).get("transB", 0):
            turned.append(index)
        else:
            plain.add(node.input[1])
    turned = [index for index in turned if proto.graph.node[index].input[1] in plain]
    if not turned:
        return proto
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    taken = tensor_names(copy.graph)
    for index in turned:
        node = copy.graph.node[index]
        value = numpy_helper.to_array(constants[node.input[1]])
        node.input[1] = unique_name(f"{node.input[1]}_transposed", taken)
        set_initializer(copy.graph, node.input[1], value)
    return copy


def replace_nodes(graph: onnx.GraphProto, nodes: Iterable[onnx.NodeProto]) -> None:
    """Change `graph`: its nodes become `nodes`, in that order."""
    kept = list(nodes)
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in kept]
    del graph.node[:]
    graph.node.extend(copies)


def drop_unused(graph: onnx.GraphProto) -> None:
    """Change `graph`: remove nodes and initializers that no output depends on, and shapes of tensors that are gone."""
    needed = set(output_names(graph))
    kept: list[onnx.NodeProto] = []
    for node in reversed(graph.node):
        if any(name in needed for name in node.output):
            kept.append(node)
            needed.update(reads(node))
    if len(kept) != len(graph.node):
        replace_nodes(graph, reversed(kept))
    unused = [i for i, tensor in enumerate(graph.initializer) if tensor.name not in needed]
    for index in reversed(unused):
        del graph.initializer[index]
    made = {name for node in graph.node for name in node.output}
    stale = [i for i, value in enumerate(graph.value_info) if value.name not in made]
    for index in reversed(stale):
        del graph.value_info[index]


def shape_of(value: onnx.ValueInfoProto) -> tuple[Dim | None, ...] | None:
    """A tensor's shape: ints, names of dynamic axes, None for an unnamed unknown; None if the rank is unknown."""
    if not value.type.HasField("tensor_type") or not value.type.tensor_type.HasField("shape"):
        return None
    dims: list[Dim | None] = []
    for dim in value.type.tensor_type.shape.dim:
        known = dim.HasField("dim_value") and dim.dim_value >= 0
        dims.append(dim.dim_value if known else dim.dim_param or None)
    return tuple(dims)


def shapes(graph: onnx.GraphProto) -> dict[str, tuple[Dim | None, ...]]:
    """The shape of every tensor whose rank is known: inputs, outputs, initializers, and inferred ones."""
    found: dict[str, tuple[Dim | None, ...]] = {t.name: tuple(t.dims) for t in graph.initializer}
    for value in (*graph.input, *graph.output, *graph.value_info):
        shape = shape_of(value)
        if shape is not None:
            found[value.name] = shape
    return found


def is_axis_name(name: str) -> bool:
    """Whether a dynamic axis was named by someone: not "?", not an expression, not made up by shape inference."""
    # A damaged file's name that is not UTF-8 comes as bytes.
    return (
        isinstance(name, str) and re.fullmatch(r"[A-Za-z_][\w.:/-]*", name) is not None and not name.startswith("unk__")
    )


def tensor_spec(value: onnx.ValueInfoProto) -> TensorSpec:
    """An input or output as a `TensorSpec`; unnamed dynamic axes are named after the tensor, a first one `batch`.

    Raises:
        UsageError: it is no tensor (a sequence, an optional).
    """
    if not value.type.HasField("tensor_type") or not value.type.tensor_type.elem_type:
        kind = value.type.WhichOneof("value") or "of unknown type"
        raise UsageError(
            f"The model's input or output {value.name!r} is no tensor but {kind.removesuffix('_type')}. "
            "Export the model with tensors alone."
        )
    dims = shape_of(value) or ()
    named = (
        d if isinstance(d, int) or (d is not None and is_axis_name(d)) else "batch" if i == 0 else f"{value.name}_{i}"
        for i, d in enumerate(dims)
    )
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)).name
    return TensorSpec(value.name, dtype, tuple(named))


def tensor_specs(proto: onnx.ModelProto) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """The model's inputs and outputs."""
    constant = {tensor.name for tensor in proto.graph.initializer}
    inputs = tuple(tensor_spec(value) for value in proto.graph.input if value.name not in constant)
    return inputs, tuple(tensor_spec(value) for value in proto.graph.output)


def with_sizes(proto: onnx.ModelProto, sizes: Mapping[str, int] | None = None, batch: int = 1) -> onnx.ModelProto:
    """A copy with every dynamic input axis fixed (`sizes` by axis name, first axis `batch`, others `EXTENT`).

    Shapes of all tensors are inferred anew from that. Large weights are left out of the copy: they are inputs there.
    """
    fixed = without_weights(proto)
    del fixed.graph.value_info[:]
    for value in fixed.graph.input:
        spec = tensor_spec(value)
        for index, (dim, extent) in enumerate(zip(value.type.tensor_type.shape.dim, spec.shape, strict=True)):
            if isinstance(extent, str):
                dim.dim_value = (sizes or {}).get(extent, batch if index == 0 else EXTENT)
    for value in fixed.graph.output:
        value.type.tensor_type.ClearField("shape")
    return onnx.shape_inference.infer_shapes(fixed, data_prop=True)
