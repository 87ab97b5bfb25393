"""Following channels through a network: what every axis of every tensor is made of.

The lifted graph runs once on a probe, and beside each operation its rule says how the axes of its result come from
those of its arguments (`edgekit.prune.axes`). An operation without a rule keeps everything that reaches it whole, with
the reason. The idea of groups that must go together is that of Fang et al. 2023 (arXiv:2301.12900); here they come out
of equations between axes instead of a walk from layer to layer, so that heads, joined parts and flattened maps need no
rules of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from edgekit.graph.lifted import MODULE
from edgekit.prune.axes import Axis, Factor, extent, factor, freeze

Axes = list[Axis]
"""One entry an axis of a tensor."""
Counts = Mapping[Factor, int]
Rule = Callable[["Call"], Any]
"""Gives the axes of the result, or a tuple of them where there are several results."""

INPUT = "it is an extent of the model's input"
OUTPUT = "its channels are an output of the model"


@dataclass(frozen=True)
class Reads:
    """Where channels are summed over: along `axis` of the `argument`-th argument of `node`.

    `weight` is the tensor that they are multiplied with, and `weight_axis` its axis, where that is a weight.
    """

    node: fx.Node
    argument: int
    axis: int
    weight: str = ""
    weight_axis: int = 0


@dataclass(frozen=True)
class Work:
    """Multiply-accumulates of `node` on the probe: `times` the product of these axes' extents."""

    node: fx.Node
    axes: tuple[Axis, ...]
    times: int


@dataclass(frozen=True)
class Literal:
    """A number written into the graph that is the extent of an axis: where it is, and what it becomes."""

    node: fx.Node
    argument: str
    index: int | None
    value: Callable[[Counts], int]


@dataclass(frozen=True)
class Setting:
    """The same for an attribute of a layer."""

    layer: str
    attribute: str
    value: Callable[[Counts], Any]


@dataclass
class Followed:
    """What is known of a network: the axes of every weight (by path), and what depends on their extents."""

    view: fx.GraphModule
    batch: int
    tensors: dict[str, Axes] = field(default_factory=dict)
    nodes: dict[fx.Node, Any] = field(default_factory=dict)
    reads: list[Reads] = field(default_factory=list)
    work: list[Work] = field(default_factory=list)
    normed: list[tuple[fx.Node, int]] = field(default_factory=list)
    """Nodes that normalise over this axis of their first argument."""
    taken: list[tuple[fx.Node, int]] = field(default_factory=list)
    """Nodes that take this axis of their first argument together: after a removal, what is left of it."""
    apart: dict[str, str] = field(default_factory=dict)
    """Layers that the lifted graph has no layer for, such as recurrent ones, and why they stay whole."""
    literals: list[Literal] = field(default_factory=list)
    settings: list[Setting] = field(default_factory=list)


def follow(view: fx.GraphModule, inputs: tuple[Tensor, ...]) -> Followed:
    """Follow the channels of a lifted graph; `inputs` is a probe batch of two samples."""
    follower = _Follower(view, Followed(view, len(inputs[0])))
    with torch.no_grad():
        follower.run(*inputs)
    return follower.found


class _Follower(fx.Interpreter):
    def __init__(self, view: fx.GraphModule, found: Followed) -> None:
        super().__init__(view)
        self.found = found
        self.shared: dict[int, Axes] = {}

    def run_node(self, n: fx.Node) -> Any:
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        value = super().run_node(n)
        self.found.nodes[n] = self.axes_of(n, args, kwargs, value)
        return value

    def axes_of(self, node: fx.Node, args: Any, kwargs: Any, value: Any) -> Any:
        if node.op == "output":
            for one in node.all_input_nodes:
                for axes in _each(self.found.nodes[one]):
                    _freeze(axes, OUTPUT)
            return None
        if node.op == "placeholder":
            return [factor(n, INPUT) for n in value.shape] if isinstance(value, Tensor) else None
        if node.op == "get_attr":
            return self.tensor(str(node.target), value)
        tensors = value if isinstance(value, tuple | list) else (value,)
        if not any(isinstance(one, Tensor) for one in tensors):
            return None
        call = Call(self, node, args, kwargs, value)
        rule = self.rule(node)
        result = None if rule is None else _tried(rule, call)
        return result if result is not None and _fits(result, value) else call.unknown()

    def rule(self, node: fx.Node) -> Rule | None:
        from edgekit.prune.layer_rules import LAYERS
        from edgekit.prune.rules import rule_of

        if node.op == "call_module":
            return LAYERS.get(type(self.fetch_attr(str(node.target))))
        return rule_of(node.target)

    def tensor(self, path: str, value: Tensor) -> Axes:
        """The axes of a weight; those of the same weight under another name are the same."""
        axes = self.shared.setdefault(id(value), [factor(n) for n in value.shape])
        return self.found.tensors.setdefault(path, axes)


