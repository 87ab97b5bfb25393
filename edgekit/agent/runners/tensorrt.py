"""TensorRT on an NVIDIA GPU. An emitted model is built into an engine here, once, and kept in the cache."""

from __future__ import annotations

import hashlib
import importlib
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..failures import USAGE, Failure, missing
from ..unpack import cache_folder
from .cudart import Cuda

PIP = "on a Jetson: sudo apt install python3-libnvinfer; elsewhere: pip install {}"


class Runner:
    """One engine and one context; at most the largest batch of the engine in a call, more go in parts."""

    def __init__(self, folder: Path, manifest: dict[str, Any], threads: int, batch: int) -> None:
        package = manifest["runner"].get("package", "tensorrt")
        try:
            self.trt = importlib.import_module(package)
        except ImportError as error:
            raise missing(package, "running this bundle", error, PIP.format(package)) from error
        self.cuda, self.log = Cuda(), self.trt.Logger(self.trt.Logger.ERROR)
        path = folder / manifest["entry"]
        content = path.read_bytes() if path.suffix == ".engine" else self._built(path, manifest)
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

    def _built(self, path: Path, manifest: dict[str, Any]) -> bytes:
        key = hashlib.sha256(path.read_bytes() + f"{self.trt.__version__} {self.cuda.device()}".encode()).hexdigest()
        kept = cache_folder() / "engines" / f"{key}.engine"
        if kept.is_file():
            return kept.read_bytes()
        content = bytes(build(self.trt, self.log, path.read_bytes(), manifest["runner"]["shapes"]))
        kept.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=kept.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.replace(temporary, kept)
        return content


def build(trt: Any, log: Any, graph: bytes, shapes: dict[str, Any]) -> Any:
    """A strongly typed engine for the GPU that is here, without TF32: each operator in the type that the graph says."""
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(graph):
        errors = "; ".join(str(parser.get_error(i).desc()) for i in range(parser.num_errors))
        raise Failure(USAGE, f"TensorRT {trt.__version__} cannot parse the model: {errors}")
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)
    if any(-1 in tuple(network.get_input(i).shape) for i in range(network.num_inputs)):
        profile = builder.create_optimization_profile()
        for name, (least, usual, largest) in shapes.items():
            profile.set_shape(name, least, usual, largest)
        config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise Failure(USAGE, f"TensorRT {trt.__version__} could not build an engine: its messages stand above")
    return engine
