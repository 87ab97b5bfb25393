"""A split as torch batches: raw samples stay in memory as stored, and are preprocessed batch by batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from edgekit.data import DataSet, Split
from edgekit.errors import UsageError
from edgekit.model import TensorSpec

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Samples:
    """Rows of a split; `len` is their number."""

    split: Split
    rows: Rows

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def labelled(self) -> bool:
        """Whether any sample has a class."""
        return self.unlabelled < len(self)

    @property
    def unlabelled(self) -> int:
        """How many samples have no class."""
        labels = self.split.labels
        return len(self) if labels is None else int((labels[self.rows] < 0).sum())

    def batch(self, at: Rows) -> tuple[Tensor, Tensor | None]:
        """The samples at positions `at`: model inputs `[n, ...]` float32 and labels `[n]` (-1: none) or None."""
        rows = self.rows[at]
        inputs = torch.from_numpy(np.ascontiguousarray(self.split.preprocess.apply(self.split.array[rows])))
        labels = self.split.labels
        return inputs, None if labels is None else torch.from_numpy(labels[rows].astype(np.int64))

    def names(self, at: Rows) -> list[str]:
        """The ids of the samples at positions `at`."""
        return [self.split.ids[row] for row in self.rows[at]]

    def unreadable(self, at: Rows) -> str:
        """Which of the samples at positions `at` cannot be read, in words; all of them if each alone can."""
        for row in at:
            try:
                self.batch(np.array([row]))
            except Exception:
                return f"Sample {self.split.ids[self.rows[row]]!r} of split {self.split.name!r}"
        return f"A batch of {len(at)} samples of split {self.split.name!r}"

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor | None]]:
        """All samples in order."""
        for start in range(0, len(self), size):
            yield self.batch(np.arange(start, min(start + size, len(self))))


def training_split(data: DataSet) -> Split:
    """The split that stages may learn from: `train`, or `calibration` where there is no other; never `test`."""
    for name in ("train", "calibration"):
        if name in data.splits and len(data.splits[name]):
            return data.splits[name]
    raise UsageError(f"Data {data.name!r} has neither a 'train' nor a 'calibration' split: stages that learn need one.")


def some(split: Split, count: int, seed: int) -> Samples:
    """`count` samples (or all) drawn without replacement, the same for the same seed.

    Where some samples have no label the others are drawn from.
    """
    order = np.random.default_rng(seed).permutation(len(split))
    if split.labels is not None and (split.labels >= 0).any():
        order = order[split.labels[order] >= 0]
    return Samples(split, np.sort(order[:count]).astype(np.int64))


def hold_out(split: Split, share: float, seed: int) -> tuple[Samples, Samples]:
    """Two disjoint parts of a split: the rest, and `share` of it (of every class, where there are labels)."""
    order = np.random.default_rng(seed).permutation(len(split))
    if split.labels is not None:
        order = order[np.argsort(split.labels[order], kind="stable")]
    count = max(1, round(len(split) * share))
    if count >= len(split):
        seen = f"{len(split)} sample{'s' if len(split) > 1 else ''}"
        raise UsageError(
            f"Split {split.name!r} has {seen}: too few to hold out {share:g} of them and learn from the rest."
        )
    picked = np.zeros(len(split), bool)
    picked[order[np.linspace(0, len(split) - 1, count).round().astype(np.int64)]] = True
    return Samples(split, np.flatnonzero(~picked)), Samples(split, np.flatnonzero(picked))


def single_input(inputs: tuple[TensorSpec, ...]) -> TensorSpec:
    """The one input of the model.

    Raises:
        UsageError: it has several: samples of a data set feed one.
    """
    if len(inputs) != 1:
        names = ", ".join(spec.name for spec in inputs)
        raise UsageError(f"The model has {len(inputs)} inputs ({names}): stages that learn from data need exactly one.")
    return inputs[0]
