"""A float graph compiled once and run batch after batch, on whichever runtime is installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from edgekit.extras import require

if TYPE_CHECKING:
    import onnx

Array = npt.NDArray[Any]
Session = Callable[[Sequence[Array]], list[Array]]


def open_session(proto: onnx.ModelProto, *, runtime: str | None = None) -> Session:
    """Compile `proto` and return the function from inputs to outputs, both in the graph's order.

    OpenVINO is taken first: it reduces inside the graph about twice as fast as ONNX Runtime.
    """
    names = [item.name for item in proto.graph.input]
    if runtime is None:
        runtime = "openvino" if importlib.util.find_spec("openvino") else "onnxruntime"
    if runtime == "openvino":
        return _openvino(proto)
    ort = require("onnxruntime", extra="onnxruntime", why="running a model during calibration")
    ort.disable_telemetry_events()
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def run(inputs: Sequence[Array]) -> list[Array]:
        return list(session.run(None, dict(zip(names, inputs, strict=True))))

    return run


def _openvino(proto: onnx.ModelProto) -> Session:
    ov = require("openvino", extra="openvino", why="running a model during calibration")
    core = ov.Core()
    # fp32 means fp32: on processors with bfloat16 units the default is bfloat16.
    compiled = core.compile_model(
        core.read_model(proto.SerializeToString()), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    ports = list(compiled.outputs)

    def run(inputs: Sequence[Array]) -> list[Array]:
        results = compiled(list(inputs))
        return [results[port].copy() for port in ports]

    return run
