"""Operators that move, cut, join, repeat and retype elements."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgekit.graph.torch_host import to_list
from edgekit.graph.torch_step import Entry, Function, Operator, Step

DTYPES: dict[int, torch.dtype] = {
    onnx.TensorProto.FLOAT: torch.float32,
    onnx.TensorProto.DOUBLE: torch.float64,
    onnx.TensorProto.FLOAT16: torch.float16,
    onnx.TensorProto.BFLOAT16: torch.bfloat16,
    onnx.TensorProto.INT8: torch.int8,
    onnx.TensorProto.INT16: torch.int16,
    onnx.TensorProto.INT32: torch.int32,
    onnx.TensorProto.INT64: torch.int64,
    onnx.TensorProto.UINT8: torch.uint8,
    onnx.TensorProto.BOOL: torch.bool,
}


def cast(op: Operator) -> Step:
    """Cast between the types that torch computes in."""
    dtype = DTYPES.get(op.attributes["to"])
    if dtype is None:
        name = onnx.TensorProto.DataType.Name(op.attributes["to"])
        raise op.refused(f"torch does not compute in {name}")
    return Step(Function(_cast, dtype=dtype), (0,))


def _cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.to(dtype)


def concat(op: Operator) -> Step:
    """Concat."""
    return Step(Function(_concat, axis=op.attributes["axis"]), range(len(op)))


def _concat(*values: Tensor, axis: int) -> Tensor:
    return torch.cat(values, dim=axis)


def flatten(op: Operator) -> Step:
    """Flatten to two axes."""
    axis = op.attributes.get("axis", 1)
    return Step(nn.Flatten(1) if axis == 1 and (op.rank(0) or 0) > 1 else Function(_flatten, axis=axis), (0,))


def _flatten(x: Tensor, axis: int) -> Tensor:
    axis = axis if axis >= 0 else axis + x.dim()
    if axis == 0:
        return x.reshape(1, -1)
    return x.reshape(int(np.prod(x.shape[:axis])) if 0 in x.shape else torch.Size(x.shape[:axis]).numel(), -1)


def reshape(op: Operator) -> Step:
    """Reshape; the target is constant, comes from shape arithmetic, or is a tensor."""
    target = op.constant(1)
    zero = bool(op.attributes.get("allowzero", 0))
    if target is not None:
        return Step(Function(_reshape, target=[int(d) for d in target.flat], zero=zero), (0,))
    return Step(Function(_reshape, zero=zero), (0, 1))


def _reshape(x: Tensor, target: Any, zero: bool) -> Tensor:
    extents = to_list(target)
    extents = [x.shape[i] if isinstance(d, int) and d == 0 and not zero else d for i, d in enumerate(extents)]
    return x.reshape(extents)


def transpose(op: Operator) -> Step:
    """Transpose; the order of axes is reversed by default."""
    return Step(Function(_transpose, order=op.attributes.get("perm")), (0,))


def _transpose(x: Tensor, order: list[int] | None) -> Tensor:
    return x.permute(order if order is not None else list(reversed(range(x.dim()))))


def squeeze(op: Operator) -> Step:
    """Squeeze."""
    return Step(Function(_squeeze, axes=op.static(1)), (0,))


def _squeeze(x: Tensor, axes: list[int] | None) -> Tensor:
    return x.squeeze() if axes is None else x.squeeze(tuple(axes))


def unsqueeze(op: Operator) -> Step:
    """Unsqueeze."""
    return Step(Function(_unsqueeze, axes=op.static(1)), (0,))


def _unsqueeze(x: Tensor, axes: list[int]) -> Tensor:
    rank = x.dim() + len(axes)
    for axis in sorted(a if a >= 0 else a + rank for a in axes):
        x = x.unsqueeze(axis)
    return x


def expand(op: Operator) -> Step:
    """Expand, in both directions as ONNX broadcasts."""
    target = op.constant(1)
    if target is not None:
        return Step(Function(_expand, target=[int(d) for d in target.flat]), (0,))
    return Step(Function(_expand), (0, 1))


def _expand(x: Tensor, target: Any) -> Tensor:
    extents = to_list(target)
    own = [1] * (len(extents) - x.dim()) + list(x.shape)
    extents = [1] * (len(own) - len(extents)) + extents
    return x.expand([a if isinstance(b, int) and b == 1 else b for a, b in zip(own, extents, strict=True)])


def gather(op: Operator) -> Step:
    """Gather along one axis."""
    axis = op.attributes.get("axis", 0)
    index = op.constant(1)
    if index is not None and index.ndim == 0:
        return Step(Function(torch.select, dim=axis, index=int(index)), (0,))
    return Step(Function(_gather, axis=axis), (0, 1))


def _gather(x: Tensor, index: Tensor, axis: int) -> Tensor:
    axis = axis if axis >= 0 else axis + x.dim()
    index = index.to(torch.int64)
    index = torch.where(index < 0, index + x.shape[axis], index)
    taken = x.index_select(axis, index.reshape(-1))
    return taken.reshape([*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]])


def gather_elements(op: Operator) -> Step:
    """GatherElements along one axis."""
    return Step(Function(_gather_elements, axis=op.attributes.get("axis", 0)), (0, 1))


def _gather_elements(x: Tensor, index: Tensor, axis: int) -> Tensor:
    index = index.to(torch.int64)
    return torch.gather(x, axis, torch.where(index < 0, index + x.shape[axis], index))


def gather_nd(op: Operator) -> Step:
    """GatherND: the last axis of the indices holds positions in the axes behind the batch's."""
    return Step(Function(_gather_nd, batch=op.attributes.get("batch_dims", 0)), (0, 1))


