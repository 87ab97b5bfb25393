"""What the positions along an axis of a tensor are made of, so that channels can be followed through any layout.

The extent of an axis is a `Factor` (so many indices that come and go one by one), a `Product` (an axis that merges
others: heads and what each holds, channels and pixels after a flatten) or a `Joined` (parts side by side: what concat
makes and split takes apart). Equations between axes refine the factors until both sides agree: a factor that one
operation sees whole and another as 12 x 64 becomes the product of two. What cannot be made to agree is frozen with a
reason, which is always safe. At the end every factor that is not frozen may lose any of its indices, everywhere at
once, and every tensor stays a full grid.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]


class Factor:
    """So many indices of one kind. Compared by identity; `axes` of the network share those that must go together."""

    __slots__ = ("extent", "frozen", "instead")

    def __init__(self, extent: int, frozen: str = "") -> None:
        self.extent = extent
        self.frozen = frozen
        self.instead: Axis | None = None
        """What this factor turned out to be."""

    def __repr__(self) -> str:
        return f"Factor({self.extent}{', frozen' if self.frozen else ''})"


@dataclass(frozen=True)
class Product:
    """Axes merged into one, outermost first; the empty product is an axis of extent 1."""

    parts: tuple[Axis, ...]


@dataclass(frozen=True)
class Joined:
    """Parts side by side."""

    parts: tuple[Axis, ...]


Axis = Factor | Product | Joined
ONE = Product(())
DISAGREE = "its channels are cut in ways that don't fit together"


def factor(extent: int, frozen: str = "") -> Axis:
    """An axis of its own."""
    return ONE if extent == 1 else Factor(extent, frozen)


def product(parts: Sequence[Axis]) -> Axis:
    """The parts merged, outermost first, in normal form: flat, without ones, joined outside if the outermost is."""
    flat: list[Axis] = []
    for part in parts:
        flat.extend(part.parts if isinstance(part, Product) else (part,))
    if len(flat) == 1:
        return flat[0]
    if flat and isinstance(flat[0], Joined):
        return joined([product([part, *flat[1:]]) for part in flat[0].parts])
    return Product(tuple(flat))


def joined(parts: Sequence[Axis]) -> Axis:
    """The parts side by side, in normal form."""
    flat: list[Axis] = []
    for part in parts:
        if extent(part):
            flat.extend(part.parts if isinstance(part, Joined) else (part,))
    return flat[0] if len(flat) == 1 else Joined(tuple(flat))


def resolved(axis: Axis) -> Axis:
    """The axis by what its factors have turned out to be."""
    if isinstance(axis, Factor):
        if axis.instead is None:
            return axis
        axis.instead = resolved(axis.instead)
        return axis.instead
    if isinstance(axis, Product):
        return product([resolved(part) for part in axis.parts])
    return joined([resolved(part) for part in axis.parts])


def extent(axis: Axis) -> int:
    """The number of positions."""
    if isinstance(axis, Factor):
        return axis.extent
    sizes = [extent(part) for part in axis.parts]
    return math.prod(sizes) if isinstance(axis, Product) else sum(sizes)


def factors(axis: Axis) -> Iterator[Factor]:
    """The factors of a resolved axis, each time that one occurs."""
    if isinstance(axis, Factor):
        yield axis
    else:
        for part in axis.parts:
            yield from factors(part)


def freeze(axis: Axis, why: str) -> None:
    """No index of the axis may go; the first reason stays."""
    for one in factors(resolved(axis)):
        one.frozen = one.frozen or why


def unify(a: Axis, b: Axis) -> None:
    """From here on the two are the same, position by position.

    Raises:
        ValueError: they have different extents.
    """
    a, b = resolved(a), resolved(b)
    if extent(a) != extent(b):
        raise ValueError(f"axes of {extent(a)} and {extent(b)} positions cannot be the same")
    if a == b:
        return
    if isinstance(a, Factor) and isinstance(b, Factor):
        b.frozen = b.frozen or a.frozen
        a.instead = b
    elif isinstance(a, Factor):
        _bind(a, b)
    elif isinstance(b, Factor):
        _bind(b, a)
    elif isinstance(a, Product) and isinstance(b, Product):
        _unify_products(a, b)
    elif isinstance(a, Joined) and isinstance(b, Joined):
        _unify_joined(a, b)
    elif isinstance(a, Product) and isinstance(b, Joined):
        _unify_mixed(a, b)
    elif isinstance(a, Joined) and isinstance(b, Product):
        _unify_mixed(b, a)


def _bind(one: Factor, other: Axis) -> None:
    if any(part is one for part in factors(other)):
        _give_up(one, other)
        return
    if one.frozen:
        freeze(other, one.frozen)
    one.instead = other


def _give_up(*axes: Axis) -> None:
    for axis in axes:
        freeze(axis, DISAGREE)


def _unify_products(a: Axis, b: Axis) -> None:
    """Outermost first; the larger of the two outermost parts is split where the smaller one ends."""
    x, y = _outermost(a), _outermost(b)
    if extent(x) == extent(y):
        rest = _inner(a), _inner(b)
        unify(x, y)
        unify(*rest)
        return
    if extent(x) < extent(y):
        a, b, x, y = b, a, y, x
    outer, inner = extent(y), extent(x) // extent(y)
    if extent(x) % extent(y) or not isinstance(x, Factor):
        _give_up(a, b)
        return
    _bind(x, product([factor(outer), factor(inner)]))
    unify(a, b)


def _outermost(axis: Axis) -> Axis:
    assert isinstance(axis, Product)
    return axis.parts[0]


def _inner(axis: Axis) -> Axis:
    assert isinstance(axis, Product)
    return product(axis.parts[1:])


def _unify_joined(a: Joined, b: Joined) -> None:
    """First part first; the longer of the two is split where the shorter one ends."""
    x, y = a.parts[0], b.parts[0]
    if extent(x) == extent(y):
        rest = joined(a.parts[1:]), joined(b.parts[1:])
        unify(x, y)
        unify(*rest)
    elif cut(*((x, extent(y)) if extent(x) > extent(y) else (y, extent(x)))):
        unify(a, b)
    else:
        _give_up(a, b)


def _unify_mixed(a: Product, b: Joined) -> None:
    """A product is cut where the first part ends: three times C against q, k and v makes the three the same."""
    if cut(a, extent(b.parts[0])):
        unify(a, b)
    else:
        _give_up(a, b)


def cut(axis: Axis, at: int) -> bool:
    """Make position `at` a boundary between two parts; False where an index would be cut in the middle."""
    axis = resolved(axis)
    if at in (0, extent(axis)):
        return True
    if isinstance(axis, Factor):
        _bind(axis, joined([factor(at, axis.frozen), factor(axis.extent - at, axis.frozen)]))
        return True
    if isinstance(axis, Joined):
        for part in axis.parts:
            if at < extent(part):
                return cut(part, at)
            at -= extent(part)
    inner = extent(_inner(axis)) if isinstance(axis, Product) else 1
    return not at % inner and isinstance(axis, Product) and cut(axis.parts[0], at // inner)


def between(axis: Axis, start: int, end: int) -> Axis:
    """The positions from `start` up to `end`; where a boundary cannot be made both axis and part are frozen."""
    if not (cut(axis, start) and cut(axis, end)):
        _give_up(axis)
        return factor(end - start, DISAGREE)
    whole = resolved(axis)
    taken: list[Axis] = []
    at = 0
    for part in whole.parts if isinstance(whole, Joined) else (whole,):
        if start <= at < end:
            taken.append(part)
        at += extent(part)
    return joined(taken)


def refactored(axes: Sequence[Axis], extents: Sequence[int]) -> list[Axis]:
    """The axes of a tensor after a reshape to `extents`.

    Raises:
        ValueError: another number of elements.
    """
    sizes = [extent(axis) for axis in axes]
    if math.prod(sizes) != math.prod(extents):
        raise ValueError(f"{sizes} elements cannot be reshaped to {list(extents)}")
    result: list[Axis] = []
    i, j = 0, 0
    while j < len(extents):
        before: list[Axis] = [axes[i]] if i < len(axes) else [ONE]
        after = [extents[j]]
        i, j = i + 1, j + 1
        while math.prod(extent(a) for a in before) != math.prod(after):
            if math.prod(extent(a) for a in before) < math.prod(after):
                before.append(axes[i])
                i += 1
            else:
                after.append(extents[j])
                j += 1
        result += _split(product([resolved(a) for a in before]), after)
    return result


def _split(axis: Axis, extents: Sequence[int]) -> list[Axis]:
    if len(extents) == 1:
        return [axis]
    parts = [factor(n) for n in extents]
    unify(axis, product(parts))
    return [resolved(part) for part in parts]


def mask(axis: Axis, keeps: Callable[[Factor], Mask]) -> Mask:
    """Which positions of a resolved axis stay when `keeps` says it of every factor's indices."""
    if isinstance(axis, Factor):
        return keeps(axis)
    masks = [mask(part, keeps) for part in axis.parts]
    if isinstance(axis, Joined):
        return np.concatenate(masks)
    result = np.ones(1, dtype=bool)
    for one in masks:
        result = np.logical_and.outer(result, one).ravel()
    return result


