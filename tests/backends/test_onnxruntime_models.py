"""Trained networks on real data through the quantize stage and ONNX Runtime."""

import numpy as np
import onnx
import pytest
import wild

from edgekit.backends import Job
from edgekit.backends.onnxruntime import OnnxRuntime
from edgekit.graph.execute import run_onnx
from edgekit.target import load_target

pytestmark = pytest.mark.slow


def built(model, x, work, target="x86-64", role="quantized"):
    target = load_target(target)
    precision = "int8" if role == "quantized" else "fp32"
    return OnnxRuntime().build(Job(model, role, precision, target, target.backends["onnxruntime"], work, (x[:2],)))


def outputs(made, x, size=32):
    import onnxruntime as ort

    session = ort.InferenceSession(str(made.files["model.onnx"]), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return np.concatenate([session.run(None, {name: x[i : i + size]})[0] for i in range(0, len(x), size)])


def convolutions(model):
    return sum(node.op_type == "Conv" for node in model.proto.graph.node)


def all_fused(made, model):
    """Every convolution runs in 8 bits, and no operator of the network in float."""
    assert made.placement.float_nodes == 0, made.placement.reasons
    assert made.placement.int8_nodes >= convolutions(model)


@pytest.mark.usefixtures("exact_sums")
@pytest.mark.parametrize(("network", "drop"), [("demo", 0.003), ("resnet20", 0.005)])
def test_accuracy(network, drop, tmp_path):
    model = wild.quantized(getattr(wild, network))
    source, data = getattr(wild, network)()
    test = data.splits["test"]
    made = built(model, test.inputs, tmp_path)
    wanted = run_onnx(source.proto, [test.inputs])[0]
    exact, seen = (float((y.argmax(1) == test.labels).mean()) for y in (wanted, outputs(made, test.inputs)))
    assert exact - seen <= drop
    all_fused(made, model)
    assert source.proto.ByteSize() / made.files["model.onnx"].stat().st_size > 3


@pytest.mark.parametrize(("target", "least"), [("x86-64", 0.97), ("x86-64-no-vnni", 0.93)])
def test_efficientnet_lite0_agrees_with_float(target, least, tmp_path, request):
    """Weights of 7 bits cost about four points of agreement here."""
    if target == "x86-64":
        request.getfixturevalue("exact_sums")
    model = wild.quantized(wild.efficientnet_lite0)
    source, data = wild.efficientnet_lite0()
    x = data.splits["test"].inputs
    assert len(x) == 744
    made = built(model, x, tmp_path, target)
    agreement = (run_onnx(source.proto, [x], batch=32)[0].argmax(1) == outputs(made, x).argmax(1)).mean()
    assert agreement >= least
    all_fused(made, model)


@pytest.mark.parametrize(
    ("name", "height", "width", "floats"),
    [("ch_ppocr_mobile_v2.0_cls_infer", 48, 192, {"Softmax"}), ("ch_PP-OCRv4_det_infer", 96, 160, set())],
)
def test_paddle_files(name, height, width, floats, tmp_path):
    source, data = wild.paddle(name, height, width)
    model = wild.quantize(source, data, tmp_path)
    (tmp_path / "build").mkdir()
    x = data.splits["test"].inputs
    made = built(model, x, tmp_path / "build")
    kinds = {node.name: node.op_type for node in model.proto.graph.node}
    assert floats <= {kinds[name] for name in made.placement.reasons} <= {*floats, "Reshape", "Relu"}
    assert made.placement.int8_nodes > 10 * made.placement.float_nodes
    stored = onnx.load(made.files["model.onnx"])
    big = [t.name for t in stored.graph.initializer if t.data_type == onnx.TensorProto.FLOAT and np.prod(t.dims) > 2000]
    assert big == []
    assert made.files["model.onnx"].stat().st_size < 0.55 * source.proto.ByteSize()
    assert np.isfinite(outputs(made, x, 8)).all()
