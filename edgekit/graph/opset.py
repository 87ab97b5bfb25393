"""Which IR version an opset needs, and lowering a model for old runtimes."""

from __future__ import annotations

import onnx

from edgekit.errors import BuildError
from edgekit.graph.tools import opset_of


def ir_version_for(opset: int) -> int:
    """The file format version that came with an opset: older runtimes refuse newer ones.

    >>> ir_version_for(18), ir_version_for(21)
    (8, 10)
    """
    table = {row[2]: row[1] for row in reversed(onnx.helper.VERSION_TABLE)}
    known = [version for version in table if version <= opset]
    return int(table[max(known)]) if known else 3


def for_opset(proto: onnx.ModelProto, max_opset: int) -> onnx.ModelProto:
    """The same model in an opset (and IR version) that a runtime of `max_opset` accepts.

    Raises:
        BuildError: some operator has no older form; it is named.
    """
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    if opset_of(proto) > max_opset:
        try:
            result = onnx.version_converter.convert_version(proto, max_opset)
        except (onnx.version_converter.ConvertError, RuntimeError, onnx.checker.ValidationError) as error:
            raise _stopped(proto, max_opset, str(error)) from error
    result.ir_version = min(result.ir_version, ir_version_for(max_opset))
    try:
        onnx.checker.check_model(result, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise _stopped(proto, max_opset, str(error)) from error
    return result


def _stopped(proto: onnx.ModelProto, max_opset: int, seen: str) -> BuildError:
    """Find the operators whose newest form is younger than `max_opset`."""
    opset = opset_of(proto)
    nodes = []
    for node in proto.graph.node:
        if node.domain in ("", "ai.onnx") and onnx.defs.has(node.op_type):
            schema = onnx.defs.get_schema(node.op_type, opset)
            if schema.since_version > max_opset:
                nodes.append(f"{node.name} ({node.op_type}, since opset {schema.since_version})")
    named = ", ".join(nodes) or "the model"
    what = " ".join(seen.split())[:200]
    return BuildError(
        f"{named} cannot be written in opset {max_opset}, the newest that the target's runtime reads: {what}. "
        "Allow a newer runtime, or export the model in an older opset.",
        [name.split(" ")[0] for name in nodes],
    )
