"""OpenVINO: model.xml and model.bin, in exactly the precision that the bundle's name says.

OpenVINO computes in bfloat16 where the processor can, and halves a file's weights, unless it is told otherwise:
both are off here, and what the runner must say is in `Built.runner`.
"""

from __future__ import annotations

import importlib.util
import platform
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from edgekit.backends import Availability, Built, Job
from edgekit.backends._emitted import computes_in_integers, emitted, nodes_in, one_line, output_steps, write_graph
from edgekit.errors import BuildError
from edgekit.extras import pip_command, require

if TYPE_CHECKING:
    import onnx

TOLERANCE = {"fp32": 1e-4, "fp16": 2e-2}
"""How far a float build may stray from the host's fp32 outputs, as a share of their largest magnitude (at least 1)."""


class OpenVino:
    """Compiles for Intel's runtime on x86-64 and ARM processors."""

    name: ClassVar[str] = "openvino"

    def availability(self) -> Availability:
        """Found from the installed packages' metadata."""
        if importlib.util.find_spec("openvino") is None:
            return Availability(False, False, reason=f"the package 'openvino' is missing: {pip_command('openvino')}")
        version = metadata.version("openvino")
        if importlib.util.find_spec("onnx") is None:
            reason = f"it runs, but compiling needs the package 'onnx': {pip_command('onnx')}"
            return Availability(compiles=False, runs=True, version=version, reason=reason)
        return Availability(compiles=True, runs=True, version=version)

    def emit(self, job: Job) -> dict[str, Path]:
        """The ONNX graph that OpenVINO reads, unconverted and unchecked."""
        require("onnx", extra="onnx", why="emitting a graph for OpenVINO")
        return write_graph(emitted(job, self.name), job)

    def build(self, job: Job) -> Built:
        """Emit ONNX, convert, save, load the saved file again, run the samples, and read the execution graph.

        Raises:
            BuildError: an operator that OpenVINO lacks (named), or a float build that strays from the host's outputs.
            MissingDependencyError: openvino or onnx is not installed.
        """
        from edgekit.backends import _openvino_ir as ir

        ov = require("openvino", extra="openvino", why="compiling for OpenVINO")
        proto, hints = emitted(job, self.name), self._hints(job)
        with TemporaryDirectory(dir=job.work) as folder:
            model = ir.convert(ov, proto, Path(folder))
            ir.tidy(model, proto)
            saved = ir.save(ov, model, Path(folder), half=job.precision == "fp16")
            compiled = self._load(ov, saved[0], job, hints, proto)
            self._check(compiled, job)
            placement = ir.placement(compiled, proto, job.model.quant if job.role == "quantized" else None)
            files = {path.name: path.rename(job.work / path.name) for path in saved}
        return Built(
            status="built",
            files=files,
            entry="model.xml",
            placement=placement,
            runner={"device": "CPU", "hints": hints},
            versions={"openvino": ov.get_version()},
            steps=output_steps(proto),
            notes=self._notes(job),
        )

    def _hints(self, job: Job) -> dict[str, str]:
        """Float operators compute in fp32, those of int8 bundles too; fp16 bundles in half where ARM does that.

        Where weights alone are integers, the kernels quantize activations in groups of 32, except for int8_weights.
        """
        half = job.precision == "fp16" and job.target.arch == "aarch64"
        groups = {"int8_dynamic": "32", "int4_weights": "32", "int8_weights": "0"}.get(job.precision)
        more = {} if groups is None else {"DYNAMIC_QUANTIZATION_GROUP_SIZE": groups}
        return {"INFERENCE_PRECISION_HINT": "f16" if half else "f32", **more}

    def _notes(self, job: Job) -> tuple[str, ...]:
        here = platform.machine()
        if job.target.arch == here:
            return ()
        return (f"placement is that of OpenVINO on this {here} machine; on {job.target.arch} it may differ",)

    def _load(self, ov: ModuleType, xml: Path, job: Job, hints: dict[str, str], proto: onnx.ModelProto) -> Any:
        """The saved file, compiled at the samples' shape with batch 1, as the agent will compile it."""
        core = ov.Core()
        model = core.read_model(xml)
        try:
            if job.samples:
                shapes = [sample.shape for sample in job.samples]
                batches = [s.shape[0] if isinstance(s.shape[0], int) else 1 for s in job.model.inputs]
                model.reshape(
                    {
                        model.input(spec.name): [batch, *shape[1:]]
                        for spec, batch, shape in zip(job.model.inputs, batches, shapes, strict=True)
                    }
                )
            return core.compile_model(model, "CPU", {**hints, "PERFORMANCE_HINT": "LATENCY"})
        except RuntimeError as error:
            stopped = nodes_in(str(error), proto)
            named = f" at {', '.join(stopped)}" if stopped else ""
            raise BuildError(
                f"OpenVINO converted the model but cannot load it{named}: {one_line(str(error))}", stopped
            ) from error

    def _check(self, compiled: Any, job: Job) -> None:
        """The saved file gives the host's numbers (float builds) or at least finite ones (quantized builds)."""
        from edgekit.graph.execute import run_onnx

        if not job.samples:
            return
        outputs = run(compiled, job.samples)
        if not all(np.isfinite(output).all() for output in outputs if output.dtype.kind == "f"):
            raise BuildError(
                f"OpenVINO's {job.precision} build of {job.model.name!r} gives outputs that are not finite."
            )
        if computes_in_integers(job):
            return
        for spec, seen, expected in zip(
            job.model.outputs, outputs, run_onnx(job.model.proto, job.samples), strict=True
        ):
            allowed = TOLERANCE[job.precision] * max(1.0, float(np.abs(expected).max()))
            off = float(np.abs(seen.astype(np.float64) - expected).max())
            if off > allowed:
                raise BuildError(
                    f"OpenVINO's {job.precision} build of {job.model.name!r} strays from the host by {off:.2g} at "
                    f"output {spec.name!r}; {allowed:.2g} is allowed."
                )


def run(compiled: Any, samples: tuple[npt.NDArray[np.generic], ...]) -> list[npt.NDArray[np.generic]]:
    """All samples through a model compiled for one fixed batch, that many at a time; outputs `[n, ...]`."""
    request = compiled.create_infer_request()
    batch = int(compiled.input(0).shape[0])
    parts: list[list[npt.NDArray[np.generic]]] = []
    for start in range(0, len(samples[0]) - batch + 1, batch):
        request.infer([np.ascontiguousarray(sample[start : start + batch]) for sample in samples])
        parts.append([request.get_output_tensor(i).data.copy() for i in range(len(compiled.outputs))])
    return [np.concatenate(outputs) for outputs in zip(*parts, strict=True)]
