"""From the QuantSpec to a decision for every tensor and operator of the .tflite."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgekit.backends import _litert_flatbuffer as fb
from edgekit.backends._litert_match import named
from edgekit.backends._litert_quantize import KERNELS, Decision, S8Grid, data_inputs, grid_of
from edgekit.errors import BuildError
from edgekit.quant.spec import PerChannel, PerTensor
from edgekit.quant.weights import channel_scales, quantize_weight, scale_array

if TYPE_CHECKING:
    import onnx

    from edgekit.quant.spec import QuantSpec, Variant

Array = npt.NDArray[Any]
Weights = dict[int, tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]]
_CLAMPS = ("Relu", "Clip")
_LIMITS = {"RELU": (0.0, np.inf), "RELU6": (0.0, 6.0), "RELU_0_TO_1": (0.0, 1.0), "RELU_N1_TO_1": (-1.0, 1.0)}
_INTERVALS = frozenset({"ADD", "SUB", "MUL", "MINIMUM", "MAXIMUM", *_LIMITS})


@dataclass
class Outcome:
    """A decision and what is to be told about it: `reasons` says of an ONNX node (or operator) why it is float."""

    decision: Decision
    reasons: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def decide(
    content: bytes,
    proto: onnx.ModelProto,
    spec: QuantSpec,
    variant: Variant,
    matches: Mapping[int, tuple[str, ...]],
) -> Outcome:
    """Grids for the activations, int8 values for the weights, and which operators run in int8.

    Raises:
        BuildError: a tensor that an int8 convolution or dense layer makes has no counterpart in the ONNX graph, or
            several with different ranges.
    """
    return _Decider(content, proto, spec, variant, matches).run()


class _Decider:
    def __init__(
        self,
        content: bytes,
        proto: onnx.ModelProto,
        spec: QuantSpec,
        variant: Variant,
        matches: Mapping[int, tuple[str, ...]],
    ) -> None:
        self.model = fb.read(content)
        (self.graph,) = self.model.subgraphs
        self.spec, self.variant, self.matches, self.proto = spec, variant, matches, proto
        self.makers = {name: node for node in proto.graph.node for name in node.output if name}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in proto.graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
        self.grids: dict[int, S8Grid] = {}
        self.reasons: dict[int, str] = {}
        self.sources = {index: operator for operator in self.graph.operators for index in fb.indices(operator.outputs)}
        self.users: dict[int, list[Any]] = {}
        for operator in self.graph.operators:
            for index in fb.indices(operator.inputs):
                self.users.setdefault(index, []).append(operator)
        self.weights: Weights = {}
        self.notes: list[str] = []

    def run(self) -> Outcome:
        for index in fb.indices(self.graph.inputs):
            self._own_grid(index)
        operators = [(fb.operator_name(self.model, operator), operator) for operator in self.graph.operators]
        chosen = {place for place, (name, operator) in enumerate(operators) if self._takes(place, name, operator)}
        chosen -= self._lonely(operators, chosen)
        decision = Decision(self.grids, frozenset(chosen), self.weights)
        blamed = [(self._blamed(*operators[place]), reason) for place, reason in sorted(self.reasons.items())]
        reasons = {name: self.spec.is_float(name, "litert") or reason for name, reason in blamed}
        return Outcome(decision, reasons, self.notes)

    def _blamed(self, name: str, operator: Any) -> str:
        """What to call an operator of the .tflite: the ONNX node that it computes, where its output is known."""
        index = fb.indices(operator.outputs)[0]
        inputs = self._known_before(operator)
        nodes = [node for known in self.matches.get(index, ())[:1] for node in self._covered(known, inputs, 4)]
        kept = [node for node in nodes if self.spec.is_float(node.name, "litert")]
        found = [*kept, *nodes, *self._around(operator)]
        return found[0].name if found else f"{name} {self._label(index)}"

    # -- grids ---------------------------------------------------------------------------------------------------

    def _range_name(self, name: str) -> str | None:
        """The tensor of the spec whose grid `name` is on: itself, or the clamp that its grid absorbs."""
        if name in self.spec.tensors:
            return name
        readers = self.readers.get(name, [])
        if len(readers) == 1 and readers[0].op_type in _CLAMPS and readers[0].output[0] in self.spec.tensors:
            return str(readers[0].output[0])
        return None

    def _own_grid(self, index: int) -> S8Grid | None:
        """The grid that the spec gives a tensor, or None where it has no range for it."""
        if index in self.grids:
            return self.grids[index]
        names = [name for name in self.matches.get(index, ()) if self._range_name(name)]
        found = {self._s8(self._range_name(name) or name) for name in names}
        if len(found) > 1:
            names = named(self.model, index, names, self.proto)
            found = {self._s8(self._range_name(name) or name) for name in names}
            if len(found) != 1:
                raise BuildError(
                    f"LiteRT: tensor {self._label(index)!r} has the values of several tensors of the ONNX graph, "
                    f"with different ranges: {', '.join(self.matches[index])}. Keep their nodes in float.",
                    [self.makers[name].name for name in self.matches[index] if name in self.makers],
                )
        for grid in found:
            self.grids[index] = grid
        return self.grids.get(index)

    def _s8(self, name: str) -> S8Grid:
        grid = self.spec.grid(name, self.variant)
        return S8Grid(grid.scale, grid.zero_point if self.variant == "symmetric" else grid.zero_point - 128)

    def _interval(self, name: str, operator: Any) -> S8Grid | None:
        """The range of a tensor inside a decomposed activation, from that of its input and constants."""
        if name not in _INTERVALS:
            return None
        bounds = []
        for index in fb.indices(operator.inputs):
            value = fb.constant(self.model, self.graph.tensors[index])
            grid = self.grids.get(index)
            if value is not None:
                bounds.append((float(value.min()), float(value.max())))
            elif grid is not None:
                bounds.append(((-128 - grid.zero_point) * grid.scale, (127 - grid.zero_point) * grid.scale))
        if len(bounds) != len(fb.indices(operator.inputs)) or (name not in _LIMITS and len(bounds) != 2):
            return None
        low, high = _combine(name, bounds)
        return grid_of(*_fused(operator, low, high))

    # -- operators -----------------------------------------------------------------------------------------------

    def _takes(self, place: int, name: str, operator: Any) -> bool:
        """Whether an operator runs in int8; settles the grid of its outputs."""
        reason = self._objection(name, operator)
        if reason is None:
            return True
        outputs = fb.indices(operator.outputs)
        if any(fb.type_name(self.graph.tensors[index]) == "FLOAT32" for index in outputs):
            self.reasons[place] = reason
        return False

    def _objection(self, name: str, operator: Any) -> str | None:
        outputs = fb.indices(operator.outputs)
        kernel = KERNELS.get(name)
        if self._absorbed(name, operator):
            return None
        floats = [index for index in outputs if fb.type_name(self.graph.tensors[index]) == "FLOAT32"]
        if kernel is None or len(floats) != len(outputs):
            for index in floats:
                self._own_grid(index)
            return f"no 8-bit form of {name}"
        kept = self._kept_float(operator)
        for index in outputs:
            self._own_grid(index)
        if kept is not None:
            return kept
        for index in data_inputs(name, operator):
            if fb.constant(self.model, self.graph.tensors[index]) is None and index not in self.grids:
                return f"its input {self._label(index)!r} has no range"
        if kernel.weight_axis is not None and not self._weight(name, operator, kernel.weight_axis):
            return "its weight is not constant, or has no scales"
        return self._outputs(name, operator)

    def _outputs(self, name: str, operator: Any) -> str | None:
        kernel = KERNELS[name]
        first = data_inputs(name, operator)[0]
        for index in fb.indices(operator.outputs):
            if kernel.fixed is not None:
                self.grids[index] = kernel.fixed
            elif kernel.grids == "input" and first in self.grids:
                self.grids[index] = self.grids[first]
            elif index not in self.grids:
                known = self.matches.get(index)
                grid = self._from_reader(index) or (None if known else self._interval(name, operator))
                if grid is None:
                    return self._missing(name, index)
                self.grids[index] = grid
        return None

    def _absorbed(self, name: str, operator: Any) -> bool:
        """Whether an operator clamps to what the grid of its input holds anyway: the rewriter drops it."""
        if name not in _LIMITS:
            return False
        (source,), (result,) = fb.indices(operator.inputs), fb.indices(operator.outputs)
        grid = self.grids.get(source)
        if grid is None or self._own_grid(result) not in (None, grid):
            return False
        low, high = (-128 - grid.zero_point) * grid.scale, (127 - grid.zero_point) * grid.scale
        if low < _LIMITS[name][0] - grid.scale / 2 or high > _LIMITS[name][1] + grid.scale / 2:
            return False
        self.grids[result] = grid
        return True

    def _from_reader(self, index: int) -> S8Grid | None:
        """The grid of a tensor inside a decomposed activation, from the one operator that reads it.

        A clamp's input takes the grid of its output, whose ends do the clamping; a tensor that is multiplied by one
        positive constant takes the product's grid divided by it.
        """
        users = self.users.get(index, [])
        name = fb.operator_name(self.model, users[0]) if len(users) == 1 else ""
        if name in _LIMITS:
            return self._own_grid(fb.indices(users[0].outputs)[0])
        if name != "MUL":
            return None
        (other,) = [place for place in fb.indices(users[0].inputs) if place != index] or [index]
        factor = fb.constant(self.model, self.graph.tensors[other])
        grid = self._own_grid(fb.indices(users[0].outputs)[0])
        if grid is None or factor is None or factor.size != 1 or float(factor.reshape(-1)[0]) <= 0:
            return None
        return S8Grid(float(np.float32(grid.scale / factor.reshape(-1)[0])), grid.zero_point)

    def _missing(self, name: str, index: int) -> str:
        names = self.matches.get(index, ())
        if names:
            return f"{names[0]!r} has no range"
        if KERNELS[name].weight_axis is not None:
            raise BuildError(
                f"LiteRT: the {name} that makes {self._label(index)!r} has the values of no tensor of the ONNX graph, "
                "so its range is unknown. Keep its node in float."
            )
        return f"{self._label(index)!r} is no tensor of the ONNX graph"

    def _kept_float(self, operator: Any) -> str | None:
        """The reason of an ONNX node that this operator computes and that must stay float."""
        inputs = self._known_before(operator)
        for index in fb.indices(operator.outputs):
            for name in self.matches.get(index, ())[:1]:
                for node in self._covered(name, inputs, 4):
                    reason = self.spec.is_float(node.name, "litert")
                    if reason is not None:
                        return reason
        reasons = [self.spec.is_float(node.name, "litert") for node in self._around(operator)]
        return reasons[0] if reasons and all(reasons) else None

    def _known_before(self, operator: Any) -> set[str]:
        """The ONNX tensors that an operator computes from: those that it reads, or what is known before them."""
        found, behind, seen = set[str](), list(fb.indices(operator.inputs)), set[int]()
        while behind:
            index = behind.pop()
            names = self.matches.get(index, ())
            found.update(names)
            if not names and index not in seen and index in self.sources:
                seen.add(index)
                behind += fb.indices(self.sources[index].inputs)
        return found

    def _around(self, operator: Any) -> list[onnx.NodeProto]:
        """The ONNX nodes that the converter took apart into this operator and others; none where its output is known.

        Those are the makers of the first known tensors behind it.
        """
        found: dict[str, onnx.NodeProto] = {}
        ahead, seen = list(fb.indices(operator.outputs)), set[int]()
        if any(self.matches.get(index) for index in ahead):
            return []
        while ahead:
            index = ahead.pop()
            names = [name for name in self.matches.get(index, ()) if name in self.makers]
            if names:
                found.setdefault(self.makers[names[0]].name, self.makers[names[0]])
            elif index not in seen:
                seen.add(index)
                ahead += [made for user in self.users.get(index, ()) for made in fb.indices(user.outputs)]
        return list(found.values())

    def _covered(self, name: str, inputs: set[str], depth: int) -> list[onnx.NodeProto]:
        """The ONNX nodes between an operator's inputs and its output."""
        node = self.makers.get(name)
        if node is None or name in inputs or depth == 0:
            return []
        return [node, *(above for source in node.input for above in self._covered(source, inputs, depth - 1))]

    def _lonely(self, operators: list[tuple[str, Any]], chosen: set[int]) -> set[int]:
        """Data movement that neither comes from int8 nor goes there gains nothing from it."""
        made = {index: place for place, (_, op) in enumerate(operators) for index in fb.indices(op.outputs)}
        lonely: set[int] = set()
        for place in sorted(chosen, reverse=True):
            name, operator = operators[place]
            if name in _LIMITS or KERNELS[name].grids == "free":
                continue
            outputs = set(fb.indices(operator.outputs))
            after = any(
                outputs & set(fb.indices(op.inputs)) for at, (_, op) in enumerate(operators) if at in chosen - lonely
            )
            before = any(made.get(index) in chosen - lonely for index in data_inputs(name, operator))
            if not after and not before:
                lonely.add(place)
                self.reasons[place] = "among float operators"
        return lonely

    # -- weights -------------------------------------------------------------------------------------------------

    def _weight(self, name: str, operator: Any, axis: int) -> bool:
        """Find the ONNX weight with the same values in the same channels, and take its scales."""
        index = fb.indices(operator.inputs)[1]
        value = fb.constant(self.model, self.graph.tensors[index])
        if value is None:
            return False
        if index in self.weights:
            return True
        here = self._scales_of(value, axis)
        if here is None:
            here = channel_scales(value, axis)
            label = self._label(fb.indices(operator.outputs)[0])
            self.notes.append(f"the weight of {name} {label!r} is the converter's own: its scales come from its values")
        self.weights[index] = quantize_weight(value, here, self.variant), scale_array(here, self.variant).reshape(-1)
        return True

    def _scales_of(self, value: Array, axis: int) -> PerChannel | PerTensor | None:
        """Those of the ONNX weight with equal values, or values that the converter multiplied by one number."""
        own = _channels(value, axis)
        for array, scales in self._onnx_weights:
            if array.size != value.size:
                continue
            along = getattr(scales, "axis", None)
            if along is not None and array.shape[along] != value.shape[axis]:
                continue
            factor = _ratio(own, np.sort(array, axis=None)[None] if along is None else _channels(array, along))
            if factor is None:
                continue
            if isinstance(scales, PerChannel):
                return PerChannel(axis=axis, scales=tuple(float(np.float32(s * factor)) for s in scales.scales))
            return PerTensor(scale=float(np.float32(scales.scale * factor)))
        return None

    @cached_property
    def _onnx_weights(self) -> list[tuple[Array, PerChannel | PerTensor]]:
        from onnx import numpy_helper

        initializers = {tensor.name: tensor for tensor in self.proto.graph.initializer}
        return [(numpy_helper.to_array(initializers[name]), scales) for name, scales in self.spec.weights.items()]

    def _label(self, index: int) -> str:
        names = self.matches.get(index, ())
        return names[0] if names else fb.tensor_name(self.graph.tensors[index]).rpartition("/")[2] or f"#{index}"


