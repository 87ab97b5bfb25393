"""Choosing which layers become two, and of which rank, until the network fits a budget."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from edgekit.prune.factored import Layer
from edgekit.prune.lowrank import Scheme


class Cost(Protocol):
    """A budget's currency. `unit` is how it is called in plain lines."""

    unit: str

    def whole(self, layer: Layer) -> int:
        """What the layer costs as it is."""

    def pair(self, layer: Layer, scheme: Scheme, rank: int) -> int:
        """What the two layers cost together."""


class Macs:
    """Multiply-accumulates of one sample."""

    unit = "multiply-accumulates"

    def whole(self, layer: Layer) -> int:
        """At every position of the output, every weight."""
        return layer.outer * layer.weight.numel()

    def pair(self, layer: Layer, scheme: Scheme, rank: int) -> int:
        """The same for both, the first at the positions between the two."""
        first, second = map(math.prod, layer.shapes(scheme, rank))
        return first * (layer.outer if scheme == "channel" else layer.between) + second * layer.outer


class Parameters:
    """Numbers that are trained. The second layer always has a bias."""

    unit = "parameters"

    def whole(self, layer: Layer) -> int:
        """Weight and bias."""
        return sum(p.numel() for p in layer.layer.parameters())

    def pair(self, layer: Layer, scheme: Scheme, rank: int) -> int:
        """Two weights and the bias."""
        first, second = map(math.prod, layer.shapes(scheme, rank))
        return first + second + len(layer.weight)


class Bytes:
    """Bytes of weights in a float32 file.

    The bias of the second layer counts in full, though it goes into that of a BatchNorm where one follows: no less is
    freed than told.
    """

    unit = "bytes of float32 weights"

    def whole(self, layer: Layer) -> int:
        """The weight, and the bias if there is one."""
        return 4 * sum(p.numel() for p in layer.layer.parameters())

    def pair(self, layer: Layer, scheme: Scheme, rank: int) -> int:
        """Two weights and the bias."""
        return 4 * Parameters().pair(layer, scheme, rank)


@dataclass(frozen=True)
class Option:
    """One way to have a layer as two: what it frees in the budget's unit, and the share of its energy that goes."""

    scheme: Scheme
    rank: int
    freed: int
    lost: float


@dataclass(frozen=True)
class Choice:
    """The layers that become two, and what that frees; `binding` are layers that can give no more."""

    options: dict[str, Option]
    freed: int
    reached: bool
    binding: tuple[str, ...] = ()


def options_of(layer: Layer, cost: Cost, round_to: int) -> list[Option]:
    """Every pair that costs less than the layer and whose rank is a multiple of `round_to`."""
    found, whole = [], cost.whole(layer)
    for scheme, ranks in layer.schemes().items():
        for rank in range(round_to, ranks.ranks + 1, round_to):
            freed = whole - cost.pair(layer, scheme, rank)
            if freed <= 0:
                break
            found.append(Option(scheme, rank, freed, ranks.lost(rank)))
    return found


def choose(options: Mapping[str, Sequence[Option]], wanted: int) -> Choice:
    """Free at least `wanted`, losing little.

    Energy counts as a share of its layer's, so that layers compare. Each layer goes along the lower convex hull of
    what it frees and loses (from whole, which frees nothing), and all together by energy lost for what is freed:
    ranks of one layer alone are then never worse placed than by any other order. What is freed beyond `wanted` is
    given back where most comes back for it.
    """
    taken: dict[str, Option] = {}
    freed = 0
    steps = [
        ((after.lost - before[1]) / (after.freed - before[0]), name, number, after)
        for name, some in options.items()
        for number, (before, after) in enumerate(_segments(some))
    ]
    for _, name, _, option in sorted(steps, key=lambda step: step[:3]):
        if freed >= wanted:
            break
        freed += option.freed - (taken[name].freed if name in taken else 0)
        taken[name] = option
    reached = freed >= wanted
    while reached and (better := _return(options, taken, freed - wanted)) is not None:
        name, instead = better
        freed -= taken[name].freed - (instead.freed if instead else 0)
        if instead:
            taken[name] = instead
        else:
            del taken[name]
    binding = () if reached else tuple(name for name, some in options.items() if some)
    return Choice({name: taken[name] for name in options if name in taken}, freed, reached, binding)


def _segments(options: Sequence[Option]) -> list[tuple[tuple[int, float], Option]]:
    """The steps along the lower hull: what was freed and lost before each, and the option that it leads to."""
    hull: list[tuple[int, float, Option | None]] = [(0, 0.0, None)]
    for one in sorted(options, key=lambda o: (o.freed, o.lost)):
        point = (one.freed, one.lost, one)
        if one.freed <= hull[-1][0]:
            continue
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) >= _slope(hull[-2], point):
            hull.pop()
        hull.append(point)
    found: list[tuple[tuple[int, float], Option]] = []
    for before, (_, _, option) in itertools.pairwise(hull):
        assert option is not None
        found.append(((before[0], before[1]), option))
    return found


def _slope(one: tuple[int, float, Option | None], other: tuple[int, float, Option | None]) -> float:
    return (other[1] - one[1]) / (other[0] - one[0])


def _return(
    options: Mapping[str, Sequence[Option]], taken: Mapping[str, Option], spare: int
) -> tuple[str, Option | None] | None:
    """The layer that gets most energy back by an option that frees at most `spare` less; None instead of it: whole."""
    best: tuple[float, str, Option | None] | None = None
    for name, now in taken.items():
        for other in (None, *options[name]):
            freed, lost = (other.freed, other.lost) if other else (0, 0.0)
            if now.freed - freed <= spare and lost < now.lost and (best is None or now.lost - lost > best[0]):
                best = (now.lost - lost, name, other)
    return None if best is None else (best[1], best[2])
