"""What is compared: edgekit, its peers, and where each is run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
OWN = ""
"""The environment that the benchmark itself runs in."""

ENVIRONMENTS = {
    "nncf": ("nncf==3.4.0", "openvino==2026.4.1", "onnxruntime==1.32.0", "onnx==1.23.2"),
    "aimet": ("aimet-onnx==2.42.0",),
    "modelopt": ("nvidia-modelopt[onnx]==0.47.0",),
}
"""Packages of each peer's own environment."""

ACCURATE, BASE = "5M", 256
"""The network whose weights are real, and the number of images that accuracy and latency are of."""

COUNTS = {"0.3M": (256,), "5M": (64, 256, 1024), "25M": (64,), "86M": (64,)}
"""Calibration sets that each network is quantized with; those with random weights serve for time and memory alone."""

SLOW_OK = (("0.3M", 256), ("5M", 64), ("5M", 256))
"""Where tools that are slow with large networks or many images are run."""

CENTRE = (("5M", 256),)
ONNX = {"onnxruntime": "int8.onnx", "openvino": "int8.onnx"}


@dataclass(frozen=True)
class Tool:
    """A peer, or edgekit. `command` has places for the network's file and name, the images and the output folder.

    `files` is runtime -> the file for it in the output folder, as a pattern. `where` are (network, images) that it is
    run with, () all of them. `quick` says whether `--quick` runs it too.
    """

    name: str
    command: tuple[str, ...]
    files: Mapping[str, str]
    environment: str = OWN
    where: tuple[tuple[str, int], ...] = ()
    quick: bool = False
    settings: Mapping[str, str] = field(default_factory=dict)
    backends: tuple[str, ...] = ()

    @property
    def own(self) -> bool:
        """Whether this is edgekit."""
        return bool(self.backends)

    @property
    def slug(self) -> str:
        """A name for folders."""
        return "".join(c if c.isalnum() else "-" for c in self.name.lower())


def _edgekit(name: str, backends: Sequence[str], settings: Mapping[str, str] | None = None, **more: Any) -> Tool:
    files = {
        "onnxruntime": "models/*-onnxruntime-quantized-int8/model.onnx",
        "openvino": "models/*-openvino-quantized-int8/model.[ox]*",
        "litert": "models/*-litert-quantized-int8/model.tflite",
    }
    command = ("-m", "edgekit", "run", "{out}/recipe.yaml", "--until", "emit", "--out", "{out}", "--quiet")
    # With LiteRT the other files are the same again.
    wanted = ("litert",) if "litert" in backends else backends
    found = {backend: files[backend] for backend in wanted if backend in files}
    return Tool(name, command, found, settings=settings or {}, backends=tuple(backends), **more)


def _script(name: str, environment: str, script: str, *args: str, files: Mapping[str, str], **more: Any) -> Tool:
    return Tool(name, (str(HERE / script), *args), files, environment, **more)


def _quantize_static(name: str, method: str, stride: int, **more: Any) -> Tool:
    args = ("{model}", "{data}", "{out}/int8.onnx", method, str(stride))
    return _script(f"quantize_static, {name}", "nncf", "ort_static.py", *args, files=ONNX, **more)


def _nncf_openvino(bias: str, preset: str, **more: Any) -> Tool:
    args = ("{model}", "{data}", "{out}/int8.xml", bias, preset)
    name = f"NNCF on OpenVINO, {preset}, {bias} correction"
    return _script(name, "nncf", "nncf_openvino.py", *args, files={"openvino": "int8.xml"}, **more)


THREE = ("onnxruntime", "openvino", "tensorrt")
EDGEKIT, EDGEKIT_FAST, EDGEKIT_LITERT = "edgekit", "edgekit, fast", "edgekit with LiteRT"
LITERT_FLOAT = "litert-torch, float"
_IN_OUT = ("{model}", "{data}", "{out}/int8.onnx")

TOOLS = (
    _edgekit(EDGEKIT, THREE, quick=True),
    _edgekit(EDGEKIT_FAST, THREE, {"effort": "fast"}, quick=True),
    _edgekit(EDGEKIT_LITERT, (*THREE, "litert"), where=SLOW_OK[1:]),
    *(
        _edgekit(f"edgekit, {calibration}", THREE, {"calibration": calibration}, where=(*SLOW_OK[1:], ("5M", 1024)))
        for calibration in ("minmax", "percentile", "entropy", "mse")
    ),
    _quantize_static("min-max", "MinMax", 0, quick=True),
    _quantize_static("percentile", "Percentile", 0, where=(("5M", 64),)),
    _quantize_static("percentile in strides", "Percentile", 16, where=CENTRE),
    _quantize_static("entropy in strides", "Entropy", 16, where=CENTRE),
    _script("NNCF on ONNX", "nncf", "nncf_onnx.py", *_IN_OUT, "fast", "performance", files=ONNX),
    _nncf_openvino("fast", "performance", quick=True),
    _nncf_openvino("full", "performance", where=SLOW_OK),
    _nncf_openvino("fast", "mixed", where=CENTRE),
    _nncf_openvino("full", "mixed", where=CENTRE),
    _script("AIMET ONNX", "aimet", "aimet.py", *_IN_OUT, files=ONNX, where=SLOW_OK),
    _script("modelopt", "modelopt", "modelopt_int8.py", *_IN_OUT, files=ONNX, where=SLOW_OK),
    _script(LITERT_FLOAT, OWN, "litert_float.py", "{net}", "{out}/float.tflite",
            files={"litert": "float.tflite"}, where=CENTRE),
    _script("litert-torch and ai-edge-quantizer", OWN, "litert_int8.py", "{net}", "{data}", "{out}/int8.tflite",
            files={"litert": "int8.tflite"}, where=CENTRE),
)  # fmt: skip


def recipe(tool: Tool, model: Path, data: Path, images: int) -> str:
    """The recipe that edgekit is run with."""
    litert = "litert" in tool.backends
    targets = [
        {"target": "x86-64", "backends": [b for b in tool.backends if b != "tensorrt"]},
        *([{"target": "rtx-ampere", "backends": ["tensorrt"]}] if "tensorrt" in tool.backends else []),
    ]
    prepared = {"scale": 1 / 128, "offset": -127 / 128, "layout": "NHWC", "to": "NCHW"}
    content = {
        "version": 1,
        "model": {"source": str(model), "name": "litert" if litert else "net"},
        "data": {"source": str(data), "task": "none", "preprocess": prepared},
        "stages": [{"quantize": {**tool.settings, "samples": images}}],
        "targets": targets,
    }
    return json.dumps(content, indent=1)  # JSON is YAML
