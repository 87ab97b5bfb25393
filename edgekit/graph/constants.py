"""Compute what depends on nothing but constants and static shapes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

from edgekit.graph.tools import (
    Array,
    attributes,
    initializers,
    output_names,
    replace_nodes,
    set_initializer,
    shapes,
    subgraphs,
    tensor_names,
    unique_name,
)
from edgekit.model import Dim

KEPT = frozenset(
    {"QuantizeLinear", "DequantizeLinear", "RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike"}
    | {"Bernoulli", "Multinomial", "Constant", "Identity"}
)
"""Operators that stay though their inputs are constant: the grid of a quantized weight, and chance."""

LARGEST = 1 << 20
"""A result of more elements than this is kept as a computation unless its inputs are as large."""


def fold_constants(proto: onnx.ModelProto) -> bool:
    """Change `proto`: constant results become initializers, targets of Reshape as constant as they can be.

    Extents that are known by name only are followed through shape arithmetic (Shape, Gather, Concat, ...).
    Returns whether anything changed.
    """
    graph = proto.graph
    known = _Known(proto)
    kept: list[onnx.NodeProto] = []
    for node in graph.node:
        results = known.evaluate(node)
        if results is None:
            known.follow(node)
            kept.append(node)
        for name, value in (results or {}).items():
            known.constants[name] = value
            set_initializer(graph, name, value)
    changed = len(kept) != len(graph.node)
    if changed:
        replace_nodes(graph, kept)
    return _settle_reshapes(graph, known) or changed


class _Known:
    """What is known of a graph's values: `constants` entirely; `partial` as arrays of int, axis name or None."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        self.constants = initializers(proto.graph)
        self.partial: dict[str, Array] = {}
        self.shapes = shapes(proto.graph)
        self.outputs = output_names(proto.graph)
        self.opsets = proto.opset_import
        self.ir_version = proto.ir_version

    def evaluate(self, node: onnx.NodeProto) -> dict[str, Array] | None:
        """The node's results if they are constant, else None."""
        if node.op_type in KEPT or node.domain not in ("", "ai.onnx") or any(subgraphs(node)):
            return None
        if not self.outputs.isdisjoint(node.output):
            return None
        if node.op_type in ("Shape", "Size"):
            return self._static_shape(node)
        inputs = [name for name in node.input if name]
        if any(name not in self.constants for name in inputs):
            return self._followed(node)
        results = self._run(node, inputs)
        if results is None:
            return None
        allowed = max([LARGEST, *(self.constants[name].size for name in inputs)])
        return results if all(value.size <= allowed for value in results.values()) else None

    def _static_shape(self, node: onnx.NodeProto) -> dict[str, Array] | None:
        value = _shape(node, self)
        if value is None or any(not isinstance(d, int) for d in value.flat):
            return None
        return {node.output[0]: value.astype(np.int64)}

    def _followed(self, node: onnx.NodeProto) -> dict[str, Array] | None:
        """A result of shape arithmetic that turned out to be all known."""
        value = _arithmetic(node, self)
        if value is None or not value.size or any(not isinstance(d, int) for d in value.flat):
            return None
        dtype = np.dtype(np.int64)
        if node.op_type == "Cast":
            dtype = onnx.helper.tensor_dtype_to_np_dtype(attributes(node)["to"])
        return {node.output[0]: value.astype(dtype)}

    def _run(self, node: onnx.NodeProto, inputs: list[str]) -> dict[str, Array] | None:
        value_info = [onnx.helper.make_tensor_value_info(name, 0, None) for name in dict.fromkeys(inputs)]
        outputs = [onnx.helper.make_tensor_value_info(name, 0, None) for name in node.output if name]
        graph = onnx.helper.make_graph([node], "constant", value_info, outputs)
        model = onnx.helper.make_model(graph, opset_imports=self.opsets, ir_version=self.ir_version)
        try:
            with np.errstate(all="ignore"):
                results = ReferenceEvaluator(model).run(None, {name: self.constants[name] for name in inputs})
        except Exception:  # the evaluator lacks operators and types that runtimes have: the node stays
            return None
        return {value.name: np.asarray(result) for value, result in zip(outputs, results, strict=True)}

    def follow(self, node: onnx.NodeProto) -> None:
        """Remember what is known of the result of shape arithmetic."""
        value = _arithmetic(node, self)
        if value is not None:
            self.partial[node.output[0]] = value

    def value(self, name: str) -> Array | None:
        """An integer tensor as an array of int, axis name or None; None where nothing is known."""
        if name in self.partial:
            return self.partial[name]
        constant = self.constants.get(name)
        if constant is None or constant.dtype.kind not in "iu":
            return None
        return _objects(constant.tolist(), constant.shape)


def _objects(values: Any, shape: tuple[int, ...]) -> Array:
    array = np.empty(shape, dtype=object)
    array[...] = values
    return array


def _shape(node: onnx.NodeProto, known: _Known) -> Array | None:
    dims = known.shapes.get(node.input[0])
    if dims is None:
        return None
    unknown: list[Dim] = [d if d is not None else f"?{node.input[0]}:{i}" for i, d in enumerate(dims)]
    if node.op_type == "Size":
        whole = all(isinstance(d, int) for d in dims)
        return _objects(int(np.prod([d for d in dims if isinstance(d, int)])) if whole else None, ())
    given = attributes(node)
    part = unknown[given.get("start", 0) : given.get("end", len(unknown))]
    return _objects(part, (len(part),))


