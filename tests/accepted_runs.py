"""A run with a real bundle beside its report, to be accepted as a baseline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import agent_bundles as small
import gate_reports as made
import numpy as np

from edgekit.bundle import Bundle, write_bundle
from edgekit.report.report import DataInfo, DeviceInfo

DEVICE = {"name": "local", "fingerprint": "f" * 64, "threads": 1, "versions": {"onnxruntime": "1.23", "numpy": "2.1"}}


def device(**changes: Any) -> DeviceInfo:
    return DeviceInfo(**{**DEVICE, **changes})


def bundle(folder: Path, content: bytes = b"model") -> Bundle:
    """The smallest bundle that opens; nothing here runs it."""
    folder.mkdir(parents=True, exist_ok=True)
    model = folder / "model.bin"
    model.write_bytes(content)
    one = np.zeros((1, 1, 2, 2), np.float32)
    manifest = small.manifest(role="quantized", precision="int8", target="pc")
    written = write_bundle(folder / "net-pc.edge", manifest, {"model.onnx": model}, [one], [one[:, 0, 0]])
    model.unlink()
    return written


def run(folder: Path, *, content: bytes = b"model", wrong: int = 140, data: str = "ab" * 32, **more: Any) -> Path:
    """What a run leaves, with `report.json`; `more` are fields of the report and of the result that ships."""
    held = bundle(folder / "bundles", content)
    of_report = {key: more.pop(key) for key in ("created", "gate", "source") if key in more}
    shipped = made.result(
        wrong=wrong,
        **{
            "device": device(), "bundle": "bundles/net-pc.edge", "bundle_sha256": held.sha256,
            "bundle_bytes": held.size_bytes, **more,
        },
    )  # fmt: skip
    info = DataInfo(name="d", split="test", n=made.N, sha256=data, classes=("a", "b", "c", "d"))
    made.write(folder, made.report(shipped, data=info, **of_report), {"quantized": wrong})
    return folder