def _channels(value: Array, axis: int) -> Array:
    """`[channels, values in ascending order]`: the same whatever the layout."""
    return np.sort(np.moveaxis(value, axis, 0).reshape(value.shape[axis], -1), axis=1)


def _ratio(own: Array, other: Array) -> float | None:
    """The positive number by which `other` was multiplied to give `own`; None if they differ otherwise."""
    other = other.reshape(own.shape) if other.size == own.size and len(other) == len(own) else np.sort(other, axis=None)
    own = own if own.shape == other.shape else np.sort(own, axis=None)
    if np.array_equal(own, other):
        return 1.0
    peak, base = float(np.abs(own).max(initial=0)), float(np.abs(other).max(initial=0))
    if not peak or not base or not np.allclose(own, other * (peak / base), rtol=1e-5, atol=1e-6 * peak):
        return None
    return peak / base


def _combine(name: str, bounds: list[tuple[float, float]]) -> tuple[float, float]:
    if name in _LIMITS:
        return _clip(_LIMITS[name], *bounds[0])
    combine = {"ADD": np.add, "SUB": np.subtract, "MUL": np.multiply, "MINIMUM": np.minimum, "MAXIMUM": np.maximum}
    results = [float(combine[name](a, b)) for a in bounds[0] for b in bounds[1]]
    return min(results), max(results)


def _fused(operator: Any, low: float, high: float) -> tuple[float, float]:
    """The range after the operator's fused activation."""
    kinds = fb.schema().ActivationFunctionType
    kind = getattr(operator.builtinOptions, "fusedActivationFunction", kinds.NONE)
    names = {kinds.RELU: "RELU", kinds.RELU6: "RELU6", kinds.RELU_N1_TO_1: "RELU_N1_TO_1"}
    return _clip(_LIMITS[names[kind]], low, high) if kind in names else (low, high)


def _clip(limits: tuple[float, float], low: float, high: float) -> tuple[float, float]:
    return float(np.clip(low, *limits)), float(np.clip(high, *limits))