def _gather_nd(x: Tensor, index: Tensor, batch: int) -> Tensor:
    taken = int(index.shape[-1])
    inner = list(x.shape[batch : batch + taken])
    place = torch.zeros(index.shape[:-1], dtype=torch.int64, device=x.device)
    for axis, extent in enumerate(inner):
        one = index[..., axis].to(torch.int64)
        place = place * extent + torch.where(one < 0, one + extent, one)
    if batch:
        groups = torch.arange(math.prod(x.shape[:batch]), device=x.device) * math.prod(inner)
        place = place + groups.reshape([*x.shape[:batch], *[1] * (place.dim() - batch)])
    rest = x.shape[batch + taken :]
    flat = x.reshape([-1, *rest])
    return flat.index_select(0, place.reshape(-1)).reshape([*index.shape[:-1], *rest])


def slice_(op: Operator) -> Step:
    """Slice with constant bounds; backwards by flipping."""
    starts, ends = op.static(1) or [], op.static(2) or []
    axes = op.static(3, range(len(starts))) or []
    steps = op.static(4, [1] * len(starts)) or []
    return Step(Function(_slice, bounds=list(zip(starts, ends, axes, steps, strict=True))), (0,))


def _slice(x: Tensor, bounds: list[tuple[int, int, int, int]]) -> Tensor:
    for start, end, axis, step in bounds:
        axis = axis if axis >= 0 else axis + x.dim()
        if step < 0:
            extent = x.shape[axis]
            first, last, _ = slice(start, None if end < -extent else end, step).indices(extent)
            x, start, end, step = x.flip(axis), extent - 1 - first, extent - 1 - last, -step
        where = [slice(None)] * axis
        # An open end keeps an export free of bounds on a dynamic axis.
        where.append(slice(start or None, None if end >= torch.iinfo(torch.int32).max else end, step))
        x = x[tuple(where)]
    return x


def split(op: Operator) -> Step:
    """Split into given or equal parts, the last one smaller."""
    count = op.attributes.get("num_outputs", len(op.node.output))
    return Step(Function(_split, sizes=op.static(1), count=count, axis=op.attributes.get("axis", 0)), (0,))


