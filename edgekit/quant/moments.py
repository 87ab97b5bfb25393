"""Second moments of what weighted operators multiply, from a sample of positions: `E[x x^T]` over patches `x`.

With them the error that rounded weights make at an operator's output is a quadratic form, `dw^T E[x x^T] dw`, and
needs no data any more.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgekit.context import Progress, Silent
from edgekit.quant.calibrate import Batches
from edgekit.quant.layers import Layer
from edgekit.quant.session import open_session
from edgekit.quant.view import attribute, typed

if TYPE_CHECKING:
    import onnx

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]

PATCHES = 2048
"""About so many patches of an operator's input are looked at, from all samples together."""

WIDEST = 2304
"""An operator with more inputs times taps than this has its moments in blocks of whole channels, at most so wide."""

Crop = tuple[tuple[int, int, int], ...]
"""Start, end and step on each spatial axis; empty for the whole tensor."""


def second_moments(
    proto: onnx.ModelProto, chosen: Sequence[Layer], batches: Batches, samples: int, progress: Progress | None = None
) -> dict[str, list[Floats]]:
    """Per node name its moments `[groups, k, k]`, block after block of its inputs, in one pass over `batches`.

    `samples` is how many samples `batches` holds: each gives `PATCHES / samples` patches of every operator.
    """
    each = -(-PATCHES // max(samples, 1))
    readers: dict[str, list[Layer]] = {}
    for layer in chosen:
        readers.setdefault(layer.source, []).append(layer)
    sizes = _sizes(proto, tuple(readers), batches)
    crops = {name: _crop(sizes[name][2:], readers[name], each) for name in readers}
    session = open_session(_with_crops(proto, crops))
    totals: dict[str, list[Floats]] = {}
    counts: dict[str, int] = {}
    with (progress or Silent()).task("rounding: moments", samples) as task:
        for batch in batches():
            for name, read in zip(readers, session(batch), strict=True):
                for layer in readers[name]:
                    rows = patches(layer, read, each * len(batch[0]), padded=not crops[name])
                    parts = [np.matmul(part.transpose(0, 2, 1), part) for part in _blocks(layer, rows)]
                    key = layer.node.name
                    totals[key] = [a + b for a, b in zip(totals[key], parts, strict=True)] if key in totals else parts
                    counts[key] = counts.get(key, 0) + rows.shape[1]
            task.advance(len(batch[0]))
    return {key: [part / np.float32(counts[key]) for part in parts] for key, parts in totals.items()}


def widths(layer: Layer) -> list[int]:
    """How wide the blocks of a layer's moments are: its columns of `Layer.matrix`, whole channels together."""
    columns = layer.matrix(layer.value).shape[2]
    taps = int(np.prod(layer.value.shape[2:], dtype=int))
    most = max(WIDEST // taps, 1) * taps
    return [min(most, columns - start) for start in range(0, columns, most)]


def _blocks(layer: Layer, rows: Floats) -> list[Floats]:
    edges = np.cumsum([0, *widths(layer)])
    return [rows[:, :, a:b] for a, b in itertools.pairwise(edges)]


def patches(layer: Layer, x: Array, wanted: int, *, padded: bool = True) -> Floats:
    """About `wanted` of the patches that `layer` multiplies, `[groups, patches, inputs * taps]`, evenly spread.

    Without `padded` the operator's own padding is left out: `x` is a piece from the middle of its input.
    """
    if layer.node.op_type in ("Gemm", "MatMul"):
        flat = x.reshape(-1, x.shape[-1])
        return np.ascontiguousarray(flat[:: max(1, len(flat) // wanted)], np.float32)[None]
    kernel = layer.value.shape[2:]
    rank = len(kernel)
    strides = attribute(layer.node, "strides", [1] * rank)
    dilations = attribute(layer.node, "dilations", [1] * rank)
    if padded:
        pads = padding(layer.node, x.shape[2:], kernel, strides, dilations)
        x = np.pad(x, [(0, 0), (0, 0), *zip(pads[:rank], pads[rank:], strict=True)])
    extents = tuple((k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True))
    windows = np.lib.stride_tricks.sliding_window_view(x, extents, axis=tuple(range(2, 2 + rank)))
    steps: Any = tuple(slice(None, None, step) for step in (1, 1, *strides, *dilations))
    picked: Array = windows[steps]
    places = (picked.shape[0], *picked.shape[2 : 2 + rank])
    count = int(np.prod(places))
    chosen = np.unravel_index(np.arange(0, count, max(1, count // wanted)), places)
    index: Any = (chosen[0], slice(None), *chosen[1:])
    taken = picked[index]  # [patches, channels, *kernel]
    grouped = taken.reshape(len(taken), layer.groups, -1).transpose(1, 0, 2)
    return np.ascontiguousarray(grouped, np.float32)


def padding(
    node: onnx.NodeProto, sizes: Sequence[int], kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> list[int]:
    """The zeros before and after each spatial axis, `[before..., after...]`, `auto_pad` worked out."""
    rank = len(kernel)
    auto = attribute(node, "auto_pad", b"NOTSET")
    if auto in (b"NOTSET", b""):
        return list(attribute(node, "pads", [0] * 2 * rank))
    if auto == b"VALID":
        return [0] * 2 * rank
    before, after = [], []
    for size, k, s, d in zip(sizes, kernel, strides, dilations, strict=True):
        total = max((-(-size // s) - 1) * s + (k - 1) * d + 1 - size, 0)
        less, more = total // 2, total - total // 2
        before.append(more if auto == b"SAME_LOWER" else less)
        after.append(less if auto == b"SAME_LOWER" else more)
    return before + after


def _crop(sizes: Sequence[int], readers: Sequence[Layer], each: int) -> Crop:
    """What is read back of a tensor with these spatial sizes: all of it where that is little."""
    if not sizes or any(layer.node.op_type in ("Gemm", "MatMul") for layer in readers):
        return ()
    side = int(np.ceil(each ** (1 / len(sizes))))
    kernels = [layer.value.shape[2:] for layer in readers]
    if all(max(kernel) == 1 for kernel in kernels):
        return tuple((0, size, max(1, size // side)) for size in sizes)
    crop = []
    for axis, size in enumerate(sizes):
        need = 1
        for layer, kernel in zip(readers, kernels, strict=True):
            stride = attribute(layer.node, "strides", [1] * len(sizes))[axis]
            dilation = attribute(layer.node, "dilations", [1] * len(sizes))[axis]
            need = max(need, (side - 1) * stride + (kernel[axis] - 1) * dilation + 1)
        if size < 2 * need:
            return ()
        crop.append(((size - need) // 2, (size - need) // 2 + need, 1))
    return tuple(crop)


def _sizes(proto: onnx.ModelProto, names: Sequence[str], batches: Batches) -> dict[str, tuple[int, ...]]:
    """The shapes of tensors; where the graph does not say, those that the first batch gives."""
    import onnx

    from edgekit.graph.tools import shapes

    known = {name: shape for name, shape in shapes(typed(proto).graph).items() if name in names}
    if all(all(isinstance(n, int) for n in known.get(name, ("?", "?"))[1:]) for name in names):
        return {name: (0, *(int(n or 0) for n in known[name][1:])) for name in names}
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    del copy.graph.output[:]
    for name in names:
        copy.graph.node.append(onnx.helper.make_node("Shape", [name], [f"{name}/shape"], name=f"{name}/shape"))
        copy.graph.output.append(onnx.helper.make_tensor_value_info(f"{name}/shape", onnx.TensorProto.INT64, [None]))
    answers = open_session(copy)(next(iter(batches())))
    return {name: tuple(int(n) for n in answer) for name, answer in zip(names, answers, strict=True)}


def _with_crops(proto: onnx.ModelProto, crops: Mapping[str, Crop]) -> onnx.ModelProto:
    """A copy whose outputs are pieces of tensors."""
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    graph = copy.graph
    del graph.output[:]
    for name, crop in crops.items():
        output = f"{name}/piece"
        inputs = [name]
        if crop:
            columns = (*zip(*crop, strict=True), range(2, 2 + len(crop)))
            for part, column in zip(("start", "end", "step", "axes"), columns, strict=True):
                inputs.append(f"{output}_{part}")
                graph.initializer.append(onnx.numpy_helper.from_array(np.array(list(column), np.int64), inputs[-1]))
            order = [inputs[0], inputs[1], inputs[2], inputs[4], inputs[3]]
            graph.node.append(onnx.helper.make_node("Slice", order, [output], name=output))
        else:
            graph.node.append(onnx.helper.make_node("Identity", [name], [output], name=output))
        graph.output.append(onnx.helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, None))
    return copy