def _tried(rule: Rule, call: Call) -> Any:
    """What the rule says, or None where extents turn out otherwise than it thinks."""
    try:
        return rule(call)
    except (ValueError, IndexError, KeyError, AssertionError):
        return None


def _fits(axes: Any, value: Any) -> bool:
    """Whether the axes have the extents of the tensors that they are said to be of."""
    if isinstance(axes, tuple):
        return isinstance(value, tuple | list) and all(map(_fits, axes, value))
    return not isinstance(value, Tensor) or [extent(axis) for axis in axes] == list(value.shape)


def _each(axes: Any) -> Iterator[Axes]:
    if isinstance(axes, tuple):
        for one in axes:
            yield from _each(one)
    elif axes is not None:
        yield axes


def _freeze(axes: Sequence[Axis], why: str) -> None:
    for axis in axes:
        freeze(axis, why)


class Call:
    """One operation as its rule sees it: arguments by name, their axes, and the result."""

    def __init__(self, follower: _Follower, node: fx.Node, args: Any, kwargs: Any, value: Any) -> None:
        self.follower, self.found, self.node, self.value = follower, follower.found, node, value
        self.module: nn.Module | None = None
        self.nodes: dict[str, Any] = {}
        self.values: dict[str, Any] = {}
        if node.op == "call_module":
            self.module = follower.fetch_attr(str(node.target))
            self.nodes, self.values = {"input": node.args[0]}, {"input": args[0]}
            return
        schema = getattr(node.target, "_schema", None)
        if schema is None:  # a Python function, such as getitem
            names = [str(i) for i in range(len(args))]
        else:
            names = [a.name for a in schema.arguments]
            self.values = {a.name: a.default_value for a in schema.arguments if a.has_default_value()}
        self.values |= {**dict(zip(names, args, strict=False)), **kwargs}
        self.nodes = {**dict(zip(names, node.args, strict=False)), **node.kwargs}

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    @property
    def shape(self) -> list[int]:
        """The result's."""
        return list(self.value.shape)

    def axes(self, name: str) -> Axes:
        """The axes of a tensor argument."""
        found = self.found.nodes[self.nodes[name]]
        assert isinstance(found, list)
        return found

    def all_axes(self) -> list[Axes]:
        """Those of every tensor argument."""
        return [axes for node in self.node.all_input_nodes for axes in _each(self.found.nodes[node])]

    def weight(self, name: str) -> Axes | None:
        """The axes of a weight of the layer that runs here, or None where it has no such."""
        value = getattr(self.module, name)
        return None if value is None else self.follower.tensor(f"{self.node.target}.{name}", value)

    def unknown(self) -> Any:
        """Nothing is known of this operation: what reaches it stays whole, and so do its own weights."""
        name = str(getattr(self.node.target, "overloadpacket", "")) or type(self.module).__name__
        for axes in self.all_axes():
            _freeze(axes, f"it reaches {name}, through which channels are not followed")
        why = f"it is computed by {name}, through which channels are not followed"
        for node in self.node.all_input_nodes:
            if node.op == "get_attr" and isinstance(self.follower.fetch_attr(str(node.target)), nn.Parameter):
                path = str(node.target)
                self.found.apart.setdefault(self.node.meta.get(MODULE) or path.rpartition(".")[0] or path, why)
        return self.fresh(self.value, f"it comes out of {name}, through which channels are not followed")

    def fresh(self, value: Any, why: str = INPUT) -> Any:
        """Axes that nothing may be removed from."""
        if isinstance(value, tuple | list):
            return tuple(self.fresh(one, why) for one in value)
        return [factor(n, why) for n in value.shape] if isinstance(value, Tensor) else None

    def literal(self, argument: str, index: int | None, value: Callable[[Counts], int]) -> None:
        """A number in the call's arguments follows an extent, if it stands there as a number."""
        given = self.nodes.get(argument)
        if index is not None and isinstance(given, list | tuple) and index < len(given):
            given = given[index]
        if isinstance(given, int) and not isinstance(given, bool):
            self.found.literals.append(Literal(self.node, argument, index, value))

    def setting(self, attribute: str, value: Callable[[Counts], Any]) -> None:
        """An attribute of the layer follows an extent."""
        self.found.settings.append(Setting(str(self.node.target), attribute, value))

    def reads(self, argument: int, axis: int, weight: str = "", weight_axis: int = 0) -> None:
        """Channels are summed over here."""
        self.found.reads.append(Reads(self.node, argument, axis, weight, weight_axis))

    def works(self, axes: Sequence[Axis], times: int) -> None:
        """So many multiply-accumulates."""
        self.found.work.append(Work(self.node, tuple(axes), times))

    def takes(self, axis: int) -> None:
        """The operation takes this axis of its argument together: of what is left, after a removal."""
        self.found.taken.append((self.node, axis))

    def normalises(self, axis: int) -> None:
        """The operation brings this axis of its argument to one scale."""
        self.found.normed.append((self.node, axis))
