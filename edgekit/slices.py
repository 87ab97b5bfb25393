"""The group of samples that a bundle does worst on, or lost most on: classes, and slices that the data names.

The worst of many groups is partly chance. The interval given here holds for all groups at once (Bonferroni), and so
for whichever is the worst. Groups of fewer than `LEAST` samples are left out by name: they could only widen it. numpy
only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edgekit.errors import UsageError
from edgekit.metrics import CONFIDENCE, paired_accuracy, wilson
from edgekit.report.predictions import Predictions

LEAST = 30

Rows = npt.NDArray[np.int64]
Group = tuple[str, Rows]
"""A name, and the numbers of its samples."""


class _Seen(Protocol):
    @property
    def value(self) -> float: ...
    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...


@dataclass(frozen=True)
class Worst:
    """The worst group: `value` is its recall, or (of a drop) the share that it lost, from its `n` samples.

    `low` and `high` bound the worst of all `groups`, whichever it is; `skipped` names groups of too few samples.
    """

    name: str
    value: float
    low: float
    high: float
    n: int
    groups: int
    skipped: tuple[str, ...] = ()


def worst_class(
    seen: Predictions, classes: Sequence[str] = (), *, confidence: float = CONFIDENCE, least: int = LEAST
) -> Worst:
    """The class with the lowest recall; classes without a name are called by their number.

    Raises:
        UsageError: there are no labels, or no class has samples enough.
    """
    return _lowest(seen, _classes(seen, classes), "class", confidence, least)


def worst_class_drop(
    before: Predictions,
    after: Predictions,
    classes: Sequence[str] = (),
    *,
    confidence: float = CONFIDENCE,
    least: int = LEAST,
) -> Worst:
    """The class that lost most recall from `before` to `after` on the same samples; positive is lost.

    Raises:
        UsageError: they are not of the same labelled samples, or no class has samples enough.
    """
    return _largest_drop(before, after, _classes(after, classes), "class", confidence, least)


def worst_slice(
    seen: Predictions, column: str | None = None, *, confidence: float = CONFIDENCE, least: int = LEAST
) -> Worst:
    """The slice `column=value` with the lowest accuracy, of one column or of all.

    Raises:
        UsageError: the data names no such slices, has no labels, or no slice has samples enough.
    """
    return _lowest(seen, _slices(seen, column), "slice", confidence, least)


def worst_slice_drop(
    before: Predictions,
    after: Predictions,
    column: str | None = None,
    *,
    confidence: float = CONFIDENCE,
    least: int = LEAST,
) -> Worst:
    """The slice that lost most accuracy from `before` to `after` on the same samples; positive is lost.

    Raises:
        UsageError: they are not of the same labelled samples, or as for `worst_slice`.
    """
    return _largest_drop(before, after, _slices(after, column), "slice", confidence, least)


def _classes(seen: Predictions, names: Sequence[str]) -> Iterator[Group]:
    if seen.labels is None:
        raise UsageError("These predictions have no labels, so there are no classes to compare.")
    for label, rows in _grouped(seen.labels):
        number = int(label)
        yield str(names[number]) if number < len(names) else str(number), rows


def _slices(seen: Predictions, column: str | None) -> Iterator[Group]:
    if not seen.slices or (column is not None and column not in seen.slices):
        has = f"it has: {', '.join(seen.slices)}" if seen.slices else "it names none"
        raise UsageError(
            f"The data has no slices{'' if column is None else f' {column!r}'}; {has}. Store the value of each sample "
            "in an array `slice.<column>` beside `x` and `y`."
        )
    for name in seen.slices if column is None else (column,):
        for value, rows in _grouped(seen.slices[name]):
            yield f"{name}={value}", rows


def _grouped(values: npt.NDArray[np.generic]) -> Iterator[tuple[Any, Rows]]:
    """Each different value with the rows that have it."""
    different, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    order = np.argsort(inverse, kind="stable")
    yield from zip(different, np.split(order, np.cumsum(counts)[:-1]), strict=True)


def _lowest(seen: Predictions, groups: Iterator[Group], kind: str, confidence: float, least: int) -> Worst:
    right = seen.correct()

    def share(rows: Rows, level: float) -> _Seen:
        return wilson(int(right[rows].sum()), len(rows), level)

    return _worst(groups, share, kind, confidence, least, sign=-1)


def _largest_drop(
    before: Predictions, after: Predictions, groups: Iterator[Group], kind: str, confidence: float, least: int
) -> Worst:
    if before.labels is None or not before.same_samples(after):
        raise UsageError("A paired difference needs two predictions of the same labelled samples.")
    was, now = before.correct(), after.correct()

    def drop(rows: Rows, level: float) -> _Seen:
        return paired_accuracy(was[rows], now[rows], level)

    return _worst(groups, drop, kind, confidence, least, sign=1)


def _worst(
    groups: Iterator[Group],
    score: Callable[[Rows, float], _Seen],
    kind: str,
    confidence: float,
    least: int,
    *,
    sign: int,
) -> Worst:
    """The group with the highest (`sign` 1) or lowest (-1) score.

    Where every group's interval holds, the extreme of the truths lies between the extremes of the lower and of the
    upper ends.
    """
    every = list(groups)
    kept = [(name, rows) for name, rows in every if len(rows) >= least]
    skipped = tuple(name for name, rows in every if len(rows) < least)
    if not kept:
        raise UsageError(f"No {kind} has {least} samples or more, so the worst cannot be told. Score more samples.")
    level = 1 - (1 - confidence) / len(kept)
    seen = [(name, len(rows), score(rows, level)) for name, rows in kept]
    name, n, worst = max(seen, key=lambda entry: sign * entry[2].value)
    pick = max if sign > 0 else min
    return Worst(
        name=name,
        value=worst.value,
        low=pick(entry.low for *_, entry in seen),
        high=pick(entry.high for *_, entry in seen),
        n=n,
        groups=len(seen),
        skipped=skipped,
    )
