"""From raw arrays to checked splits: every sample is looked at, and what is missing is derived by fixed rules."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from edgekit.data import NO_LABEL, Array, Inputs, Preprocess, Split
from edgekit.errors import UsageError
from edgekit.scoring import check_truth

HELD_OUT = 0.2
"""Share of a data set with one split that is held out as `test`."""
CALIBRATION_SAMPLES = 1024
"""Samples of `train` that serve as `calibration` where a source has no such split (never more than a quarter)."""


class Raw(NamedTuple):
    """What a source holds of one split: one array or one an input, labels, ids (None: numbered), columns of slices."""

    inputs: Inputs
    labels: Array | None
    ids: tuple[str, ...] | None = None
    slices: Mapping[str, Array] = {}


def check_split(data: str, name: str, raw: Raw, preprocess: Preprocess, *, task: str, classes: int) -> Split:
    """One split, with every sample and label looked at."""
    inputs, y, ids, slices = raw
    where = f"Data {data!r}, split {name!r}"
    if isinstance(inputs, Mapping):
        for key, array in inputs.items():
            _check_samples(f"{where}, input {key!r}", array, least=1, kinds="uifb")
        counts = {key: len(array) for key, array in inputs.items()}
        if len(set(counts.values())) != 1:
            seen = ", ".join(f"{key!r} {count}" for key, count in counts.items())
            raise UsageError(f"{where}: the inputs hold different numbers of samples: {seen}.")
        count = next(iter(counts.values()))
    else:
        _check_samples(where, inputs, least=2, kinds="uif")
        count = len(inputs)
    if ids is not None and (len(ids) != count or len(set(ids)) != len(ids)):
        raise UsageError(f"{where}: {count} samples need as many different ids, got {len(set(ids))}.")
    labels = truth = None
    if task == "classification" and y is not None:
        labels = _check_labels(where, y, count, classes, missing=name == "train")
    elif task not in ("none", "policy") and y is not None:
        truth = check_truth(where, task, y, count)
    columns = {column: _column(where, column, values, count) for column, values in slices.items()}
    return Split(name, inputs, labels, ids or tuple(f"{name}/{i}" for i in range(count)), preprocess, columns, truth)


def _column(where: str, column: str, values: Array, count: int) -> npt.NDArray[np.str_]:
    if values.shape != (count,):
        raise UsageError(
            f"{where}: {count} samples need slices {column!r} of shape [{count}], got {list(values.shape)}."
        )
    if values.dtype.kind not in "Uuib":
        raise UsageError(
            f"{where}: slices {column!r} are of type {values.dtype}; text or whole numbers are needed. Put fractions "
            "into bins first."
        )
    return values.astype(np.str_)


def _check_samples(where: str, x: Array, *, least: int, kinds: str) -> None:
    if x.ndim < least or x.size == 0:
        seen = "is empty" if x.size == 0 else "holds no samples with values"
        raise UsageError(f"{where} {seen}: its array has shape {list(x.shape)}, [N, ...] with N >= 1 is needed.")
    if x.dtype.kind not in kinds:
        raise UsageError(f"{where}: samples are of type {x.dtype}; integers or floats are needed.")
    if x.dtype.kind == "f":
        _check_finite(where, x)


def _check_finite(where: str, x: Array) -> None:
    for start in range(0, len(x), 1024):
        bad = ~np.isfinite(x[start : start + 1024]).reshape(len(x[start : start + 1024]), -1).all(axis=1)
        if bad.any():
            raise UsageError(f"{where}: sample {start + int(bad.argmax())} holds NaN or infinity. Remove or repair it.")


def _check_labels(where: str, y: Array, count: int, classes: int, *, missing: bool) -> npt.NDArray[np.int64] | None:
    """The labels; where some may be `missing`, -1 says that one is, and no label at all is None."""
    if y.ndim != 1 or len(y) != count:
        raise UsageError(f"{where}: {count} samples need labels of shape [{count}], got {list(y.shape)}.")
    if y.dtype.kind not in "ui":
        raise UsageError(f"{where}: labels are of type {y.dtype}; whole numbers from 0 are needed.")
    low, high = int(y.min()), int(y.max())
    if missing and low == high == NO_LABEL:
        return None
    if low < (NO_LABEL if missing else 0) or (classes and high >= classes):
        bad, limit = (
            (low, int(y.argmin())) if low < 0 else (high, int(y.argmax())),
            f"0 to {classes - 1}" if classes else "0 and up",
        )
        raise UsageError(f"{where}: label {bad[0]} (sample {bad[1]}) is out of range: classes are {limit}.")
    if high > np.iinfo(np.int64).max:
        raise UsageError(f"{where}: label {high} (sample {int(y.argmax())}) is out of range.")
    return y.astype(np.int64)


def _shuffled(ids: Sequence[str]) -> npt.NDArray[np.int64]:
    """Row numbers in an order that depends on the ids alone: the same on every machine and numpy version."""
    keys = [hashlib.blake2b(name.encode(), digest_size=8).digest() for name in ids]
    return np.array(sorted(range(len(ids)), key=lambda row: keys[row]), dtype=np.int64)


def complete(name: str, given: Mapping[str, Split]) -> tuple[dict[str, Split], tuple[str, ...]]:
    """Add what is missing of `train`, `calibration` and `test`, and say what was done."""
    splits, notes = dict(given), []
    if "test" not in splits and "validation" in splits:
        splits["test"] = replace(splits["validation"], name="test")
        notes.append(f"Data {name!r} has no test split: accuracy is measured on its validation split.")
    pool = splits.pop("all", None) or (splits.get("train") if "test" not in splits else None)
    if pool is not None:
        kept = frozenset(splits["calibration"].ids if "calibration" in splits else ())
        splits["train"], splits["test"] = _hold_out(name, pool, kept)
        held = len(splits["test"])
        notes.append(
            f"Data {name!r} has one split only: {held} of its {len(pool)} samples were held out as test, and accuracy "
            "is measured on them. If the model was trained on them, its accuracy on new data is lower."
        )
    if "calibration" not in splits and (train := splits.get("train")) is not None:
        count = max(1, min(CALIBRATION_SAMPLES, len(train) // 4))
        taken = train.take(_balanced(train, count), "calibration")
        whole = taken.labels is None or bool((taken.labels >= 0).all())
        splits["calibration"] = taken if whole else replace(taken, labels=None)
        notes.append(f"Data {name!r} has no calibration split: {count} samples of train serve, by a fixed rule.")
    return splits, tuple(notes)


def _hold_out(name: str, pool: Split, kept: frozenset[str]) -> tuple[Split, Split]:
    """`pool` as train and test; what is `kept` (it calibrates) stays in train."""
    order = _shuffled(pool.ids)
    known = np.ones(len(pool), bool) if pool.labels is None else pool.labels >= 0  # a test sample needs its label
    free = np.array([row for row in order if known[row] and pool.ids[row] not in kept], dtype=np.int64)
    test = np.sort(free[: max(1, round(len(pool) * HELD_OUT))])
    train = np.setdiff1d(order, test)
    if not len(test) or not len(train):
        raise UsageError(f"Data {name!r} is too small: a test sample must not calibrate, so 2 samples are needed.")
    return pool.take(train, "train"), pool.take(test, "test")


def _balanced(split: Split, count: int) -> npt.NDArray[np.int64]:
    """`count` rows with every class as often as any other, as far as there are enough."""
    order = _shuffled(split.ids)
    if split.labels is None:
        return np.sort(order[:count])
    seen: dict[int, int] = {}
    ranks = []
    for row in order:
        label = int(split.labels[row])
        ranks.append(seen.get(label, 0))
        seen[label] = ranks[-1] + 1
    return np.sort(order[np.argsort(ranks, kind="stable")[:count]])


def samples_digest(splits: Mapping[str, Split]) -> str:
    """One sha256 over all samples, labels and preprocessing, split by split."""
    total = hashlib.sha256()
    for name in sorted(splits):
        split = splits[name]
        for key in sorted(split.arrays):
            array = split.arrays[key]
            called = f"{name}.{key}" if key else name
            total.update(f"{called} {array.dtype.str} {array.shape} {split.preprocess}".encode())
            total.update(np.ascontiguousarray(array).data)
        if split.labels is not None:
            total.update(split.labels.data)
        if split.truth is not None:
            total.update(f"{name} truth {split.truth.dtype.str} {split.truth.shape}".encode())
            total.update(np.ascontiguousarray(split.truth).data)
    return total.hexdigest()
