"""The contract of a backend."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from edgekit.backends import Backend, Built, Job
from edgekit.errors import BuildError
from edgekit.extras import require
from edgekit.model import OnnxModel, Role
from edgekit.target import Target
from edgekit.testing.subjects import (
    SIZE,
    bundled,
    host,
    light,
    quantized,
    small_network,
    unchanged,
    unsupported_network,
)


class BackendContract:
    """What every backend promises. Set `backend`; override `target` or `run` where yours needs something special.

    `same_bytes` lists the files whose bytes two builds of one model must share (all of them by default).
    """

    backend: ClassVar[Backend]
    same_bytes: ClassVar[tuple[str, ...] | None] = None
    float_tolerance: ClassVar[float] = 1e-4
    least_snr_db: ClassVar[float] = 15.0
    quantizes: ClassVar[bool] = True

    def target(self) -> Target:
        """The target to build for: this machine, in the affine grid."""
        return host(self.backend.name)

    def job(self, work: Path, model: OnnxModel, role: Role = "float") -> Job:
        """A job under `work` with eight samples."""
        work.mkdir(parents=True)
        target = self.target()
        samples = np.random.default_rng(9).standard_normal((8, 3, SIZE, SIZE)).astype(np.float32)
        precision: Any = "int8" if role == "quantized" else "fp32"
        return Job(model, role, precision, target, target.backends[self.backend.name], work, (samples,))

    def run(self, built: Built, job: Job, work: Path) -> list[npt.NDArray[np.generic]]:
        """The job's samples through the build, as users run it: from a bundle, by the agent, in its own process."""
        from edgekit.devices.local import Local

        bundle = bundled(self.backend.name, built, job, work / "model.edge")
        np.save(work / "in.npy", job.samples[0])
        ran = Local().run(bundle, work / "in.npy", work / "out.npz")
        with np.load(ran.outputs, allow_pickle=False) as outputs:
            return [outputs[spec.name] for spec in job.model.outputs]

    def expected(self, job: Job) -> npt.NDArray[np.generic]:
        """The host's fp32 outputs for the job's samples."""
        from edgekit.graph.execute import run_onnx

        return run_onnx(job.model.proto, job.samples)[0]

    def test_importing_it_is_cheap(self) -> None:
        """Nothing heavy is imported before it is needed."""
        light(type(self.backend).__module__)

    def test_says_what_it_can_do_here(self) -> None:
        """What it cannot do has a reason."""
        seen = self.backend.availability()
        assert (seen.compiles and seen.runs) or seen.reason, "availability() says no and gives no reason"
        assert not seen.compiles or seen.version, "a backend that compiles has a version"

    def test_float_build_equals_the_reference(self, tmp_path: Path) -> None:
        """Build, bundle, run in a fresh process: the host's fp32 outputs come back."""
        self._needs("compiles")
        job = self.job(tmp_path / "build", small_network())
        built = self.backend.build(job)
        self._well_formed(built, job)
        if built.status == "built" and self.backend.availability().runs:
            off = np.abs(np.subtract(self.run(built, job, tmp_path)[0], self.expected(job), dtype=np.float64)).max()
            assert off <= self.float_tolerance, f"the float build strays by {off:.3g}"

    def test_quantized_build_is_near_the_reference(self, tmp_path: Path) -> None:
        """Most of the signal survives eight bits, and some operator runs in integers."""
        self._needs("compiles", quantizes=True)
        job = self.job(tmp_path / "build", quantized(small_network(), tmp_path), "quantized")
        built = self.backend.build(job)
        self._well_formed(built, job)
        assert built.placement.int8_nodes > 0, f"nothing runs in integers: {dict(built.placement.reasons)}"
        if built.status == "built" and self.backend.availability().runs:
            expected = self.expected(job).astype(np.float64)
            noise = expected - self.run(built, job, tmp_path)[0].astype(np.float64)
            snr = 10 * np.log10((expected**2).sum() / max((noise**2).sum(), 1e-30))
            assert snr >= self.least_snr_db, f"the quantized build's signal-to-noise ratio is {snr:.1f} dB"

    def test_refuses_an_unsupported_operator_by_name(self, tmp_path: Path) -> None:
        """The error names the node, carries it in `nodes`, and leaves no half-written file."""
        pytest = require("pytest", extra="dev", why="running contract tests")
        self._needs("compiles")
        job = self.job(tmp_path / "build", unsupported_network("odd_one"))
        with pytest.raises(BuildError, match="odd_one") as caught:
            self.backend.build(job)
        assert "odd_one" in caught.value.nodes, f"nodes is {caught.value.nodes}"
        left = sorted(path.name for path in job.work.iterdir())
        assert not left, f"the failed build left {left}"

    def test_same_model_same_weights(self, tmp_path: Path) -> None:
        """Two builds of one model write the same bytes."""
        self._needs("compiles")
        kinds: list[tuple[OnnxModel, Role]] = [(small_network(), "float")]
        if self.quantizes:
            kinds.append((quantized(small_network(), tmp_path), "quantized"))
        for model, role in kinds:
            once, again = (self.backend.build(self.job(tmp_path / f"{role}{i}", model, role)) for i in range(2))
            for name in self.same_bytes if self.same_bytes is not None else once.files:
                same = once.files[name].read_bytes() == again.files[name].read_bytes()
                assert same, f"two {role} builds differ in {name}"

    def test_leaves_the_model_alone(self, tmp_path: Path) -> None:
        """The graph that came in is the graph that is there afterwards."""
        self._needs("compiles")
        job = self.job(tmp_path / "build", small_network())
        before = list(unchanged(job.model))
        self.backend.build(job)
        assert list(unchanged(job.model)) == before, "build() changed its model"

    def _needs(self, what: str, *, quantizes: bool = False) -> None:
        pytest = require("pytest", extra="dev", why="running contract tests")
        seen = self.backend.availability()
        if not getattr(seen, what):
            pytest.skip(seen.reason)
        if quantizes and not self.quantizes:
            pytest.skip(f"{self.backend.name} builds no quantized models")

    def _well_formed(self, built: Built, job: Job) -> None:
        assert built.entry in built.files, f"entry {built.entry!r} is none of the files {sorted(built.files)}"
        for name, path in built.files.items():
            assert path.is_file() and path.is_relative_to(job.work), f"{name} is not a file under the work folder"
        left = {path for path in job.work.rglob("*") if path.is_file()} - set(built.files.values())
        assert not left, f"temporary files are left: {sorted(path.name for path in left)}"
        assert json.loads(json.dumps(dict(built.runner))) == dict(built.runner), "runner holds more than JSON values"
        assert len(built.steps) in (0, len(job.model.outputs)), "steps has not one entry an output"
