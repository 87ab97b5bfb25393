"""Bring any ONNX graph into the one form that the rest of edgekit works on."""

from __future__ import annotations

import math

import numpy as np
import onnx
from onnx import inliner, numpy_helper

from edgekit.errors import UsageError
from edgekit.graph import opset as versions
from edgekit.graph.constants import fold_constants
from edgekit.graph.large import lightly
from edgekit.graph.tools import (
    attributes,
    drop_unused,
    initializers,
    is_axis_name,
    opset_of,
    output_names,
    producers,
    replace_nodes,
    shapes,
    subgraphs,
    unique_name,
)

MIN_OPSET = 18
"""Models in an older opset are converted up to this one (axes of all reductions are inputs from here on).

Newer ones stay as they are; `edgekit.graph.opset.for_opset` lowers what is emitted."""


def normalise(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same network in a canonical form. `proto` is not changed; doing it twice changes nothing more.

    Opset at least `MIN_OPSET`; functions inlined; constants are initializers, and initializers are not inputs;
    what can be computed from constants and static shapes is; identities and dead nodes are gone; every node
    has a unique name; shapes are inferred. Names of inputs, outputs and named nodes stay. BatchNorm stays.

    Raises:
        UsageError: the opset cannot be converted.
    """
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    if result.functions:
        result = lightly(result, inliner.inline_local_functions)
    _name_axes(result.graph)
    result = _raised(result)
    graph = result.graph
    _strip(graph)
    _initializers_are_not_inputs(graph)
    _constants_to_initializers(graph)
    _remove_identities(graph)
    drop_unused(graph)
    while True:
        result = _inferred(result)
        if not fold_constants(result):
            break
        _remove_identities(result.graph)
        drop_unused(result.graph)
    if _flatten_reshapes(result.graph):
        _remove_identities(result.graph)
        drop_unused(result.graph)
    _name_nodes(result.graph)
    return result


def _raised(proto: onnx.ModelProto) -> onnx.ModelProto:
    seen = opset_of(proto)
    if seen >= MIN_OPSET:
        result = proto
    else:
        try:
            # The converter takes initializers that are not inputs from this file format on.
            proto.ir_version = max(proto.ir_version, 4)
            kept = [onnx.StringStringEntryProto(key=e.key, value=e.value) for e in proto.metadata_props]
            result = lightly(proto, lambda light: onnx.version_converter.convert_version(light, MIN_OPSET))
        except (onnx.version_converter.ConvertError, RuntimeError, onnx.checker.ValidationError) as error:
            what = " ".join(str(error).split())[:300]
            raise UsageError(
                f"The model is in opset {seen} and cannot be converted to {MIN_OPSET}: {what}. "
                f"Export it again with opset {MIN_OPSET} or later."
            ) from error
        del result.metadata_props[:]
        result.metadata_props.extend(kept)
    result.ir_version = max(result.ir_version, versions.ir_version_for(opset_of(result)))
    return result


def _name_axes(graph: onnx.GraphProto) -> None:
    """Unknown extents are written in many ways (-1, 0, "?", one name for two axes): make names of inputs honest."""
    for value in graph.input:
        seen: set[str] = set()
        for index, dim in enumerate(value.type.tensor_type.shape.dim):
            if dim.HasField("dim_value") and dim.dim_value > 0:
                continue
            if not is_axis_name(dim.dim_param) or dim.dim_param in seen:
                dim.dim_param = "batch" if index == 0 else f"{value.name}_{index}"
            seen.add(dim.dim_param)
    for value in graph.output:
        for dim in value.type.tensor_type.shape.dim:
            known = dim.dim_value >= 0 if dim.HasField("dim_value") else is_axis_name(dim.dim_param)
            if not known:
                dim.Clear()


def _strip(graph: onnx.GraphProto) -> None:
    """Documentation and exporters' traces are not part of the network (and hold paths of other machines)."""
    graph.ClearField("doc_string")
    del graph.metadata_props[:]
    for node in graph.node:
        node.ClearField("doc_string")
        del node.metadata_props[:]
        for inner in subgraphs(node):
            _strip(inner)
    for value in (*graph.input, *graph.output):
        value.ClearField("doc_string")
        del value.metadata_props[:]
    for tensor in graph.initializer:
        tensor.ClearField("doc_string")
        del tensor.metadata_props[:]


def _initializers_are_not_inputs(graph: onnx.GraphProto) -> None:
    constant = {tensor.name for tensor in graph.initializer}
    doubled = [i for i, value in enumerate(graph.input) if value.name in constant]
    for index in reversed(doubled):
        del graph.input[index]


def _constants_to_initializers(graph: onnx.GraphProto) -> None:
    kept = []
    outputs = output_names(graph)
    for node in graph.node:
        tensor = _constant(node) if node.op_type == "Constant" and node.output[0] not in outputs else None
        if tensor is None:
            kept.append(node)
        else:
            graph.initializer.append(tensor)
    if len(kept) != len(graph.node):
        replace_nodes(graph, kept)


def _constant(node: onnx.NodeProto) -> onnx.TensorProto | None:
    """The value of a Constant node as an initializer, or None for strings and sparse tensors, which stay nodes."""
    (name, value), *_ = attributes(node).items()
    tensor = onnx.TensorProto()
    if name == "value":
        tensor.CopyFrom(value)
    elif name in ("value_float", "value_floats"):
        tensor = numpy_helper.from_array(np.array(value, np.float32))
    elif name in ("value_int", "value_ints"):
        tensor = numpy_helper.from_array(np.array(value, np.int64))
    else:
        return None
    tensor.name = node.output[0]
    # One storage for all: readers of raw_data then need not care where a file kept its numbers.
    return tensor if tensor.raw_data else numpy_helper.from_array(numpy_helper.to_array(tensor), tensor.name)


def _passes_on(node: onnx.NodeProto) -> bool:
    """Whether the node gives its first input unchanged: Identity, or Dropout outside of training."""
    if node.domain not in ("", "ai.onnx"):
        return False
    if node.op_type == "Dropout":
        training = node.input[2] if len(node.input) > 2 else ""
        return not training and not any(node.output[1:])
    return node.op_type == "Identity"


def _remove_identities(graph: onnx.GraphProto) -> None:
    """Identity and inference Dropout go; an output keeps its name, its maker is renamed instead."""
    outputs = output_names(graph)
    given = {value.name for value in graph.input}
    constant = {tensor.name for tensor in graph.initializer}
    makers = producers(graph)
    renamed: dict[str, str] = {}
    kept = []
    for node in graph.node:
        source = _last(renamed, node.input[0]) if node.input else ""
        passes = _passes_on(node) and bool(source)
        if passes and node.output[0] not in outputs:
            renamed[node.output[0]] = source
        elif passes and source in makers and source not in outputs | given | constant:
            renamed[source] = node.output[0]
        else:
            kept.append(node)
    if renamed:
        replace_nodes(graph, kept)
        rename_tensors(graph, renamed)


def _last(renamed: dict[str, str], name: str) -> str:
    while name in renamed:
        name = renamed[name]
    return name


def rename_tensors(graph: onnx.GraphProto, names: dict[str, str]) -> None:
    """Change `graph`: rename tensors where nodes make and read them, subgraphs included."""
    for node in graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = _last(names, name)
        for index, name in enumerate(node.output):
            node.output[index] = _last(names, name)
        for inner in subgraphs(node):
            rename_tensors(inner, names)
            for value in inner.output:
                value.name = _last(names, value.name)


def _inferred(proto: onnx.ModelProto) -> onnx.ModelProto:
    del proto.graph.value_info[:]
    inferred = lightly(proto, lambda light: onnx.shape_inference.infer_shapes(light, data_prop=True))
    constant = {tensor.name for tensor in inferred.graph.initializer}
    known = [value for value in inferred.graph.value_info if value.name not in constant]
    known.sort(key=lambda value: value.name)
    del inferred.graph.value_info[:]
    inferred.graph.value_info.extend(known)
    return inferred


def _flatten_reshapes(graph: onnx.GraphProto) -> bool:
    """Change `graph`: Reshape to `[batch, everything else]` becomes Flatten, which still fits when channels are cut.

    What is flat already becomes Identity.
    """
    constants, known = initializers(graph), shapes(graph)
    changed = False
    for node in graph.node:
        shape = known.get(node.input[0]) if node.input and not node.domain else None
        if shape is not None and len(shape) == 2 and node.op_type == "Flatten" and attributes(node).get("axis", 1) == 1:
            node.op_type = "Identity"
            del node.attribute[:]
            changed = True
        target = constants.get(node.input[1]) if node.op_type == "Reshape" else None
        if target is None or shape is None or target.shape != (2,) or len(shape) < 2:
            continue
        if attributes(node).get("allowzero", 0) and 0 in target:
            continue
        rest = [d for d in shape[1:] if isinstance(d, int) and d > 0]
        first, second = (int(d) for d in target)
        kept = first in (0, shape[0])
        whole = len(rest) == len(shape) - 1 and second == math.prod(rest)
        if (whole and (kept or first == -1)) or (kept and second == -1):
            node.op_type = "Flatten" if len(shape) > 2 else "Identity"
            del node.input[1:], node.attribute[:]
            changed = True
    return changed


def _name_nodes(graph: onnx.GraphProto) -> None:
    """Keep the first use of a name; nodes without one are called after their first output."""
    named = {node.name for node in graph.node if node.name}
    seen: set[str] = set()
    for node in graph.node:
        if not node.name or node.name in seen:
            base = next((name for name in node.output if name), node.op_type)
            node.name = unique_name(base, named)
        seen.add(node.name)
