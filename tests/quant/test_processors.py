"""Bundles on processors that this machine is not, by qemu: their integers against the simulation in float64.

"Within one step" is measured on the outputs of a small network (convolutions, a depthwise block with ReLU6 and a gate,
a shortcut, pooling, a dense layer) for 500 images of Fashion-MNIST, as the bundle's own agent writes them.
"""

from __future__ import annotations

import numpy as np
import pytest
from emulators import emulated
from quant_graphs import stream
from zoo import Net

from edgekit.backends import BACKENDS, Job
from edgekit.graph.tools import tensor_specs
from edgekit.model import OnnxModel
from edgekit.quant.choose import choose
from edgekit.quant.plan import plan
from edgekit.quant.qdq import rewritten
from edgekit.quant.simulate import simulate
from edgekit.registry import resolve
from edgekit.target import load_target
from edgekit.testing.subjects import bundled

pytestmark = pytest.mark.slow
IMAGES = 500
ONE_STEP = 1.001


def network():
    b = Net(1)
    x = b.pool(b.relu(b.c("x", 1, 8, stride=2)))
    y = b.relu6(b.c(x, 8, 16, 1))
    y = b.c(b.gate(b.relu6(b.c(y, 16, 16, groups=16)), 16), 16, 8, 1)
    x = b.relu(b.c(b.op("Add", x, y), 8, 12, stride=2))
    b.dense(b.op("Flatten", x), 12 * 16, 10, "y")
    return b.model({"x": ["n", 1, 28, 28]}, {"y": ["n", 10]})


@pytest.fixture(scope="module")
def images(fashion_mnist):
    split = fashion_mnist.split("test")
    return split.preprocess.apply(split.inputs[:IMAGES])


@pytest.fixture(scope="module")
def model(fashion_mnist):
    proto = network()
    split = fashion_mnist.split("calibration")
    some = stream(split.preprocess.apply(split.inputs[:128]))
    inputs, outputs = tensor_specs(proto)
    spec = choose(proto, plan(proto), some, "minmax").spec
    return OnnxModel(name="tiny", proto=proto, inputs=inputs, outputs=outputs, quant=spec)


def steps_off(model, images, where, backend, target, work, grid=None):
    """By how many quantization steps each output of the bundle is off the simulation."""
    device = emulated(where)
    described = load_target(target)
    facts = described.backends[backend]
    facts = facts.model_copy(update={"grid": grid or facts.grid})
    (work / "build").mkdir()
    job = Job(model, "quantized", "int8", described, facts, work / "build", (images[:4],))
    bundle = bundled(
        backend, resolve("backend", backend, BACKENDS, "edgekit.backends")().build(job), job, work / "model.edge"
    )
    np.save(work / "in.npy", images)
    device.run(bundle, work / "in.npy", work / "out.npz")
    with np.load(work / "out.npz", allow_pickle=False) as outputs:
        seen = outputs["y"]
    floats, spec, _ = rewritten(model.proto, model.quant, facts.grid, backend)
    wanted = simulate(floats, spec, facts.grid, backend, [images])["y"]
    return np.abs(seen - wanted) / spec.grid("y", facts.grid).scale


@pytest.mark.parametrize(
    ("where", "backend", "target"),
    [
        ("emulated-haswell", "onnxruntime", "x86-64-no-vnni"),
        ("emulated-haswell", "litert", "x86-64-no-vnni"),
        ("emulated-cortex-a72", "onnxruntime", "raspberry-pi-4"),
        ("emulated-cortex-a72", "litert", "raspberry-pi-4"),
    ],
)
def test_every_output_is_within_one_step(model, images, tmp_path, where, backend, target):
    off = steps_off(model, images, where, backend, target, tmp_path)
    assert off.shape == (IMAGES, 10)
    assert off.max() <= ONE_STEP


def test_openvino_without_vnni(model, images, tmp_path):
    """It breaks ties otherwise at both inputs of an addition too, as on any processor: a step may become two."""
    off = steps_off(model, images, "emulated-haswell", "openvino", "x86-64-no-vnni", tmp_path)
    assert (off <= ONE_STEP).mean() > 0.95
    assert off.max() <= 2.5


def test_without_reduced_range_sums_saturate(model, images, tmp_path):
    """What the reduced range is for: the same weights with 8 bits, on the same processor, give other numbers."""
    off = steps_off(model, images, "emulated-haswell", "onnxruntime", "x86-64-no-vnni", tmp_path, grid="affine")
    assert (off > ONE_STEP).mean() > 0.1
    assert off.max() > 5
