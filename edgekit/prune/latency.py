"""What a network would take on a device: a table of costs, fitted to measured variants of it.

The time of a network is taken for a sum over its operations: so much for a multiply-accumulate of one kind of layer at
one resolution, so much for a byte that one kind of operation writes, and a constant. A runtime fuses, lays out anew and
splits work as it likes; so whole networks are timed, of many widths, and the sums are fitted to them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import fx, nn

from edgekit.prune.axes import Axis, count, resolved
from edgekit.prune.cost import Counts, Sum
from edgekit.prune.find import Found

PENALTIES = (1e-3, 1e-2, 1e-1)
"""How strongly layers of one kind are held to cost alike at all resolutions."""
SURE = 0.02
"""Ends of an interval that are no further apart, as a share, are as good as one value."""
NANO = 1e9
Floats = npt.NDArray[np.float64]
Kind = tuple[str, int]
"""What an operation is, and its resolution: the exponent of two next to the number of positions of its output."""


@dataclass(frozen=True)
class Term:
    """A summand for one sample: `times` the product of the extents of `axes`. What is of one `kind` costs alike."""

    kind: Kind
    times: float
    axes: tuple[Axis, ...]

    def at(self, counts: Counts) -> float:
        """The summand when so many indices stay."""
        return self.times * math.prod(count(axis, counts) for axis in self.axes)


def terms(found: Found) -> list[Term]:
    """The summands of a network: work of layers and products, and bytes that operations write."""
    followed = found.followed
    result = []
    for work in followed.work:
        kind = _label(found, work.node), _level(found, work.node)
        result.append(Term(kind, work.times / followed.batch, tuple(resolved(axis) for axis in work.axes)))
    for node in found.view.graph.nodes:
        axes = followed.nodes.get(node)
        if isinstance(axes, list) and node.op not in ("get_attr", "placeholder", "output"):
            kind = f"bytes of {_label(found, node)}", 0
            result.append(Term(kind, 4 / followed.batch, tuple(resolved(axis) for axis in axes)))
    return result


def _label(found: Found, node: fx.Node) -> str:
    """What kind of operation it is."""
    if node.op != "call_module":
        return str(getattr(node.target, "overloadpacket", node.target))
    layer = found.view.get_submodule(str(node.target))
    if not isinstance(layer, nn.modules.conv._ConvNd):
        return type(layer).__name__
    how = "depthwise " if 1 < layer.groups == layer.in_channels else "grouped " if layer.groups > 1 else ""
    return f"{how}{type(layer).__name__} {'x'.join(map(str, layer.kernel_size))}"


def _level(found: Found, node: fx.Node) -> int:
    """The exponent of two that is next to the number of positions, for one sample."""
    axes = found.followed.nodes[node]
    layer = found.view.get_submodule(str(node.target)) if node.op == "call_module" else None
    if not isinstance(axes, list):
        return 0
    places = axes[2:] if isinstance(layer, nn.modules.conv._ConvNd) else axes[1:-1]
    return round(math.log2(max(1, math.prod(count(resolved(axis), {}) for axis in places))))


@dataclass(frozen=True)
class Table:
    """Seconds for a unit of every kind of operation, as fitted to measured networks.

    `error` is how far the table is off, in the median, from a network that it was fitted without, as a share;
    `networks` how many were measured.
    """

    constant: float
    each: Mapping[str, float]
    extra: Mapping[Kind, float]
    error: float
    networks: int

    def price(self, kind: Kind) -> float:
        """Seconds for a unit of that kind."""
        return self.each.get(kind[0], 0.0) + self.extra.get(kind, 0.0)

    def seconds(self, some: Sequence[Term], counts: Counts) -> float:
        """What a network is expected to take."""
        return self.constant + sum(self.price(one.kind) * one.at(counts) for one in some)


@dataclass(frozen=True)
class Row:
    """A network of these widths took so many seconds, with its interval."""

    counts: Counts
    seconds: float
    low: float
    high: float

    @property
    def weight(self) -> float:
        """How much it counts beside others: less, the wider its interval is."""
        return SURE / max(SURE, math.log(self.high / self.low))


def fit(some: Sequence[Term], measured: Sequence[Row]) -> Table:
    """The table that fits the measured networks; three of them at least.

    Errors count as shares of the time, and less where it is not known well; prices are not negative, and what layers
    of one kind cost more at one resolution than at others is held small: how small is chosen by the error on networks
    that are left out one by one.
    """
    matrix, names = _matrix(some, [row.counts for row in measured])
    relative = matrix / np.array([[row.seconds] for row in measured])
    weights = np.array([row.weight for row in measured])
    off = {p: [_left_out(relative, weights, names, p, row) for row in range(len(measured))] for p in PENALTIES}
    penalty = min(PENALTIES, key=lambda p: float(np.mean(np.square(weights * off[p]))))
    prices = dict(zip(names, _solved(relative, weights, names, penalty), strict=True))
    return Table(
        constant=float(prices.pop(CONSTANT)),
        each={kind[0]: float(price) for kind, price in prices.items() if kind[1] == ANY},
        extra={kind: float(price) for kind, price in prices.items() if kind[1] != ANY and price},
        error=float(np.median(np.abs(off[penalty]))),
        networks=len(measured),
    )


CONSTANT: Kind = ("", 0)
ANY = -1
"""In place of a resolution: all of them."""


def _matrix(some: Sequence[Term], networks: Sequence[Counts]) -> tuple[Floats, list[Kind]]:
    """A row a network: 1, the sums of every kind at all resolutions, and at each where there are several."""
    kinds = list(dict.fromkeys(one.kind for one in some))
    labels = list(dict.fromkeys(label for label, _ in kinds))
    several = [kind for kind in kinds if sum(kind[0] == label for label, _ in kinds) > 1]
    names: list[Kind] = [CONSTANT, *((label, ANY) for label in labels), *several]
    matrix = np.zeros((len(networks), len(names)))
    place = {name: number for number, name in enumerate(names)}
    matrix[:, 0] = 1
    for row, counts in enumerate(networks):
        for one in some:
            value = one.at(counts)
            for name in ((one.kind[0], ANY), one.kind):
                if name in place:
                    matrix[row, place[name]] += value
    return matrix, names


def _solved(relative: Floats, weights: Floats, names: Sequence[Kind], penalty: float) -> Floats:
    """Prices from a matrix whose rows are divided by the seconds.

    Non-negative least squares (Lawson and Hanson 1974, Solving Least Squares Problems, chapter 23).
    Columns are scaled to a mean of 1, so that a price is a share of the time; squares of shares are punished, of those
    for one resolution by `penalty`, of the others by a thousandth of it, where they cannot be told apart.
    """
    from scipy.optimize import nnls

    size = relative.mean(axis=0)
    size[size == 0] = 1
    held = np.array([penalty * (1e-3 if kind[1] == ANY or kind == CONSTANT else 1) for kind in names])
    rows, columns = relative.shape
    stacked = np.vstack([weights[:, None] * relative / size, np.diag(np.sqrt(rows * held))])
    shares, _ = nnls(stacked, np.concatenate([weights, np.zeros(columns)]))
    prices: Floats = shares / size
    return prices


def _left_out(relative: Floats, weights: Floats, names: Sequence[Kind], penalty: float, row: int) -> float:
    """How far, as a share, the network in `row` is off when the table is fitted to the others."""
    others = np.arange(len(relative)) != row
    return float(relative[row] @ _solved(relative[others], weights[others], names, penalty)) - 1


class Latency(Sum):
    """Nanoseconds that one inference is expected to take."""

    unit, falling = "latency", True

    def __init__(self, found: Found, table: Table, scale: float = 1.0) -> None:
        """`scale` corrects the table for what a network like the wanted one was seen to take."""
        self.table, self.scale, self.terms = table, scale, terms(found)
        entries = [(NANO * scale * table.price(one.kind) * one.times, one.axes) for one in self.terms]
        super().__init__(entries, 1)

    def left(self, counts: Counts) -> int:
        """What the network is expected to take when so many indices stay."""
        return round(NANO * self.scale * self.table.seconds(self.terms, counts))
