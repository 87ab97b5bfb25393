"""OpenVINO on the CPU, in the precision that the manifest says."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ..failures import USAGE, Failure, missing


def runtime(manifest: dict[str, Any]) -> Any:
    """The package, imported."""
    # openvino imports a package that reports usage, if it is there; without it it takes a stub of its own.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        import openvino
    except ImportError as error:
        raise missing("openvino", "running this bundle", error) from error
    return openvino


class Runner:
    """One compiled model and one request, for exactly `batch` samples a call."""

    more: ClassVar[dict[str, Any]] = {}
    """Settings that only a profile needs."""

    def __init__(self, folder: Path, manifest: dict[str, Any], threads: int, batch: int) -> None:
        ov = runtime(manifest)
        core = ov.Core()
        # One stream, threads where the scheduler puts them: the process's affinity is what a measurement records.
        # The manifest's hints come last: without them OpenVINO computes in bfloat16 where the processor can.
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": "1",
            "INFERENCE_NUM_THREADS": threads,
            "ENABLE_CPU_PINNING": False,
            **self.more,
            **manifest["runner"].get("hints", {}),
        }
        try:
            model = core.read_model(str(folder / manifest["entry"]))
            names = [entry["name"] for entry in manifest["inputs"]]
            if model.is_dynamic():
                model.reshape({name: self._shape(entry, batch) for name, entry in zip(names, manifest["inputs"])})
            compiled = core.compile_model(model, manifest["runner"].get("device", "CPU"), settings)
            self.request, self.tensor = compiled.create_infer_request(), ov.Tensor
            self.inputs: list[Any] = [compiled.input(name) for name in names]
            self.given = self.inputs  # no arrays yet
            self.outputs = [compiled.output(entry["name"]) for entry in manifest["outputs"]]
        except RuntimeError as error:
            raise Failure(USAGE, f"OpenVINO {ov.__version__} cannot load the model: {error}") from error
        self.versions = {"openvino": ov.__version__}

    def _shape(self, entry: dict[str, Any], batch: int) -> list[int]:
        return [d if isinstance(d, int) else batch if i == 0 else -1 for i, d in enumerate(entry["shape"])]

    def infer(self, arrays: Sequence[Any]) -> list[Any]:
        """Outputs for one batch. They are copied: the runtime uses its own memory again in the next call.

        The inputs are not, and handed over once where the same arrays come again with other values in them: by name it
        takes OpenVINO's Python 3 % of what EfficientNet-Lite0 takes.
        """
        if any(array is not given for array, given in zip(arrays, self.given)):
            self.given = [np.require(array, None, ["C", "W"]) for array in arrays]
            for port, array in zip(self.inputs, self.given):
                self.request.set_tensor(port, self.tensor(array, shared_memory=True))
        self.request.infer()
        return [np.array(self.request.get_tensor(port).data) for port in self.outputs]


class Profiled(Runner):
    """A request that tells after each inference how long every layer took."""

    more: ClassVar[dict[str, Any]] = {"PERF_COUNT": True}

    def infer(self, arrays: Sequence[Any]) -> list[Any]:
        """Outputs for one batch; the times are kept."""
        outputs = super().infer(arrays)
        self.__dict__.setdefault("seen", []).append(self.request.get_profiling_info())
        return outputs

    def layers(self) -> list[tuple[str, str, list[float]]]:
        """Name, kind of kernel and seconds in every inference, of every layer that ran."""
        found: dict[str, tuple[str, list[float]]] = {}
        for inference in self.__dict__.get("seen", []):
            for layer in inference:
                if str(layer.status).endswith("EXECUTED"):
                    kind = f"{layer.node_type} ({layer.exec_type})"
                    found.setdefault(layer.node_name, (kind, []))[1].append(layer.real_time.total_seconds())
        return [(name, kind, seconds) for name, (kind, seconds) in found.items()]
