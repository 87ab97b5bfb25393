"""OpenVINO: what is in its files, what computes in which precision, and real networks against ONNX Runtime."""

import os
import re
import subprocess
import sys

import numpy as np
import onnx
import pytest
import wild

from edgekit.backends import Job, openvino
from edgekit.backends import _openvino_ir as ir
from edgekit.backends._emitted import nodes_in
from edgekit.backends.openvino import OpenVino
from edgekit.errors import BuildError
from edgekit.graph.execute import run_onnx
from edgekit.quant.qdq import emit
from edgekit.quant.weights import quantize_weight
from edgekit.stages.quantize import Quantize
from edgekit.testing import Lent, small_data, small_network, unsupported_network

ov = pytest.importorskip("openvino")
IMAGES = np.random.default_rng(5).standard_normal((8, 3, 12, 12)).astype(np.float32)


def job(model, work, role="float", precision=None, samples=(IMAGES,), arch="x86_64", **facts):
    work.mkdir(parents=True, exist_ok=True)
    target = wild.target(arch, **facts)
    precision = precision or ("int8" if role == "quantized" else "fp32")
    return Job(model, role, precision, target, target.backends["openvino"], work, samples)


def outputs(built, images, threads=2):
    """A saved file's outputs for any number of samples, with the hints that the bundle gives the runner."""
    core = ov.Core()
    config = {**built.runner["hints"], "INFERENCE_NUM_THREADS": threads}
    compiled = core.compile_model(core.read_model(built.files["model.xml"]), "CPU", config)
    request = compiled.create_infer_request()
    parts = [images[i : i + 64] for i in range(0, len(images), 64)]
    return np.concatenate([np.array(request.infer([part])[0]) for part in parts])


@pytest.fixture(scope="module")
def int8(tmp_path_factory):
    return wild.quantize(small_network(), small_data(), tmp_path_factory.mktemp("quantize"))


def test_float_file_keeps_names_and_the_dynamic_batch(tmp_path):
    built = OpenVino().build(job(small_network(), tmp_path))
    model = ov.Core().read_model(built.files["model.xml"])
    assert model.input("image").get_partial_shape().to_string() == "[?,3,12,12]"
    assert model.output("logits").get_partial_shape()[1] == 4
    np.testing.assert_allclose(outputs(built, IMAGES[:5]), run_onnx(small_network().proto, [IMAGES[:5]])[0], atol=1e-5)


def test_fp32_is_fp32(tmp_path):
    """The hint decides: on a processor with bfloat16 the default is off by far more."""
    built = OpenVino().build(job(small_network(), tmp_path))
    assert built.runner["hints"] == {"INFERENCE_PRECISION_HINT": "f32"}
    weights = small_network().proto.graph.initializer
    floats = sum(int(np.prod(t.dims)) * 4 for t in weights)
    assert built.files["model.bin"].stat().st_size >= 0.8 * floats, "weights were halved"


def test_fp16_halves_the_weights(tmp_path):
    full = OpenVino().build(job(small_network(), tmp_path / "32"))
    half = OpenVino().build(job(small_network(), tmp_path / "16", precision="fp16"))
    sizes = [b.files["model.bin"].stat().st_size for b in (full, half)]
    assert 0.45 < sizes[1] / sizes[0] < 0.6
    np.testing.assert_allclose(outputs(half, IMAGES), outputs(full, IMAGES), atol=1e-2)
    on_arm = OpenVino().build(job(small_network(), tmp_path / "arm", precision="fp16", arch="aarch64"))
    assert on_arm.runner["hints"] == {"INFERENCE_PRECISION_HINT": "f16"}
    assert "aarch64" in on_arm.notes[0]


def test_int8_weights_lie_in_the_file_as_they_were_planned(tmp_path, int8):
    """The bytes are those of the shared quantizer: the same in every backend of the variant."""
    built = OpenVino().build(job(int8, tmp_path, "quantized"))
    content = built.files["model.bin"].read_bytes()
    for tensor in int8.lowered("affine").graph.initializer:
        if tensor.name in int8.quant.weights:
            planned = quantize_weight(onnx.numpy_helper.to_array(tensor), int8.quant.weights[tensor.name], "affine")
            assert planned.tobytes() in content, tensor.name


