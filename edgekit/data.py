"""Labelled or unlabelled samples in splits, raw as stored, with the preprocessing that the model expects."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Preprocess:
    """Raw samples to model input: `raw * scale + offset` in float32, per channel or one for all, then the layout.

    `layout` is that of the raw samples ("NHW", "NHWC", "NCHW", or "" for data that is not images), `to` that of the
    model's input. A missing channel axis is added.
    """

    scale: tuple[float, ...] = (1.0,)
    offset: tuple[float, ...] = (0.0,)
    layout: str = ""
    to: str = ""


@dataclass(frozen=True)
class Split:
    """`inputs` `[N, ...]` as stored (often uint8), `labels` `[N]` int64 or None, `ids` one per sample."""

    name: str
    inputs: npt.NDArray[np.generic]
    labels: npt.NDArray[np.int64] | None
    ids: tuple[str, ...]
    preprocess: Preprocess

    def __len__(self) -> int:
        return len(self.inputs)


@dataclass(frozen=True)
class DataSet:
    """Named splits (`train`, `calibration`, `test`) of one source."""

    name: str
    splits: Mapping[str, Split]
    classes: tuple[str, ...] = ()
    task: str = "classification"
    licence: str = ""
    card: Mapping[str, object] = field(default_factory=dict)


def batches(split: Split, size: int, *, limit: int | None = None) -> Iterator[npt.NDArray[np.float32]]:
    """Preprocessed batches in order."""
    raise NotImplementedError
