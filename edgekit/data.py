"""Labelled or unlabelled samples in splits, raw as stored, with the preprocessing that the model expects."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.agent.preprocess import preprocess as to_model_input
from edgekit.errors import UsageError
from edgekit.model import TensorSpec

Array = npt.NDArray[Any]
Inputs = Array | Mapping[str, Array]
"""Samples `[N, ...]` of a network with one input, or one array an input by its name."""
NO_LABEL = -1
"""Stands for a label that is missing, in a `train` split alone."""


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
    """Samples as stored, `labels` `[N]` int64 or None, `ids` one per sample.

    `inputs` is one array `[N, ...]` (often uint8), or, for a network with several inputs, a mapping from the name of
    an input to its array. `preprocess` is for the one input that takes floats; all others are passed on as they are.
    `slices` are columns of text `[N]` by which accuracy is looked at in parts, such as the light or the device.
    `truth` `[N, ...]` are the labels of a task other than classification: see `edgekit.scoring.check_truth`.
    """

    name: str
    inputs: Inputs
    labels: npt.NDArray[np.int64] | None
    ids: tuple[str, ...]
    preprocess: Preprocess
    slices: Mapping[str, npt.NDArray[np.str_]] = field(default_factory=dict)
    truth: Array | None = None

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    @property
    def arrays(self) -> Mapping[str, Array]:
        """All arrays by the name of their input; a single one without a name is called ""."""
        return self.inputs if isinstance(self.inputs, Mapping) else {"": self.inputs}

    @property
    def array(self) -> Array:
        """The samples where there is one array.

        Raises:
            UsageError: there are several.
        """
        if len(self.arrays) != 1:
            raise UsageError(f"Split {self.name!r} holds several arrays a sample: {', '.join(self.arrays)}.")
        return next(iter(self.arrays.values()))

    def stored(self, specs: Sequence[TensorSpec]) -> list[Array]:
        """The arrays as stored, in the order of the network's inputs.

        Raises:
            UsageError: an input has no array.
        """
        if not isinstance(self.inputs, Mapping) and len(specs) == 1:
            return [self.inputs]
        missing = [spec.name for spec in specs if spec.name not in self.arrays]
        if missing:
            has = ", ".join(repr(name) for name in self.arrays if name) or "one array without a name"
            raise UsageError(
                f"Split {self.name!r} has no samples for the input {', '.join(map(repr, missing))} of the model; it "
                f"has {has}. Store one array an input, under its name: `x.{missing[0]}` in an .npz, or a dict of "
                "arrays from a function."
            )
        return [self.arrays[spec.name] for spec in specs]

    def ready(self, specs: Sequence[TensorSpec], rows: slice | npt.NDArray[np.int64] = slice(None)) -> list[Array]:
        """The samples at `rows` as the network takes them: one array an input, in the order of `specs`.

        Raises:
            UsageError: an input has no array, or one of another kind (text, fractions for integers).
        """
        return [self._ready(array[rows], spec) for array, spec in zip(self.stored(specs), specs, strict=True)]

    def _ready(self, raw: Array, spec: TensorSpec) -> Array:
        dtype = np.dtype(spec.dtype)
        if dtype.kind == "f":
            return self.preprocess.apply(raw).astype(dtype, copy=False)
        if raw.dtype.kind not in "biu":
            raise UsageError(
                f"Samples of split {self.name!r} are {raw.dtype}; the input {spec.name!r} takes {spec.dtype}."
            )
        low, high = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
        if raw.size and not np.can_cast(raw.dtype, dtype) and not low <= int(raw.min()) <= int(raw.max()) <= high:
            raise UsageError(
                f"Samples of split {self.name!r} hold values from {raw.min()} to {raw.max()}; the input "
                f"{spec.name!r} takes {spec.dtype}."
            )
        if self.preprocess.layout and self.preprocess.to:
            raw = self.preprocess.apply(raw)
        return np.ascontiguousarray(raw.astype(dtype, copy=False))

    def take(self, rows: npt.NDArray[np.int64], name: str | None = None) -> Split:
        """The samples at `rows`, in that order, under the name `name`; ids stay those of the source."""
        labels = None if self.labels is None else self.labels[rows]
        ids = tuple(self.ids[row] for row in rows)
        if isinstance(self.inputs, Mapping):
            inputs: Inputs = {key: array[rows] for key, array in self.inputs.items()}
        else:
            inputs = self.inputs[rows]
        slices = {column: values[rows] for column, values in self.slices.items()}
        truth = None if self.truth is None else self.truth[rows]
        return Split(name or self.name, inputs, labels, ids, self.preprocess, slices, truth)


@dataclass(frozen=True)
class Environment:
    """A gymnasium environment by its name, in which a policy acts for so many episodes.

    Episode `i` starts from `seed + i`. `decode` is `/path/file.py:function` that makes actions of the outputs, or "".
    """

    name: str
    episodes: int = 50
    seed: int = 0
    decode: str = ""


@dataclass(frozen=True)
class DataSet:
    """Named splits (`train`, `calibration`, `test`) of one source.

    `sha256` is one hash over all samples and labels; `notes` are plain lines for the user, such as what was derived.
    `decode` makes of the list of a network's outputs what the task's metrics take; `metrics` are the user's own:
    outputs and labels to one number, or to one a sample.
    """

    name: str
    splits: Mapping[str, Split]
    classes: tuple[str, ...] = ()
    task: str = "classification"
    licence: str = ""
    card: Mapping[str, object] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    sha256: str = ""
    decode: Callable[[list[Array]], Any] | None = None
    metrics: Mapping[str, Callable[[list[Array], Array | None], Any]] = field(default_factory=dict)
    environment: Environment | None = None

    def split(self, name: str) -> Split:
        """The split of that name.

        Raises:
            UsageError: there is none, and none could be derived.
        """
        if name in self.splits:
            return self.splits[name]
        hint = " Calibration samples come out of `train` alone, never out of `test`." if name == "calibration" else ""
        raise UsageError(f"Data {self.name!r} has no split {name!r}. It has: {', '.join(self.splits)}.{hint}")


def drawn(inputs: Sequence[TensorSpec], batch: int, seed: int = 0) -> list[Array]:
    """Random samples that fit `inputs`.

    Floats are of a normal distribution; integers are 0 or 1, which any mask and any table of embeddings takes.
    """
    generator = np.random.default_rng(seed)
    found = []
    for spec in inputs:
        shape = spec.sized(batch)
        values = generator.normal(size=shape) if np.dtype(spec.dtype).kind == "f" else generator.integers(0, 2, shape)
        found.append(values.astype(spec.dtype))
    return found


def batches(split: Split, size: int, *, limit: int | None = None) -> Iterator[npt.NDArray[np.float32]]:
    """Preprocessed batches of one input, in order: `size` samples each, the last maybe less, `limit` in all."""
    end = len(split) if limit is None else min(limit, len(split))
    for start in range(0, end, size):
        yield split.preprocess.apply(split.array[start : min(start + size, end)])


def check_against(data: DataSet, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec] = ()) -> None:
    """Refuse data that the model cannot take: shape and type of its input, labels beyond its classes.

    Raises:
        UsageError: says what was seen, what the model wants, and what to change.

    >>> from edgekit import load_data
    >>> data = load_data("calibration_data/fashion_mnist")
    >>> check_against(data, [TensorSpec("image", "float32", ("batch", 1, 28, 28))])
    """
    _check_feedable(data, inputs)
    for split in data.splits.values():
        try:
            arrays = split.stored(inputs)
        except UsageError as error:
            raise UsageError(f"Data {data.name!r}: {error}") from None
        for array, spec in zip(arrays, inputs, strict=True):
            _check_input(data.name, split, array, spec)
        _check_labels(data, split, outputs)


def _check_feedable(data: DataSet, inputs: Sequence[TensorSpec]) -> None:
    """Every input must be cut into samples along its first axis, and preprocessing needs one input of floats."""
    names = ", ".join(f"{spec.name!r} ({spec.dtype})" for spec in inputs)
    if not inputs:
        raise UsageError("The model has no input: there is nothing to feed samples to.")
    for spec in inputs:
        if not spec.shape:
            raise UsageError(f"The model's input {spec.name!r} is a scalar: it has no first axis for the samples.")
        if np.dtype(spec.dtype).kind not in "fiub":
            raise UsageError(f"The model's input {spec.name!r} takes {spec.dtype}; only numbers can be fed.")
    fixed = {spec.shape[0] for spec in inputs if isinstance(spec.shape[0], int)}
    if len(fixed) > 1:
        sizes = ", ".join(f"{spec.name!r} {list(spec.shape)}" for spec in inputs)
        raise UsageError(f"The model's inputs are fixed to different batches, and cannot be cut into samples: {sizes}.")
    free = {spec.shape[0] for spec in inputs if isinstance(spec.shape[0], str)}
    for spec in inputs:
        if isinstance(spec.shape[0], int) and (elsewhere := free.intersection(spec.shape[1:])):
            raise UsageError(
                f"The model's input {spec.name!r} {list(spec.shape)} holds the samples ({elsewhere.pop()}) along "
                "another axis than the first. Export the model with every input's samples along its first axis."
            )
    floats = [spec for spec in inputs if np.dtype(spec.dtype).kind == "f"]
    values = all(split.preprocess.identity for split in data.splits.values())
    layouts = all(not split.preprocess.layout for split in data.splits.values())
    if len(inputs) > 1 and len(floats) != 1 and not (values and layouts):
        raise UsageError(
            f"Data {data.name!r} has `preprocess`, which is for one input of floats; the model takes {names}. "
            "Store the samples as the model takes them, and leave `preprocess` out."
        )
    if not floats and not values:
        raise UsageError(
            f"Data {data.name!r} has `preprocess: {{scale, offset}}`, which gives float32; the model takes {names}. "
            "Set `preprocess: {scale: 1, offset: 0}`."
        )


def _check_input(name: str, split: Split, array: Array, spec: TensorSpec) -> None:
    where = f"Data {name!r}, split {split.name!r}"
    floats = np.dtype(spec.dtype).kind == "f"
    if floats and array.dtype.kind in "iu" and array.dtype.itemsize > 2 and split.preprocess.identity:
        raise UsageError(
            f"{where}: samples are {array.dtype}, the model's input {spec.name!r} is {spec.dtype}. Store them as "
            "float32 or uint8, or give `preprocess: {scale: ...}` if they are raw values."
        )
    if floats and array.dtype.kind == "b":
        raise UsageError(
            f"{where}: samples are bool, the model's input {spec.name!r} is {spec.dtype}. Store them as float32."
        )
    try:
        seen = split._ready(array if not floats else array[:1], spec).shape
    except UsageError as error:
        raise UsageError(f"Data {name!r}: {error}") from None
    fits = len(seen) == len(spec.shape) and all(
        isinstance(want, str) or want == got for want, got in zip(spec.shape[1:], seen[1:], strict=True)
    )
    if not fits:
        raw, wanted = list(array.shape[1:]), ", ".join(map(str, spec.shape[1:]))
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
