"""Arrays in files: read without loading them whole, written under a temporary name and then renamed."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .failures import usage


def read(path: str, names: Sequence[str]) -> list[Any]:
    """The arrays for the model inputs `names`: one memory-mapped .npy, or an .npz with one array an input."""
    try:
        if not path.endswith(".npz"):
            if len(names) != 1:
                raise usage(
                    f"{path}: the model has the inputs {', '.join(names)}: give an .npz with one array for each"
                )
            return [Rows(path)]
        with np.load(path, allow_pickle=False) as arrays:
            absent = [name for name in names if name not in arrays.files]
            if absent and not (len(names) == 1 and len(arrays.files) == 1):
                raise usage(f"{path} holds {', '.join(arrays.files)}: it lacks the input {', '.join(absent)}")
            return [arrays[name if not absent else arrays.files[0]] for name in names]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        if isinstance(error, OSError) and error.errno == errno.ENOMEM:
            raise
        raise usage(f"cannot read {path}: {error}") from error


class Rows:
    """The samples of a .npy, read from the file when they are asked for and forgotten after: memory stays flat."""

    def __init__(self, path: str) -> None:
        whole = np.load(path, mmap_mode="r", allow_pickle=False)
        self.shape, self.dtype, self.ndim = whole.shape, whole.dtype, whole.ndim
        self._path, self._offset, self._row_bytes = path, whole.offset, whole[:1].nbytes if whole.ndim else 0
        self._whole = whole if whole.ndim > 1 and not whole.flags.c_contiguous else None

    def __len__(self) -> int:
        return int(self.shape[0])

    def __getitem__(self, part: slice) -> Any:
        """Samples `start` to `stop` as an array of their own."""
        if self._whole is not None:
            return np.array(self._whole[part])
        start, stop, _ = part.indices(len(self))
        place = self._offset + start * self._row_bytes
        shape = (stop - start, *self.shape[1:])
        return np.array(np.memmap(self._path, self.dtype, "r", place, shape))


class Writer:
    """Collects the outputs of a run on disk, in chunks: flat memory however many samples there are.

    A path that ends in .npz gets one array an output, under its name; any other path one .npy (one output only).
    """

    def __init__(self, path: str, names: Sequence[str], samples: int) -> None:
        self.path, self.names, self.samples = path, list(names), samples
        if not path.endswith(".npz") and len(self.names) != 1:
            raise usage(f"{path}: the model has {len(self.names)} outputs ({', '.join(self.names)}): name an .npz file")
        if os.path.exists(path) and not os.path.isfile(path):
            raise usage(f"cannot write {path}: it is no regular file, and would be replaced by one")
        try:
            self.folder = tempfile.mkdtemp(prefix=".edgekit-", dir=os.path.dirname(os.path.abspath(path)))
        except OSError as error:
            raise usage(f"cannot write {path}: {error}") from error
        self.files: list[Any] = []
        self.done = 0

    def add(self, outputs: Sequence[Any]) -> None:
        """Append one chunk: arrays `[n, ...]`, one an output."""
        if not self.files:
            self.files = [open(self._part(i), "wb") for i in range(len(self.names))]  # noqa: SIM115  (see close)
            for file, array in zip(self.files, outputs):
                header = np.lib.format.header_data_from_array_1_0(np.ascontiguousarray(array))
                np.lib.format.write_array_header_1_0(file, {**header, "shape": (self.samples, *array.shape[1:])})
        for file, array in zip(self.files, outputs):
            file.write(np.ascontiguousarray(array).data)
        self.done += len(outputs[0])

    def finish(self) -> None:
        """Put the result in its place."""
        for file in self.files:
            file.close()
        whole = self._part(0)
        if self.path.endswith(".npz"):
            whole = os.path.join(self.folder, "whole.npz")
            with zipfile.ZipFile(whole, "w", zipfile.ZIP_STORED, allowZip64=True) as target:
                for i, name in enumerate(self.names):
                    member = zipfile.ZipInfo(name + ".npy")
                    with open(self._part(i), "rb") as part, target.open(member, "w", force_zip64=True) as stream:
                        shutil.copyfileobj(part, stream, 1 << 20)
        os.replace(whole, self.path)

    def close(self) -> None:
        """Remove what is left of the temporary files."""
        for file in self.files:
            # Closing writes what is left: on a full disk it fails once more, and the first error is the one to tell.
            with contextlib.suppress(OSError):
                file.close()
        shutil.rmtree(self.folder)

    def _part(self, index: int) -> str:
        return os.path.join(self.folder, f"{index}.npy")


def write_npz(path: Any, arrays: Mapping[str, Any]) -> None:
    """A stored .npz, at a path or in an open file: the same arrays give the same bytes.

    `numpy.savez` takes names as keywords, and so refuses some ("file").
    """
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as target:
        for name, array in arrays.items():
            with target.open(zipfile.ZipInfo(name + ".npy"), "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asarray(array, order="C"), allow_pickle=False)
