"""Removing channels, and masking them: the same network twice, once smaller and once with zeros.

A removal cuts the weights and writes new extents where the graph holds them as numbers. The mask leaves every extent
and puts zeros wherever removed channels are summed over; normalisations go over the kept channels. The two must agree.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from edgekit.prune.axes import Axis, Factor, Mask, Product, count, extent, mask, product, resolved
from edgekit.prune.shapes import owner_of, replace_tensor

if TYPE_CHECKING:
    from edgekit.prune.find import Found

Removal = Mapping[str, Sequence[int]]
"""Group name -> the channels of that group that go."""

RELATIVE, ABSOLUTE = 1e-3, 1e-4
"""How far sums in another order may differ: as a share of the value, and of the largest value."""


@dataclass(frozen=True)
class Cut:
    """What a removal changed beside the weights, fit for JSON.

    `calls`: node -> argument (`"size"`, or `"size 2"` for its third entry) -> number. `layers`: path -> attribute ->
    number or list of numbers.
    """

    calls: dict[str, dict[str, int]]
    layers: dict[str, dict[str, Any]]

    def onto(self, earlier: Cut) -> Cut:
        """Both, where this one came later."""
        merged = [
            {name: {**a.get(name, {}), **b.get(name, {})} for name in {**a, **b}}
            for a, b in ((earlier.calls, self.calls), (earlier.layers, self.layers))
        ]
        return Cut(*merged)


NOTHING = Cut({}, {})


@dataclass(frozen=True)
class Removed:
    """The smaller network, how it was cut, and which positions stay along every axis that lost some."""

    view: fx.GraphModule
    cut: Cut
    kept: dict[tuple[str, int], Tensor]


def masks(found: Found, removal: Removal) -> dict[Factor, Mask]:
    """Which indices of every factor that loses some stay."""
    result = {}
    for name, channels in removal.items():
        if channels:
            keep = np.ones(found.factors[name].extent, dtype=bool)
            keep[list(channels)] = False
            result[found.factors[name]] = keep
    return result


def counts_of(found: Found, removal: Removal) -> dict[Factor, int]:
    """How many indices of every factor that loses some stay."""
    return {one: int(keep.sum()) for one, keep in masks(found, removal).items()}


def removed(found: Found, removal: Removal) -> Removed:
    """A copy of the network without the channels in `removal`."""
    keeps, counts = masks(found, removal), counts_of(found, removal)
    view = copy.deepcopy(found.view)
    kept: dict[tuple[str, int], Tensor] = {}
    for path, axes in found.followed.tensors.items():
        for number, axis in enumerate(axes):
            stay = mask(resolved(axis), lambda one: keeps.get(one, np.ones(one.extent, dtype=bool)))
            if not stay.all():
                kept[path, number] = torch.from_numpy(np.flatnonzero(stay))
    cut_weights(view, kept)
    cut = Cut(_calls(found, counts), _layers(found, counts))
    fit(view, cut)
    return Removed(view, cut, kept)


def cut_weights(module: nn.Module, kept: Mapping[tuple[str, int], Tensor]) -> None:
    """Keep these positions of these weights' axes, in place; a weight that has two names stays one."""
    shorter: dict[tuple[int, tuple[tuple[int, int], ...]], Any] = {}
    by_path: dict[str, list[tuple[int, Tensor]]] = {}
    for (path, axis), rows in kept.items():
        by_path.setdefault(path, []).append((axis, rows))
    for path, axes in by_path.items():
        owner, attribute = owner_of(module, path)
        value = getattr(owner, attribute)
        key = id(value), tuple((axis, len(rows)) for axis, rows in axes)
        if key not in shorter:
            smaller = value.detach()
            for axis, rows in axes:
                smaller = smaller.index_select(axis, rows)
            shorter[key] = (value, replace_tensor(owner, attribute, smaller.clone()))
        elif attribute in owner._parameters:
            owner._parameters[attribute] = shorter[key][1]
        else:
            owner._buffers[attribute] = shorter[key][1]


