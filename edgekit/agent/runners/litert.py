"""LiteRT by ai-edge-litert, or by tflite-runtime where that is what a board has."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from ..failures import USAGE, Failure, missing

PIP = "pip install ai-edge-litert (or, for Python 3.11 and earlier: pip install tflite-runtime 'numpy<2')"

NO_PROFILE = "the Python interface of LiteRT and tflite-runtime has no profiler: their C++ benchmark_model has one"


def runtime(manifest: dict[str, Any]) -> tuple[str, Any]:
    """The package that is installed, newest kind first, and its interpreter module."""
    seen = []
    try:
        from ai_edge_litert import interpreter

        return "ai-edge-litert", interpreter
    except ImportError as error:
        seen.append(str(error))
    try:
        from tflite_runtime import interpreter

        if int(np.__version__.partition(".")[0]) < 2:
            return "tflite-runtime", interpreter
        # It imports, and fails later with an error that tells nothing.
        seen.append(f"tflite-runtime is built for numpy 1, this is numpy {np.__version__}")
    except ImportError as error:
        seen.append(str(error))
    raise missing("ai-edge-litert or tflite-runtime", "running this bundle", ImportError("; ".join(seen)), PIP)


class Runner:
    """One interpreter. The model takes one sample; a larger batch goes through it sample by sample.

    `manifest.runner` may hold `inputs` and `outputs`: for each of the manifest's, its position in the model's.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any], threads: int, batch: int) -> None:
        package, module = runtime(manifest)
        path = folder / manifest["entry"]
        version = metadata.version(package)
        # Found where the bundle was built, by reading the model: the runtime itself gives wrong numbers without a word.
        reason = manifest["runner"].get("refused", {}).get(package)
        if reason:
            raise Failure(USAGE, f"{package} {version} would run this model wrongly: {reason}")
        try:
            self.interpreter = module.Interpreter(model_path=str(path), num_threads=threads)
            self.interpreter.allocate_tensors()
        except (RuntimeError, ValueError) as error:
            raise Failure(USAGE, f"{package} {version} cannot load the model: {error}") from error
        self.inputs = self._places(self.interpreter.get_input_details(), manifest, "inputs")
        self.outputs = self._places(self.interpreter.get_output_details(), manifest, "outputs")
        self.size = int(self.interpreter.get_input_details()[0]["shape"][0])
        self.versions = {package: version}

    def _places(self, details: Sequence[dict[str, Any]], manifest: dict[str, Any], which: str) -> list[int]:
        order = manifest["runner"].get(which, range(len(manifest[which])))
        if len(order) != len(details):
            raise Failure(USAGE, f"the model has {len(details)} {which}, the manifest {len(order)}")
        return [int(details[position]["index"]) for position in order]

    def infer(self, arrays: Sequence[Any]) -> list[Any]:
        """Outputs for one batch."""
        if len(arrays[0]) == self.size:
            return self._once(arrays)
        starts = range(0, len(arrays[0]), self.size)
        parts = [self._once([array[start : start + self.size] for array in arrays]) for start in starts]
        return [np.concatenate(outputs) for outputs in zip(*parts)]

    def _once(self, arrays: Sequence[Any]) -> list[Any]:
        for place, array in zip(self.inputs, arrays):
            self.interpreter.set_tensor(place, array)
        self.interpreter.invoke()
        return [self.interpreter.get_tensor(place) for place in self.outputs]