@pytest.mark.usefixtures("exact_sums")
def test_int8_equals_onnxruntime_on_the_same_graph(tmp_path, int8):
    """At most one quantization step of the output, for nearly all values (`tests/quant/test_zoo.py` goes deeper)."""
    built = OpenVino().build(job(int8, tmp_path, "quantized"))
    images = small_data().splits["test"].inputs
    expected = run_onnx(emit(int8.lowered("affine"), int8.quant, "affine", "openvino"), [images])[0]
    step = built.steps[0] or int8.quant.grid("logits", "affine").scale
    off = np.abs(outputs(built, images) - expected)
    assert (off <= step * 1.01).mean() >= 0.97, f"{off.max() / step:.2f} steps at most"


def test_every_heavy_operator_runs_in_int8(tmp_path, int8):
    """By OpenVINO's own execution graph."""
    placement = OpenVino().build(job(int8, tmp_path, "quantized")).placement
    assert not {"stem", "depthwise", "pointwise", "classifier"} & set(placement.reasons)
    assert placement.int8_nodes >= 4


def test_an_operator_that_was_kept_float_says_why(tmp_path):
    kept = Quantize(keep_float=("pointwise",)).apply(small_network(), Lent(tmp_path))
    placement = OpenVino().build(job(kept, tmp_path / "build", "quantized")).placement
    assert placement.reasons["pointwise"] == kept.quant.keep_float["*"]["pointwise"]


def test_tidying_changes_no_number_and_saves_much(tmp_path, int8):
    proto = emit(int8.proto, int8.quant, "affine", "openvino")
    seen, sizes = [], []
    for tidy in (False, True):
        model = ir.convert(ov, proto, tmp_path)
        if tidy:
            ir.tidy(model, proto)
        ov.save_model(model, tmp_path / f"{tidy}.xml", compress_to_fp16=False)
        sizes.append((tmp_path / f"{tidy}.xml").stat().st_size)
        compiled = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        seen.append(compiled([IMAGES])[0].tobytes())
    assert seen[0] == seen[1]
    assert sizes[1] < 0.92 * sizes[0]


def test_same_bytes_in_another_process(tmp_path, int8):
    """Names that hold a counter of the process would make every build different."""
    once = OpenVino().build(job(int8, tmp_path / "a", "quantized"))
    for _ in range(2):
        ir.convert(ov, emit(int8.proto, int8.quant, "affine", "openvino"), tmp_path)
    again = OpenVino().build(job(int8, tmp_path / "b", "quantized"))
    for name in once.files:
        assert once.files[name].read_bytes() == again.files[name].read_bytes()
    assert not re.search(r'name="Constant_\d{4,}"', once.files["model.xml"].read_text())


def test_all_unsupported_operators_are_named(tmp_path):
    model = unsupported_network("odd_one")
    model.proto.graph.node[-1].output[0] = "k"
    node = onnx.helper.make_node("Wibble", ["k"], ["logits"], "odd_two", domain="test.edgekit")
    model.proto.graph.node.append(node)
    with pytest.raises(BuildError, match="no rule for Frobnicate, Wibble at odd_one, odd_two") as caught:
        OpenVino().build(job(model, tmp_path))
    assert caught.value.nodes == ("odd_one", "odd_two")


@pytest.mark.parametrize(
    ("message", "found"),
    [
        ("-- No conversion rule found for operations: test.edgekit.Frobnicate\n", ("odd_one",)),
        ("-- No conversion rule found for operations: Gemm-17, Flatten-13\n", ("flatten", "classifier")),
        ("Check 'x' failed at node 'pointwise': shapes differ", ("pointwise",)),
        ("something else", ()),
    ],
)
def test_nodes_in_messages(message, found):
    assert nodes_in(message, unsupported_network("odd_one").proto) == found


def test_a_build_that_strays_is_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(openvino.TOLERANCE, "fp32", 0.0)
    with pytest.raises(BuildError, match=r"strays from the host by .* at output 'logits'"):
        OpenVino().build(job(small_network(), tmp_path))


