"""Dynamic int8 and weights alone in integers: graphs against formulas and against the runtimes' own kernels."""

from collections import Counter
from functools import partial

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from quant_graphs import Builder, residual_net, session, snr
from transformer_graph import WIDTH, tokens, transformer

from edgekit.errors import BuildError, UsageError
from edgekit.graph.execute import saturates_here
from edgekit.quant import dynamic, forms, pick, weight_only
from edgekit.quant.qdq import emit
from edgekit.quant.spec import QuantSpec
from edgekit.quant.weights import dequantize_weight, quantize_weight


@pytest.fixture(scope="module")
def net():
    return transformer()


def kinds(proto, tmp_path):
    ort = pytest.importorskip("onnxruntime")
    options = ort.SessionOptions()
    options.log_severity_level, options.optimized_model_filepath = 3, str(tmp_path / "optimized.onnx")
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)


def openvino(proto):
    ov = pytest.importorskip("openvino")
    settings = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 32, "INFERENCE_NUM_THREADS": 1}
    core = ov.Core()
    return core.compile_model(core.read_model(proto.SerializeToString()), "CPU", settings)


def precisions(compiled):
    about = [step.get_rt_info() for step in compiled.get_runtime_model().get_ops()]
    pairs = [(info["layerType"].astype(str), info["runtimePrecision"].astype(str)) for info in about]
    return Counter(kind for layer, kind in pairs if layer == "FullyConnected")


def test_blocks_follow_the_formula():
    weight = np.random.default_rng(0).standard_normal((96, 10)).astype(np.float32)
    weight[32:64, 3] = 0
    integers, scales = weight_only.quantize_blocks(weight)
    assert integers.shape == weight.shape
    assert scales.shape == (3, 10)
    for block in range(3):
        part = weight[32 * block : 32 * block + 32]
        step = np.maximum((np.abs(part).max(0) / np.float32(7)).astype(np.float16).astype(np.float32), 2.0**-14)
        assert np.array_equal(scales[block], step)
        wanted = np.clip(np.rint(part / step), -7, 7)
        assert np.array_equal(integers[32 * block : 32 * block + 32], wanted)
        # float16 rounds the scale by up to 2^-11, which the largest weight feels seven times.
        whole = weight_only.dequantize_blocks(integers, scales)[32 * block : 32 * block + 32]
        assert (np.abs(whole - part) <= step * (0.5 + 7 * 2**-11)).all()
    with pytest.raises(ValueError, match="96"):
        weight_only.quantize_blocks(weight, 40)


def test_two_integers_make_a_byte():
    assert weight_only.pack(np.array([1, -1, 7, -7], np.int8)).tolist() == [0xF1, 0x97]


def test_which_operators_take_part(net):
    spec = forms.form_spec(net, "int8_dynamic", ["out.weight", "projected"])
    assert set(spec.nodes) == {"query", "key", "value", "logits"}
    assert set(spec.tables) == {"table"}
    assert spec.keep_float["*"]["projected"] == "kept float by the recipe"
    assert spec.form("onnxruntime") == "int8_dynamic"
    assert QuantSpec.from_json(spec.to_json()) == spec


@pytest.mark.parametrize("form", ["int8_dynamic", "int8_weights", "int4_weights"])
def test_convolutions_are_refused(form):
    with pytest.raises(UsageError, match=f"precision {form} is for networks of matrix products"):
        forms.form_spec(residual_net(), form, ())


def test_weights_are_those_of_static_int8(net):
    spec = forms.form_spec(net, "int8_weights", ())
    constants = {item.name: numpy_helper.to_array(item) for item in net.graph.initializer}
    wanted = quantize_weight(constants["query.weight"], spec.weights["query.weight"], "affine")
    for backend, form in (
        ("openvino", "int8_weights"),
        ("onnxruntime", "int8_dynamic"),
        ("onnxruntime", "int8_weights"),
    ):
        made = emit(net, spec.model_copy(update={"precision": form}), "affine", backend)
        (tensor,) = [item for item in made.graph.initializer if item.name == "query.weight/quantized"]
        seen = numpy_helper.to_array(tensor)
        if seen.dtype == np.uint8:  # MatMulNBits: [outputs, blocks, block], around 128
            seen = (seen.reshape(WIDTH, WIDTH).astype(np.int16) - 128).astype(np.int8).T
        assert np.array_equal(seen, wanted)


@pytest.mark.parametrize(("form", "least"), [("int8_weights", 35), ("int4_weights", 15)])
def test_weight_only_graphs_compute_with_the_rounded_weights(net, form, least):
    """OpenVINO's graph, in standard operators; ONNX's reference evaluator runs those in 4 bits."""
    spec = forms.form_spec(net, form, ())
    made = emit(net, spec, "affine", "openvino")
    onnx.checker.check_model(made)
    rounded = onnx.ModelProto()
    rounded.CopyFrom(net)
    for item in rounded.graph.initializer:
        value = numpy_helper.to_array(item)
        if item.name in spec.weights:
            turned = item.name == "fc.weight"
            if form == "int4_weights":
                whole = weight_only.dequantize_blocks(*weight_only.quantize_blocks(value.T if turned else value))
                value = np.ascontiguousarray(whole.T) if turned else whole
            else:
                scales = spec.weights[item.name]
                value = dequantize_weight(quantize_weight(value, scales, "affine"), scales, "affine")
        elif item.name in spec.tables:
            scales = spec.tables[item.name]
            value = dequantize_weight(quantize_weight(value, scales, "affine"), scales, "affine")
        item.CopyFrom(numpy_helper.from_array(value, item.name))
    feed = tokens()
    run = onnx.reference.ReferenceEvaluator(made).run if form == "int4_weights" else session(made, optimize=False).run
    seen = run(None, feed)[0]
    assert np.abs(seen - session(rounded).run(None, feed)[0]).max() < 1e-4
    assert snr(session(net).run(None, feed)[0], seen) > least


