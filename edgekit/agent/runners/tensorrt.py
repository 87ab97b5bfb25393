"""TensorRT on an NVIDIA GPU. An emitted model is built into an engine here, once, and kept in the cache."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..failures import USAGE, Failure, missing
from .cudart import Cuda
from .tensorrt_build import engine

PIP = "on a Jetson: sudo apt install python3-libnvinfer; elsewhere: pip install {}"


def _package(manifest: dict[str, Any]) -> str:
    return str(manifest["runner"].get("package", "tensorrt"))


def runtime(manifest: dict[str, Any]) -> Any:
    """The package, imported."""
    package = _package(manifest)
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise missing(package, "running this bundle", error, PIP.format(package)) from error


class Runner:
    """One engine and one context; at most the largest batch of the engine in a call, more go in parts."""

    def __init__(self, folder: Path, manifest: dict[str, Any], threads: int, batch: int) -> None:
        self.trt, package = runtime(manifest), _package(manifest)
        self.cuda, self.log = Cuda(), self.trt.Logger(self.trt.Logger.ERROR)
        path = folder / manifest["entry"]
        content = (
            path.read_bytes()
            if path.suffix == ".engine"
            else engine(self.trt, self.log, self.cuda.device(), path, manifest)
        )
        self.engine = self.trt.Runtime(self.log).deserialize_cuda_engine(content)
        if self.engine is None:
            raise Failure(USAGE, f"{package} {self.trt.__version__} cannot load the engine on {self.cuda.device()}")
        self.context = self.engine.create_execution_context()
        self.inputs = [entry["name"] for entry in manifest["inputs"]]
        self.outputs = [entry["name"] for entry in manifest["outputs"]]
        self.memory: dict[str, tuple[int, int]] = {}
        self.most = max(int(shapes[2][0]) for shapes in manifest["runner"]["shapes"].values())
        self.versions = {package: self.trt.__version__, "gpu": self.cuda.device()}

    def infer(self, arrays: Sequence[Any]) -> list[Any]:
        """Outputs for one batch, copied to the GPU and back."""
        starts = range(0, len(arrays[0]), self.most)
        parts = [self._once([array[start : start + self.most] for array in arrays]) for start in starts]
        return parts[0] if len(parts) == 1 else [np.concatenate(outputs) for outputs in zip(*parts)]

    def _once(self, arrays: Sequence[Any]) -> list[Any]:
        for name, array in zip(self.inputs, arrays):
            self.context.set_input_shape(name, array.shape)
            self.cuda.to_device(self._place(name, array.nbytes), array)
        results = []
        for name in self.outputs:
            kind = self.trt.nptype(self.engine.get_tensor_dtype(name))
            results.append(np.empty(tuple(self.context.get_tensor_shape(name)), kind))
            self._place(name, results[-1].nbytes)
        if not self.context.execute_async_v3(self.cuda.stream.value):
            raise Failure(USAGE, "TensorRT could not start the engine with these shapes")
        for name, array in zip(self.outputs, results):
            self.cuda.to_host(array, self.memory[name][0])
        self.cuda.wait()
        return results

    def _place(self, name: str, size: int) -> int:
        address, room = self.memory.get(name, (0, -1))
        if size > room:
            if address:
                self.cuda.free(address)
            address = self.cuda.allocate(size)
            self.memory[name] = (address, size)
            self.context.set_tensor_address(name, address)
        return address


class Profiled(Runner):
    """An engine whose layers are timed: TensorRT runs them one after the other for that."""

    def __init__(self, folder: Path, manifest: dict[str, Any], threads: int, batch: int) -> None:
        super().__init__(folder, manifest, threads, batch)
        self.context.profiler = self.profiler = profiler(self.trt)

    def layers(self) -> list[tuple[str, str, list[float]]]:
        """Name and seconds in every inference; the engine does not tell a layer's kind."""
        return [(name, "", seconds) for name, seconds in self.profiler.seconds.items()]


def profiler(trt: Any) -> Any:
    """What TensorRT tells the times of layers to, in `seconds` by name. Its base class is only known with TensorRT."""

    class Profiler(trt.IProfiler):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)
            self.seconds: dict[str, list[float]] = {}

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self.seconds.setdefault(layer_name, []).append(ms * 1e-3)

    return Profiler()
