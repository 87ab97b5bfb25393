"""A quantized graph as a network that can be trained: the torch view of what is emitted, with learned steps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from edgekit.graph.torch_view import names_of, parameters_by_initializer, torch_view
from edgekit.quant.marks import marked
from edgekit.quant.plan import ACTIVATIONS, WEIGHTED
from edgekit.quant.spec import Grid, PerChannel, PerTensor, QuantSpec, Range, Variant
from edgekit.quant.view import GraphView, clip_bounds, within
from edgekit.quant.weights import BIAS_LIMIT, WEIGHT_LIMIT, dequantize_weight, quantize_weight, scale_array
from edgekit.train.fake import FakeQuantize

if TYPE_CHECKING:
    import onnx

Floats = npt.NDArray[np.float32]

SMALLEST = 2.0**-7
"""A step shrinks to this share of where it started at most: it must stay positive."""
SLACK = 1 - 1e-6
"""Ends of ranges that must not pass each other keep this distance, so that rounding does not make them."""


@dataclass(frozen=True)
class Ceiling:
    """The step of `tensor` may grow to `most` times its start, times the growth of `other` where one is named."""

    tensor: str
    most: float
    other: str | None = None


@dataclass(frozen=True)
class Biased:
    """An operator with a bias: `step(source) * step(weight) * 2^30` must reach it, or 32 bits don't hold it."""

    weight: str
    bias: str
    source: str
    affine: float


