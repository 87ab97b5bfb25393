"""Which IR version an opset needs, and lowering a model for old runtimes."""

from __future__ import annotations

from collections.abc import Iterator

import onnx

from edgekit.errors import BuildError
from edgekit.graph.large import without_weights
from edgekit.graph.tools import (
    attributes,
    drop_unused,
    initializers,
    opset_of,
    replace_nodes,
    shapes,
    subgraphs,
    tensor_names,
    unique_name,
)

FLOOR = 13
"""Down to here an operator's older form is the same computation when its signature allows the node at all."""

CHANGED = frozenset({"GroupNormalization"})
"""Operators whose meaning changed between versions under one signature: never relabelled."""


def ir_version_for(opset: int) -> int:
    """The file format version that came with an opset: older runtimes refuse newer ones.

    >>> ir_version_for(18), ir_version_for(21)
    (8, 10)
    """
    table = {row[2]: row[1] for row in reversed(onnx.helper.VERSION_TABLE)}
    known = [version for version in table if version <= opset]
    return int(table[max(known)]) if known else 3


def for_opset(proto: onnx.ModelProto, max_opset: int) -> onnx.ModelProto:
    """The same model in an opset (and IR version) that a runtime of `max_opset` accepts. `proto` is not changed.

    onnx's own converter knows few of the steps down, so operators are checked against their older schema, and
    rewritten where only the way of giving a setting changed.

    Raises:
        BuildError: some operators have no older form; they are named. Or `max_opset` is below `FLOOR`.
    """
    if max_opset < FLOOR:
        raise BuildError(f"Opset {max_opset} is asked for; the oldest that edgekit writes is {FLOOR}.")
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    if opset_of(proto) > max_opset:
        _lower(result, max_opset)
    result.ir_version = min(result.ir_version, ir_version_for(max_opset))
    try:
        onnx.checker.check_model(without_weights(result), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        what = " ".join(str(error).split())[:300]
        raise BuildError(f"The model cannot be written in opset {max_opset}: {what}. Allow a newer runtime.") from error
    return result


def _lower(proto: onnx.ModelProto, target: int) -> None:
    """Change `proto`: write every node in its form of opset `target`."""
    lowering = _Lowering(proto, target)
    nodes = [new for node in proto.graph.node for new in lowering.node(node)]
    if lowering.stopped:
        raise BuildError(
            f"{', '.join(lowering.stopped.values())} cannot be written in opset {target}, the newest that the "
            "target's runtime reads. Allow a newer runtime, or keep these operators out of the model.",
            lowering.stopped,
        )
    replace_nodes(proto.graph, nodes)
    drop_unused(proto.graph)
    for entry in proto.opset_import:
        if entry.domain in ("", "ai.onnx"):
            entry.version = target


class _Lowering:
    def __init__(self, proto: onnx.ModelProto, target: int) -> None:
        self.opset, self.target = opset_of(proto), target
        self.constants = initializers(proto.graph)
        self.shapes = shapes(proto.graph)
        self.taken = tensor_names(proto.graph)
        self.stopped: dict[str, str] = {}

    def node(self, node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
        """The node, rewritten or as it is; what stops it goes to `stopped`."""
        if node.domain not in ("", "ai.onnx"):
            yield node
            return
        for graph in subgraphs(node):
            for inner in graph.node:
                if list(self.node(inner)) != [inner]:
                    self._stop(inner, "inside a subgraph")
        new = onnx.defs.get_schema(node.op_type, self.opset)
        if new.since_version <= self.target:
            yield node
        elif node.op_type == "HardSwish":
            gate = unique_name(f"{node.output[0]}_gate", self.taken)
            yield onnx.helper.make_node(
                "HardSigmoid", node.input, [gate], name=f"{node.name}_gate", alpha=1 / 6, beta=0.5
            )
            yield onnx.helper.make_node("Mul", [node.input[0], gate], node.output, name=node.name)
        else:
            yield self._relabelled(node, new)

    def _relabelled(self, node: onnx.NodeProto, new: onnx.defs.OpSchema) -> onnx.NodeProto:
        if node.op_type in CHANGED:
            self._stop(node, f"since opset {new.since_version}")
            return node
        try:
            old = onnx.defs.get_schema(node.op_type, self.target)
        except onnx.defs.SchemaError:
            self._stop(node, f"since opset {new.since_version}")
            return node
        lowered = onnx.NodeProto()
        lowered.CopyFrom(node)
        self._axes_to_attribute(lowered, old)
        for attribute in node.attribute:
            if attribute.name not in old.attributes and not self._needless(node, attribute, new):
                self._stop(node, f"attribute {attribute.name!r} since opset {new.since_version}")
        kept = [attribute for attribute in lowered.attribute if attribute.name in old.attributes]
        del lowered.attribute[:]
        lowered.attribute.extend(kept)
        if len(lowered.input) > old.max_input:
            self._stop(node, f"input {old.max_input} since opset {new.since_version}")
        return lowered

    def _axes_to_attribute(self, node: onnx.NodeProto, old: onnx.defs.OpSchema) -> None:
        """Reductions had their axes as an attribute before opset 18; Pad had none."""
        if node.op_type == "Pad" and len(node.input) == 4 and not node.input[3]:
            del node.input[3]
        if not node.op_type.startswith("Reduce") or len(node.input) < 2 or "axes" not in old.attributes:
            return
        axes = self.constants.get(node.input[1])
        if axes is None and node.input[1]:
            self._stop(node, "computed axes")
            return
        del node.input[1:]
        if axes is not None:
            node.attribute.append(onnx.helper.make_attribute("axes", [int(a) for a in axes.flat]))

    def _needless(self, node: onnx.NodeProto, attribute: onnx.AttributeProto, new: onnx.defs.OpSchema) -> bool:
        """Whether an attribute says no more than what the operator did before it had that attribute."""
        if node.op_type == "Split" and attribute.name == "num_outputs":
            shape = self.shapes.get(node.input[0])
            extent = None if shape is None else shape[attributes(node).get("axis", 0)]
            return isinstance(extent, int) and extent % attribute.i == 0
        default = new.attributes[attribute.name].default_value
        return default.type == attribute.type and onnx.helper.get_attribute_value(
            default
        ) == onnx.helper.get_attribute_value(attribute)

    def _stop(self, node: onnx.NodeProto, why: str) -> None:
        self.stopped.setdefault(node.name, f"{node.name} ({node.op_type}, {why})")