def _calls(found: Found, counts: Mapping[Factor, int]) -> dict[str, dict[str, int]]:
    calls: dict[str, dict[str, int]] = {}
    for literal in found.followed.literals:
        before, after = literal.value({}), literal.value(counts)
        if before != after:
            place = literal.argument if literal.index is None else f"{literal.argument} {literal.index}"
            calls.setdefault(literal.node.name, {})[place] = after
    return calls


def _layers(found: Found, counts: Mapping[Factor, int]) -> dict[str, dict[str, Any]]:
    layers: dict[str, dict[str, Any]] = {}
    for setting in found.followed.settings:
        before, after = setting.value({}), setting.value(counts)
        if before != after:
            layers.setdefault(setting.layer, {})[setting.attribute] = after
    return layers


def fit(view: nn.Module, cut: Cut) -> None:
    """Write the extents of a cut into a lifted graph and its layers, in place."""
    assert isinstance(view, fx.GraphModule)
    for node in view.graph.nodes:
        for place, value in cut.calls.get(node.name, {}).items():
            _write(node, place, value)
    view.recompile()
    fit_layers(view, cut)


def fit_layers(module: nn.Module, cut: Cut) -> None:
    """Write the extents of a cut into the layers of the module that the lifted graph came from, in place."""
    modules = dict(module.named_modules())
    for path, attributes in cut.layers.items():
        for attribute, value in attributes.items():
            if path in modules and hasattr(modules[path], attribute):
                setattr(modules[path], attribute, tuple(value) if isinstance(value, list) else value)


def _write(node: fx.Node, place: str, value: int) -> None:
    argument, _, index = place.partition(" ")
    names = [a.name for a in node.target._schema.arguments]  # type: ignore[union-attr]
    at: int | str = argument if argument in node.kwargs else names.index(argument)
    given: Any = node.kwargs[at] if isinstance(at, str) else node.args[at]
    if index:
        given = list(given)
        given[int(index)] = value
    else:
        given = value
    if isinstance(at, str):
        node.update_kwarg(at, given)
    else:
        node.update_arg(at, given)


def masked(found: Found, removal: Removal) -> Masked:
    """The network whose sums leave the channels in `removal` out: what `removed` must equal."""
    return Masked(found, masks(found, removal))


