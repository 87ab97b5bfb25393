"""What the emitters of ONNX-reading runtimes share: the graph that a runtime gets, and what can be read off it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from edgekit.errors import BuildError

if TYPE_CHECKING:
    from pathlib import Path

    import onnx

    from edgekit.backends import Job

QUANTIZERS = frozenset({"QuantizeLinear", "DequantizeLinear"})


def emitted(job: Job, backend: str) -> onnx.ModelProto:
    """The graph that `backend` compiles: folded floats, or Q/DQ in the grid variant that the target's facts name.

    The model's own graph is not touched.

    Raises:
        BuildError: a quantized build of a model that no stage has quantized, or a form that `backend` lacks.
    """
    from edgekit.graph.fold import fold
    from edgekit.graph.large import is_large, model_bytes
    from edgekit.graph.opset import for_opset
    from edgekit.quant.forms import refuse
    from edgekit.quant.qdq import emit

    refuse(backend, job.precision)
    if job.role != "quantized":
        graph = job.model.proto if is_large(job.model.proto) else fold(job.model.proto)
    elif job.model.quant is None:
        raise BuildError(
            f"{backend} cannot build {job.model.name!r} as quantized: no stage has quantized it. "
            "Put `quantize` into the recipe's stages."
        )
    else:
        graph = emit(job.model.lowered(job.facts.grid, backend), job.model.quant, job.facts.grid, backend)
    if is_large(graph):
        raise BuildError(
            f"The {job.precision} form of {job.model.name!r} has {model_bytes(graph) / 1e9:.1f} GB: a bundle, which is "
            "one file that runs, holds less than 2.1 GB. Only its quantized form may fit."
        )
    return for_opset(graph, job.facts.max_opset) if job.facts.max_opset else graph


def write_graph(proto: onnx.ModelProto, job: Job) -> dict[str, Path]:
    """Write `model.onnx` into the job's folder; its name inside a bundle, and its path."""
    from edgekit.graph.io import save_onnx

    path = job.work / "model.onnx"
    save_onnx(proto, path)
    return {path.name: path}


def computes_in_integers(job: Job) -> bool:
    """Whether outputs may be a step away from the host's: a quantized build, or a model that came quantized."""
    from edgekit.graph.tools import quantized_nodes

    return job.role == "quantized" or bool(quantized_nodes(job.model.proto.graph))


def nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Every node, those inside the bodies of If, Loop and Scan too."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                yield from nodes(body)


def operators(proto: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    """The nodes that compute something, by name: neither Q/DQ nor Constant."""
    return {n.name: n for n in proto.graph.node if n.op_type not in QUANTIZERS and n.op_type != "Constant"}


def initializers(proto: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    """The graph's constants by name."""
    return {tensor.name: tensor for tensor in proto.graph.initializer}


def producers(proto: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    """The node behind every tensor."""
    return {output: node for node in proto.graph.node for output in node.output if output}


def output_steps(proto: onnx.ModelProto) -> tuple[float | None, ...]:
    """The quantization step of each graph output, None where the output is float all the way."""
    import onnx

    made, constants = producers(proto), initializers(proto)
    steps: list[float | None] = []
    for output in proto.graph.output:
        node = made.get(output.name)
        quantized = node is not None and node.op_type == "DequantizeLinear" and node.input[1] in constants
        scale = onnx.numpy_helper.to_array(constants[node.input[1]]) if node is not None and quantized else None
        steps.append(None if scale is None else float(np.max(scale)))
    return tuple(steps)


def nodes_in(message: str, proto: onnx.ModelProto) -> tuple[str, ...]:
    """Names of the nodes that a runtime's error message means: by operator type, or else by node or tensor name.

    Operator types count as the ONNX frontend of OpenVINO writes them: `Det-17`, `acme.Frobnicate`.
    """
    listed = re.search(r"No conversion rule found for operations:\s*(.+)", message)
    if listed:
        types = {re.sub(r"-\d+$", "", entry.strip()).rpartition(".")[2] for entry in listed[1].split(",")}
        found = tuple(n.name for n in nodes(proto.graph) if n.op_type in types)
        if found:
            return found
    words = set(re.findall(r"[\w./:\-]+", message)) | set(re.findall(r"'([^']+)'", message))
    words |= {re.sub(r"[./:]+$", "", word) for word in words}
    return tuple(n.name for n in nodes(proto.graph) if n.name in words or words.intersection(filter(None, n.output)))


def one_line(message: str, most: int = 400) -> str:
    """A runtime's own message without its line breaks, and not endless."""
    flat = " ".join(message.split())
    return flat if len(flat) <= most else f"{flat[:most]}..."