def _ints(known: _Known, node: onnx.NodeProto, index: int) -> list[int] | None:
    """The values of a constant input, or None if it is absent or not constant."""
    if index >= len(node.input) or node.input[index] not in known.constants:
        return None
    return [int(v) for v in known.constants[node.input[index]].flat]


def _arithmetic(node: onnx.NodeProto, known: _Known) -> Array | None:
    """What is known of the result of an integer operator on shapes."""
    if node.op_type in ("Shape", "Size"):
        return _shape(node, known)
    if node.op_type not in _FOLLOWED or node.domain not in ("", "ai.onnx"):
        return None
    if node.op_type == "Cast" and attributes(node)["to"] not in (onnx.TensorProto.INT64, onnx.TensorProto.INT32):
        return None
    first = known.value(node.input[0])
    return None if first is None else _FOLLOWED[node.op_type](node, known, first)


def _gather(node: onnx.NodeProto, known: _Known, data: Array) -> Array | None:
    index = known.constants.get(node.input[1])
    inside = index is not None and data.ndim == 1 and all(-data.size <= i < data.size for i in index.flat)
    return np.asarray(data[index], object) if inside else None


def _slice(node: onnx.NodeProto, known: _Known, data: Array) -> Array | None:
    starts, ends = _ints(known, node, 1), _ints(known, node, 2)
    steps = _ints(known, node, 4) or [1]
    if starts is None or ends is None or data.ndim != 1 or len(starts) != 1:
        return None
    # A negative end that means "before the first" cannot be told from one counted from the back: leave those.
    return data[starts[0] : ends[0] : steps[0]] if steps[0] > 0 else None


def _concat(node: onnx.NodeProto, known: _Known, _: Array) -> Array | None:
    parts = [known.value(name) for name in node.input]
    complete = [part for part in parts if part is not None and part.ndim == 1]
    return np.concatenate(complete) if len(complete) == len(parts) else None


def _squeeze(_: onnx.NodeProto, __: _Known, data: Array) -> Array | None:
    return data.reshape(()) if data.size == 1 else None


def _unsqueeze(node: onnx.NodeProto, known: _Known, data: Array) -> Array | None:
    return data.reshape((1,)) if data.ndim == 0 and _ints(known, node, 1) in ([0], [-1]) else None


def _same(_: onnx.NodeProto, __: _Known, data: Array) -> Array | None:
    return data


def _elementwise(function: Callable[[int, int], int]) -> Callable[[onnx.NodeProto, _Known, Array], Array | None]:
    def apply(node: onnx.NodeProto, known: _Known, data: Array) -> Array | None:
        other = known.value(node.input[1])
        if other is None:
            return None
        left, right = np.broadcast_arrays(data, other)
        pairs = zip(left.flat, right.flat, strict=True)
        values = [function(a, b) if isinstance(a, int) and isinstance(b, int) else None for a, b in pairs]
        result = np.empty(len(values), dtype=object)
        result[:] = values
        return result.reshape(left.shape)

    return apply


def _quotient(a: int, b: int) -> int:
    return int(np.trunc(a / b)) if b else 0


_FOLLOWED: dict[str, Callable[[onnx.NodeProto, _Known, Array], Array | None]] = {
    "Gather": _gather,
    "Slice": _slice,
    "Concat": _concat,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Cast": _same,
    "Identity": _same,
    "Add": _elementwise(lambda a, b: a + b),
    "Sub": _elementwise(lambda a, b: a - b),
    "Mul": _elementwise(lambda a, b: a * b),
    "Div": _elementwise(_quotient),
}


def _settle_reshapes(graph: onnx.GraphProto, known: _Known) -> bool:
    """Change `graph`: a computed target of Reshape becomes a constant where 0 (as in the input) and -1 can say it."""
    taken = tensor_names(graph)
    changed = False
    for node in graph.node:
        if node.op_type != "Reshape" or node.domain:
            continue
        target = known.partial.get(node.input[1])
        settled = None if target is None else _target(target, known.shapes.get(node.input[0]), node.input[0])
        # With allowzero a 0 means an empty axis, not the input's extent.
        if settled is not None and not (attributes(node).get("allowzero", 0) and 0 in settled):
            node.input[1] = unique_name(f"{node.output[0]}_shape", taken)
            set_initializer(graph, node.input[1], np.array(settled, np.int64))
            changed = True
    return changed


def _target(target: Array, data: tuple[Dim | None, ...] | None, name: str) -> list[int] | None:
    names = [d if d is not None else f"?{name}:{i}" for i, d in enumerate(data or ())]
    settled: list[int | None] = []
    for index, extent in enumerate(target.tolist()):
        same = isinstance(extent, str) and index < len(names) and names[index] == extent
        settled.append(0 if same else extent if isinstance(extent, int) else None)
    unknown = [i for i, extent in enumerate(settled) if extent is None]
    if len(unknown) > 1 or (unknown and -1 in settled):
        return None
    return [-1 if extent is None else extent for extent in settled]
