"""A model file on one of three runtimes, as a function of one batch."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

Function = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Loaded:
    """`prepare` makes a float batch what the file's only input takes; `run` gives its first output, in float."""

    run: Function
    prepare: Function = lambda x: x


def load(runtime: str, path: str, threads: int) -> Loaded:
    """Load a file. LiteRT's files take one sample at a time, and some take and give integers."""
    return {"onnxruntime": _onnxruntime, "openvino": _openvino, "litert": _litert}[runtime](path, threads)


def _onnxruntime(path: str, threads: int) -> Loaded:
    import onnxruntime

    onnxruntime.disable_telemetry_events()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return Loaded(lambda x: session.run(None, {name: x})[0])


def _openvino(path: str, threads: int) -> Loaded:
    import openvino

    # OpenVINO's own default on processors with bfloat16 units is not fp32.
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(path), "CPU", settings)
    return Loaded(lambda x: compiled([x])[0].copy())


def _litert(path: str, threads: int) -> Loaded:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=Path(path).read_bytes(), num_threads=threads)
    interpreter.allocate_tensors()
    (given,), made = interpreter.get_input_details(), interpreter.get_output_details()[0]

    def prepare(x: np.ndarray) -> np.ndarray:
        if given["dtype"] == np.float32:
            return x
        scale, zero = given["quantization"]
        ends = np.iinfo(given["dtype"])
        return np.clip(np.round(x / scale) + zero, ends.min, ends.max).astype(given["dtype"])

    def run(x: np.ndarray) -> np.ndarray:
        results = []
        for sample in x:
            interpreter.set_tensor(given["index"], sample[None])
            interpreter.invoke()
            results.append(interpreter.get_tensor(made["index"]))
        answers = np.concatenate(results)
        if made["dtype"] == np.float32:
            return answers
        scale, zero = made["quantization"]
        return (answers.astype(np.float32) - zero) * scale

    return Loaded(run, prepare)
