"""Reading ONNX files that may be damaged or hostile, and writing them whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import numpy_helper

from edgekit.errors import UsageError
from edgekit.graph.large import is_large, without_weights, write_apart
from edgekit.graph.tools import subgraphs


def load_onnx(path: Path | str) -> onnx.ModelProto:
    """The model in `path`, checked, with external data of its own folder read in.

    External data is looked for in the model's folder only; a location that leads out of it (absolute, with `..`,
    or over a symbolic link) is refused before anything there is read.

    Raises:
        UsageError: there is no such file, or it is not a valid ONNX model, or its external data is refused.
    """
    path = Path(path)
    proto = _parse(path)
    tensors = [tensor for tensor in _tensors(proto) if tensor.data_location == onnx.TensorProto.EXTERNAL]
    places = [_place(path, tensor) for tensor in tensors]
    for tensor, (file, offset, length) in zip(tensors, places, strict=True):
        with file.open("rb") as stream:
            stream.seek(offset)
            tensor.raw_data = stream.read(length)
        del tensor.external_data[:]
        tensor.ClearField("data_location")
    try:
        onnx.checker.check_model(without_weights(proto))
        for tensor in _tensors(proto):
            numpy_helper.to_array(tensor)
    except (onnx.checker.ValidationError, ValueError, TypeError, KeyError) as error:
        seen = " ".join(str(error).split())[:300]
        raise UsageError(f"{path}: not a valid ONNX model: {seen}. Export the model again.") from error
    return proto


def save_onnx(proto: onnx.ModelProto, path: Path | str) -> None:
    """Write `proto` to `path`: under a temporary name first, so that no half file is ever seen.

    The weights of a model that one file cannot hold go to `path` + `.data`.
    """
    path = Path(path)
    if is_large(proto):
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
            write_apart(proto, Path(folder) / path.name)
            for file in (f"{path.name}.data", path.name):
                (Path(folder) / file).replace(path.parent / file)
        return
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(proto.SerializeToString(deterministic=True))
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _parse(path: Path) -> onnx.ModelProto:
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise UsageError(f"{path}: no such file. Check the path of the model.") from error
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}). Give the path of an .onnx file.") from error
    if not content:
        raise UsageError(f"{path}: the file is empty (0 bytes). Export or copy the model again.")
    try:
        proto = onnx.load_model_from_string(content)
    except DecodeError as error:
        raise UsageError(
            f"{path}: truncated, or not an ONNX file ({len(content)} bytes that do not parse as a model). "
            "Export or copy the model again."
        ) from error
    known = onnx.defs.onnx_opset_version()
    newest = max((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), default=0)
    if newest > known:
        raise UsageError(f"{path}: uses ONNX opset {newest}, this is read up to {known}. Export it with an older one.")
    if not proto.HasField("graph") or not proto.ir_version:
        raise UsageError(f"{path}: holds no ONNX graph ({len(content)} bytes). Export or copy the model again.")
    return proto


def _tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    yield from _graph_tensors(proto.graph)
    for function in proto.functions:
        for node in function.node:
            yield from _node_tensors(node)
    for training in proto.training_info:
        yield from _graph_tensors(training.initialization)
        yield from _graph_tensors(training.algorithm)


def _graph_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        yield from _node_tensors(node)


def _node_tensors(node: onnx.NodeProto) -> Iterator[onnx.TensorProto]:
    for attribute in node.attribute:
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
        single = [attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []
        for sparse in (*single, *attribute.sparse_tensors):
            yield from (sparse.values, sparse.indices)
    for graph in subgraphs(node):
        yield from _graph_tensors(graph)


def _place(path: Path, tensor: onnx.TensorProto) -> tuple[Path, int, int]:
    """Where the tensor's bytes lie: file, offset, length; everything checked, nothing read."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    refusal = f"{path}: the external data of tensor {tensor.name!r} is refused: location {location!r}"
    parts = location.replace("\\", "/").split("/")
    if not location or location.startswith(("/", "\\")) or ":" in parts[0] or ".." in parts:
        raise UsageError(f"{refusal} leads out of the model's folder. Keep the data file beside the model.")
    folder = path.parent.resolve()
    try:
        file = (folder / location).resolve()
        there = file.is_file()
    except (OSError, ValueError) as error:
        raise UsageError(f"{refusal} cannot be the name of a file ({error}). Export the model again.") from error
    if not file.is_relative_to(folder):
        raise UsageError(f"{refusal} leads out of the model's folder over a link. Keep the data file beside the model.")
    if not there:
        raise UsageError(f"{refusal} is not a file. Copy the data file beside the model.")
    size = file.stat().st_size
    try:
        offset = int(entries.get("offset", "0"))
        length = int(entries.get("length", str(size - offset)))
    except ValueError as error:
        raise UsageError(f"{refusal} has offset or length that is not a number. Export the model again.") from error
    if offset < 0 or length < 0 or offset + length > size:
        raise UsageError(
            f"{refusal} holds {size} bytes, but {length} at offset {offset} are wanted. Copy the data file again."
        )
    return file, offset, length