class Masked(fx.Interpreter):
    """Runs a lifted network with masked channels; its extents are those of the dense one."""

    def __init__(self, found: Found, keeps: Mapping[Factor, Mask]) -> None:
        super().__init__(found.view)
        self.found, self.keeps = found, keeps
        self.read: dict[fx.Node, list[tuple[int, int]]] = {}
        for reads in found.followed.reads:
            self.read.setdefault(reads.node, []).append((reads.argument, reads.axis))
        self.normed = _by_node(found.followed.normed)
        self.taken = _by_node(found.followed.taken)

    def __call__(self, *inputs: Tensor) -> Any:
        """The network's output."""
        return self.run(*inputs)

    def stay(self, node: fx.Node, axis: int) -> Mask:
        """Which positions along this axis of the node's result stay."""
        axes = self.found.followed.nodes[node]
        return mask(resolved(axes[axis]), lambda one: self.keeps.get(one, np.ones(one.extent, dtype=bool)))

    def run_node(self, n: fx.Node) -> Any:
        """The operation on masked arguments."""
        if n in self.normed:
            return self.normalised(n)
        changed: dict[int, Tensor] = {}
        for argument, axis in self.read.get(n, ()):
            source = n.args[argument]
            assert isinstance(source, fx.Node)
            stay = torch.from_numpy(self.stay(source, axis))
            if not stay.all():
                value = changed.get(argument, self.env[source])
                changed[argument] = value.movedim(axis, -1).mul(stay).movedim(-1, axis)
        for axis in self.taken.get(n, ()):
            source = n.args[0]
            assert isinstance(source, fx.Node)
            kept = torch.from_numpy(np.flatnonzero(self.stay(source, axis)))
            if len(kept) < self.env[source].shape[axis]:
                changed[0] = changed.get(0, self.env[source]).index_select(axis, kept)
        return self.again(n, changed) if changed else super().run_node(n)

    def again(self, n: fx.Node, changed: Mapping[int, Tensor]) -> Any:
        """The operation with other values of some arguments."""
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        given = tuple(changed.get(i, a) for i, a in enumerate(args))
        run = self.call_module if n.op == "call_module" else self.call_function
        return run(n.target, given, kwargs)

    def normalised(self, n: fx.Node) -> Any:
        """A normalisation over the kept channels; the others are zeros."""
        source = n.args[0]
        assert isinstance(source, fx.Node)
        x: Tensor = self.env[source]
        rows = {axis % x.ndim: torch.from_numpy(np.flatnonzero(self.stay(source, axis))) for axis in self.normed[n]}
        if all(len(kept) == x.shape[axis] for axis, kept in rows.items()):
            return super().run_node(n)
        small = x
        for axis, kept in rows.items():
            small = small.index_select(axis, kept)
        result = torch.zeros_like(x)
        places = [torch.arange(size) for size in x.shape]
        places = [rows.get(axis, place) for axis, place in enumerate(places)]
        grid = torch.meshgrid(*places, indexing="ij")
        result[grid] = self.norm(n, small, list(rows.values()))
        return result

    def norm(self, n: fx.Node, x: Tensor, rows: list[Tensor]) -> Tensor:
        """The normalisation itself on what is kept."""
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        if n.op == "call_module":
            layer = self.fetch_attr(str(n.target))
            given = {"weight": layer.weight, "bias": layer.bias, "eps": layer.eps}
            grouped = isinstance(layer, nn.GroupNorm)
            groups = layer.num_groups if grouped else 0
        else:
            schema = n.target._schema  # type: ignore[union-attr]
            values = {a.name: a.default_value for a in schema.arguments if a.has_default_value()}
            values |= {**dict(zip((a.name for a in schema.arguments), args, strict=False)), **kwargs}
            given = {name: values[name] for name in ("weight", "bias", "eps") if name in values}
            grouped, groups = "num_groups" in values, values.get("num_groups", 0)
        for name in ("weight", "bias"):
            if given.get(name) is not None:
                for axis, kept in enumerate(rows):
                    given[name] = given[name].index_select(axis, kept)
        if grouped:
            source = self.found.followed.nodes[n.args[0]]  # type: ignore[index]
            counts = {one: int(keep.sum()) for one, keep in self.keeps.items()}
            left = count(_groups_of(source[1], groups), counts)
            return F.group_norm(x, left, **given)
        extents = [len(kept) for kept in rows]
        if "bias" not in given:
            return F.rms_norm(x, extents, **given)
        return F.layer_norm(x, extents, **given)


def _by_node(pairs: Sequence[tuple[fx.Node, int]]) -> dict[fx.Node, list[int]]:
    result: dict[fx.Node, list[int]] = {}
    for node, axis in pairs:
        result.setdefault(node, []).append(axis)
    return result


def _groups_of(axis: Axis, groups: int) -> Axis:
    """The outer part of an axis, which counts its groups."""
    own = resolved(axis)
    parts: list[Axis] = list(own.parts) if isinstance(own, Product) else [own]
    outer: list[Axis] = []
    while extent(product(outer)) < groups:
        outer.append(parts.pop(0))
    return product(outer)


def difference(one: Any, other: Any, inputs: tuple[Tensor, ...]) -> float | None:
    """The largest difference of two networks' outputs as a share of the largest value; None where they disagree."""
    quiet = logging.getLogger("torch.fx")
    level = quiet.level
    quiet.setLevel(logging.CRITICAL)
    try:
        with torch.no_grad():
            expected, seen = _outputs(other(*inputs)), _outputs(one(*inputs))
    except (RuntimeError, IndexError, ValueError, TypeError, AttributeError):
        return None
    finally:
        quiet.setLevel(level)
    if len(seen) != len(expected):
        return None
    worst = 0.0
    for a, b in zip(seen, expected, strict=True):
        if a.shape != b.shape or not bool(torch.isfinite(a).all()):
            return None
        scale = max(1e-30, float(b.abs().max()))
        if not torch.allclose(a, b, rtol=RELATIVE, atol=ABSOLUTE * scale):
            return None
        worst = max(worst, float((a - b).abs().max()) / scale)
    return worst


def _outputs(result: Any) -> list[Tensor]:
    return [one for one in tree_leaves(result) if isinstance(one, Tensor)]
