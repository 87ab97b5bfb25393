"""A .tflite file as plain objects: read, look at and write the flatbuffer (schema version 3).

The schema's classes come from ai-edge-litert. What they lack is here: 16-byte alignment of constants (asked for by
the schema, lost by the generated code, needed by float kernels on 32-bit Arm), and a writer without leftovers.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.extras import require

_ALIGNMENT = 16
_DTYPES = {"FLOAT32": np.float32, "INT32": np.int32, "INT64": np.int64, "INT8": np.int8, "UINT8": np.uint8,
           "BOOL": np.bool_, "FLOAT16": np.float16, "INT16": np.int16, "FLOAT64": np.float64}  # fmt: skip


@cache
def schema() -> ModuleType:
    """The generated classes of the TensorFlow Lite schema."""
    require("ai_edge_litert", extra="litert", why="writing .tflite files")
    return require("ai_edge_litert.schema_py_generated", extra="litert", why="writing .tflite files")


@cache
def _operator_names() -> dict[int, str]:
    return {code: name for name, code in vars(schema().BuiltinOperator).items() if isinstance(code, int)}


@cache
def _type_names() -> dict[int, str]:
    return {code: name for name, code in vars(schema().TensorType).items() if isinstance(code, int)}


def read(content: bytes) -> Any:
    """The model as a `ModelT`."""
    return schema().ModelT.InitFromPackedBuf(content, 0)


def operator_name(model: Any, operator: Any) -> str:
    """The builtin's name such as "CONV_2D", or "CUSTOM"."""
    code = model.operatorCodes[operator.opcodeIndex]
    return _operator_names()[max(code.builtinCode, code.deprecatedBuiltinCode)]


def type_name(tensor: Any) -> str:
    """The tensor's type as the schema writes it, such as "FLOAT32"."""
    return _type_names()[tensor.type]


def tensor_name(tensor: Any) -> str:
    """The tensor's name as text."""
    name: bytes | str | None = tensor.name
    return name.decode() if isinstance(name, bytes) else name or ""


def shape(tensor: Any) -> tuple[int, ...]:
    """The static shape."""
    return tuple(int(extent) for extent in tensor.shape) if tensor.shape is not None else ()


def constant(model: Any, tensor: Any) -> npt.NDArray[Any] | None:
    """The value of a constant tensor, or None for one that is computed."""
    data = model.buffers[tensor.buffer].data
    if data is None or len(data) == 0:
        return None
    dtype = _DTYPES.get(type_name(tensor))
    if dtype is None:
        return None
    return np.asarray(data, dtype=np.uint8).view(dtype).reshape(shape(tensor))


def indices(values: Any) -> list[int]:
    """A vector field of tensor indices as a list; -1 marks an omitted optional input."""
    return [] if values is None else [int(value) for value in values]


def operator_code(model: Any, name: str, version: int) -> int:
    """The index of an operator code, added if the model has none of that name and version."""
    builtin = getattr(schema().BuiltinOperator, name)
    for index, code in enumerate(model.operatorCodes):
        if max(code.builtinCode, code.deprecatedBuiltinCode) == builtin and code.version == version:
            return index
    code = schema().OperatorCodeT()
    code.builtinCode, code.version = builtin, version
    code.deprecatedBuiltinCode = min(builtin, 127)
    model.operatorCodes.append(code)
    return len(model.operatorCodes) - 1


def add_constant(model: Any, value: npt.NDArray[Any]) -> int:
    """The index of a new buffer with the bytes of `value`."""
    buffer = schema().BufferT()
    buffer.data = np.frombuffer(np.ascontiguousarray(value).tobytes(), dtype=np.uint8)
    model.buffers.append(buffer)
    return len(model.buffers) - 1


def _aligned_buffer(data: npt.NDArray[np.uint8]) -> Any:
    class Aligned(schema().BufferT):  # type: ignore[misc]  # generated classes are untyped
        def Pack(self, builder: Any) -> Any:  # noqa: N802  # the generated name
            fb = schema()
            builder.StartVector(1, len(data), _ALIGNMENT)
            head = builder.head - len(data)
            builder.head = head
            builder.Bytes[head : head + len(data)] = data.tobytes()
            vector = builder.EndVector()
            fb.BufferStart(builder)
            fb.BufferAddData(builder, vector)
            return fb.BufferEnd(builder)

    return Aligned()


def drop_unused(model: Any) -> None:
    """Remove tensors, buffers and operator codes that nothing uses, converter metadata, and shared-buffer slots."""
    (graph,) = model.subgraphs
    used = {*indices(graph.inputs), *indices(graph.outputs)}
    for operator in graph.operators:
        used |= {*indices(operator.inputs), *indices(operator.outputs)}
    by_block = {index: _block_scales(graph.tensors[index]) for index in used if index >= 0}
    used |= {index for index in by_block.values() if index is not None}
    kept = sorted(index for index in used if index >= 0)
    new = {old: position for position, old in enumerate(kept)} | {-1: -1}
    for index, scales in by_block.items():
        if scales is not None:
            graph.tensors[index].quantization.details.scales = new[scales]
    graph.tensors = [graph.tensors[index] for index in kept]
    graph.inputs, graph.outputs = _renumber(graph.inputs, new), _renumber(graph.outputs, new)
    for operator in graph.operators:
        operator.inputs, operator.outputs = _renumber(operator.inputs, new), _renumber(operator.outputs, new)
        operator.debugMetadataIndex = -1
    for signature in model.signatureDefs or []:
        for entry in [*signature.inputs, *signature.outputs]:
            entry.tensorIndex = new[entry.tensorIndex]
    _compact_buffers(model, graph)
    codes = sorted({operator.opcodeIndex for operator in graph.operators})
    for operator in graph.operators:
        operator.opcodeIndex = codes.index(operator.opcodeIndex)
    model.operatorCodes = [model.operatorCodes[index] for index in codes]
    model.metadata = model.metadataBuffer = None


def _block_scales(tensor: Any) -> int | None:
    """The tensor that holds the scales of one whose weights have them by block."""
    details = getattr(tensor.quantization, "details", None)
    return int(details.scales) if isinstance(details, schema().BlockwiseQuantizationT) else None


def _renumber(values: Iterable[int] | None, new: dict[int, int]) -> list[int]:
    return [new[value] for value in indices(values)]


def _compact_buffers(model: Any, graph: Any) -> None:
    """Buffer 0 is the empty one by convention; equal constants share a buffer."""
    buffers, places = [schema().BufferT()], {b"": 0}
    for tensor in graph.tensors:
        data = model.buffers[tensor.buffer].data
        content = b"" if data is None else np.asarray(data, dtype=np.uint8).tobytes()
        if content not in places:
            places[content] = len(buffers)
            buffers.append(_aligned_buffer(np.frombuffer(content, dtype=np.uint8)))
        tensor.buffer = places[content]
    model.buffers = buffers


def write(model: Any) -> bytes:
    """The bytes of a .tflite file; also tidies `model` (see `drop_unused`)."""
    flatbuffers = require("flatbuffers", extra="litert", why="writing .tflite files")
    drop_unused(model)
    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())
