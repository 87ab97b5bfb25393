"""The predictions of one bundle on one split, kept so that paired tests and slices can be computed later."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.errors import UsageError
from edgekit.report.report import write_bytes
from edgekit.scores import check_evidence

_DAMAGE = (
    OSError, ValueError, EOFError, KeyError, TypeError, OverflowError, MemoryError, RuntimeError, SyntaxError,
    zipfile.BadZipFile, zlib.error,
)  # fmt: skip
"""What numpy and zipfile raise for files that are not what they should be."""
MAX_BYTES = 4 * 2**30
"""Arrays that unpack to more are refused."""
MOST_CLASSES = 2**31 - 1
_SLICE, _EVIDENCE = "slice.", "evidence."
"""Before the names of columns and of evidence, in the names of arrays."""


@dataclass(frozen=True)
class Predictions:
    """`ids` `[N]`, `labels` `[N]` or None, `top` `[N, k]` classes best first (-1: output not finite), `loss` `[N]`.

    `data_sha256` and `split` say what was predicted: only predictions on the same samples can be paired.
    `confidence` `[N]` is the probability of the first choice (None in files of earlier versions), `slices` column ->
    text of each sample `[N]`. `top` is `[N, 0]` for a task without classes; `evidence` is what its metrics are computed
    from, see `edgekit.scores`.
    """

    ids: tuple[str, ...]
    labels: npt.NDArray[np.int64] | None
    top: npt.NDArray[np.int32]
    loss: npt.NDArray[np.float32] | None
    data_sha256: str
    split: str
    confidence: npt.NDArray[np.float32] | None = None
    slices: Mapping[str, npt.NDArray[np.str_]] = field(default_factory=dict)
    evidence: Mapping[str, npt.NDArray[np.floating]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    def correct(self) -> npt.NDArray[np.bool_]:
        """Whether the first choice is the label, `[N]`."""
        if self.labels is None:
            raise UsageError("These predictions have no labels, so there is no accuracy to compute.")
        return np.equal(self.top[:, 0], self.labels)

    def same_samples(self, other: Predictions) -> bool:
        """Whether both predict the same samples in the same order."""
        mine = (self.data_sha256, self.split, self.ids)
        return mine == (other.data_sha256, other.split, other.ids)


def write_predictions(predictions: Predictions, path: Path) -> None:
    """Write an `.npz` that loads without pickle; the file is there as a whole or not at all."""
    arrays: dict[str, Any] = {
        "ids": np.array(predictions.ids, dtype=np.str_),
        "top": predictions.top.astype(np.int32),
        "data_sha256": np.array(predictions.data_sha256, dtype=np.str_),
        "split": np.array(predictions.split, dtype=np.str_),
    }
    if predictions.labels is not None:
        arrays["labels"] = predictions.labels.astype(np.int64)
    if predictions.loss is not None:
        arrays["loss"] = predictions.loss.astype(np.float32)
    if predictions.confidence is not None:
        arrays["confidence"] = predictions.confidence.astype(np.float32)
    arrays |= {f"{_SLICE}{name}": np.asarray(values, np.str_) for name, values in predictions.slices.items()}
    arrays |= {f"{_EVIDENCE}{name}": np.asarray(values, np.float64) for name, values in predictions.evidence.items()}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write_bytes(path, buffer.getvalue())


def read_predictions(path: Path) -> Predictions:
    """Read what `write_predictions` wrote.

    Raises:
        UsageError: the file is missing or damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if (size := sum(info.file_size for info in archive.infolist())) > MAX_BYTES:
                raise ValueError(f"it unpacks to {size:,} bytes")
        with np.load(path, allow_pickle=False) as file:
            found = Predictions(
                ids=tuple(str(i) for i in file["ids"]),
                labels=file.get("labels"),
                top=file["top"],
                loss=file.get("loss"),
                data_sha256=str(file["data_sha256"]),
                split=str(file["split"]),
                confidence=file.get("confidence"),
                slices={n.removeprefix(_SLICE): file[n] for n in file.files if n.startswith(_SLICE)},
                evidence={n.removeprefix(_EVIDENCE): file[n] for n in file.files if n.startswith(_EVIDENCE)},
            )
        _check(found)
    except _DAMAGE as error:
        raise UsageError(f"{path}: not a predictions file ({error}). Run the recipe again.") from error
    return found


def _check(seen: Predictions) -> None:
    """Raise `ValueError` for arrays that are not as `Predictions` has them."""
    n = len(seen)
    classless = seen.top.ndim == 2 and not seen.top.shape[1] and seen.labels is None and n > 0
    if seen.top.ndim != 2 or seen.top.shape[0] != n or not (seen.top.size or classless) or seen.top.dtype.kind != "i":
        raise ValueError(f"`top` is {seen.top.dtype} {list(seen.top.shape)} for {n} samples")
    columns: dict[str, tuple[npt.NDArray[np.generic] | None, str]] = {
        "labels": (seen.labels, "i"), "loss": (seen.loss, "f"), "confidence": (seen.confidence, "f"),
        **{f"{_SLICE}{name}": (values, "U") for name, values in seen.slices.items()},
    }  # fmt: skip
    for name, (values, kind) in columns.items():
        if values is not None and (values.shape != (n,) or values.dtype.kind != kind):
            raise ValueError(f"`{name}` is {values.dtype} {list(values.shape)} for {n} samples")
    if seen.labels is not None and not 0 <= int(seen.labels.min()) <= int(seen.labels.max()) < MOST_CLASSES:
        raise ValueError(f"a label is not within 0 and {MOST_CLASSES - 1:,}")
    if int(seen.top.max(initial=-1)) >= MOST_CLASSES or int(seen.top.min(initial=-1)) < -1:
        raise ValueError(f"a choice is not within -1 and {MOST_CLASSES - 1:,}")
    for name, values in seen.evidence.items():
        check_evidence(name, values, n)
    sure = seen.confidence
    if sure is not None and not bool(((sure >= 0) & (sure <= 1)).all()):
        raise ValueError("a confidence is not within 0 and 1")


def write_samples(samples: npt.ArrayLike, path: Path) -> None:
    """Write raw latencies in seconds as `.npy`: `[n]` singles, or `[rounds, 4]` blocks of interleaved rounds."""
    buffer = io.BytesIO()
    np.save(buffer, np.asarray(samples, np.float64), allow_pickle=False)
    write_bytes(path, buffer.getvalue())


def read_samples(path: Path) -> npt.NDArray[np.float64]:
    """Read what `write_samples` wrote.

    Raises:
        UsageError: the file is missing or damaged, or a time is not finite and above 0.
    """
    try:
        found = np.load(path, allow_pickle=False)
        if not isinstance(found, np.ndarray) or found.dtype.kind not in "fiu":
            raise ValueError("these are no real numbers")
        samples = np.asarray(found, np.float64)
        if not samples.size or not bool((np.isfinite(samples) & (samples > 0)).all()):
            raise ValueError("a time is not above 0")
        return samples
    except _DAMAGE as error:
        raise UsageError(f"{path}: not a samples file ({error}). Run the recipe again.") from error
