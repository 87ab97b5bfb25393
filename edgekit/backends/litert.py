"""LiteRT: one .tflite for XNNPACK and the builtin kernels, run by ai-edge-litert or by tflite-runtime 2.14."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from edgekit.backends import Availability, Built, Job
from edgekit.errors import BuildError
from edgekit.extras import pip_command

if TYPE_CHECKING:
    from pathlib import Path

    import onnx

Array = npt.NDArray[Any]
Samples = list[list[Array]]
CHECKED = 3
"""Samples that go through both graphs to recognise tensors and to check the result."""

TOLERANCE = 1e-4
"""How far a float build may stray from the host's fp32 outputs, as a share of their largest magnitude (at least 1)."""

ENTRY = "model.tflite"
_PACKAGES = {"torch": "torch", "onnx": "onnx", "litert_torch": "litert", "ai_edge_litert": "litert"}


class LiteRT:
    """Compiles for Google's runtime on ARM and x86-64 processors."""

    name: ClassVar[str] = "litert"

    def availability(self) -> Availability:
        """Found from the installed packages' metadata."""
        missing = [package for package in _PACKAGES if importlib.util.find_spec(package) is None]
        runs = "ai_edge_litert" not in missing or importlib.util.find_spec("tflite_runtime") is not None
        version = metadata.version("ai-edge-litert") if "ai_edge_litert" not in missing else None
        if not missing:
            return Availability(compiles=True, runs=True, version=version)
        commands = dict.fromkeys(pip_command(_PACKAGES[package]) for package in missing)
        reason = f"compiling needs the packages {', '.join(missing)}: {' and '.join(commands)}"
        return Availability(compiles=False, runs=runs, version=version, reason=reason)

    def build(self, job: Job) -> Built:
        """Convert through the torch view, put the ranges in, load and run the file, and read what runs in int8.

        Raises:
            BuildError: an operator that torch or LiteRT lacks (named), a tensor without a range, or a float build
                that strays from the host's outputs.
            MissingDependencyError: torch, onnx or litert is not installed.
        """
        from edgekit.backends import _litert_finish as finish

        everything = _samples(job)
        content, reasons, notes = self._content(job, everything[:CHECKED], check=True)
        refused = tflite_runtime_refusal(content)
        if refused is not None and job.facts.runtimes == ("tflite-runtime",):
            raise BuildError(f"{job.target.name}: {refused}")
        if refused is not None:
            notes.append(refused)
        path = job.work / ENTRY
        path.write_bytes(content)
        return Built(
            status="built",
            files={ENTRY: path},
            entry=ENTRY,
            placement=finish.placement(content, reasons),
            runner={"runtimes": ["ai-edge-litert", *([] if refused else ["tflite-runtime"])], **_refused(refused)},
            versions=_versions(),
            steps=finish.output_steps(content),
            notes=tuple(notes),
            golden=finish.steady(content, everything) if _one_by_one(job, everything) else None,
        )

    def emit(self, job: Job) -> dict[str, Path]:
        """The .tflite, converted and not held against the host."""
        path = job.work / ENTRY
        path.write_bytes(self._content(job, _samples(job)[:CHECKED], check=False)[0])
        return {ENTRY: path}

    def _content(self, job: Job, samples: Samples, *, check: bool) -> tuple[bytes, dict[str, str], list[str]]:
        """The file, why operators of it are float, and what else is to be said."""
        from edgekit.backends import _litert_convert as converter
        from edgekit.backends import _litert_finish as finish
        from edgekit.quant.forms import refuse

        refuse(self.name, job.precision)
        proto = _folded(job)
        content = converter.to_float(proto, samples[0])
        if check:
            self._compare(job, proto, content, samples)
        if job.role != "quantized":
            # A float bundle's tensors bear the source's names too: `explain` holds the int8 ones against them.
            matches = _matches(proto, content, samples) if job.role == "float" else {}
            return finish.rename(content, matches, proto), {}, []
        content, reasons, notes = _quantized(job, proto, content, samples)
        if check:
            finish.finite(content, samples, job.model.name)
        return content, reasons, notes

    def _compare(self, job: Job, proto: onnx.ModelProto, content: bytes, samples: Samples) -> None:
        """The float file gives the host's fp32 numbers."""
        from edgekit.backends import _litert_run as run
        from edgekit.graph.execute import run_onnx

        seen = run.outputs(content, samples)
        for spec, place in zip(job.model.outputs, range(len(seen[0])), strict=True):
            for sample, found in zip(samples, seen, strict=True):
                expected = run_onnx(proto, sample)[place]
                allowed = TOLERANCE * max(1.0, float(np.abs(expected).max(initial=0)))
                off = float(np.abs(found[place].astype(np.float64) - expected).max(initial=0))
                if found[place].shape != expected.shape or not off <= allowed:
                    where, nodes = _first_difference(proto, content, samples)
                    raise BuildError(
                        f"LiteRT's float build of {job.model.name!r} strays from the host by {off:.2g} at output "
                        f"{spec.name!r}; {allowed:.2g} is allowed.{where}",
                        nodes,
                    )