def test_quantized_needs_a_spec(tmp_path):
    with pytest.raises(BuildError, match="no stage has quantized it"):
        OpenVino().build(job(small_network(), tmp_path, "quantized"))


def test_nothing_is_reported_and_home_stays_empty(tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    code = (
        "import sys; from pathlib import Path; from edgekit.extras import require;"
        "ov = require('openvino', extra='openvino', why='a test');"
        "from edgekit.backends import _openvino_ir as ir; from edgekit.testing import small_network;"
        f"ir.convert(ov, small_network().proto, Path({str(tmp_path)!r}));"
        "print([m for m in sys.modules if m.startswith('openvino_telemetry')])"
    )
    environment = {**os.environ, "HOME": str(home)}
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert ran.stdout.strip() == "[]"
    assert not list(home.iterdir())


@pytest.mark.usefixtures("exact_sums")
@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "accuracy", "drop"),
    [(wild.resnet20, 0.9129, 0.005), (wild.demo, 0.944, 0.005)],
    ids=["resnet20", "demo"],
)
def test_trained_networks(tmp_path, network, accuracy, drop):
    """The demo's first 2,000 test images: 94.40 %; ResNet-20: 91.29 % of 1,228."""
    (model, data), quantized = network(), wild.quantized(network)
    test = data.splits["test"]
    built = OpenVino().build(job(model, tmp_path / "float", samples=(test.inputs[:4],)))
    reference = run_onnx(model.proto, [test.inputs])[0]
    np.testing.assert_allclose(outputs(built, test.inputs), reference, atol=1e-4)

    built8 = OpenVino().build(job(quantized, tmp_path / "int8", "quantized", samples=(test.inputs[:4],)))
    seen = outputs(built8, test.inputs)
    runtime = run_onnx(emit(quantized.proto, quantized.quant, "affine", "onnxruntime"), [test.inputs])[0]
    assert (seen.argmax(1) == runtime.argmax(1)).mean() >= 0.99
    right = [(o.argmax(1) == test.labels).mean() for o in (reference, seen)]
    assert right[0] == pytest.approx(accuracy, abs=1e-3)
    assert right[0] - right[1] <= drop
    sizes = [b.files["model.bin"].stat().st_size for b in (built, built8)]
    assert sizes[0] / sizes[1] >= 3.7
    assert not {n.name for n in quantized.proto.graph.node if n.op_type == "Conv"} & set(built8.placement.reasons)


@pytest.mark.usefixtures("exact_sums")
@pytest.mark.slow
def test_efficientnet_lite0(tmp_path):
    (model, data), quantized = wild.efficientnet_lite0(), wild.quantized(wild.efficientnet_lite0)
    images = data.splits["test"].inputs
    built = OpenVino().build(job(quantized, tmp_path / "int8", "quantized", samples=(images[:2],)))
    reference = run_onnx(model.proto, [images], batch=16)[0]
    assert (outputs(built, images).argmax(1) == reference.argmax(1)).mean() >= 0.95
    assert built.files["model.bin"].stat().st_size < 18.26e6 / 3.7


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "height", "width"), [("ch_ppocr_mobile_v2.0_cls_infer", 48, 192), ("ch_PP-OCRv4_det_infer", 96, 96)]
)
def test_paddle_files_go_through(tmp_path, name, height, width):
    model, data = wild.paddle(name, height, width)
    images = data.splits["test"].inputs
    built = OpenVino().build(job(model, tmp_path / "float", samples=(images[:2],)))
    np.testing.assert_allclose(outputs(built, images), run_onnx(model.proto, [images])[0], atol=1e-4)
    quantized = wild.quantize(model, data, tmp_path)
    built8 = OpenVino().build(job(quantized, tmp_path / "int8", "quantized", samples=(images[:2],)))
    assert np.isfinite(outputs(built8, images)).all()
    assert built8.placement.int8_nodes > built8.placement.float_nodes
    assert built8.files["model.bin"].stat().st_size < built.files["model.bin"].stat().st_size / 3
