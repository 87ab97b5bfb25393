"""ONNX Runtime on the CPU."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..failures import USAGE, Failure, missing


def runtime(manifest: dict[str, Any]) -> Any:
    """The package, imported."""
    try:
        import onnxruntime
    except ImportError as error:
        raise missing("onnxruntime", "running this bundle", error) from error
    onnxruntime.disable_telemetry_events()
    return onnxruntime


class Runner:
    """One session; any batch where the model's first axis is dynamic."""

    def __init__(self, folder: Path, manifest: dict[str, Any], threads: int, batch: int) -> None:
        ort = runtime(manifest)
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self.prepare(options)
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

    def prepare(self, options: Any) -> None:
        """Further settings of the session, before it is made."""

    def infer(self, arrays: Sequence[Any]) -> list[Any]:
        """Outputs for one batch."""
        return list(self.session.run(self.outputs, dict(zip(self.inputs, arrays))))


class Profiled(Runner):
    """A session that writes how long every operator took, to a file in a folder of its own."""

    def prepare(self, options: Any) -> None:
        """Switch the profile on."""
        self.folder = tempfile.mkdtemp(prefix="edgekit-")
        options.enable_profiling = True
        options.profile_file_prefix = os.path.join(self.folder, "profile")

    def layers(self) -> list[tuple[str, str, list[float]]]:
        """Name, operator and seconds in every inference, of every node that ran. Ends the profile."""
        try:
            with open(self.session.end_profiling(), encoding="utf-8") as file:
                events = json.load(file)
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)
        found: dict[str, tuple[str, list[float]]] = {}
        for event in events:
            name = event["name"]
            if event.get("cat") == "Node" and name.endswith("_kernel_time"):
                kind = event["args"].get("op_name", "")
                found.setdefault(name[: -len("_kernel_time")], (kind, []))[1].append(event["dur"] * 1e-6)
        return [(name, kind, seconds) for name, (kind, seconds) in found.items()]
