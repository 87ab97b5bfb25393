"""From a folded float graph: which operators run in integers, and which tensors need a range for it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from edgekit.quant.view import GraphView, attribute, clip_bounds, typed

if TYPE_CHECKING:
    import onnx

PASS_THROUGH = frozenset(
    {
    "AveragePool", "DepthToSpace", "Expand", "Flatten", "Gather", "Identity", "MaxPool", "Pad", "Reshape",
    "Resize", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze",
    }
)  # fmt: skip
"""Operators that move or average values: their outputs share the range of their first input."""

FIXED: Mapping[str, tuple[float, float]] = {
    "Sigmoid": (0.0, 255 / 256),
    "HardSigmoid": (0.0, 1.0),
    "Softmax": (0.0, 255 / 256),
    "Tanh": (-1.0, 127 / 128),
}
"""Ranges known without calibration. Three end a step below 1: LiteRT's kernels insist on steps of 1/256 and 1/128."""

SIGMOID_ENDS = 8.0
"""Beyond it a sigmoid is within a tenth of a step of 1/256 of its end, and `x * sigmoid(x)` within 0.003 of zero."""

WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
UNARY = frozenset({"GlobalAveragePool", "HardSigmoid", "HardSwish", "LeakyRelu", "Sigmoid", "Tanh"})
ELEMENTWISE = frozenset({"Add", "Mul"})
ACTIVATIONS = frozenset({"Relu", "Clip"})
"""Folded into the operator before them: clamping is what the integer grid does anyway."""


@dataclass(frozen=True)
class Plan:
    """What will run in integers, before any range is known.

    `ranges` are the activations to calibrate, `constants` the initializers that are quantized like activations,
    `weights` the initializers quantized symmetrically with the axis of their channels (None for one scale).
    `folded` maps an operator to the Relu or Clip that its grid absorbs. `keep_float` is as in `QuantSpec`. `limits`
    holds the interval of an activation beyond which its readers saturate: no range needs to reach further.
    """

    nodes: tuple[str, ...]
    ranges: tuple[str, ...]
    constants: tuple[str, ...]
    weights: Mapping[str, int | None]
    fixed: Mapping[str, tuple[float, float]]
    ties: tuple[tuple[str, ...], ...]
    folded: Mapping[str, str]
    keep_float: Mapping[str, Mapping[str, str]]
    limits: Mapping[str, tuple[float, float]] = field(default_factory=dict)


def plan(proto: onnx.ModelProto, keep_float: Collection[str] = ()) -> Plan:
    """Decide, node by node in topological order. `keep_float` holds names of nodes that the user wants in float."""
    return _Planner(GraphView(typed(proto).graph), frozenset(keep_float)).run()


def weight_axis(node: onnx.NodeProto, rank: int) -> int | None:
    """The axis of a weight's output channels, or None where it has none of its own."""
    if node.op_type == "Conv":
        return 0
    if node.op_type == "ConvTranspose":
        return 1 if attribute(node, "group", 1) == 1 else None
    if node.op_type == "Gemm":
        return 0 if attribute(node, "transB", 0) else 1
    return 1 if rank == 2 else None


