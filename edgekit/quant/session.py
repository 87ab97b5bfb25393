"""A float graph compiled once and run batch after batch, on whichever runtime is installed."""

from __future__ import annotations

import importlib.util
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib import metadata
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from edgekit.extras import require

if TYPE_CHECKING:
    import onnx

Array = npt.NDArray[Any]
Session = Callable[[Sequence[Array]], list[Array]]


def open_session(proto: onnx.ModelProto, *, runtime: str | None = None) -> Session:
    """Compile `proto` and return the function from inputs to outputs, both in the graph's order.

    OpenVINO is taken first: it reduces inside the graph about twice as fast as ONNX Runtime. Where sums of 8-bit
    products saturate on this processor, and the graph's weights are that large, ONNX Runtime computes them in float,
    if it is there.
    """
    from edgekit.agent.infer import IN_FLOAT
    from edgekit.graph.execute import overflows
    from edgekit.graph.large import loadable

    exact = overflows(proto) and importlib.util.find_spec("onnxruntime") is not None
    names = [item.name for item in proto.graph.input]
    if runtime is None:
        runtime = "openvino" if importlib.util.find_spec("openvino") else "onnxruntime"
    if runtime == "openvino" and not exact:
        return _openvino(proto)
    ort = require("onnxruntime", extra="onnxruntime", why="running a model during calibration")
    ort.disable_telemetry_events()
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if exact:
        options.add_session_config_entry(*IN_FLOAT)
    with loadable(proto) as content:
        session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    def run(inputs: Sequence[Array]) -> list[Array]:
        return list(session.run(None, dict(zip(names, inputs, strict=True))))

    return run


def _compiled(proto: onnx.ModelProto, *, streams: int = 1) -> Any:
    ov = require("openvino", extra="openvino", why="running a model during calibration")
    from edgekit.graph.large import loadable
    from edgekit.graph.tools import transposed_apart

    core = ov.Core()
    # fp32 means fp32: on processors with bfloat16 units the default is bfloat16.
    settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32"}
    if streams > 1:
        settings |= {"NUM_STREAMS": streams, "INFERENCE_NUM_THREADS": os.cpu_count() or 1}
    with loadable(transposed_apart(proto)) as content:
        return core.compile_model(core.read_model(content), "CPU", settings)


def _openvino(proto: onnx.ModelProto) -> Session:
    compiled = _compiled(proto)
    ports = list(compiled.outputs)

    def run(inputs: Sequence[Array]) -> list[Array]:
        results = compiled(list(inputs))
        return [results[port].copy() for port in ports]

    return run


def streaming_runtime() -> tuple[str, str]:
    """Which runtime `stream` takes, and its version."""
    if importlib.util.find_spec("openvino"):
        return "openvino", metadata.version("openvino")
    ort = require("onnxruntime", extra="onnxruntime", why="running a model during calibration")
    return "onnxruntime", str(ort.__version__)


def stream(proto: onnx.ModelProto, batches: Iterable[Sequence[Array]]) -> Iterator[tuple[Sequence[Array], list[Array]]]:
    """Every batch with its outputs, in order. The outputs are valid until the next batch is asked for.

    In OpenVINO each core works on a batch of its own: small batches then stay in its cache, which makes a pass that
    looks at every tensor a third cheaper than one that shares each operator among the cores.
    """
    if streaming_runtime()[0] == "onnxruntime":
        session = open_session(proto, runtime="onnxruntime")
        for batch in batches:
            yield batch, session(batch)
        return
    cores = os.cpu_count() or 1
    compiled = _compiled(proto, streams=cores)
    requests = [compiled.create_infer_request() for _ in range(cores + 1)]  # one waits while another is read
    running: deque[tuple[Sequence[Array], Any]] = deque()
    ports = range(len(compiled.outputs))
    for count, batch in enumerate(batches):
        if len(running) == len(requests):
            yield _finished(*running.popleft(), ports)
        request = requests[count % len(requests)]
        request.start_async(list(batch), share_inputs=True)
        running.append((batch, request))
    while running:
        yield _finished(*running.popleft(), ports)


def _finished(batch: Sequence[Array], request: Any, ports: Iterable[int]) -> tuple[Sequence[Array], list[Array]]:
    request.wait()
    return batch, [request.get_output_tensor(port).data for port in ports]
