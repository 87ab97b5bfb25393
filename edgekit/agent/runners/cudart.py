"""The few calls of the CUDA runtime that running an engine needs, by ctypes: boards have no Python package for it."""

from __future__ import annotations

import ctypes
import ctypes.util
import importlib.util
from pathlib import Path
from typing import Any

from ..failures import DEVICE, Failure, missing

NAMES = ("libcudart.so", "libcudart.so.13", "libcudart.so.12", "libcudart.so.11.0", "libcudart.so.10.2")
OUT_OF_MEMORY = 2
TO_DEVICE, TO_HOST = 1, 2


class Cuda:
    """CUDA memory and one stream."""

    def __init__(self) -> None:
        self.library = _load()
        self.library.cudaGetErrorString.restype = ctypes.c_char_p
        self.stream = ctypes.c_void_p()
        self.call("cudaStreamCreate", ctypes.byref(self.stream))

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function of the runtime; its error is a failure of the device."""
        code = getattr(self.library, name)(*arguments)
        if code:
            text = self.library.cudaGetErrorString(code).decode()
            told = "the GPU is out of memory" if code == OUT_OF_MEMORY else text
            raise Failure(DEVICE, f"{name} failed with CUDA error {code}: {told}")

    def allocate(self, size: int) -> int:
        """The address of `size` bytes on the GPU, kept until the process ends."""
        address = ctypes.c_void_p()
        self.call("cudaMalloc", ctypes.byref(address), ctypes.c_size_t(max(size, 1)))
        return int(address.value or 0)

    def free(self, address: int) -> None:
        """Give memory back."""
        self.call("cudaFree", ctypes.c_void_p(address))

    def to_device(self, address: int, array: Any) -> None:
        """Copy a contiguous array to the GPU, in the stream's order."""
        self._copy(address, array.ctypes.data, array.nbytes, TO_DEVICE)

    def to_host(self, array: Any, address: int) -> None:
        """Copy from the GPU into a contiguous array, in the stream's order."""
        self._copy(array.ctypes.data, address, array.nbytes, TO_HOST)

    def wait(self) -> None:
        """Until everything in the stream is done."""
        self.call("cudaStreamSynchronize", self.stream)

    def device(self) -> str:
        """What an engine depends on: compute capability and multiprocessors of the current GPU."""
        number, value = ctypes.c_int(), ctypes.c_int()
        self.call("cudaGetDevice", ctypes.byref(number))
        found = []
        for attribute in (75, 76, 16):  # compute capability major and minor, multiprocessor count
            self.call("cudaDeviceGetAttribute", ctypes.byref(value), attribute, number)
            found.append(value.value)
        return "sm{}{}-{}".format(*found)

    def _copy(self, target: int, source: int, size: int, kind: int) -> None:
        self.call(
            "cudaMemcpyAsync",
            ctypes.c_void_p(target),
            ctypes.c_void_p(source),
            ctypes.c_size_t(size),
            ctypes.c_int(kind),
            self.stream,
        )


def _load() -> Any:
    packaged = importlib.util.find_spec("nvidia")
    folders = list(packaged.submodule_search_locations or []) if packaged else []
    wheels = [str(path) for folder in folders for path in sorted(Path(folder).glob("*/lib/libcudart.so*"))]
    system = ctypes.util.find_library("cudart")
    last: OSError = OSError("not found")
    for name in ([system] if system else []) + list(NAMES) + wheels:
        try:
            return ctypes.CDLL(name)
        except OSError as error:
            last = error
    line = "on a Jetson: sudo apt install cuda-cudart; elsewhere: pip install nvidia-cuda-runtime"
    raise missing("CUDA's runtime library", "running a TensorRT engine", last, line)
