"""TensorRT: an engine built ahead of time where this machine can, or the graph from which a board builds its own.

Two packages serve, by one code path: `tensorrt_rtx` builds for a named compute capability and needs no GPU;
the classic `tensorrt` builds for the GPU of this machine. An engine runs only with the package that built it.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar

from edgekit.backends import Availability, Built, Job
from edgekit.backends._emitted import emitted, nodes_in, one_line, output_steps, write_graph
from edgekit.errors import BuildError
from edgekit.extras import pip_command, require

if TYPE_CHECKING:
    import onnx

MAX_BATCH = 8
"""The largest batch of an engine whose source has a dynamic batch; it is tuned for batch 1."""
GPU_DEVICES = ("/dev/nvidia0", "/dev/nvhost-gpu", "/dev/dxg")
"""Where Linux, a Jetson and WSL show that there is a GPU, without loading CUDA."""

Shapes = dict[str, list[list[int]]]
"""Input name to its least, usual and largest shape."""


class TensorRT:
    """Compiles for NVIDIA's GPUs: s8 activations around zero, one scale a tensor, float biases."""

    name: ClassVar[str] = "tensorrt"

    def availability(self) -> Availability:
        """Found from installed packages and device files; nothing of CUDA is loaded."""
        found, gpu = installed(), has_gpu()
        version = ", ".join(f"{package} {_version(package)}" for package in found) or None
        if not found:
            reason = f"neither 'tensorrt_rtx' nor 'tensorrt' is installed: {pip_command('tensorrt')}"
        elif gpu:
            reason = ""
        elif "tensorrt_rtx" in found:
            reason = "no NVIDIA GPU here: engines can be built ahead of time, not run"
        else:
            reason = f"no NVIDIA GPU here, and 'tensorrt' builds only for one that is: {pip_command('tensorrt')}"
        compiles = "tensorrt_rtx" in found or (gpu and bool(found))
        return Availability(compiles=compiles, runs=gpu and bool(found), version=version, reason=reason)

    def emit(self, job: Job) -> dict[str, Path]:
        """The graph that an engine is built from."""
        return write_graph(self._graph(job), job)

    def _graph(self, job: Job) -> onnx.ModelProto:
        from edgekit.backends import _tensorrt_graph as graph

        require("onnx", extra="onnx", why="emitting a graph for TensorRT")
        proto = emitted(job, self.name)
        if job.precision == "fp16":
            proto = graph.half(proto)
        elif job.role == "quantized":
            graph.check_symmetric(proto)
        return proto

    def build(self, job: Job) -> Built:
        """Emit the graph; compile it too unless the target's boards build their own engines.

        Raises:
            BuildError: an operator that TensorRT lacks (named), or a graph outside its grid.
            MissingDependencyError: onnx, or for an engine every TensorRT package, is missing.
        """
        from edgekit.backends import _tensorrt_graph as graph
        from edgekit.graph.sparse import two_of_four

        proto = self._graph(job)
        content = proto.SerializeToString(deterministic=True)
        sparse = two_of_four(proto)
        runner: dict[str, Any] = {"shapes": shapes(job), "tf32": False, **({"sparse": True} if sparse else {})}
        versions: dict[str, str] = {}
        files = {"model.onnx": content}
        if job.facts.built_on == "device":
            notes = (
                *parsed(content),
                "the board builds its engine from this graph; placement is as planned, not as seen",
            )
        else:
            trt = api(job)
            engine = compile_engine(trt, proto, job, runner["shapes"], sparse=bool(sparse))
            files = {"model.engine": engine, **files}
            runner["package"] = trt.__name__
            versions = {trt.__name__: trt.__version__, "compute_capability": compute_capability(job)}
            notes = ("placement is as planned: only a GPU shows what the engine does",)
        if sparse:
            notes = (*notes, f"TensorRT is told of sparse weights: those of {len(sparse)} operators are 2:4")
        return Built(
            status="built" if "model.engine" in files else "emitted",
            files={name: _written(job.work / name, data) for name, data in files.items()},
            entry=next(iter(files)),
            placement=graph.planned(proto, job.model.quant if job.role == "quantized" else None),
            runner=runner,
            versions=versions,
            steps=output_steps(proto),
            notes=notes,
        )


def has_gpu() -> bool:
    """Whether a device file of an NVIDIA GPU exists."""
    return any(Path(device).exists() for device in GPU_DEVICES)


def installed() -> tuple[str, ...]:
    """The TensorRT packages that are here."""
    return tuple(p for p in ("tensorrt_rtx", "tensorrt") if importlib.util.find_spec(p) is not None)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "of unknown version"


