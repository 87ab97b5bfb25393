"""Models whose weights are too large for one protobuf message, which holds 2 GiB at most.

onnx's own tools (shape inference, conversion, checking) pass a model through such a message even where it fits, and
runtimes take one. The tools need the structure and small constants alone: large weights are kept out of their way.
Runtimes get the weights in a file beside the model.
"""

from __future__ import annotations

import hashlib
import math
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx

HEAVY = 1 << 16
"""An initializer of as many bytes is a weight, not a constant that shapes depend on."""

LIMIT = 2**31 - 2**24
"""A model with more bytes of weights is written with them in a file beside it."""

ALIGNMENT = 4096
"""Where a weight may begin in that file: runtimes map it into memory."""


def tensor_bytes(tensor: onnx.TensorProto) -> int:
    """The size of a tensor's values, found without copying them; 0 for strings."""
    if tensor.data_type in (onnx.TensorProto.STRING, onnx.TensorProto.UNDEFINED):
        return 0
    return int(math.prod(tensor.dims)) * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize


def heavy(graph: onnx.GraphProto) -> list[onnx.TensorProto]:
    """The large initializers."""
    return [t for t in graph.initializer if t.HasField("raw_data") and tensor_bytes(t) >= HEAVY]


def is_large(proto: onnx.ModelProto) -> bool:
    """Whether one message cannot hold the model."""
    return sum(map(tensor_bytes, heavy(proto.graph))) > LIMIT


def model_bytes(proto: onnx.ModelProto) -> int:
    """The size of the model as an ONNX file, its weights included wherever they lie."""
    if not is_large(proto):
        return int(proto.ByteSize())
    return int(_apart(proto).ByteSize()) + sum(map(tensor_bytes, heavy(proto.graph)))


def fingerprint(proto: onnx.ModelProto) -> bytes:
    """What tells the model from any other: its bytes, or where they are too many their sha256."""
    if not is_large(proto):
        return bytes(proto.SerializeToString(deterministic=True))
    total = hashlib.sha256(_apart(proto).SerializeToString(deterministic=True))
    for tensor in heavy(proto.graph):
        total.update(tensor.raw_data)
    return total.digest()


def without_weights(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which large initializers are inputs of the same name, type and shape."""
    light = _without(proto)
    present = {value.name for value in light.graph.input}  # old files list initializers there too
    for tensor in heavy(proto.graph):
        if tensor.name not in present:
            value = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            light.graph.input.append(value)
    return light


def lightly(proto: onnx.ModelProto, function: Callable[[onnx.ModelProto], onnx.ModelProto]) -> onnx.ModelProto:
    """Change `proto` into what `function` makes of it; large initializers are inputs to `function`, and stay."""
    weights = {tensor.name for tensor in heavy(proto.graph)}
    if not weights:
        return function(proto)
    made = function(without_weights(proto))
    kept = [value for value in made.graph.input if value.name not in weights]
    del made.graph.input[:]
    made.graph.input.extend(kept)
    graph = proto.graph
    for index in reversed(range(len(graph.initializer))):
        if graph.initializer[index].name not in weights:
            del graph.initializer[index]
    for field, _ in graph.ListFields():
        if field.name != "initializer":
            graph.ClearField(field.name)
    for field, _ in proto.ListFields():
        if field.name != "graph":
            proto.ClearField(field.name)
    proto.MergeFrom(made)
    return proto


@contextmanager
def loadable(proto: onnx.ModelProto) -> Iterator[bytes | str]:
    """What a runtime can load: the model's bytes, or the path of a file that is gone once the runtime has read it."""
    if not is_large(proto):
        yield proto.SerializeToString()
        return
    with tempfile.TemporaryDirectory(prefix="edgekit-") as folder:
        path = Path(folder) / "model.onnx"
        write_apart(proto, path)
        yield str(path)


def write_apart(proto: onnx.ModelProto, path: Path) -> None:
    """Write `path` with the structure, and `path` + `.data` with large weights, which it refers to."""
    light, data = _apart(proto, path.name + ".data"), path.with_name(path.name + ".data")
    with data.open("wb") as stream:
        for tensor in heavy(proto.graph):
            stream.write(b"\0" * (-stream.tell() % ALIGNMENT))
            stream.write(tensor.raw_data)
    path.write_bytes(light.SerializeToString(deterministic=True))


def _apart(proto: onnx.ModelProto, location: str = "") -> onnx.ModelProto:
    """A copy in which large initializers, in their places, refer to a file of their values one after the other."""
    light, place = _without(proto), 0
    weights = {tensor.name for tensor in heavy(proto.graph)}
    del light.graph.initializer[:]
    for tensor in proto.graph.initializer:
        if tensor.name not in weights:
            light.graph.initializer.append(tensor)
            continue
        entry = light.graph.initializer.add(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
        entry.data_location = onnx.TensorProto.EXTERNAL
        place += -place % ALIGNMENT
        for key, value in (("location", location), ("offset", place), ("length", tensor_bytes(tensor))):
            entry.external_data.add(key=key, value=str(value))
        place += tensor_bytes(tensor)
    return light


def _without(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy without the large initializers."""
    weights = {tensor.name for tensor in heavy(proto.graph)}
    light = onnx.ModelProto()
    _copy(proto, light, "graph")
    _copy(proto.graph, light.graph, "initializer")
    light.graph.initializer.extend(t for t in proto.graph.initializer if t.name not in weights)
    return light


def _copy(source: onnx.ModelProto | onnx.GraphProto, target: onnx.ModelProto | onnx.GraphProto, but: str) -> None:
    """Every field of a message but one."""
    for field, value in source.ListFields():
        if field.name == but:
            continue
        if field.is_repeated:
            getattr(target, field.name).extend(value)
        elif field.message_type is not None:
            getattr(target, field.name).CopyFrom(value)
        else:
            setattr(target, field.name, value)