def count(axis: Axis, counts: Mapping[Factor, int]) -> int:
    """How many positions of a resolved axis stay when so many indices of the factors do (all where none is given)."""
    if isinstance(axis, Factor):
        return counts.get(axis, axis.extent)
    sizes = [count(part, counts) for part in axis.parts]
    return math.prod(sizes) if isinstance(axis, Product) else sum(sizes)


def positions(axis: Axis, one: Factor) -> tuple[tuple[int, ...], ...]:
    """By index of `one`: the positions along a resolved axis that go with it."""
    found: list[list[int]] = [[] for _ in range(one.extent)]
    for coordinates in _coordinates(axis, one):
        for position in np.flatnonzero(coordinates >= 0):
            found[coordinates[position]].append(int(position))
    return tuple(tuple(sorted(set(some))) for some in found)


def _coordinates(axis: Axis, one: Factor) -> list[npt.NDArray[np.int64]]:
    """For each time that `one` occurs: its index at every position, -1 where it plays no part."""
    if isinstance(axis, Factor):
        return [np.arange(axis.extent)] if axis is one else []
    result: list[npt.NDArray[np.int64]] = []
    sizes = [extent(part) for part in axis.parts]
    for number, part in enumerate(axis.parts):
        for inside in _coordinates(part, one):
            if isinstance(axis, Joined):
                before, after = sum(sizes[:number]), sum(sizes[number + 1 :])
                result.append(np.pad(inside, (before, after), constant_values=-1))
            else:
                outer, inner = math.prod(sizes[:number]), math.prod(sizes[number + 1 :])
                result.append(np.tile(np.repeat(inside, inner), outer))
    return result
