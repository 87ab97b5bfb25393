"""The QuantSpec: a plan, ranges and weights put together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from edgekit.errors import UsageError
from edgekit.quant.plan import WEIGHTED, Plan
from edgekit.quant.spec import PerChannel, PerTensor, QuantSpec, Range
from edgekit.quant.view import GraphView
from edgekit.quant.weights import channel_scales

if TYPE_CHECKING:
    import onnx

NO_KERNEL: Mapping[str, frozenset[str]] = {
    "onnxruntime": frozenset({"ConvTranspose", "Tanh"}),
}
"""Operators that a backend computes in float even between Q/DQ."""


def build_spec(
    proto: onnx.ModelProto, plan: Plan, ranges: Mapping[str, Range], source: Mapping[str, str] | None = None
) -> QuantSpec:
    """Weight scales (grown where a 32-bit bias would not fit) and, per backend, what it has no kernel for.

    Raises:
        UsageError: a weight holds NaN or infinity.
    """
    view = GraphView(proto.graph)
    tensors = {name: _limited(given, plan.limits.get(name)) for name, given in ranges.items()}
    spec = QuantSpec(nodes=plan.nodes, tensors=tensors, weights={}, ties=plan.ties, source=dict(source or {}))
    weights: dict[str, PerTensor | PerChannel] = {}
    for node in view.nodes:
        if node.op_type in WEIGHTED and node.name in plan.nodes and node.input[1] in plan.weights:
            weights[node.input[1]] = _larger(weights.get(node.input[1]), _scales(node, view, plan, spec))
    keep = {backend: dict(reasons) for backend, reasons in plan.keep_float.items()}
    wanted = set(plan.nodes)
    for backend, kinds in NO_KERNEL.items():
        lacking = {
            node.name: f"{backend} has no 8-bit kernel for {node.op_type}"
            for node in view.nodes
            if node.name in wanted and node.op_type in kinds
        }
        if lacking:
            keep[backend] = lacking
    return spec.model_copy(update={"weights": weights, "keep_float": keep})


def _limited(given: Range, limits: tuple[float, float] | None) -> Range:
    """The range without what its readers saturate at anyway: the steps get finer, and nothing else changes."""
    if limits is None:
        return given
    low, high = max(given.low, limits[0]), min(given.high, limits[1])
    if low >= high or (low, high) == (given.low, given.high):
        return given
    return Range(low=low, high=high, calibrator=f"{given.calibrator}, limited", fixed=given.fixed)


def _scales(node: onnx.NodeProto, view: GraphView, plan: Plan, spec: QuantSpec) -> PerTensor | PerChannel:
    name = node.input[1]
    weight = view.constant(name)
    assert weight is not None  # the plan takes constant weights alone
    if not np.isfinite(weight).all():
        raise UsageError(f"The weight {name!r} of node {node.name!r} holds NaN or infinity.")
    bias = view.constant(node.input[2]) if len(node.input) > 2 and node.input[2] else None
    if bias is not None and not np.isfinite(bias).all():
        raise UsageError(f"The bias {node.input[2]!r} of node {node.name!r} holds NaN or infinity.")
    scale = spec.grid(node.input[0], "affine").scale
    return channel_scales(weight, plan.weights[name], bias=bias, input_scale=scale)


def _larger(one: PerTensor | PerChannel | None, other: PerTensor | PerChannel) -> PerTensor | PerChannel:
    """Scales of a shared weight that serve both of its operators."""
    if one is None:
        return other
    if isinstance(one, PerTensor) or isinstance(other, PerTensor):
        return one if isinstance(one, PerTensor) else other
    pairs = zip(one.scales, other.scales, strict=True)
    return PerChannel(axis=one.axis, scales=tuple(max(pair) for pair in pairs))
