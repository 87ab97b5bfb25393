"""ONNX graph -> torch view -> float .tflite, by litert-torch. Slow, so each graph is converted once a process."""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from edgekit.backends import _litert_flatbuffer as fb
from edgekit.backends._litert_quiet import Said, quiet
from edgekit.errors import BuildError
from edgekit.extras import require

if TYPE_CHECKING:
    import onnx

_CONVERTED: dict[str, bytes] = {}


def to_float(proto: onnx.ModelProto, inputs: Sequence[npt.NDArray[np.generic]]) -> bytes:
    """The float .tflite of a folded graph for inputs of exactly these shapes (one sample, batch axis included).

    Raises:
        BuildError: an operator has no form in torch or in LiteRT; its node is named.
    """
    signature = repr([(array.shape, array.dtype.str) for array in inputs])
    key = hashlib.sha256(proto.SerializeToString(deterministic=True) + signature.encode()).hexdigest()
    if key not in _CONVERTED:
        _CONVERTED[key] = _convert(proto, inputs)
    return _CONVERTED[key]


def _convert(proto: onnx.ModelProto, inputs: Sequence[npt.NDArray[np.generic]]) -> bytes:
    torch = require("torch", extra="torch", why="converting for LiteRT")
    with quiet() as said:
        litert_torch = require("litert_torch", extra="litert", why="converting for LiteRT")
    from edgekit.graph.torch_view import torch_view

    view = torch_view(_settled(proto, inputs)).eval()
    args = tuple(torch.from_numpy(np.ascontiguousarray(array)) for array in inputs)
    with quiet() as said:
        litert_torch.config.show_progress = False
        try:
            edge = litert_torch.convert(view, args, enable_x64=_has_wide_ends(proto))
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "float.tflite"
                edge.export(str(path))
                return fb.write(fb.read(path.read_bytes()))
        except Exception as error:
            raise _stopped(proto, error, said) from error


def _settled(proto: onnx.ModelProto, inputs: Sequence[npt.NDArray[np.generic]]) -> onnx.ModelProto:
    """The graph with its shape arithmetic computed: every extent is known here, and LiteRT has few kernels for it."""
    import onnx

    from edgekit.graph.normalise import normalise

    if not any(node.op_type in ("Shape", "Size") for node in proto.graph.node):
        return proto
    fixed = onnx.ModelProto()
    fixed.CopyFrom(proto)
    constant = {tensor.name for tensor in fixed.graph.initializer}
    given = [value for value in fixed.graph.input if value.name not in constant]
    for value, array in zip(given, inputs, strict=True):
        for dim, extent in zip(value.type.tensor_type.shape.dim, array.shape, strict=True):
            dim.dim_value = extent
    for value in fixed.graph.output:
        value.type.tensor_type.ClearField("shape")
    del fixed.graph.value_info[:]
    return normalise(fixed)


def _has_wide_ends(proto: onnx.ModelProto) -> bool:
    """Whether an input or output has 64 bits: then types stay: a bundle takes and gives what the source does."""
    import onnx

    wide = (onnx.TensorProto.INT64, onnx.TensorProto.DOUBLE)
    return any(value.type.tensor_type.elem_type in wide for value in (*proto.graph.input, *proto.graph.output))


def _stopped(proto: onnx.ModelProto, error: Exception, said: Said) -> BuildError:
    """Name the nodes that the converter's message points at: modules of the view are named after them."""
    text = f"{error}\n{said.text()}"
    nodes = [node.name for node in proto.graph.node if node.name and _mentions(text, node.name)]
    what = " ".join(str(error).split())[:300] or type(error).__name__
    where = f" at {', '.join(nodes[:8])}" if nodes else ""
    return BuildError(
        f"LiteRT: the converter stopped{where}: {what}. Leave this backend out, or replace the operator.", nodes
    )


def _mentions(text: str, node: str) -> bool:
    plain = re.sub(r"\W", "_", node)
    return any(re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text) for name in {node, plain})