def local_compute() -> str | None:
    """The compute capability of this machine's GPU by nvidia-smi, or None where that is missing, as on a Jetson."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    command = [tool, "--query-gpu=compute_cap", "--format=csv,noheader"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    return ran.stdout.split()[0] if ran.returncode == 0 and ran.stdout.strip() else None


def compute_capability(job: Job) -> str:
    """The target GPU's, such as "8.6".

    Raises:
        BuildError: the target does not say.
    """
    if job.target.gpu is None:
        raise BuildError(f"Target {job.target.name!r} names no GPU, and an engine is built for one compute capability.")
    return job.target.gpu.compute


def api(job: Job) -> ModuleType:
    """The package that builds for the job's target: the classic one if the target's GPU is here, else `tensorrt_rtx`.

    Raises:
        MissingDependencyError: neither is installed.
        BuildError: only the classic one is, and the target's GPU is not here.
    """
    found, wanted = installed(), compute_capability(job)
    own = "tensorrt" in found and has_gpu() and local_compute() in (None, wanted)
    if found == ("tensorrt",) and not own:
        raise BuildError(
            f"The package 'tensorrt' builds engines only for a GPU in this machine, and none of compute capability "
            f"{wanted} is; 'tensorrt_rtx' builds for {job.target.name} without: {pip_command('tensorrt')}"
        )
    package = "tensorrt" if own else "tensorrt_rtx"
    return require(package, extra="tensorrt", why=f"building a TensorRT engine for {job.target.name}")


def shapes(job: Job) -> Shapes:
    """Least, usual and largest shape of every input: the batch from 1 to 8, tuned for 1; other axes as the samples'.

    Raises:
        BuildError: an axis other than the batch is dynamic, and no sample says how long it is.
    """
    found: Shapes = {}
    for index, spec in enumerate(job.model.inputs):
        usual = list(job.samples[index].shape) if job.samples else list(spec.sized(1))
        unknown = [axis for axis in spec.shape[1:] if isinstance(axis, str)]
        if unknown and not job.samples:
            raise BuildError(f"TensorRT needs the extent of axis {unknown[0]!r} of input {spec.name!r}, or a sample.")
        first = [1, 1, MAX_BATCH] if spec.batched else [usual[0]] * 3 if usual else []
        if usual and isinstance(spec.shape[0], int):
            first = [spec.shape[0]] * 3
        found[spec.name] = [[extent, *usual[1:]] for extent in first] if usual else [[], [], []]
    return found


def parse(trt: ModuleType, content: bytes, log: Any) -> tuple[Any, Any]:
    """A builder and the strongly typed network of a graph: each operator computes in the type that the graph says.

    Raises:
        BuildError: the parser refuses; every node that it stops at is named.
    """
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(content):
        raise _refused([parser.get_error(i) for i in range(parser.num_errors)], trt)
    return builder, network


def parsed(content: bytes) -> tuple[str, ...]:
    """A note that TensorRT's parser takes the graph, where a parser is at hand that needs no GPU.

    Raises:
        BuildError: it refuses.
    """
    if "tensorrt_rtx" not in installed():
        return ("no TensorRT package is here to parse the graph",)
    trt = require("tensorrt_rtx", extra="tensorrt", why="parsing the emitted graph")
    parse(trt, content, _log(trt))
    return (f"tensorrt_rtx {trt.__version__} parses the graph; the board's own version decides",)


def compile_engine(trt: ModuleType, proto: onnx.ModelProto, job: Job, ranges: Shapes, *, sparse: bool = False) -> bytes:
    """The bytes of an engine, without TF32; `sparse`: kernels that skip zeros are tried for weights that are 2:4.

    Raises:
        BuildError: the parser or the builder refuses; nodes are named where they are known.
    """
    log = _log(trt)
    builder, network = parse(trt, proto.SerializeToString(), log)
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)
    if sparse:
        config.set_flag(trt.BuilderFlag.SPARSE_WEIGHTS)
    _aim(trt, config, compute_capability(job))
    if any(-1 in tuple(network.get_input(i).shape) for i in range(network.num_inputs)):
        profile = builder.create_optimization_profile()
        for name, (least, usual, largest) in ranges.items():
            profile.set_shape(name, least, usual, largest)
        config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        message = one_line(log.errors[0] if log.errors else "no reason given")
        stopped = nodes_in(message, proto)
        named = f" at {', '.join(stopped)}" if stopped else ""
        raise BuildError(
            f"TensorRT parsed the model but cannot build it for {job.target.name}{named}: {message}", stopped
        )
    return bytes(engine)


def _written(path: Path, content: bytes) -> Path:
    """The file, whole or not at all."""
    part = path.with_name(path.name + ".part")
    part.write_bytes(content)
    return part.rename(path)


def _aim(trt: ModuleType, config: Any, compute: str) -> None:
    """Build for one compute capability. The classic package has no choice: it builds for the GPU that is here."""
    if not hasattr(trt, "ComputeCapability"):
        return
    known: Mapping[str, Any] = trt.ComputeCapability.__members__
    wanted = f"SM{compute.replace('.', '')}"
    if wanted not in known:
        able = ", ".join(sorted(name for name in known if name.startswith("SM")))
        raise BuildError(
            f"{trt.__name__} {trt.__version__} cannot build for {wanted} ahead of time; it can for {able}."
        )
    config.num_compute_capabilities = 1
    config.set_compute_capability(known[wanted], 0)


def _refused(errors: list[Any], trt: ModuleType) -> BuildError:
    """One error for all that the parser found, a clause a node."""
    seen = {error.node_name() or "?": one_line(f"{error.node_operator()}: {error.desc()}", 200) for error in errors}
    clauses = "; ".join(f"{node} ({why})" for node, why in seen.items())
    return BuildError(f"TensorRT ({trt.__name__} {trt.__version__}) cannot parse the model: {clauses}.", seen)


def _log(trt: ModuleType) -> Any:
    """A logger that keeps errors and prints nothing."""

    class Log(trt.ILogger):  # type: ignore[name-defined,misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(message.strip())

    return Log()
