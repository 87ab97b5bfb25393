"""ONNX Runtime on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..failures import USAGE, Failure, missing


class Runner:
    """One session; any batch where the model's first axis is dynamic."""

    def __init__(self, folder: Path, manifest: dict[str, Any], threads: int, batch: int) -> None:
        try:
            import onnxruntime as ort
        except ImportError as error:
            raise missing("onnxruntime", "running this bundle", error) from error
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Threads must not spin while another process is being measured; within an inference they may.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        for key, value in manifest["runner"].get("session", {}).items():
            options.add_session_config_entry(key, str(value))
        path = str(folder / manifest["entry"])
        try:
            self.session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the runtime's own classes, one for each status code
            raise Failure(USAGE, f"ONNX Runtime {ort.__version__} cannot load the model: {error}") from error
        self.inputs = [entry["name"] for entry in manifest["inputs"]]
        self.outputs = [entry["name"] for entry in manifest["outputs"]]
        self.versions = {"onnxruntime": ort.__version__}

    def infer(self, arrays: Sequence[Any]) -> list[Any]:
        """Outputs for one batch."""
        return list(self.session.run(self.outputs, dict(zip(self.inputs, arrays))))
