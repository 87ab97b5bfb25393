"""Labelled or unlabelled samples in splits, raw as stored, with the preprocessing that the model expects."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from edgekit.agent.preprocess import preprocess as to_model_input
from edgekit.errors import UsageError
from edgekit.model import TensorSpec


@dataclass(frozen=True)
class Preprocess:
    """Raw samples to model input: `raw * scale + offset` in float32, per channel or one for all, then the layout.

    `layout` is that of the raw samples ("NHW", "NHWC", "NCHW", or "" for data that is not images), `to` that of the
    model's input. A missing channel axis is added.

    >>> Preprocess(scale=(1 / 255,), layout="NHW", to="NCHW").apply(np.full((2, 4, 4), 255, np.uint8)).shape
    (2, 1, 4, 4)
    """

    scale: tuple[float, ...] = (1.0,)
    offset: tuple[float, ...] = (0.0,)
    layout: str = ""
    to: str = ""

    @property
    def identity(self) -> bool:
        """Whether values stay as they are, apart from their type."""
        return set(self.scale) == {1.0} and set(self.offset) == {0.0}

    def apply(self, raw: npt.NDArray[np.generic]) -> npt.NDArray[np.float32]:
        """Samples `[N, ...]` as stored to the model's input.

        Raises:
            UsageError: the layout or the number of channels does not fit the samples.
        """
        try:
            ready: npt.NDArray[np.float32] = to_model_input(raw, self.scale, self.offset, self.layout, self.to)
            return ready
        except ValueError as error:
            raise UsageError(f"Preprocessing does not fit the data: {error}.") from error


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

    def take(self, rows: npt.NDArray[np.int64], name: str | None = None) -> Split:
        """The samples at `rows`, in that order, under the name `name`; ids stay those of the source."""
        labels = None if self.labels is None else self.labels[rows]
        ids = tuple(self.ids[row] for row in rows)
        return Split(name or self.name, self.inputs[rows], labels, ids, self.preprocess)


@dataclass(frozen=True)
class DataSet:
    """Named splits (`train`, `calibration`, `test`) of one source.

    `sha256` is one hash over all samples and labels; `notes` are plain lines for the user, such as what was derived.
    """

    name: str
    splits: Mapping[str, Split]
    classes: tuple[str, ...] = ()
    task: str = "classification"
    licence: str = ""
    card: Mapping[str, object] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    sha256: str = ""

    def split(self, name: str) -> Split:
        """The split of that name.

        Raises:
            UsageError: there is none, and none could be derived.
        """
        if name in self.splits:
            return self.splits[name]
        hint = " Calibration samples come out of `train` alone, never out of `test`." if name == "calibration" else ""
        raise UsageError(f"Data {self.name!r} has no split {name!r}. It has: {', '.join(self.splits)}.{hint}")


def batches(split: Split, size: int, *, limit: int | None = None) -> Iterator[npt.NDArray[np.float32]]:
    """Preprocessed batches in order: `size` samples each (the last may be smaller), `limit` samples in all."""
    end = len(split) if limit is None else min(limit, len(split))
    for start in range(0, end, size):
        yield split.preprocess.apply(split.inputs[start : min(start + size, end)])


def check_against(data: DataSet, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec] = ()) -> None:
    """Refuse data that the model cannot take: shape and type of its input, labels beyond its classes.

    Raises:
        UsageError: says what was seen, what the model wants, and what to change.

    >>> from edgekit import load_data
    >>> data = load_data("calibration_data/fashion_mnist")
    >>> check_against(data, [TensorSpec("image", "float32", ("batch", 1, 28, 28))])
    """
    if len(inputs) != 1:
        raise UsageError(
            f"Data {data.name!r} holds one array a sample, the model has {len(inputs)} inputs: "
            f"{', '.join(i.name for i in inputs)}. Only models with one input can be fed."
        )
    for split in data.splits.values():
        _check_inputs(data.name, split, inputs[0])
        _check_labels(data, split, outputs)


def _check_inputs(name: str, split: Split, spec: TensorSpec) -> None:
    where = f"Data {name!r}, split {split.name!r}"
    if spec.dtype != "float32":
        raise UsageError(f"{where}: the model's input {spec.name!r} takes {spec.dtype}; only float32 can be fed.")
    if split.inputs.dtype.kind in "iu" and split.inputs.dtype.itemsize > 2 and split.preprocess.identity:
        raise UsageError(
            f"{where}: samples are {split.inputs.dtype}, the model's input {spec.name!r} is float32. Store them as "
            "float32 or uint8, or give `preprocess: {scale: ...}` if they are raw values."
        )
    seen = split.preprocess.apply(split.inputs[:1]).shape
    fits = len(seen) == len(spec.shape) and all(
        isinstance(want, str) or want == got for want, got in zip(spec.shape[1:], seen[1:], strict=True)
    )
    if not fits:
        raw, wanted = list(split.inputs.shape[1:]), ", ".join(map(str, spec.shape[1:]))
        raise UsageError(
            f"{where}: a sample has shape {raw}, after preprocessing {list(seen[1:])}; the model's input {spec.name!r} "
            f"wants [{wanted}]. Check `preprocess: {{layout: ..., to: ...}}` and the size of the samples."
        )


def _check_labels(data: DataSet, split: Split, outputs: Sequence[TensorSpec]) -> None:
    last = outputs[0].shape[-1] if outputs and len(outputs[0].shape) == 2 else None
    if data.task != "classification" or split.labels is None or not isinstance(last, int):
        return
    if (highest := int(split.labels.max())) >= last:
        raise UsageError(
            f"Data {data.name!r}, split {split.name!r}: label {highest} (sample "
            f"{split.ids[int(split.labels.argmax())]}) is out of range: the model has {last} classes, 0 to {last - 1}."
        )