class Student(nn.Module):
    """What the emitted graph computes in one grid variant, as a module that trains."""

    def __init__(self, proto: onnx.ModelProto, spec: QuantSpec, variant: Variant) -> None:
        super().__init__()
        graph, marks = marked(proto, spec, variant)
        self.view = torch_view(graph)
        self.variant: Variant = variant
        self.paths = {mark.tensor: names_of(self.view).modules[mark.node] for mark in marks}
        groups = {name: group for group in spec.ties for name in group}
        shared: dict[tuple[str, ...], Tensor] = {}
        for mark in marks:
            if mark.weight:
                quantizer = _of_weight(spec.weights[mark.tensor], variant)
            else:
                group = groups.get(mark.tensor, (mark.tensor,))
                growth = shared.setdefault(group, _growth(spec, group))
                quantizer = _of_activation(spec.grid(mark.tensor, variant), growth)
            self.view.set_submodule(self.paths[mark.tensor], quantizer)
        self.trained = _trained(proto)
        self.ceilings = tuple(_ceilings(proto, spec, variant, self.paths))
        self.biased = tuple(_biased(proto, spec, variant, self.paths))
        self.constrain()
        self.eval()

    def quantizers(self) -> Iterator[tuple[str, FakeQuantize]]:
        """Every grid by the name of its tensor."""
        for name, path in self.paths.items():
            found = self.view.get_submodule(path)
            assert isinstance(found, FakeQuantize)
            yield name, found

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        """The network's outputs."""
        result: Tensor | tuple[Tensor, ...] = self.view(*inputs)
        return result

    def train(self, mode: bool = True) -> Student:
        """The graph is that of inference: BatchNorm that is left in it stays as it is."""
        self.training = mode
        self.view.eval()
        return self

    @torch.no_grad()
    def constrain(self) -> None:
        """Bring every learned step back to where the emitted graph needs it; after each step of the optimizer."""
        grids = dict(self.quantizers())
        for grid in grids.values():
            if isinstance(grid.growth, nn.Parameter):
                grid.growth.clamp_(min=SMALLEST)
        for ceiling in self.ceilings:
            growth = grids[ceiling.tensor].growth
            if isinstance(growth, nn.Parameter):
                growth.clamp_(max=ceiling.most if ceiling.other is None else ceiling.most * grids[ceiling.other].growth)
        values = parameters_by_initializer(self.view)
        for item in self.biased:
            weight = grids[item.weight]
            need = values[item.bias].abs().reshape(-1) / (grids[item.source].step * item.affine * BIAS_LIMIT)
            each = need if need.shape == weight.growth.shape else need.max()
            weight.growth.clamp_(min=each / weight.start)

    def groups(self, decay: float, faster: float) -> list[dict[str, Any]]:
        """What an optimizer trains: weights, which decay; biases; steps, `faster` times as fast for they are ratios.

        Everything else is frozen: no optimizer would empty its gradient.
        """
        values = parameters_by_initializer(self.view)
        chosen = [values[name] for name in self.trained if isinstance(values.get(name), nn.Parameter)]
        steps = {id(q.growth): q.growth for _, q in self.quantizers() if isinstance(q.growth, nn.Parameter)}
        learned = {id(p) for p in (*chosen, *steps.values())}
        for parameter in self.parameters():
            parameter.requires_grad_(id(parameter) in learned)
        return [
            {"params": [p for p in chosen if p.dim() > 1], "weight_decay": decay},
            {"params": [p for p in chosen if p.dim() <= 1], "weight_decay": 0.0},
            {"params": list(steps.values()), "weight_decay": 0.0, "faster": faster},
        ]

    def values(self) -> dict[str, Floats]:
        """The trained initializers as the graph holds them, by name."""
        found, places = parameters_by_initializer(self.view), names_of(self.view).initializers
        result = {}
        for name in self.trained:
            if isinstance(found.get(name), nn.Parameter):
                value = found[name].detach().cpu()
                result[name] = (value.t() if places[name].transposed else value).contiguous().numpy().copy()
        return result

    def learned(self, spec: QuantSpec) -> QuantSpec:
        """`spec` with the steps that were learned: the grids of `spec` that it was made from, moved.

        A range becomes that of its grid in this variant, end by end, so that the grid follows from it bit for bit.
        """
        tensors, weights = dict(spec.tensors), dict(spec.weights)
        groups = {name: group for group in spec.ties for name in group}
        for name, quantizer in self.quantizers():
            if not isinstance(quantizer.growth, nn.Parameter):
                continue
            step = quantizer.step.detach()
            if quantizer.weight:
                old = weights[name]
                new = {"scale": float(step)} if isinstance(old, PerTensor) else {"scales": tuple(step.tolist())}
                weights[name] = old.model_copy(update=new)
                continue
            for member in groups.get(name, (name,)):
                if member in tensors:
                    tensors[member] = _moved(spec, member, self.variant, float(step))
        source = {**spec.source, "steps": f"learned in the grid {self.variant}"}
        return spec.model_copy(update={"tensors": tensors, "weights": weights, "source": source})


def corrections(spec: QuantSpec, values: Mapping[str, Floats]) -> dict[Variant, dict[str, Floats]]:
    """Trained values as each grid variant has them: weights on its grid, by the steps of `spec`."""
    result: dict[Variant, dict[str, Floats]] = {}
    for variant in get_args(Variant):
        result[variant] = {
            name: dequantize_weight(quantize_weight(value, spec.weights[name], variant), spec.weights[name], variant)
            if name in spec.weights
            else value
            for name, value in values.items()
        }
    return result


def _growth(spec: QuantSpec, group: tuple[str, ...]) -> Tensor:
    """How a tie group's step changes: learned, unless the range of one of its members is fixed."""
    fixed = any(spec.tensors[name].fixed for name in group if name in spec.tensors)
    return torch.ones(()) if fixed else nn.Parameter(torch.ones(()))


def _of_activation(grid: Grid, growth: Tensor) -> FakeQuantize:
    ends = grid.low - grid.zero_point, grid.high - grid.zero_point
    return FakeQuantize(torch.tensor(grid.scale, dtype=torch.float32), growth, ends)


