"""Run a graph or a module on the host, in true float32, over many samples: the oracle of everything else."""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from edgekit.agent import state
from edgekit.agent.infer import IN_FLOAT
from edgekit.errors import UsageError
from edgekit.extras import require
from edgekit.graph.large import fingerprint, is_large, loadable
from edgekit.graph.tools import Array, tensor_specs, transposed_apart

if TYPE_CHECKING:
    from torch import nn

Runner = Callable[[Sequence[Array]], list[Array]]

KEPT_SESSIONS = 4
SEVEN_BITS = 64
"""Weights up to this keep sums of two products with 8 unsigned bits within 16 bits."""
_sessions: OrderedDict[tuple[str, int], Runner] = OrderedDict()


def run_onnx(
    proto: onnx.ModelProto, inputs: Sequence[Array], *, batch: int = 64, threads: int | None = None
) -> list[Array]:
    """The outputs for all samples, computed in float32 by ONNX Runtime or, where that is missing, OpenVINO.

    `inputs` are arrays `[n, ...]` in the order of the graph's inputs. A dynamic first axis takes `batch` samples at
    a time; a fixed one takes as many as it says, the last group filled up. `threads` None means all cores.

    Raises:
        UsageError: the number, dtype or shape of the inputs does not fit the graph.
        MissingDependencyError: no runtime is installed.
    """
    specs, _ = tensor_specs(proto)
    arrays = [np.ascontiguousarray(array) for array in inputs]
    if len(arrays) != len(specs):
        raise UsageError(
            f"The model takes {len(specs)} inputs ({', '.join(s.name for s in specs)}), got {len(arrays)}."
        )
    for spec, array in zip(specs, arrays, strict=True):
        pairs = zip(spec.shape[1:], array.shape[1:], strict=False)
        fits = array.ndim == len(spec.shape) and all(isinstance(d, str) or d == n for d, n in pairs)
        if not fits or array.dtype != spec.dtype:
            wanted = f"{spec.dtype} {list(spec.shape)}"
            raise UsageError(f"Input {spec.name!r} must be {wanted}, got {array.dtype} {list(array.shape)}.")
    runner = _runner(proto, threads or os.cpu_count() or 1)
    if not specs or any(not spec.shape for spec in specs):
        return runner(arrays)
    fixed = {spec.shape[0] for spec in specs if isinstance(spec.shape[0], int)}
    if len(fixed) > 1:
        return runner(arrays)
    return _in_groups(runner, arrays, int(min(fixed)) if fixed else batch, fill=bool(fixed))


def run_torch(module: nn.Module, inputs: Sequence[Array], *, batch: int = 64) -> list[Array]:
    """The module's outputs for all samples, in evaluation mode and without gradients; its mode is restored."""
    import torch

    device = next((p.device for p in module.parameters()), torch.device("cpu"))

    def runner(arrays: Sequence[Array]) -> list[Array]:
        tensors = [torch.from_numpy(np.ascontiguousarray(array)).to(device) for array in arrays]
        result = module(*tensors)
        results = result if isinstance(result, tuple | list) else (result,)
        return [value.detach().cpu().numpy() for value in results]

    training = module.training
    module.eval()
    try:
        with torch.no_grad():
            return _in_groups(runner, list(inputs), batch, fill=False)
    finally:
        module.train(training)


def _in_groups(runner: Runner, arrays: Sequence[Array], size: int, *, fill: bool) -> list[Array]:
    counts = {len(array) for array in arrays}
    if len(counts) != 1:
        raise UsageError(f"All inputs must hold the same number of samples, got {[len(array) for array in arrays]}.")
    (count,) = counts
    groups: list[list[Array]] = []
    for start in range(0, count, size):
        part = [array[start : start + size] for array in arrays]
        present = len(part[0])
        if fill and present < size:
            part = [np.concatenate([array, np.repeat(array[-1:], size - present, axis=0)]) for array in part]
        groups.append([value[:present] if present < size and fill else value for value in runner(part)])
    if not groups:
        raise UsageError("There are no samples to run. Give at least one.")
    if len(groups) == 1:
        return groups[0]
    return [np.concatenate(values) for values in zip(*groups, strict=True)]


def _runner(proto: onnx.ModelProto, threads: int) -> Runner:
    """A loaded model, kept for the next call with the same bytes."""
    key = (hashlib.sha256(fingerprint(proto)).hexdigest(), threads)
    if key not in _sessions:
        has_runtime = importlib.util.find_spec("onnxruntime") is not None
        with loadable(proto if has_runtime else transposed_apart(proto)) as content:
            runner = _onnxruntime(content, threads, overflows(proto)) if has_runtime else _openvino(content, threads)
        if is_large(proto):  # its memory is wanted elsewhere
            return runner
        _sessions[key] = runner
        while len(_sessions) > KEPT_SESSIONS:
            _sessions.popitem(last=False)
    _sessions.move_to_end(key)
    return _sessions[key]


@cache
def saturates_here() -> bool:
    """Whether sums of 8-bit products overflow on this processor."""
    here = state.machine()
    return state.saturates(here["arch"], here["features"])


def overflows(proto: onnx.ModelProto) -> bool:
    """Whether 8-bit kernels of this processor would add up something else than the graph says."""
    if not saturates_here():
        return False
    multiplied = {name for node in proto.graph.node if node.op_type != "Gather" for name in node.input}
    weights = (
        onnx.numpy_helper.to_array(tensor)
        for tensor in proto.graph.initializer
        if tensor.data_type == onnx.TensorProto.INT8 and tensor.name in multiplied
    )
    return any(weight.size and (weight.max() > SEVEN_BITS or weight.min() < -SEVEN_BITS) for weight in weights)


def _onnxruntime(content: bytes | str, threads: int, in_float: bool) -> Runner:
    runtime = require("onnxruntime", extra="onnxruntime", why="running an ONNX graph")
    runtime.disable_telemetry_events()
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    if in_float:
        options.add_session_config_entry(*IN_FLOAT)
    if isinstance(content, str):  # a second copy of large weights, laid out for speed, might not fit
        options.add_session_config_entry("session.disable_prepacking", "1")
    session = runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]

    def run(arrays: Sequence[Array]) -> list[Array]:
        return list(session.run(None, dict(zip(names, arrays, strict=True))))

    return run


def _openvino(content: bytes | str, threads: int) -> Runner:
    openvino = require("openvino", extra="openvino", why="running an ONNX graph without ONNX Runtime")
    core = openvino.Core()
    # Processors with bfloat16 would otherwise compute in it.
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
    compiled = core.compile_model(core.read_model(content), "CPU", settings)
    request = compiled.create_infer_request()

    def run(arrays: Sequence[Array]) -> list[Array]:
        found: Any = request.infer(list(arrays))
        return [np.array(found[output]) for output in compiled.outputs]

    return run