def _split(x: Tensor, sizes: list[int] | None, count: int, axis: int) -> Any:
    parts = torch.split(x, sizes if sizes is not None else -(-x.shape[axis] // count), dim=axis)
    return parts[0] if len(parts) == 1 else parts


def pad(op: Operator) -> Step:
    """Pad with constant pads: zeros, a value, the edge, or a reflection."""
    pads = op.static(1) or []
    mode = op.attributes.get("mode", "constant")
    value = op.constant(2)
    if op.given(2) and value is None:
        raise op.refused("its value must be constant")
    axes = op.static(3, range(len(pads) // 2)) or []
    settings = {"pads": pads, "axes": axes, "mode": mode, "value": 0.0 if value is None else value.item()}
    return Step(Function(_pad, **settings), (0,))


def _pad(x: Tensor, pads: list[int], axes: list[int], mode: str, value: float) -> Tensor:
    both = [(0, 0)] * x.dim()
    for i, axis in enumerate(axes):
        both[axis] = (pads[i], pads[i + len(axes)])
    if mode == "constant":
        used = next((i for i, pair in enumerate(both) if pair != (0, 0)), x.dim())
        flat = [n for pair in reversed(both[used:]) for n in pair]
        return F.pad(x, flat, value=value) if flat else x
    for axis, (before, after) in enumerate(both):
        if before or after:
            x = x.index_select(axis, _mirrored(x.shape[axis], before, after, mode))
    return x


def _mirrored(extent: int, before: int, after: int, mode: str) -> Tensor:
    """The index of the source element of every padded one."""
    place = torch.arange(-before, extent + after)
    if mode == "edge":
        return place.clamp(0, extent - 1)
    if mode == "wrap":
        return place % extent
    return extent - 1 - (place % (2 * (extent - 1)) - (extent - 1)).abs() if extent > 1 else place * 0


def tile(op: Operator) -> Step:
    """Tile."""
    return Step(Function(_tile), (0, 1))


def _tile(x: Tensor, repeats: Any) -> Tensor:
    return x.repeat(to_list(repeats))


def constant_of_shape(op: Operator) -> Step:
    """ConstantOfShape."""
    given = op.attributes.get("value")
    value = np.zeros(1, np.float32) if given is None else onnx.numpy_helper.to_array(given)
    dtype = DTYPES[int(onnx.helper.np_dtype_to_tensor_dtype(value.dtype))]
    return Step(Function(_full, value=value.item(), dtype=dtype), (0,))


def _full(extents: Any, value: float, dtype: torch.dtype) -> Tensor:
    return torch.full(to_list(extents), value, dtype=dtype)


def range_(op: Operator) -> Step:
    """Range. Constant bounds stay numbers: an export could not look into a tensor."""
    fixed = [op.constant(i) for i in range(3)]
    known = [None if value is None else value.item() for value in fixed]
    dtypes = [DTYPES[onnx.helper.np_dtype_to_tensor_dtype(value.dtype)] for value in fixed if value is not None]
    inputs = tuple(i for i, value in enumerate(fixed) if value is None)
    return Step(Function(_range, known=known, dtype=dtypes[0] if dtypes else None), inputs)


def _range(*bounds: Any, known: list[Any], dtype: torch.dtype | None) -> Tensor:
    given = iter(bounds)
    numbers = [next(given).item() if number is None else number for number in known]
    kind = next((bound.dtype for bound in bounds if isinstance(bound, Tensor)), dtype or torch.int64)
    return torch.arange(*numbers, dtype=kind)


def depth_to_space(op: Operator) -> Step:
    """DepthToSpace, in both orders."""
    block, mode = op.attributes["blocksize"], op.attributes.get("mode", "DCR")
    return Step(nn.PixelShuffle(block) if mode == "CRD" else Function(_depth_to_space, block=block), (0,))


def _depth_to_space(x: Tensor, block: int) -> Tensor:
    n, c, h, w = x.shape
    x = x.reshape(n, block, block, c // block**2, h, w).permute(0, 3, 4, 1, 5, 2)
    return x.reshape(n, c // block**2, h * block, w * block)


def space_to_depth(op: Operator) -> Step:
    """SpaceToDepth."""
    channels_first = op.attributes.get("mode", "DCR") == "CRD"
    return Step(Function(_space_to_depth, block=op.attributes["blocksize"], channels_first=channels_first), (0,))


def _space_to_depth(x: Tensor, block: int, channels_first: bool) -> Tensor:
    n, c, h, w = x.shape
    order = (0, 1, 3, 5, 2, 4) if channels_first else (0, 3, 5, 1, 2, 4)
    x = x.reshape(n, c, h // block, block, w // block, block).permute(order)
    return x.reshape(n, c * block**2, h // block, w // block)


OPERATORS: dict[str, Entry] = {
    "Cast": cast,
    "Concat": concat,
    "ConstantOfShape": constant_of_shape,
    "DepthToSpace": depth_to_space,
    "Expand": expand,
    "Flatten": flatten,
    "Gather": gather,
    "GatherElements": gather_elements,
    "GatherND": gather_nd,
    "Pad": pad,
    "Range": range_,
    "Reshape": reshape,
    "Slice": slice_,
    "SpaceToDepth": space_to_depth,
    "Split": split,
    "Squeeze": squeeze,
    "Tile": tile,
    "Transpose": transpose,
    "Unsqueeze": unsqueeze,
}
