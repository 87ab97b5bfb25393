"""ONNX Runtime: one `model.onnx`, float or with Q/DQ that its optimizer fuses into 8-bit kernels."""

from __future__ import annotations

import platform
import re
from importlib import metadata
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from edgekit.backends import Availability, Built, Job
from edgekit.backends._emitted import emitted, output_steps, write_graph
from edgekit.errors import BuildError
from edgekit.extras import pip_command, require

if TYPE_CHECKING:
    from pathlib import Path

    import onnx

FLAVOURS = (
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-openvino",
    "onnxruntime-directml",
    "onnxruntime-qnn",
    "onnxruntime-training",
    "ort-nightly",
)
"""Distributions that install the package `onnxruntime`; importing it does not tell which one did."""

TOLERANCE = 1e-4
"""How far a float build may stray from the host's outputs, as a share of their largest magnitude (at least 1)."""


class OnnxRuntime:
    """Builds for ONNX Runtime's CPU kernels."""

    name: ClassVar[str] = "onnxruntime"

    def availability(self) -> Availability:
        """Found from the installed distributions' metadata."""
        flavour = installed()
        if flavour is None:
            reason = f"the package 'onnxruntime' is missing: {pip_command('onnxruntime')}"
            return Availability(compiles=False, runs=False, reason=reason)
        version = " ".join(flavour)
        try:
            metadata.version("onnx")
        except metadata.PackageNotFoundError:
            reason = f"it runs, but building needs the package 'onnx': {pip_command('onnx')}"
            return Availability(compiles=False, runs=True, version=version, reason=reason)
        return Availability(compiles=True, runs=True, version=version)

    def emit(self, job: Job) -> dict[str, Path]:
        """The graph alone, unloaded and unchecked."""
        require("onnx", extra="onnx", why="emitting a graph for ONNX Runtime")
        return write_graph(emitted(job, self.name), job)

    def build(self, job: Job) -> Built:
        """Emit, save, load the saved file, run the samples, and read what the optimizer made of it.

        Raises:
            BuildError: operators that ONNX Runtime lacks (named), or a float build that strays from the host's outputs.
            MissingDependencyError: onnx or onnxruntime is not installed.
        """
        require("onnx", extra="onnx", why="building for ONNX Runtime")
        ort = require("onnxruntime", extra="onnxruntime", why="building for ONNX Runtime")
        from edgekit.backends._onnxruntime_graph import conversions, placement

        proto = emitted(job, self.name)
        path = job.work / "model.onnx"
        _write(path, proto.SerializeToString(deterministic=True))
        try:
            optimized = _optimized(ort, path, proto)
            _check(ort, path, job)
        except BaseException:
            path.unlink()
            raise
        spec = job.model.quant if job.role == "quantized" else None
        return Built(
            status="built",
            files={"model.onnx": path},
            entry="model.onnx",
            placement=placement(optimized, proto, spec),
            versions=_versions(),
            steps=output_steps(proto),
            notes=(*conversions(optimized, spec), *_notes(job)),
        )


def installed() -> tuple[str, str] | None:
    """The installed flavour of ONNX Runtime and its version."""
    for flavour in FLAVOURS:
        try:
            return flavour, metadata.version(flavour)
        except metadata.PackageNotFoundError:
            continue
    return None


def _versions() -> dict[str, str]:
    flavour = installed()
    return {"onnx": metadata.version("onnx"), **({flavour[0]: flavour[1]} if flavour else {})}


def _notes(job: Job) -> tuple[str, ...]:
    here = platform.machine()
    if job.target.arch == here:
        return ()
    return (f"placement is that of ONNX Runtime on this {here} machine; on {job.target.arch} it may differ",)


def _write(path: Path, data: bytes) -> None:
    part = path.with_name(f"{path.name}.part")
    part.write_bytes(data)
    part.replace(path)


def _options(ort: ModuleType) -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    return options


def _optimized(ort: ModuleType, path: Path, proto: onnx.ModelProto) -> onnx.ModelProto:
    """The graph after ONNX Runtime's own optimizer, before layouts are chosen; proof that the file loads."""
    import onnx

    options = _options(ort)
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    written = path.with_name("optimized.onnx")
    options.optimized_model_filepath = str(written)
    try:
        ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exception types derive from Exception alone
        stopped = unsupported(str(error), proto)
        named = f": {', '.join(stopped)}" if stopped else ""
        raise BuildError(f"ONNX Runtime cannot load the model{named}. It says: {_short(error)}", stopped) from error
    result = onnx.load(written, load_external_data=False)
    written.unlink()
    return result


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:400]


def unsupported(message: str, proto: onnx.ModelProto) -> tuple[str, ...]:
    """Names of the nodes that an error message of ONNX Runtime means.

    It names an operator (`Could not find an implementation for Foo(9) node with name 'x'`, `domain:Foo(-1) is not a
    registered function/op`) or a node (`Node (x) Op (Foo)`); an operator stands for all of its nodes.
    """
    from edgekit.backends._emitted import nodes, nodes_in

    kinds = set(re.findall(r"implementation for (\w+)\(", message))
    kinds |= set(
        re.findall(r"(?:No Op registered for |[\w.]*:)(\w+)(?:\(-?\d+\))? (?:is not a registered|with domain)", message)
    )
    kinds |= set(re.findall(r"No Op registered for (\w+)", message))
    found = tuple(node.name for node in nodes(proto.graph) if node.op_type in kinds)
    return found or nodes_in(message.replace("(", " ( ").replace(")", " ) "), proto)


def _check(ort: ModuleType, path: Path, job: Job) -> None:
    """The saved file gives the host's numbers (float builds) or at least finite ones (quantized builds)."""
    if not job.samples:
        return
    session = ort.InferenceSession(str(path), _options(ort), providers=["CPUExecutionProvider"])
    outputs = _run(session, job)
    if not all(np.isfinite(output).all() for output in outputs if output.dtype.kind == "f"):
        raise BuildError(
            f"ONNX Runtime's {job.precision} build of {job.model.name!r} gives outputs that are not finite."
        )
    from edgekit.backends._emitted import computes_in_integers

    if computes_in_integers(job):
        return
    from edgekit.graph.execute import run_onnx

    expected = run_onnx(job.model.proto, job.samples)
    for spec, seen, wanted in zip(job.model.outputs, outputs, expected, strict=True):
        allowed = TOLERANCE * max(1.0, float(np.abs(wanted).max(initial=0.0)))
        off = float(np.abs(seen.astype(np.float64) - wanted).max(initial=0.0))
        if off > allowed:
            raise BuildError(
                f"ONNX Runtime's fp32 build of {job.model.name!r} strays from the host by {off:.2g} at output "
                f"{spec.name!r}; {allowed:.2g} is allowed."
            )


def _run(session: Any, job: Job) -> list[np.ndarray[Any, Any]]:
    """The samples one by one, as the agent will run them, or in batches of the size that the model is fixed to."""
    first = job.model.inputs[0].shape[0] if job.model.inputs[0].shape else None
    size = first if isinstance(first, int) else 1
    names = [spec.name for spec in job.model.inputs]
    parts = []
    for start in range(0, len(job.samples[0]) - size + 1, size):
        feed = {name: x[start : start + size] for name, x in zip(names, job.samples, strict=True)}
        parts.append(session.run(None, feed))
    return [np.concatenate(outputs) for outputs in zip(*parts, strict=True)]
