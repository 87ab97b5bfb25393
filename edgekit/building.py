"""From the final model to bundles: one for every (target, backend, role), each checked where it can run."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from edgekit.assess import Oracle, outputs_of
from edgekit.backends import BACKENDS, Backend, Built, Job
from edgekit.bundle import Bundle, Manifest, PreprocessEntry, TensorEntry, write_bundle
from edgekit.errors import BuildError, EdgekitError, MissingDependencyError
from edgekit.extras import DISTRIBUTION
from edgekit.licences import licences_of
from edgekit.model import Model, OnnxModel, Precision, Role, as_onnx
from edgekit.quant.record import MEMBER, Record
from edgekit.registry import resolve
from edgekit.report.report import Result
from edgekit.target import overflows_here
from edgekit.workspace import Workspace, digest, writing_to

if TYPE_CHECKING:
    from edgekit.recipe import PlannedTarget
    from edgekit.target import Target

T = TypeVar("T")

GOLDEN = 4
"""So many evaluation samples travel in a bundle for `selftest`."""

CANDIDATES = 16
"""So many go to the backend, which may say that some suit better (`Built.golden`)."""


@dataclass(frozen=True)
class Part:
    """One of the networks that a target gets: the reference, the float model, the quantized one."""

    role: Role
    precision: Precision
    model: OnnxModel

    def on(self, backend: str) -> Part:
        """The part as `backend` gets it: a quantized model may have another form there."""
        spec = self.model.quant if self.role == "quantized" else None
        return self if spec is None else replace(self, precision=spec.form(backend))


def parts(final: Model) -> tuple[Part, ...]:
    """The networks to build after the last stage, the reference first."""
    onnx_model = as_onnx(final)
    found = [Part("reference", "fp32", onnx_model.reference), Part("float", "fp32", replace(onnx_model, quant=None))]
    if onnx_model.quant is not None:
        found.append(Part("quantized", onnx_model.quant.precision, onnx_model))
    return tuple(found)


@dataclass(frozen=True)
class Outcome:
    """What became of one order. `code` is the exit code that it asks for."""

    result: Result
    bundle: Bundle | None = None
    code: int = 0


@dataclass(frozen=True)
class Builder:
    """Everything that bundles of one run share."""

    space: Workspace
    oracle: Oracle
    about: Mapping[str, Any] = field(default_factory=dict)
    """Manifest fields that are the same for all: source hash, stages, data, licences of model and data."""

    def build(self, part: Part, target: Target, backend_name: str) -> Outcome:
        """One bundle, or the reason why there is none; only this backend fails with it."""
        part = part.on(backend_name)
        result = Result(
            target=target.name, backend=backend_name, precision=part.precision, role=part.role, status="failed"
        )
        try:
            built, bundle = self._built(part, target, backend_name)
        except (BuildError, MissingDependencyError) as error:
            return Outcome(result.model_copy(update={"reason": str(error)}), code=int(error.exit_code))
        placed = built.placement
        result = result.model_copy(
            update={
                "status": built.status,
                "bundle": self.space.relative(bundle.path),
                "bundle_sha256": bundle.sha256,
                "size_bytes": bundle.model_bytes,
                "bundle_bytes": bundle.size_bytes,
                "int8_nodes": placed.int8_nodes,
                "float_nodes": placed.float_nodes,
                "float_reasons": dict(placed.reasons),
                "notes": tuple(built.notes),
            }
        )
        return Outcome(result, bundle)

    def _built(self, part: Part, target: Target, backend_name: str) -> tuple[Built, Bundle]:
        backend: Backend = resolve("backend", backend_name, BACKENDS, "edgekit.backends")()
        facts = target.backends.get(backend_name)
        if facts is None:
            raise BuildError(f"{target.name} has no {backend_name}. It has: {', '.join(target.backends)}.")
        name = bundle_name(part, target, backend_name)
        work = self.space.work / "build" / name
        shutil.rmtree(work, ignore_errors=True)
        with writing_to(self.space.root):
            work.mkdir(parents=True)
            count = _whole_batches(part.model, CANDIDATES)
            samples = tuple(np.resize(x[:count], (count, *x.shape[1:])) for x in self.oracle.inputs)
            job = Job(part.model, part.role, part.precision, target, facts, work, samples)
            built = contained(backend, job, backend.build)
            rows = [*(range(count) if built.golden is None else built.golden)][: _whole_batches(part.model, GOLDEN)]
            samples = tuple(x[rows] for x in samples)
            manifest = self._manifest(part, target, backend_name, built)
            folder = self._publish(name, built)
            exact = facts.grid != "reduced_range" and overflows_here(target)
            golden = self._golden(backend, part, manifest, folder, samples, exact)
            path, record = self.space.bundles / f"{name}.edge", Record.of(part.model)
            extra = {MEMBER: record.model_dump_json().encode()} if record else {}
            bundle = write_bundle(path, manifest, built.files, samples, golden, extra)
        shutil.rmtree(work, ignore_errors=True)
        return built, bundle

    def _manifest(self, part: Part, target: Target, backend: str, built: Built) -> Manifest:
        steps = built.steps or (None,) * len(part.model.outputs)
        prepared = self.oracle.split.preprocess
        libraries = licences_of([DISTRIBUTION, "numpy", *built.versions])
        return Manifest(
            model=part.model.name,
            target=target.name,
            backend=backend,
            role=part.role,
            precision=part.precision,
            status=built.status,
            entry=built.entry,
            runner=dict(built.runner),
            inputs=tuple(TensorEntry(**asdict(spec)) for spec in part.model.inputs),
            outputs=tuple(
                TensorEntry(**asdict(spec), step=step) for spec, step in zip(part.model.outputs, steps, strict=True)
            ),
            preprocess=PreprocessEntry(**asdict(prepared)),
            tolerance={"steps": 1.0, "absolute": 1e-2} if part.role == "quantized" else {"absolute": 1e-4},
            versions=dict(built.versions),
            edgekit=metadata.version(DISTRIBUTION),
            **{**self.about, "licences": {**self.about.get("licences", {}), **libraries}},
        )

    def _golden(
        self, backend: Backend, part: Part, manifest: Manifest, folder: Path, samples: Sequence[Any], exact: bool
    ) -> list[Any]:
        """What `selftest` must get: the compiled model's own outputs where it runs here, else the host's.

        `exact`: with 8-bit products added up in float, where the runtime can.
        """
        if manifest.status == "built" and backend.availability().runs:
            return _own_outputs(manifest, folder, samples, exact)
        return outputs_of(part.model, list(samples))

    def _publish(self, name: str, built: Built) -> Path:
        """The plain model files beside the bundle, for people who want just those."""
        folder = self.space.models / name
        shutil.rmtree(folder, ignore_errors=True)
        for member, path in built.files.items():
            (folder / member).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, folder / member)
        return folder


def _whole_batches(model: OnnxModel, samples: int) -> int:
    """`samples`, or the next multiple of the batch size that the model is fixed to."""
    fixed = [spec.shape[0] for spec in model.inputs if spec.shape and isinstance(spec.shape[0], int)]
    size = max(fixed, default=1)
    return size * -(-samples // size)


def _own_outputs(manifest: Manifest, folder: Path, samples: Sequence[Any], exact: bool) -> list[Any]:
    """What the compiled model answers in the smallest batches it takes, through the runner that the bundle will use."""
    from edgekit.agent.failures import Failure
    from edgekit.agent.infer import batch_size, in_float, make_runner

    try:
        described = manifest.model_dump(mode="json")
        described = in_float(described) if exact else described
        size = batch_size(described, 1)
        runner = make_runner(folder, described, 1, size)
        answers = [runner.infer([x[i : i + size] for x in samples]) for i in range(0, len(samples[0]), size)]
    except Failure as failure:
        raise BuildError(f"{manifest.backend} built {manifest.entry}, and cannot run it: {failure}") from failure
    return [np.concatenate(outputs) for outputs in zip(*answers, strict=True)]


def bundle_name(part: Part, target: Target, backend: str) -> str:
    """What the files of a bundle are called after."""
    return f"{part.model.name}-{target.name}-{backend}-{part.role}-{part.precision}"


def contained(backend: Backend, job: Job, make: Callable[[Job], T]) -> T:
    """`make(job)`, and what a converter throws there turned into a `BuildError` of that backend alone."""
    try:
        return make(job)
    except (EdgekitError, OSError, MemoryError):
        raise
    except Exception as error:
        error.add_note(f"while {backend.name} built {job.model.name!r} for {job.target.name}")
        raise BuildError(f"{backend.name} failed: {type(error).__name__}: {error}") from error


def model_digest(bundle: Bundle) -> str:
    """What two bundles share when they hold the same model for the same runtime, whatever their targets."""
    files = sorted((n, h) for n, h in bundle.manifest.members.items() if n.startswith("model/"))
    return digest(bundle.manifest.backend, repr(files), repr(sorted(bundle.manifest.runner.items())))


def orders(planned: Sequence[PlannedTarget], found: Sequence[Part]) -> Iterator[tuple[PlannedTarget, str, Part]]:
    """Every (target, backend, part) of a run, in the recipe's order."""
    for target in planned:
        for backend in target.backends:
            for part in found:
                yield target, backend, part