def _refused(reason: str | None) -> dict[str, Any]:
    """For the runner in the bundle, which refuses that runtime with these words."""
    return {"refused": {"tflite-runtime": reason}} if reason else {}


def tflite_runtime_refusal(content: bytes) -> str | None:
    """Why tflite-runtime 2.14 must not run this .tflite, naming the operator; None if it may."""
    from edgekit.backends._tflite_check import refusal

    return refusal(content)


def _folded(job: Job) -> onnx.ModelProto:
    from edgekit.graph.fold import fold

    # A quantized model's spec names tensors of the graph as it is: that one was folded by `quantize`.
    return job.model.lowered(job.facts.grid, "litert") if job.role == "quantized" else fold(job.model.proto)


def _samples(job: Job) -> Samples:
    """One list of inputs a run: a single sample, or as many as a fixed batch holds; noise where the job has too few."""
    first = job.model.inputs[0].shape[:1]
    batch = first[0] if first and isinstance(first[0], int) else 1
    if job.samples and len(job.samples[0]) >= batch:
        starts = range(0, len(job.samples[0]) - batch + 1, batch)
        return [[np.ascontiguousarray(array[i : i + batch]) for array in job.samples] for i in starts]
    random = np.random.default_rng(0)
    shapes = [(spec.sized(1), spec.dtype) for spec in job.model.inputs]
    return [[random.standard_normal(shape).astype(dtype) for shape, dtype in shapes] for _ in range(CHECKED)]


def _one_by_one(job: Job, samples: Samples) -> bool:
    """Whether run `i` is the job's sample `i`."""
    return bool(job.samples) and len(samples) == len(job.samples[0])


def _quantized(
    job: Job, proto: onnx.ModelProto, content: bytes, samples: Samples
) -> tuple[bytes, dict[str, str], list[str]]:
    from edgekit.backends import _litert_finish as finish
    from edgekit.backends._litert_decide import decide
    from edgekit.backends._litert_forms import put_weights
    from edgekit.backends._litert_quantize import rewrite

    spec = job.model.quant
    if spec is None:
        raise BuildError("A quantized LiteRT build needs a model with a QuantSpec: put `quantize` into the recipe.")
    matches = _matches(proto, content, samples)
    if spec.form("litert") != "int8":
        named = finish.rename(content, matches, proto)
        return put_weights(named, proto, spec, job.facts.grid, matches)
    outcome = decide(content, proto, spec, job.facts.grid, matches)
    named = finish.rename(content, matches, proto)
    return rewrite(named, outcome.decision), outcome.reasons, outcome.notes


def _matches(proto: onnx.ModelProto, content: bytes, samples: Samples) -> Mapping[int, tuple[str, ...]]:
    """Tensors of the .tflite -> those of the ONNX graph with the same values."""
    from edgekit.backends._litert_match import match, onnx_tensors

    return match(content, onnx_tensors(proto, samples), samples)


def _first_difference(proto: onnx.ModelProto, content: bytes, samples: Samples) -> tuple[str, list[str]]:
    from edgekit.backends._litert_finish import first_unknown
    from edgekit.backends._litert_match import match, onnx_tensors

    found = first_unknown(content, match(content, onnx_tensors(proto, samples), samples))
    if found is None:
        return "", []
    operator, names = found
    makers = {name: node.name for node in proto.graph.node for name in node.output}
    nodes = [makers[name] for name in names if name in makers]
    after = f", after {', '.join(nodes)}" if nodes else ""
    return f" The first operator to differ is {operator}{after}.", nodes


def _versions() -> dict[str, str]:
    return {package: metadata.version(package) for package in ("ai-edge-litert", "litert-torch", "torch")}


__all__: Sequence[str] = ("LiteRT", "tflite_runtime_refusal")