@dataclass
class _Planner:
    view: GraphView
    unwanted: frozenset[str]
    nodes: dict[str, None] = field(default_factory=dict)
    ranges: dict[str, None] = field(default_factory=dict)
    constants: dict[str, None] = field(default_factory=dict)
    weights: dict[str, int | None] = field(default_factory=dict)
    fixed: dict[str, tuple[float, float]] = field(default_factory=dict)
    folded: dict[str, str] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    integer: set[str] = field(default_factory=set)
    tied: list[set[str]] = field(default_factory=list)

    def run(self) -> Plan:
        for node in self.view.nodes:
            if not any(self.view.is_float(name) for name in node.output):
                continue
            reason = self.decide(node)
            if reason is None:
                self.take(node)
            else:
                self.reasons[node.name] = reason
        order = (*self.view.inputs, *(name for node in self.view.nodes for name in node.output))
        return Plan(
            nodes=tuple(self.nodes),
            ranges=tuple(name for name in order if name in self.ranges),
            constants=tuple(self.constants),
            weights=self.weights,
            fixed={name: bounds for name, bounds in self.fixed.items() if name in self.ranges},
            ties=tuple(tuple(sorted(group, key=order.index)) for group in self.tied),
            folded=self.folded,
            keep_float={"*": self.reasons} if self.reasons else {},
            limits=self.limits(),
        )

    def limits(self) -> dict[str, tuple[float, float]]:
        """What saturating readers leave of the activations that nobody else reads and that share no range."""
        shared = {*self.view.outputs, *(name for group in self.tied for name in group)}
        found = ((name, self.saturation(name)) for name in self.ranges if name not in shared)
        return {name: limits for name, limits in found if limits is not None}

    def saturation(self, tensor: str) -> tuple[float, float] | None:
        """The interval outside of which all readers of a tensor give what they give at its ends, or nearly so."""
        readers = self.view.consumers[tensor]
        kinds = sorted(node.op_type for node in readers)
        if kinds == ["HardSwish"]:
            return -3.0, float("inf")
        if kinds == ["Sigmoid"]:
            return -SIGMOID_ENDS, SIGMOID_ENDS
        if kinds == ["HardSigmoid"]:
            alpha, beta = attribute(readers[0], "alpha", 0.2), attribute(readers[0], "beta", 0.5)
            return (-beta / alpha, (1 - beta) / alpha) if alpha > 0 and 0 < beta < 1 else None
        if kinds == ["Mul", "Sigmoid"]:
            gate = next(node for node in readers if node.op_type == "Sigmoid").output[0]
            product = next(node for node in readers if node.op_type == "Mul")
            return (-SIGMOID_ENDS, float("inf")) if set(product.input) == {tensor, gate} else None
        return None

    def decide(self, node: onnx.NodeProto) -> str | None:
        """Why a node stays float, or None."""
        if node.name in self.unwanted:
            return "kept float by the recipe"
        kind = node.op_type
        checks: tuple[tuple[Collection[str], Callable[[onnx.NodeProto], str | None]], ...] = (
            (WEIGHTED, self.weighted),
            (ELEMENTWISE, self.elementwise),
            (UNARY, self.unary),
            (ACTIVATIONS, self.activation),
            (PASS_THROUGH, self.pass_through),
            (("Concat",), self.concat),
        )
        for kinds, check in checks:
            if kind in kinds:
                return check(node)
        if any(item.HasField("g") or item.graphs for item in node.attribute):
            return f"the operators in the bodies of this {kind} are left as they are"
        if kind == "Softmax":
            return "its small probabilities need more than 8 bits"
        return f"no 8-bit form of {kind}"

    def weighted(self, node: onnx.NodeProto) -> str | None:
        if not self.view.is_float(node.input[0]):
            return "its input is not float32"
        weight = self.view.constant(node.input[1])
        if weight is None:
            both = node.op_type == "MatMul" and self.view.is_float(node.input[1])
            return None if both and not self.view.is_constant(node.input[0]) else "its weight is not constant"
        if self.view.is_constant(node.input[0]):
            return "its first operand is constant"
        if len(node.input) > 2 and node.input[2] and self.view.constant(node.input[2]) is None:
            return "its bias is not constant"
        plain = attribute(node, "alpha", 1.0) == 1.0 and attribute(node, "beta", 1.0) == 1.0
        if node.op_type == "Gemm" and (not plain or attribute(node, "transA", 0)):
            return "a Gemm with alpha, beta or a transposed input"
        axis = weight_axis(node, weight.ndim)
        if self.weights.get(node.input[1], axis) != axis:
            return "its weight is shared with an operator that lays its channels out otherwise"
        return None

    def elementwise(self, node: onnx.NodeProto) -> str | None:
        if self.scores(node):
            return "what it makes are the scores of an attention, and a mask among them needs more than 8 bits"
        operands = [name for name in node.input if not self.view.is_constant(name)]
        if not operands or not all(self.view.is_float(name) for name in node.input):
            return "its operands are not float32 activations"
        if not all(self.finite(name) for name in node.input):
            return "its constant holds NaN or infinity"
        return None if any(name in self.integer for name in operands) else "among float operators"

    def scores(self, node: onnx.NodeProto) -> bool:
        """Whether only the Softmax of an attention reads the result, straight or behind more of the kind."""
        readers = self.view.consumers[node.output[0]]
        return bool(readers) and all(
            self.attends(reader) or (reader.op_type in ELEMENTWISE and self.scores(reader)) for reader in readers
        )

    def attends(self, node: onnx.NodeProto) -> bool:
        """Whether a Softmax weighs computed values: a product with what is no constant reads it."""
        readers = self.view.consumers[node.output[0]] if node.op_type == "Softmax" else []
        return any(r.op_type == "MatMul" and not any(self.view.is_constant(i) for i in r.input) for r in readers)

    def finite(self, name: str) -> bool:
        """Whether a tensor can have a range: a constant with infinity, such as a mask, has none."""
        value = self.view.constant(name)
        return value is None or bool(np.isfinite(value).all())

    def unary(self, node: onnx.NodeProto) -> str | None:
        return None if node.input[0] in self.integer else "among float operators"

    def activation(self, node: onnx.NodeProto) -> str | None:
        if clip_bounds(node, self.view) is None:
            return "its bounds are not constant"
        return None if node.input[0] in self.integer else "among float operators"

    def pass_through(self, node: onnx.NodeProto) -> str | None:
        if node.input[0] not in self.integer:
            return "among float operators"
        if node.op_type == "MaxPool" and len(node.output) > 1 and node.output[1]:
            return "a MaxPool that returns indices"
        if node.op_type == "Resize" and attribute(node, "mode", b"nearest") == b"cubic":
            return "cubic interpolation overshoots its input's range"
        if node.op_type == "Pad" and attribute(node, "mode", b"constant") == b"constant":
            value = self.view.constant(node.input[2]) if len(node.input) > 2 and node.input[2] else None
            if len(node.input) > 2 and node.input[2] and (value is None or value.any()):
                return "pads with something else than zero"
        return None

    def concat(self, node: onnx.NodeProto) -> str | None:
        if not all(self.view.is_float(name) for name in node.input):
            return "its operands are not float32"
        if not all(self.finite(name) for name in node.input):
            return "its constant holds NaN or infinity"
        return None if any(name in self.integer for name in node.input) else "among float operators"

    def take(self, node: onnx.NodeProto) -> None:
        """Let `node` run in integers: its tensors need ranges, those that share one are tied."""
        self.nodes[node.name] = None
        producer = self.view.producer.get(node.input[0])
        folds = (
            node.op_type in ACTIVATIONS
            and producer is not None
            and producer.op_type not in PASS_THROUGH | ACTIVATIONS
            and producer.name in self.nodes
            and self.view.only_consumer(node.input[0]) is not None
        )
        if folds and producer is not None:
            self.folded[producer.name] = node.name
            self.ranges.pop(node.input[0], None)
        for name in () if folds else self.activations(node):
            (self.constants if self.view.is_constant(name) else self.ranges)[name] = None
        if node.op_type in WEIGHTED and self.view.is_constant(node.input[1]):
            weight = self.view.initializers[node.input[1]]
            self.weights[node.input[1]] = weight_axis(node, len(weight.dims))
        outputs = [name for name in node.output if name and self.view.is_float(name)]
        self.ranges.update(dict.fromkeys(outputs))
        self.integer.update(outputs)
        if node.op_type in FIXED:
            self.fixed.update(dict.fromkeys(outputs, FIXED[node.op_type]))
        if node.op_type in PASS_THROUGH:
            self.tie({node.input[0], *outputs})
        elif node.op_type == "Concat":
            self.tie({*(name for name in node.input if not self.view.is_constant(name)), *outputs})

    def activations(self, node: onnx.NodeProto) -> tuple[str, ...]:
        """The inputs of a node that need a range."""
        if node.op_type in WEIGHTED:
            return tuple(node.input[:1] if self.view.is_constant(node.input[1]) else node.input[:2])
        if node.op_type in ELEMENTWISE or node.op_type == "Concat":
            return tuple(node.input)
        return (node.input[0],)

    def tie(self, names: set[str]) -> None:
        """Merge `names` with every group that they touch."""
        touching = [group for group in self.tied if group & names]
        self.tied = [group for group in self.tied if not group & names]
        self.tied.append(names.union(*touching))
