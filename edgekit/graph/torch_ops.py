"""The table of operators that the torch view knows, and the elementwise and layout operators among them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgekit.graph import torch_host, torch_layers, torch_pools, torch_reductions, torch_resize
from edgekit.graph.torch_step import Function, Operator, Step

Entry = Callable[[Operator], Step]

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


def item(values: Sequence[Any], index: int) -> Any:
    """One of an operator's results."""
    return values[index]


def _function(function: Callable[..., Any], **settings: Any) -> Entry:
    """An operator that is one function of all its inputs."""

    def build(op: Operator) -> Step:
        return Step(Function(function, **settings), range(len(op)))

    return build


def _module(kind: Callable[[], nn.Module]) -> Entry:
    """An operator of one input that torch has a module for."""

    def build(_: Operator) -> Step:
        return Step(kind(), (0,))

    return build


def _divide(a: Tensor, b: Tensor) -> Tensor:
    return torch.div(a, b, rounding_mode=None if a.is_floating_point() else "trunc")


def _power(base: Tensor, exponent: Tensor) -> Tensor:
    return torch.pow(base, exponent).to(base.dtype)


def _reduce(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    def apply(*values: Tensor) -> Tensor:
        return functools.reduce(function, values)

    return apply


def _mean(*values: Tensor) -> Tensor:
    return functools.reduce(torch.add, values) / len(values)


def _where(condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.where(condition, a, b)


def modulo(op: Operator) -> Step:
    """Mod: the sign of the divisor, or of the dividend with fmod."""
    return Step(Function(torch.fmod if op.attributes.get("fmod", 0) else torch.remainder), (0, 1))


def clip(op: Operator) -> Step:
    """Clip: ReLU6 by its name, other constant bounds as numbers."""
    low, high = op.constant(1), op.constant(2)
    if (op.given(1) and low is None) or (op.given(2) and high is None):
        return Step(Function(_clip), range(len(op)))
    bounds = tuple(None if bound is None else bound.item() for bound in (low, high))
    if bounds == (0.0, 6.0):
        return Step(nn.ReLU6(), (0,))
    if bounds == (None, None):
        return Step(nn.Identity(), (0,))
    return Step(Function(torch.clamp, min=bounds[0], max=bounds[1]), (0,))


def _clip(x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    x = x if low is None else torch.maximum(x, low)
    return x if high is None else torch.minimum(x, high)


def hard_sigmoid(op: Operator) -> Step:
    """HardSigmoid: max(0, min(1, alpha x + beta))."""
    alpha, beta = op.attributes.get("alpha", 0.2), op.attributes.get("beta", 0.5)
    if abs(alpha - 1 / 6) < 1e-7 and beta == 0.5:
        return Step(nn.Hardsigmoid(), (0,))
    return Step(Function(_hard_sigmoid, alpha=alpha, beta=beta), (0,))


def _hard_sigmoid(x: Tensor, alpha: float, beta: float) -> Tensor:
    return torch.clamp(x * alpha + beta, 0.0, 1.0)


def gelu(op: Operator) -> Step:
    """Gelu."""
    return Step(nn.GELU(op.attributes.get("approximate", "none")), (0,))


def leaky_relu(op: Operator) -> Step:
    """LeakyRelu."""
    return Step(nn.LeakyReLU(op.attributes.get("alpha", 0.01)), (0,))


def elu(op: Operator) -> Step:
    """Elu."""
    return Step(nn.ELU(op.attributes.get("alpha", 1.0)), (0,))


def softmax(op: Operator) -> Step:
    """Softmax along one axis."""
    return Step(nn.Softmax(op.attributes.get("axis", -1)), (0,))


def log_softmax(op: Operator) -> Step:
    """LogSoftmax along one axis."""
    return Step(nn.LogSoftmax(op.attributes.get("axis", -1)), (0,))


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
    extents = torch_host.to_list(target)
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
    extents = torch_host.to_list(target)
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
    parts = x.split(sizes if sizes is not None else -(-x.shape[axis] // count), dim=axis)
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
    return x.repeat(torch_host.to_list(repeats))


def constant_of_shape(op: Operator) -> Step:
    """ConstantOfShape."""
    given = op.attributes.get("value")
    value = np.zeros(1, np.float32) if given is None else onnx.numpy_helper.to_array(given)
    dtype = DTYPES[int(onnx.helper.np_dtype_to_tensor_dtype(value.dtype))]
    return Step(Function(_full, value=value.item(), dtype=dtype), (0,))


def _full(extents: Any, value: float, dtype: torch.dtype) -> Tensor:
    return torch.full(torch_host.to_list(extents), value, dtype=dtype)


def range_(op: Operator) -> Step:
    """Range."""
    return Step(Function(_range), (0, 1, 2))


def _range(*bounds: Any) -> Tensor:
    numbers = [bound.item() for bound in bounds]
    dtype = next((bound.dtype for bound in bounds if isinstance(bound, Tensor)), torch.int64)
    return torch.arange(*numbers, dtype=dtype)


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
    return Step(Function(_space_to_depth, block=op.attributes["blocksize"]), (0,))


def _space_to_depth(x: Tensor, block: int) -> Tensor:
    n, c, h, w = x.shape
    x = x.reshape(n, c, h // block, block, w // block, block).permute(0, 3, 5, 1, 2, 4)
    return x.reshape(n, c * block**2, h // block, w // block)


def layer_norm(op: Operator) -> Step:
    """LayerNormalization over the last axes."""
    if len([name for name in op.node.output if name]) > 1:
        raise op.refused("its mean or deviation is an output")
    given = op.attributes
    return Step(
        Function(_layer_norm, axis=given.get("axis", -1), epsilon=given.get("epsilon", 1e-5)), range(len(op))
    )


def _layer_norm(x: Tensor, scale: Tensor, bias: Tensor | None = None, *, axis: int, epsilon: float) -> Tensor:
    extents = x.shape[axis if axis >= 0 else axis + x.dim() :]
    return F.layer_norm(x, extents, scale.expand(extents), None if bias is None else bias.expand(extents), epsilon)


def instance_norm(op: Operator) -> Step:
    """InstanceNormalization."""
    return Step(Function(_instance_norm, epsilon=op.attributes.get("epsilon", 1e-5)), (0, 1, 2))


def _instance_norm(x: Tensor, scale: Tensor, bias: Tensor, epsilon: float) -> Tensor:
    return F.instance_norm(x, weight=scale, bias=bias, eps=epsilon)


OPERATORS: dict[str, Entry] = {
    # Elementwise, one input
    "Abs": _function(torch.abs),
    "Ceil": _function(torch.ceil),
    "Cos": _function(torch.cos),
    "Erf": _function(torch.erf),
    "Exp": _function(torch.exp),
    "Floor": _function(torch.floor),
    "HardSwish": _module(nn.Hardswish),
    "Identity": _module(nn.Identity),
    "Log": _function(torch.log),
    "Neg": _function(torch.neg),
    "Not": _function(torch.logical_not),
    "Reciprocal": _function(torch.reciprocal),
    "Relu": _module(nn.ReLU),
    "Round": _function(torch.round),
    "Sigmoid": _module(nn.Sigmoid),
    "Sign": _function(torch.sign),
    "Sin": _function(torch.sin),
    "Softplus": _module(nn.Softplus),
    "Sqrt": _function(torch.sqrt),
    "Tanh": _module(nn.Tanh),
    # Elementwise, several inputs
    "Add": _function(torch.add),
    "And": _function(torch.logical_and),
    "Div": _function(_divide),
    "Equal": _function(torch.eq),
    "Greater": _function(torch.gt),
    "GreaterOrEqual": _function(torch.ge),
    "Less": _function(torch.lt),
    "LessOrEqual": _function(torch.le),
    "Max": _function(_reduce(torch.maximum)),
    "Mean": _function(_mean),
    "Min": _function(_reduce(torch.minimum)),
    "Mod": modulo,
    "Mul": _function(torch.mul),
    "Or": _function(torch.logical_or),
    "Pow": _function(_power),
    "Sub": _function(torch.sub),
    "Sum": _function(_reduce(torch.add)),
    "Where": _function(_where),
    "Xor": _function(torch.logical_xor),
    # Activations with settings
    "Clip": clip,
    "Elu": elu,
    "Gelu": gelu,
    "HardSigmoid": hard_sigmoid,
    "LeakyRelu": leaky_relu,
    "LogSoftmax": log_softmax,
    "PRelu": torch_layers.prelu,
    "Softmax": softmax,
    # Weights
    "BatchNormalization": torch_layers.batch_norm,
    "Conv": torch_layers.convolution,
    "ConvTranspose": torch_layers.transposed_convolution,
    "Gemm": torch_layers.gemm,
    "InstanceNormalization": instance_norm,
    "LayerNormalization": layer_norm,
    "MatMul": torch_layers.matmul,
    # Pools and reductions
    "AveragePool": torch_pools.average_pool,
    "GlobalAveragePool": torch_pools.global_average_pool,
    "GlobalMaxPool": torch_pools.global_max_pool,
    "MaxPool": torch_pools.max_pool,
    **torch_reductions.OPERATORS,
    # Layout
    "Cast": cast,
    "Concat": concat,
    "ConstantOfShape": constant_of_shape,
    "DepthToSpace": depth_to_space,
    "Expand": expand,
    "Flatten": flatten,
    "Gather": gather,
    "Pad": pad,
    "Range": range_,
    "Reshape": reshape,
    "Resize": torch_resize.resize,
    "Shape": torch_host.shape,
    "Size": torch_host.size,
    "Slice": slice_,
    "SpaceToDepth": space_to_depth,
    "Split": split,
    "Squeeze": squeeze,
    "Tile": tile,
    "Transpose": transpose,
    "Unsqueeze": unsqueeze,
}
"""Operator type -> how it is built. To add one: an entry here, and its cases in the operator tests."""

TAKES_HOST: dict[str, frozenset[int]] = {
    "ConstantOfShape": frozenset({0}),
    "Expand": frozenset({1}),
    "Reshape": frozenset({1}),
    "Resize": frozenset({2, 3}),
    "Tile": frozenset({1}),
    "Range": frozenset({0, 1, 2}),
}
"""Inputs that may be shape arithmetic as it is; elsewhere it is made a tensor first."""

STATIC: dict[str, frozenset[int]] = {
    "Pad": frozenset({1, 2, 3}),
    "Slice": frozenset({1, 2, 3, 4}),
    "Split": frozenset({1}),
    "Squeeze": frozenset({1}),
    "Unsqueeze": frozenset({1}),
    **dict.fromkeys(torch_reductions.OPERATORS, frozenset({1})),
}
"""Inputs that must be constant when the view is built."""
