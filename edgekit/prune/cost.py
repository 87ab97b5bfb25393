"""What a network costs, and what would be left of that after a removal: work, weights, memory of activations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, fx, nn

from edgekit.graph.exporting import copied, without_fast_path
from edgekit.prune.axes import Axis, Factor, count, factors, resolved

if TYPE_CHECKING:
    from edgekit.prune.find import Found

LAYERS = (nn.modules.conv._ConvNd, nn.Linear)
Counts = Mapping[Factor, int]
"""How many indices of a factor stay; all of them where it is not named."""
SHARP = 16.0
"""How much the highest of a network's steps counts beside the next ones when memory is priced."""


def count_macs(module: nn.Module, inputs: tuple[Tensor, ...]) -> int:
    """Multiply-accumulates for one sample: convolutions, linear layers and matrix products."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    # The counter looks for the gradient function of what a module returns; a view of a parameter has none here.
    frozen = copied(module).requires_grad_(False)
    # It does not know the fused attention of processors either, nor the fused layers of nn.Transformer.
    with (
        FlopCounterMode(display=False) as counter,
        torch.no_grad(),
        sdpa_kernel([SDPBackend.MATH]),
        without_fast_path(),
    ):
        frozen(*inputs)
    return int(counter.get_total_flops()) // 2 // len(inputs[0])


class Cost(Protocol):
    """A budget's currency. `unit` is how it is called in plain lines.

    `falling`: the fewer channels there are, the less another block frees, in its own group and in all others.
    """

    unit: str
    falling: bool
    total: int

    def left(self, counts: Counts) -> int:
        """What the network costs when so many indices stay."""

    def freed(self, counts: Counts, one: Factor, stay: int) -> float:
        """What goes once only `stay` indices of `one` do, as a measure to compare groups by."""


class Sum:
    """A sum of products of extents."""

    def __init__(self, entries: Sequence[tuple[float, tuple[Axis, ...]]], samples: int) -> None:
        self._entries, self._samples = entries, samples
        self._of: dict[Factor, list[int]] = {}
        for number, (_, axes) in enumerate(entries):
            for one in {part for axis in axes for part in factors(axis)}:
                self._of.setdefault(one, []).append(number)
        self.total = self.left({})

    def left(self, counts: Counts) -> int:
        """What the network costs when so many indices stay."""
        return round(sum(self._one(number, counts) for number in range(len(self._entries)))) // self._samples

    def freed(self, counts: Counts, one: Factor, stay: int) -> float:
        """What goes once only `stay` indices of `one` do."""
        after = {**counts, one: stay}
        touched = self._of.get(one, ())
        return sum(self._one(n, counts) - self._one(n, after) for n in touched) / self._samples

    def _one(self, number: int, counts: Counts) -> float:
        times, axes = self._entries[number]
        for axis in axes:
            times *= count(axis, counts)
        return times


class Macs(Sum):
    """Multiply-accumulates of one sample."""

    unit, falling = "multiply-accumulates", True

    def __init__(self, found: Found) -> None:
        work = [(one.times, tuple(resolved(axis) for axis in one.axes)) for one in found.followed.work]
        super().__init__(work, found.followed.batch)


class Parameters(Sum):
    """Numbers that are trained; one that has two names counts once."""

    unit, falling = "parameters", True

    def __init__(self, found: Found) -> None:
        known = found.followed.tensors
        entries = []
        for path, value in found.view.named_parameters():
            axes = known.get(path)
            entries.append((value.numel(), ()) if axes is None else (1, tuple(resolved(axis) for axis in axes)))
        super().__init__(entries, 1)


class Bytes(Sum):
    """Bytes of weights in a float32 file: BatchNorm is folded, its shift is what remains of it."""

    unit, falling = "bytes of float32 weights", True

    def __init__(self, found: Found) -> None:
        known, folded = found.followed.tensors, _scales(found.view)
        entries = []
        for path, value in found.view.named_parameters():
            axes = known.get(path)
            if path not in folded:
                size = (4 * value.numel(), ()) if axes is None else (4, tuple(resolved(axis) for axis in axes))
                entries.append(size)
        super().__init__(entries, 1)


def _scales(view: nn.Module) -> set[str]:
    """The weights of BatchNorm, which go into the layer before."""
    norms = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    return {f"{name}.weight" for name, layer in view.named_modules() if isinstance(layer, norms)}


class Memory:
    """Bytes of activations that are alive at once, at most, for one sample.

    As a runtime would place them that keeps a tensor until its last reader is done, lets what works element by element
    write over its input, and copies nothing for a view.
    """

    unit, falling = "bytes of activations at once", False

    def __init__(self, found: Found) -> None:
        self._sizes, self._alive = _placed(found)
        self._samples = found.followed.batch
        self.total = self.left({})

    def left(self, counts: Counts) -> int:
        """What the network needs when so many indices stay."""
        return int(max(self._steps(counts)))

    def freed(self, counts: Counts, one: Factor, stay: int) -> float:
        """The highest step decides, and those that are nearly as high a little."""
        before, after = self._steps(counts), self._steps({**counts, one: stay})
        high = max(before)
        powers: list[float] = [sum((s / high) ** SHARP for s in steps) ** (1 / SHARP) for steps in (before, after)]
        return high * (powers[0] - powers[1])

    def _steps(self, counts: Counts) -> list[float]:
        sizes = []
        for itemsize, axes in self._sizes:
            size = itemsize
            for axis in axes:
                size *= count(axis, counts)
            sizes.append(size / self._samples)
        return [sum(sizes[number] for number in alive) for alive in self._alive]


def _placed(found: Found) -> tuple[list[tuple[int, tuple[Axis, ...]]], list[tuple[int, ...]]]:
    """Every buffer (bytes a number, axes), and which of them are alive while each operation runs."""
    nodes = list(found.view.graph.nodes)
    last = {read: at for at, node in enumerate(nodes) for read in node.all_input_nodes}
    sizes: list[tuple[int, tuple[Axis, ...]]] = []
    place: dict[fx.Node, int] = {}
    until: dict[int, int] = {}
    alive: list[tuple[int, ...]] = []
    for at, node in enumerate(nodes):
        axes = found.followed.nodes.get(node)
        if node.op in ("get_attr", "output") or not isinstance(axes, list | tuple):
            continue
        shared = _writes_over(node, found, last, at, place)
        if shared is None and isinstance(axes, list):
            place[node] = len(sizes)
            sizes.append((4, tuple(resolved(axis) for axis in axes)))
        elif shared is not None:
            place[node] = place[shared]
        if node in place:
            until[place[node]] = max(until.get(place[node], 0), last.get(node, at))
            alive.append(tuple(number for number, end in until.items() if end >= at))
    return sizes, alive or [()]


def _writes_over(
    node: fx.Node, found: Found, last: Mapping[fx.Node, int], at: int, place: Mapping[fx.Node, int]
) -> fx.Node | None:
    """The argument whose memory the result takes: a view's source, or what dies in an operation element by element."""
    given = [read for read in node.all_input_nodes if read in place]
    if not given:
        return None
    schema = getattr(node.target, "_schema", None)
    views = schema is not None and bool(schema.returns) and schema.returns[0].alias_info is not None
    if views or "getitem" in str(node.target):
        return given[0]
    if node.op == "call_module":
        layer = found.view.get_submodule(str(node.target))
        in_place = not isinstance(layer, (*LAYERS, nn.Embedding))
    else:
        in_place = torch.Tag.pointwise in getattr(node.target, "tags", ())
    for read in given:
        if in_place and last.get(read, at) == at and _extents(found, read) == _extents(found, node):
            return read
    return None


def _extents(found: Found, node: fx.Node) -> list[int]:
    axes = found.followed.nodes[node]
    return [count(resolved(axis), {}) for axis in axes] if isinstance(axes, list) else []