@pytest.mark.parametrize(
    ("form", "least", "kernels"),
    [
        ("int8_dynamic", 28, {"DynamicQuantizeMatMul": 2, "MatMulIntegerToFloat": 3}),
        ("int8_weights", 32, {"MatMulNBits": 5}),
        ("int4_weights", 14, {"MatMulNBits": 5}),
    ],
)
def test_onnxruntime_uses_its_kernels(net, tmp_path, form, least, kernels, request):
    made = emit(net, forms.form_spec(net, form, ()), "affine", "onnxruntime")
    seen = kinds(made, tmp_path)
    assert {name: seen[name] for name in kernels} == kernels
    assert made.ByteSize() < 0.35 * net.ByteSize()
    if form == "int8_dynamic":
        request.getfixturevalue("exact_sums")
    feed = tokens()
    assert snr(session(net).run(None, feed)[0], session(made).run(None, feed)[0]) > least


@pytest.mark.parametrize(("form", "least", "kind"), [("int8_dynamic", 30, "i8"), ("int4_weights", 14, "i4")])
def test_openvino_keeps_integers(net, form, least, kind):
    compiled = openvino(emit(net, forms.form_spec(net, form, ()), "affine", "openvino"))
    assert precisions(compiled)[kind] == 5
    feed = tokens()
    assert snr(session(net).run(None, feed)[0], compiled(feed)[0]) > least


def test_dynamic_weights_have_7_bits_where_sums_would_saturate(net):
    made = emit(net, forms.form_spec(net, "int8_dynamic", ()), "reduced_range", "onnxruntime")
    (tensor,) = [item for item in made.graph.initializer if item.name == "query.weight/quantized"]
    assert np.abs(numpy_helper.to_array(tensor)).max() == 64


def test_fp16_rounds_every_weight(net):
    made = emit(net, forms.form_spec(net, "fp16", ()), "affine", "openvino")
    for item in made.graph.initializer:
        value = numpy_helper.to_array(item)
        assert value.dtype != np.float32 or np.array_equal(value, np.clip(value, -65504, 65504).astype(np.float16))


def test_four_bits_need_an_opset_that_means_the_same():
    net = transformer()
    net.graph.node.append(helper.make_node("GroupNormalization", ["a", "b", "c"], ["d"], name="norm", num_groups=1))
    writer = forms.Writer(net)
    with pytest.raises(BuildError, match="GroupNormalization at 'norm'"):
        writer.domain("", weight_only.INT4_OPSET)


@pytest.mark.parametrize(("backend", "form"), sorted(forms.REFUSED))
def test_refusals_say_why(backend, form):
    with pytest.raises(BuildError, match=f"^{backend} gets no {form} build: .+") as error:
        forms.refuse(backend, form)
    assert forms.REFUSED[backend, form] in str(error.value)


def test_only_transformers_are_asked(net):
    assert pick.attends(net)
    assert not pick.attends(residual_net())
    b = Builder()
    b.add("MatMul", ["x", b.weight("w", 64, 64)], "h")
    b.add("Softmax", ["h"], "y")
    assert not pick.attends(b.model({"x": ["n", 64]}, {"y": ["n", 64]}))


def calibrated(net):
    from edgekit.quant.choose import choose
    from edgekit.quant.plan import plan

    feed, held = tokens(64), tokens(32, seed=2)
    batches = [lambda one=one: iter([(one["ids"], one["mask"])]) for one in (feed, held)]
    return choose(net, plan(net), batches[0], "minmax").spec, batches[1], held


def test_the_form_nearest_to_float_is_picked():
    """Two loud channels spoil static ranges; ranges by row or group lose less."""
    net = transformer(loud=60)
    spec, held, feed = calibrated(net)
    picked = pick.pick(net, spec, held, ["onnxruntime", "openvino", "litert", "tensorrt"], 20.0)
    assert set(picked.spec.forms) == {"onnxruntime", "openvino", "litert"}
    assert picked.spec.form("tensorrt") == "int8"
    exact = session(net).run(None, feed)[0]
    variant = "reduced_range" if saturates_here() else "affine"
    for backend, values in picked.snr_db.items():
        assert values[picked.spec.forms[backend]] == max(values.values())
        assert any(note.startswith(f"{backend} gets {picked.spec.forms[backend]}") for note in picked.notes)
    seen = {
        form: snr(
            exact,
            session(emit(net, spec.model_copy(update={"precision": form}), variant, "onnxruntime")).run(None, feed)[0],
        )
        for form in ("int8", "int8_dynamic")
    }
    for form, value in seen.items():
        assert picked.snr_db["onnxruntime"][form] == pytest.approx(value, abs=1.5)
    assert picked.spec.form("openvino") == "int8_dynamic"
    compiled = openvino(emit(net, picked.spec, "affine", "openvino"))
    assert picked.snr_db["openvino"]["int8_dynamic"] == pytest.approx(snr(exact, compiled(feed)[0]), abs=3)


def test_rounding_by_row_follows_the_formula(net):
    spec = forms.form_spec(net, "int8_dynamic", ())
    made = forms.rewritten(net, spec, "affine", "litert", partial(dynamic.rounded, group=None))
    feed = tokens(4)
    made.graph.output.extend(
        helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in ("normed", "normed/rounded")
    )
    _, value, seen = session(made).run(None, feed)
    low, high = np.minimum(value.min(-1, keepdims=True), 0), np.maximum(value.max(-1, keepdims=True), 0)
    step = (high - low) / 255
    assert np.allclose(seen, np.rint(value / step) * step, atol=1e-5)
