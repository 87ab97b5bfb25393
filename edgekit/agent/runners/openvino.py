"""OpenVINO on the CPU, in the precision that the manifest says."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..failures import USAGE, Failure, missing


class Runner:
    """One compiled model and one request, for exactly `batch` samples a call."""

    def __init__(self, folder: Path, manifest: dict[str, Any], threads: int, batch: int) -> None:
        # openvino imports a package that reports usage, if it is there; without it it takes a stub of its own.
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
        try:
            import openvino as ov
        except ImportError as error:
            raise missing("openvino", "running this bundle", error) from error
        core = ov.Core()
        # One stream, threads where the scheduler puts them: the process's affinity is what a measurement records.
        # The manifest's hints come last: without them OpenVINO computes in bfloat16 where the processor can.
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": "1",
            "INFERENCE_NUM_THREADS": threads,
            "ENABLE_CPU_PINNING": False,
            **manifest["runner"].get("hints", {}),
        }
        try:
            model = core.read_model(str(folder / manifest["entry"]))
            names = [entry["name"] for entry in manifest["inputs"]]
            if model.is_dynamic():
                model.reshape({name: self._shape(entry, batch) for name, entry in zip(names, manifest["inputs"])})
            compiled = core.compile_model(model, manifest["runner"].get("device", "CPU"), settings)
            self.request = compiled.create_infer_request()
            self.inputs = [compiled.input(name) for name in names]
            self.outputs = [compiled.output(entry["name"]) for entry in manifest["outputs"]]
        except RuntimeError as error:
            raise Failure(USAGE, f"OpenVINO {ov.__version__} cannot load the model: {error}") from error
        self.versions = {"openvino": ov.__version__}

    def _shape(self, entry: dict[str, Any], batch: int) -> list[int]:
        return [d if isinstance(d, int) else batch if i == 0 else -1 for i, d in enumerate(entry["shape"])]

    def infer(self, arrays: Sequence[Any]) -> list[Any]:
        """Outputs for one batch. They are copied: the runtime uses its own memory again in the next call."""
        self.request.infer(dict(zip(self.inputs, arrays)))
        return [np.array(self.request.get_tensor(port).data) for port in self.outputs]