def _of_weight(scales: PerTensor | PerChannel, variant: Variant) -> FakeQuantize:
    """The grid of a weight. The step is the QuantSpec's; the variant's own is a fixed multiple of it."""
    limit = WEIGHT_LIMIT[variant]
    start = torch.from_numpy(np.array(scale_array(scales, "affine")))
    axis = scales.axis if isinstance(scales, PerChannel) else None
    growth = nn.Parameter(torch.ones_like(start))
    return FakeQuantize(start, growth, (-limit, limit), factor=127 / limit, axis=axis, weight=True)


def _ends(spec: QuantSpec, tensor: str, variant: Variant) -> tuple[float, float]:
    """Where a tensor's range ends once it is that of its grid."""
    moved = _moved(spec, tensor, variant, spec.grid(tensor, variant).scale)
    return moved.low, moved.high


def _moved(spec: QuantSpec, tensor: str, variant: Variant, step: float) -> Range:
    """The range whose grid has this step, and the zero point of before."""
    old = spec.tensors[tensor]
    who = old.calibrator if old.calibrator.endswith(", learned") else f"{old.calibrator}, learned"
    if variant != "symmetric":
        zero = spec.grid(tensor, variant).zero_point
        return Range(low=-zero * step, high=(255 - zero) * step, calibrator=who)
    low, high = min(old.low, 0.0), max(old.high, 0.0)
    peak = max(-low, high, 1e-12)
    ends = [127 * step * (1.0 if abs(end) == peak else abs(end) / peak) for end in (low, high)]
    return Range(low=-ends[0], high=ends[1], calibrator=who)


def _trained(proto: onnx.ModelProto) -> tuple[str, ...]:
    """Initializers that are weights and biases of convolutions and dense layers."""
    constants = {tensor.name for tensor in proto.graph.initializer}
    weighted = [node for node in proto.graph.node if node.op_type in WEIGHTED]
    return tuple(dict.fromkeys(name for node in weighted for name in node.input[1:] if name in constants))


def _ceilings(proto: onnx.ModelProto, spec: QuantSpec, variant: Variant, marks: Mapping[str, str]) -> Iterator[Ceiling]:
    """Where a grid clamps as a Relu or Clip does, or covers what another grid covers, it must go on doing so."""
    view = GraphView(proto.graph)
    groups = {name: group for group in spec.ties for name in group}
    for node in view.nodes:
        bounds = clip_bounds(node, view) if node.op_type in ACTIVATIONS and node.name in spec.nodes else None
        source, result = (node.input[0], node.output[0]) if bounds else ("", "")
        if bounds is None or result not in marks or spec.tensors[result].fixed:
            continue
        grid, own = spec.grid(result, "affine"), spec.tensors.get(source)
        if own is None and within(grid, bounds):
            reach = (bounds[0] / (0.5 - grid.zero_point), bounds[1] / (254.5 - grid.zero_point))
            most = min(r / grid.scale for r in reach if r > 0)
            if most < float("inf"):
                yield Ceiling(result, most * SLACK)
        elif own is not None and source in marks and groups.get(source, 0) != groups.get(result, 1):
            other = spec.tensors[result]
            if min(own.low, 0.0) <= other.low and max(own.high, 0.0) >= other.high:
                pairs = zip(_ends(spec, source, variant), _ends(spec, result, variant), strict=True)
                most = min((far / near for far, near in pairs if near), default=1.0)
                yield Ceiling(result, most * SLACK, source)


def _biased(proto: onnx.ModelProto, spec: QuantSpec, variant: Variant, marks: Mapping[str, str]) -> Iterator[Biased]:
    for node in proto.graph.node:
        if node.op_type not in WEIGHTED or node.name not in spec.nodes or len(node.input) < 3:
            continue
        source, weight, bias = node.input[:3]
        if bias and source in marks and weight in marks and spec.weights.get(weight) is not None:
            affine = spec.grid(source, "affine").scale / spec.grid(source, variant).scale
            yield Biased(weight, bias, source, affine)
