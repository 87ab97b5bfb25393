"""Rewrites of a graph and its QuantSpec into forms that a runtime has integer kernels for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekit.quant.plan import is_spatial_mean
from edgekit.quant.spec import QuantSpec, Variant
from edgekit.quant.view import GraphView, attribute

if TYPE_CHECKING:
    import onnx


def for_onnxruntime(proto: onnx.ModelProto, spec: QuantSpec, variant: Variant) -> QuantSpec:
    """Change `proto` into operators that ONNX Runtime fuses with their Q/DQ; the spec that fits it."""
    return _means(proto, spec)


def _means(proto: onnx.ModelProto, spec: QuantSpec) -> QuantSpec:
    """A ReduceMean over height and width becomes GlobalAveragePool, which has an 8-bit kernel."""
    import onnx

    view = GraphView(proto.graph)
    nodes: list[onnx.NodeProto] = []
    names, tensors = list(spec.nodes), dict(spec.tensors)
    for node in view.nodes:
        if node.name not in spec.nodes or not is_spatial_mean(node, view):
            nodes.append(node)
            continue
        if attribute(node, "keepdims", 1):
            nodes.append(onnx.helper.make_node("GlobalAveragePool", node.input[:1], node.output, name=node.name))
            continue
        pooled = f"{node.output[0]}/pooled"
        nodes.append(onnx.helper.make_node("GlobalAveragePool", node.input[:1], [pooled], name=node.name))
        nodes.append(onnx.helper.make_node("Flatten", [pooled], node.output, name=pooled, axis=1))
        names.append(pooled)
        tensors[pooled] = tensors[node.output[0]]
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del proto.graph.node[:]
    proto.graph.node.extend(copies)
    return spec.model_copy(update={"nodes": tuple(names), "tensors": tensors})
