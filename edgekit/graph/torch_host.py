"""Shape arithmetic on Python integers (symbolic ones during an export), held in numpy arrays of objects.

A dynamic extent that went through a tensor would be lost to `torch.export`; kept as an integer it survives.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor

from edgekit.graph.tools import Array
from edgekit.graph.torch_step import Entry, Function, Operator, Step

# Typed here: torch leaves these three without annotations.
sym_max: Callable[[Any, Any], Any] = torch.sym_max
sym_min: Callable[[Any, Any], Any] = torch.sym_min
sym_float: Callable[[Any], Any] = torch.sym_float

SOURCES = frozenset({"Shape", "Size"})
"""Operators that turn tensors into such integers."""


def array_of(value: Any) -> Array:
    """Integers, a tensor or an array as an array of objects."""
    if isinstance(value, Tensor):
        value = np.array(value.tolist(), dtype=object).reshape(tuple(value.shape))
    array = np.empty(np.shape(value), dtype=object)
    array[...] = value.tolist() if isinstance(value, np.ndarray) and value.dtype != object else value
    return array


def to_list(value: Any) -> list[Any]:
    """The numbers of a shape, from wherever they come."""
    return list(value.tolist()) if isinstance(value, Tensor | np.ndarray) else list(value)


def to_tensor(value: Array) -> Tensor:
    """Shape arithmetic back to a tensor, for operators that compute with it."""
    numbers = [v if isinstance(v, int | float | bool) else sym_float(v) if _is_float(v) else v for v in value.flat]
    dtype = torch.float32 if any(_is_float(v) for v in value.flat) else torch.int64
    if value.size and all(isinstance(v, bool | np.bool_) for v in value.flat):
        dtype = torch.bool
    flat = [torch.scalar_tensor(v, dtype=dtype) for v in numbers]
    return torch.stack(flat).reshape(value.shape) if flat else torch.zeros(value.shape, dtype=dtype)


def _is_float(value: Any) -> bool:
    return isinstance(value, float | torch.SymFloat)


def _shape(x: Tensor, start: int, end: int | None) -> Array:
    dims = list(x.shape)[start:end]
    result = np.empty(len(dims), dtype=object)
    for index, dim in enumerate(dims):
        result[index] = dim
    return result


def _size(x: Tensor) -> Array:
    result = np.empty((), dtype=object)
    result[()] = x.numel()
    return result


def shape(op: Operator) -> Step:
    """Shape, with its start and end."""
    given = op.attributes
    return Step(Function(_shape, start=given.get("start", 0), end=given.get("end")), (0,))


def size(op: Operator) -> Step:
    """Size."""
    return Step(Function(_size), (0,))


def _on_arrays(*values: Any, function: Callable[..., Any], **settings: Any) -> Array:
    return array_of(function(*(array_of(value) for value in values), **settings))


def _plain(function: Callable[..., Any]) -> Entry:
    def build(op: Operator) -> Step:
        return Step(Function(_on_arrays, function=function), tuple(range(len(op))))

    return build


def _add(a: Array, b: Array) -> Any:
    return a + b


def _subtract(a: Array, b: Array) -> Any:
    return a - b


def _multiply(a: Array, b: Array) -> Any:
    return a * b


def _divide(a: Array, b: Array) -> Any:
    whole = not any(_is_float(v) for v in (*a.flat, *b.flat))
    return a // b if whole else a / b


def _maximum(*values: Array) -> Any:
    return _pairwise(sym_max, values)


def _minimum(*values: Array) -> Any:
    return _pairwise(sym_min, values)


def _pairwise(function: Callable[[Any, Any], Any], values: tuple[Array, ...]) -> Array:
    result = values[0]
    for value in values[1:]:
        left, right = np.broadcast_arrays(result, value)
        result = np.empty(left.shape, dtype=object)
        for index in np.ndindex(left.shape):
            result[index] = function(left[index], right[index])
    return result


def _equal(a: Array, b: Array) -> Any:
    return np.equal(a, b, dtype=object)


def _where(condition: Array, a: Array, b: Array) -> Any:
    return np.where(condition.astype(bool), a, b)


def _unchanged(a: Array) -> Any:
    return a


def _gather(a: Array, index: Array, axis: int) -> Any:
    return np.take(a, index.astype(np.int64), axis=axis)


def gather(op: Operator) -> Step:
    """Gather from a shape."""
    return Step(Function(_on_arrays, function=_gather, axis=op.attributes.get("axis", 0)), (0, 1))


def _concat(*values: Array, axis: int) -> Any:
    return np.concatenate(values, axis=axis)


def concat(op: Operator) -> Step:
    """Concat of shapes."""
    return Step(Function(_on_arrays, function=_concat, axis=op.attributes["axis"]), tuple(range(len(op))))


def _slice(a: Array, starts: list[int], ends: list[int], axes: list[int], steps: list[int]) -> Any:
    where = [slice(None)] * a.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        stop = None if step < 0 and end < -a.shape[axis] else end
        where[axis] = slice(start, stop, step)
    return a[tuple(where)]


def slice_(op: Operator) -> Step:
    """Slice of a shape."""
    starts, ends = op.static(1) or [], op.static(2) or []
    axes = op.static(3, range(len(starts))) or []
    steps = op.static(4, [1] * len(starts)) or []
    return Step(Function(_on_arrays, function=_slice, starts=starts, ends=ends, axes=axes, steps=steps), (0,))


def _squeeze(a: Array, axes: list[int] | None) -> Any:
    return np.squeeze(a, None if axes is None else tuple(axes))


def squeeze(op: Operator) -> Step:
    """Squeeze."""
    return Step(Function(_on_arrays, function=_squeeze, axes=op.static(1)), (0,))


def _unsqueeze(a: Array, axes: list[int]) -> Any:
    return np.expand_dims(a, tuple(axes))


def unsqueeze(op: Operator) -> Step:
    """Unsqueeze."""
    return Step(Function(_on_arrays, function=_unsqueeze, axes=op.static(1) or []), (0,))


def _reshape(a: Array, target: list[int]) -> Any:
    return a.reshape(tuple(a.shape[i] if d == 0 else d for i, d in enumerate(target)))


def reshape(op: Operator) -> Step:
    """Reshape of integers by a constant."""
    return Step(Function(_on_arrays, function=_reshape, target=op.static(1) or []), (0,))


def _cast(a: Array, convert: Callable[[Any], Any]) -> Any:
    result = np.empty(a.shape, dtype=object)
    for index in np.ndindex(a.shape):
        result[index] = convert(a[index])
    return result


def cast(op: Operator) -> Step:
    """Cast between integers, floats and booleans."""
    to = op.attributes["to"]
    floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16)
    convert = sym_float if to in floats else bool if to == onnx.TensorProto.BOOL else torch.sym_int
    return Step(Function(_on_arrays, function=_cast, convert=convert), (0,))


def _product(a: Array) -> Any:
    return np.multiply.reduce(a.reshape(-1), keepdims=False)


def reduce_prod(op: Operator) -> Step:
    """The number of elements that a shape stands for."""
    keep = bool(op.attributes.get("keepdims", 1))
    return Step(Function(_on_arrays, function=_product_kept if keep else _product), (0,))


def _product_kept(a: Array) -> Any:
    return np.multiply.reduce(a.reshape(-1), keepdims=True)


OPERATORS: dict[str, Entry] = {
    "Add": _plain(_add),
    "Sub": _plain(_subtract),
    "Mul": _plain(_multiply),
    "Div": _plain(_divide),
    "Max": _plain(_maximum),
    "Min": _plain(_minimum),
    "Equal": _plain(_equal),
    "Where": _plain(_where),
    "Identity": _plain(_unchanged),
    "Gather": gather,
    "Concat": concat,
    "Slice": slice_,
    "Squeeze": squeeze,
    "Unsqueeze": unsqueeze,
    "Reshape": reshape,
    "Cast": cast,
    "ReduceProd": reduce_prod,
}
"""Operators that compute on integers when all they read are integers of shapes or constants."""
