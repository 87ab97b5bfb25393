"""What the contract tests work on: small networks, data, a target, and a context that lends them."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from edgekit.backends import Built, Job
from edgekit.context import Progress, Silent
from edgekit.data import DataSet, Preprocess, Split
from edgekit.extras import require
from edgekit.model import Model, OnnxModel, TensorSpec
from edgekit.target import BackendFacts, Cpu, Target

if TYPE_CHECKING:
    from edgekit.bundle import Bundle

HEAVY = ("torch", "onnx", "onnxruntime", "openvino", "tensorrt", "tensorrt_rtx", "litert_torch", "ai_edge_litert")
"""What importing a part must not import."""
CLASSES = 4
SIZE = 12


def small_network(seed: int = 0) -> OnnxModel:
    """A residual network of ten operators, `[batch, 3, 12, 12]` to `[batch, 4]`: BatchNorm, depthwise, add."""
    onnx = require("onnx", extra="onnx", why="building the contract tests' network")
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(seed)

    def weight(name: str, *shape: int) -> Any:
        fan_in = int(np.prod(shape[1:])) if len(shape) > 1 else 1
        return numpy_helper.from_array((rng.standard_normal(shape) / np.sqrt(fan_in)).astype(np.float32), name)

    def positive(name: str, size: int) -> Any:
        return numpy_helper.from_array(rng.uniform(0.5, 1.5, size).astype(np.float32), name)

    nodes = [
        helper.make_node("Conv", ["image", "stem.w"], ["a"], "stem", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["a", "n.scale", "n.bias", "n.mean", "n.var"], ["b"], "norm"),
        helper.make_node("Relu", ["b"], ["c"], "stem_relu"),
        helper.make_node("Conv", ["c", "dw.w", "dw.b"], ["d"], "depthwise", group=8, pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["d"], ["e"], "depthwise_relu"),
        helper.make_node("Conv", ["e", "pw.w", "pw.b"], ["f"], "pointwise"),
        helper.make_node("Add", ["c", "f"], ["g"], "shortcut"),
        helper.make_node("GlobalAveragePool", ["g"], ["h"], "pool"),
        helper.make_node("Flatten", ["h"], ["i"], "flatten"),
        helper.make_node("Gemm", ["i", "fc.w", "fc.b"], ["logits"], "classifier", transB=1),
    ]
    constants = [
        *(weight("stem.w", 8, 3, 3, 3), positive("n.scale", 8), weight("n.bias", 8), weight("n.mean", 8)),
        *(positive("n.var", 8), weight("dw.w", 8, 1, 3, 3), weight("dw.b", 8), weight("pw.w", 8, 8, 1, 1)),
        *(weight("pw.b", 8), weight("fc.w", CLASSES, 8), weight("fc.b", CLASSES)),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, SIZE, SIZE])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", CLASSES])
    graph = helper.make_graph(nodes, "small", [image], [logits], constants)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(proto)
    return OnnxModel(
        name="small",
        proto=proto,
        inputs=(TensorSpec("image", "float32", ("batch", 3, SIZE, SIZE)),),
        outputs=(TensorSpec("logits", "float32", ("batch", CLASSES)),),
    )


def unsupported_network(node: str = "no_such_operator") -> OnnxModel:
    """The small network with an operator at its end that no runtime has, named `node`."""
    onnx = require("onnx", extra="onnx", why="building the contract tests' network")
    model = small_network()
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    proto.graph.node[-1].output[0] = "j"
    proto.graph.node.append(onnx.helper.make_node("Frobnicate", ["j"], ["logits"], node, domain="test.edgekit"))
    proto.opset_import.append(onnx.helper.make_opsetid("test.edgekit", 1))
    return replace(model, proto=proto)


def small_data(samples: int = 64, seed: int = 1) -> DataSet:
    """Random images labelled by the small network itself, so that there is something to learn."""
    from edgekit.graph.execute import run_onnx

    splits = {}
    for offset, name in enumerate(("train", "calibration", "test")):
        images = np.random.default_rng(seed + offset).standard_normal((samples, 3, SIZE, SIZE)).astype(np.float32)
        labels = run_onnx(small_network().proto, [images])[0].argmax(axis=1).astype(np.int64)
        splits[name] = Split(name, images, labels, tuple(f"{name}-{i}" for i in range(samples)), Preprocess())
    return DataSet("noise", splits, classes=tuple("abcd"))


def host(*backends: str, grid: str = "affine", built_on: str = "host") -> Target:
    """A target that describes this machine."""
    arch: Literal["x86_64", "aarch64"] = "aarch64" if platform.machine() in ("aarch64", "arm64") else "x86_64"
    facts = BackendFacts.model_validate({"grid": grid, "built_on": built_on})
    return Target(
        name="contract",
        arch=arch,
        cpu=Cpu(model=platform.processor() or arch, cores=1),
        backends=dict.fromkeys(backends, facts),
        sources=("edgekit.testing",),
    )


@dataclass(frozen=True)
class Lent:
    """A `RunContext` of plain values, for stages under test."""

    work: Path
    data: DataSet = field(default_factory=small_data)
    targets: tuple[Target, ...] = ()
    seed: int = 0
    deadline: float | None = None
    progress: Progress = field(default_factory=Silent)
    base: Path = field(default_factory=Path)

    def measure(
        self, model: Model, target: Target, *, backend: str = "", against: Model | None = None
    ) -> dict[str, Any]:
        """Nothing is timed in a contract test: one millisecond, whatever the model."""
        return {"latency_s": 1e-3, "precision": "fp32", "where": "nowhere", "ratio": 1.0, "low": 1.0, "high": 1.0}


def quantized(model: OnnxModel, work: Path) -> OnnxModel:
    """`model` after the `quantize` stage, calibrated on the contract tests' data."""
    from edgekit.stages.quantize import Quantize

    result = Quantize().apply(model, Lent(work))
    assert isinstance(result, OnnxModel)
    return result


