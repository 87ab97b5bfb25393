"""Small bundles for the tests of the agent, bundles and devices: a convolution, ReLU and a fully connected layer."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgekit.bundle import Bundle, Manifest, PreprocessEntry, TensorEntry, write_bundle


def model(path: Path, *, batch: int | str = "batch", seed: int = 0, channels: int = 4, bias: float = 0.0) -> Path:
    """conv 3x3 -> ReLU -> global mean -> gemm, on `[batch, 1, 8, 8]`, giving `[batch, 3]`."""
    rng = np.random.default_rng(seed)
    weights = {
        "w": rng.normal(size=(channels, 1, 3, 3)),
        "b": rng.normal(size=channels),
        "v": rng.normal(size=(channels, 3)),
        "c": rng.normal(size=3) + bias,
    }
    nodes = [
        helper.make_node("Conv", ["image", "w", "b"], ["x1"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["x1"], ["x2"]),
        helper.make_node("GlobalAveragePool", ["x2"], ["x3"]),
        helper.make_node("Flatten", ["x3"], ["x4"]),
        helper.make_node("Gemm", ["x4", "v", "c"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch, 1, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, 3])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(proto)
    onnx.save(proto, path)
    return path


def manifest(**changes: object) -> Manifest:
    values: dict[str, object] = {
        "model": "small",
        "target": "x86-64",
        "backend": "onnxruntime",
        "role": "float",
        "precision": "fp32",
        "status": "built",
        "entry": "model.onnx",
        "inputs": (TensorEntry(name="image", dtype="float32", shape=("batch", 1, 8, 8)),),
        "outputs": (TensorEntry(name="logits", dtype="float32", shape=("batch", 3)),),
        "preprocess": PreprocessEntry(scale=(1 / 255,), offset=(-0.5,), layout="NHW", to="NCHW"),
        "tolerance": {"absolute": 1e-4},
    }
    return Manifest.model_validate({**values, **changes})


def samples(count: int = 6, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 1, 8, 8)).astype(np.float32)


def expected(path: Path, inputs: np.ndarray) -> np.ndarray:
    """The oracle: ONNX's own reference evaluator."""
    from onnx.reference import ReferenceEvaluator

    return np.asarray(ReferenceEvaluator(str(path)).run(None, {"image": inputs})[0])


def bundle(folder: Path, name: str = "small.edge", *, batch: int | str = "batch", **changes: object) -> Bundle:
    folder.mkdir(parents=True, exist_ok=True)
    file = model(folder / f"{name}.onnx", batch=batch)
    if batch != "batch":
        entry = TensorEntry(name="image", dtype="float32", shape=(batch, 1, 8, 8))
        changes = {"inputs": (entry,), **changes}
    golden = samples(8)
    outputs = (
        np.concatenate([expected(file, golden[i : i + 1]) for i in range(8)])
        if batch != 2
        else np.concatenate([expected(file, golden[i : i + 2]) for i in range(0, 8, 2)])
    )
    return write_bundle(folder / name, manifest(**changes), {"model.onnx": file}, [golden], [outputs])


OVERFLOWING = """
<ir_version: 8, opset_import: ["": 13]>
overflowing (float[batch, 64] x) => (float[batch, 8] y)
<float scale = {0.01}, float step = {1}, uint8 zero = {0}, int8 none = {0}>
{
  xq = QuantizeLinear(x, scale, zero)
  xd = DequantizeLinear(xq, scale, zero)
  wd = DequantizeLinear(w, scale, none)
  a = MatMul(xd, wd)
  aq = QuantizeLinear(a, step, zero)
  y = DequantizeLinear(aq, step, zero)
}
"""
FULL, SUMS = np.full((5, 64), 2.55, np.float32), np.full((5, 8), np.round(64 * 2.55 * 1.27), np.float32)
"""What it is given, and what it makes of it by sums of 255 * 127: two of them are no 16-bit number."""


def overflowing() -> onnx.ModelProto:
    """A product in 8 bits that kernels on x86 without VNNI add up to something else."""
    proto = onnx.parser.parse_model(OVERFLOWING)
    proto.graph.initializer.append(numpy_helper.from_array(np.full((64, 8), 127, np.int8), "w"))
    return proto


def overflowing_bundle(folder: Path) -> Bundle:
    onnx.save(overflowing(), folder / "overflowing.onnx")
    (entry, answer) = (
        (TensorEntry(name=name, dtype="float32", shape=("batch", size)),) for name, size in (("x", 64), ("y", 8))
    )
    about = manifest(role="quantized", precision="int8", inputs=entry, outputs=answer, preprocess=PreprocessEntry())
    return write_bundle(folder / "o.edge", about, {"model.onnx": folder / "overflowing.onnx"}, [FULL], [SUMS])


def damaged(bundle: Bundle) -> bytes:
    """What is in the file, but for one bit of its model: the agent's own code is whole, and starts."""
    content = bytearray(bundle.path.read_bytes())
    with zipfile.ZipFile(bundle.path) as archive:
        member = archive.read(next(name for name in archive.namelist() if name.endswith(".onnx")))
    content[content.index(member) + len(member) // 2] ^= 1
    return bytes(content)
