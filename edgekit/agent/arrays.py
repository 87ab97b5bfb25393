"""Arrays in files: read without loading them whole, written under a temporary name and then renamed."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import struct
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .failures import usage


def read(path: str, names: Sequence[str]) -> list[Any]:
    """The arrays for the model inputs `names`: one .npy, or an .npz with one array an input.

    They stay in the file until they are asked for; only what an .npz holds compressed is loaded whole.
    """
    try:
        if not path.endswith(".npz"):
            if len(names) != 1:
                raise usage(
                    f"{path}: the model has the inputs {', '.join(names)}: give an .npz with one array for each"
                )
            return [Rows(path)]
        with zipfile.ZipFile(path) as members:
            files = [name[: -len(".npy")] for name in members.namelist() if name.endswith(".npy")]
            absent = [name for name in names if name not in files]
            if absent and not (len(names) == 1 and len(files) == 1):
                raise usage(f"{path} holds {', '.join(files)}: it lacks the input {', '.join(absent)}")
            return [_member(path, members, (name if not absent else files[0]) + ".npy") for name in names]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        if isinstance(error, OSError) and error.errno == errno.ENOMEM:
            raise
        raise usage(f"cannot read {path}: {error}") from error


def _member(path: str, members: zipfile.ZipFile, name: str) -> Any:
    """One array of an .npz: where it lies in the file if it is stored as it is, otherwise loaded and checked."""
    info = members.getinfo(name)
    if info.compress_type != zipfile.ZIP_STORED:
        with members.open(info) as stream:
            return np.lib.format.read_array(stream, allow_pickle=False)
    with open(path, "rb") as file:
        file.seek(info.header_offset)
        header = file.read(30)
    if len(header) != 30 or header[:4] != b"PK\3\4":
        raise ValueError(f"{name} is not where the directory says")
    return Rows(path, info.header_offset + 30 + sum(struct.unpack("<HH", header[26:])), info.file_size)


class Rows:
    """The samples of an array in .npy format, read from the file when they are asked for and forgotten after.

    Memory stays flat. `start` is where the array's header begins in the file, `size` its bytes with the header.
    """

    def __init__(self, path: str, start: int = 0, size: int | None = None) -> None:
        with open(path, "rb") as file:
            file.seek(start)
            version = np.lib.format.read_magic(file)
            if version == (1, 0):
                self.shape, fortran, self.dtype = np.lib.format.read_array_header_1_0(file)
            elif version == (2, 0):
                self.shape, fortran, self.dtype = np.lib.format.read_array_header_2_0(file)
            else:
                raise ValueError(f"an array file of version {version}")
            self._offset = file.tell()
        if self.dtype.hasobject:
            raise ValueError("it holds Python objects, not numbers")
        self.ndim, self._path = len(self.shape), path
        self._row_bytes = int(np.prod(self.shape[1:], dtype=np.int64)) * self.dtype.itemsize
        whole = np.memmap(path, self.dtype, "r", self._offset, self.shape, "F" if fortran else "C")
        if size is not None and self._offset - start + whole.nbytes > size:
            raise ValueError(f"an array of {whole.nbytes} bytes in a member of {size}")
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