def unchanged(model: Model) -> Iterator[bytes]:
    """Every byte of a model that a part must leave alone."""
    if isinstance(model, OnnxModel):
        yield model.proto.SerializeToString(deterministic=True)
        yield model.quant.model_dump_json().encode() if model.quant else b""
        for variant, changed in sorted(model.corrections.items()):
            for name, values in sorted(changed.items()):
                yield f"{variant} {name}".encode()
                yield np.ascontiguousarray(values).tobytes()
        return
    for name, tensor in sorted(model.module.state_dict().items()):
        yield name.encode()
        yield np.ascontiguousarray(tensor.detach().cpu().numpy()).tobytes()
    yield model.reference.proto.SerializeToString(deterministic=True)


def light(module: str) -> None:
    """Fail where importing `module` imports a heavy package."""
    code = f"import sys, {module}; print([m for m in {HEAVY!r} if m in sys.modules])"
    seen = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert seen == "[]", f"importing {module} imports {seen}: import heavy packages inside functions"


def bundled(backend: str, built: Built, job: Job, path: Path) -> Bundle:
    """A bundle of a build, with the job's samples and the host's fp32 outputs as golden data."""
    from edgekit.bundle import Manifest, TensorEntry, write_bundle
    from edgekit.graph.execute import run_onnx

    entries = [
        tuple(TensorEntry(name=s.name, dtype=s.dtype, shape=s.shape) for s in specs)
        for specs in (job.model.inputs, job.model.outputs)
    ]
    manifest = Manifest(
        model=job.model.name,
        target=job.target.name,
        backend=backend,
        role=job.role,
        precision=job.precision,
        status=built.status,
        entry=built.entry,
        runner=dict(built.runner),
        inputs=entries[0],
        outputs=entries[1],
        tolerance={"absolute": 1e-4 if job.role != "quantized" else 1.0},
        versions=dict(built.versions),
    )
    return write_bundle(path, manifest, built.files, job.samples, run_onnx(job.model.proto, job.samples))
