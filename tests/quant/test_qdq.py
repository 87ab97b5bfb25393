import numpy as np
import onnx
import pytest
from quant_graphs import Builder, residual_net, run, samples, snr, stream, values

from edgekit.errors import BuildError
from edgekit.graph.fold import fold
from edgekit.graph.normalise import normalise
from edgekit.quant.choose import choose
from edgekit.quant.plan import plan
from edgekit.quant.qdq import emit
from edgekit.quant.session import open_session
from edgekit.quant.spec import PerChannel
from edgekit.quant.weights import quantize_weight


def quantized(net, x=None, keep_float=(), calibration="minmax"):
    x = samples() if x is None else x
    return choose(net, plan(net, keep_float), stream(x), calibration).spec


def makers(proto):
    return {name: node for node in proto.graph.node for name in node.output}


def optimized_kinds(proto, tmp_path):
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]


@pytest.fixture(scope="module")
def net():
    return residual_net()


@pytest.fixture(scope="module")
def spec(net):
    return quantized(net)


@pytest.mark.parametrize(
    ("backend", "variant", "least"),
    [
        *((backend, "affine", 30) for backend in ("onnxruntime", "openvino")),
        *((backend, "reduced_range", 24) for backend in ("onnxruntime", "openvino")),
        *((backend, "symmetric", 27) for backend in ("onnxruntime", "openvino", "tensorrt")),
    ],
)
def test_outputs_stay_close_to_float(net, spec, variant, least, backend):
    x = samples(64, seed=9)
    made = emit(net, spec, variant, backend)
    onnx.checker.check_model(made, full_check=True)
    assert snr(run(net, x), run(made, x, optimize=False)) > least


def test_the_graph_is_not_changed(net, spec):
    before = net.SerializeToString()
    emit(net, spec, "affine", "onnxruntime")
    assert net.SerializeToString() == before


def test_emission_is_deterministic(net, spec):
    one, other = (emit(net, spec, "affine", "onnxruntime").SerializeToString(deterministic=True) for _ in range(2))
    assert one == other


def test_onnxruntime_fuses_everything(net, spec, tmp_path):
    kinds = optimized_kinds(emit(net, spec, "affine", "onnxruntime"), tmp_path)
    assert kinds.count("QLinearConv") == 6
    assert not {"Conv", "Gemm", "Add", "Mul", "Relu", "Sigmoid"} & set(kinds)
    assert kinds.count("QuantizeLinear") == 1
    assert kinds.count("DequantizeLinear") == 1


@pytest.mark.usefixtures("exact_sums")
def test_fusion_moves_results_by_one_step_at_most(net, spec):
    made, x = emit(net, spec, "affine", "onnxruntime"), samples(64, seed=9)
    step = spec.grid("y", "affine").scale
    assert np.abs(run(made, x) - run(made, x, optimize=False)).max() <= 1.001 * step


def test_weights_are_the_same_bytes_for_every_backend(net, spec):
    for variant in ("affine", "symmetric", "reduced_range"):
        backends = ("onnxruntime", "openvino", "litert", *(("tensorrt",) if variant == "symmetric" else ()))
        stored = [values(emit(net, spec, variant, backend)) for backend in backends]
        for name, scales in spec.weights.items():
            expected = quantize_weight(values(net)[name], scales, variant)
            for found in stored:
                assert found[f"{name}/quantized"].tobytes() == expected.tobytes()
                assert name not in found
    narrow = values(emit(net, spec, "reduced_range", "onnxruntime"))["stem.weight/quantized"]
    assert np.abs(narrow.astype(int)).max() == 64


def test_bias_is_32_bits_for_onnxruntime_alone(net, spec):
    made = values(emit(net, spec, "affine", "onnxruntime"))
    scales = spec.weights["stem.weight"]
    assert isinstance(scales, PerChannel)
    assert made["stem/bias/quantized"].dtype == np.int32
    product = np.float32(spec.grid("x", "affine").scale) * np.array(scales.scales, np.float32)
    np.testing.assert_array_equal(made["stem/bias/scale"], product)
    assert values(emit(net, spec, "affine", "openvino"))["stem.bias"].dtype == np.float32


def test_tensorrt_gets_what_it_takes(net, spec):
    made = emit(net, spec, "symmetric", "tensorrt")
    constants, by_output = values(made), makers(made)
    for node in made.graph.node:
        if node.op_type in {"QuantizeLinear", "DequantizeLinear"}:
            assert not constants[node.input[2]].any()
            assert constants[node.input[2]].dtype == np.int8
        if node.op_type == "QuantizeLinear":
            assert constants[node.input[1]].shape == ()
            assert by_output.get(node.input[0], node).op_type not in {"Conv"} or node.input[0] == "branch/float"
        if node.op_type in {"Conv", "Gemm"}:
            assert by_output[node.input[0]].op_type == "DequantizeLinear"
            assert by_output[node.input[1]].op_type == "DequantizeLinear"
            assert len(node.input) < 3 or node.input[2] in constants
    add = next(node for node in made.graph.node if node.op_type == "Add")
    kinds = {by_output[name].op_type for name in add.input}
    assert kinds == {"Conv", "DequantizeLinear"}
    assert by_output["y"].op_type == "Gemm"


def test_inputs_and_outputs_stay_float(net, spec):
    for backend in ("onnxruntime", "tensorrt"):
        made = emit(net, spec, "affine" if backend == "onnxruntime" else "symmetric", backend)
        assert [(v.name, v.type.tensor_type.elem_type) for v in (*made.graph.input, *made.graph.output)] == [
            ("x", 1),
            ("y", 1),
        ]


def test_nodes_kept_float_stay_float(net, tmp_path):
    made = emit(net, quantized(net, keep_float={"project", "fc"}), "affine", "onnxruntime")
    kinds = optimized_kinds(made, tmp_path)
    assert kinds.count("QLinearConv") == 5
    assert "QGemm" not in kinds
    assert values(made)["project.weight"].dtype == np.float32
    assert makers(made)["y"].op_type == "Gemm"


def test_nodes_that_one_backend_keeps_float_keep_their_weights_there(net, spec, tmp_path):
    kept = spec.model_copy(update={"keep_float": {"onnxruntime": {"project": "sensitive"}}})
    made = emit(net, kept, "affine", "onnxruntime")
    kinds = optimized_kinds(made, tmp_path)
    assert kinds.count("QLinearConv") == 5
    np.testing.assert_array_equal(values(made)["project.weight"], values(net)["project.weight"])
    np.testing.assert_array_equal(values(made)["project.bias"], values(net)["project.bias"])
    elsewhere = emit(net, kept, "affine", "openvino")
    assert values(elsewhere)["project.weight/quantized"].dtype == np.int8


def test_file_is_about_four_times_smaller():
    b = Builder()
    b.conv("x", "one", 64, 3)
    b.conv("one", "two", 64, 64)
    b.conv("two", "y", 64, 64)
    net = b.model({"x": ["n", 3, 12, 12]}, {"y": ["n", 64, 12, 12]})
    made = emit(net, quantized(net), "affine", "onnxruntime")
    assert net.ByteSize() / made.ByteSize() > 3.7


def hard_net():
    """A squeeze-and-excite block with HardSigmoid between HardSwish activations, as MobileNetV3 has them."""
    b = Builder(3)
    b.conv("x", "stem", 8, 3)
    b.add("HardSwish", ["stem"], "swish")
    b.add("GlobalAveragePool", ["swish"], "squeeze")
    b.conv("squeeze", "excite", 8, 8, kernel=1)
    b.add("HardSigmoid", ["excite"], "gate", alpha=0.2, beta=0.5)
    b.add("Mul", ["swish", "gate"], "gated")
    b.conv("gated", "head", 8, 8)
    b.add("HardSwish", ["head"], "y")
    return b.model({"x": ["n", 3, 12, 12]}, {"y": ["n", 8, 12, 12]})


@pytest.mark.parametrize(("times", "copies", "clamps"), [(2, 0, 2), (30, 2, 0)])
def test_hard_activations_become_products(tmp_path, times, copies, clamps):
    """A gate is its input's integers, clamped; where 3 is a few of their steps it needs finer ones, by a table."""
    net, x = hard_net(), samples() * times
    made = emit(net, quantized(net, x), "affine", "onnxruntime")
    kinds = optimized_kinds(made, tmp_path)
    assert not {"HardSigmoid", "HardSwish", "Div", "Mul"} & set(kinds)
    assert kinds.count("QLinearLeakyRelu") == copies
    assert kinds.count("Clip") == clamps
    assert kinds.count("QLinearMul") == 3
    assert snr(run(net, x), run(made, x)) > 30
    assert snr(run(net, x), run(emit(net, quantized(net, x), "affine", "openvino"), x, optimize=False)) > 30


def test_a_relu_that_the_grid_cannot_absorb_clamps_integers(tmp_path):
    b = Builder(4)
    b.conv("x", "stem", 8, 3)
    b.add("Relu", ["stem"], "relu")
    b.add("Concat", ["stem", "relu"], "y", axis=1)
    net, x = b.model({"x": ["n", 3, 12, 12]}, {"y": ["n", 16, 12, 12]}), samples()
    made = emit(net, quantized(net), "affine", "onnxruntime")
    assert "Relu" not in optimized_kinds(made, tmp_path)
    assert snr(run(net, x), run(made, x)) > 30
    assert run(made, x)[:, 8:].min() >= 0


def test_transposed_convolution_keeps_small_weights(tmp_path):
    b = Builder(5)
    b.conv("x", "stem", 8, 3)
    b.add("ConvTranspose", ["stem", b.weight("up.weight", 8, 4, 2, 2), b.weight("up.bias", 4)], "up", strides=[2, 2])
    b.add("Relu", ["up"], "relu")
    b.add("ConvTranspose", ["relu", b.weight("upper.weight", 4, 4, 2, 2)], "upper", strides=[2, 2])
    b.conv("upper", "y", 4, 4)
    net, x = b.model({"x": ["n", 3, 12, 12]}, {"y": ["n", 4, 48, 48]}), samples()
    spec = quantized(net)
    reason = "onnxruntime has no 8-bit kernel for ConvTranspose"
    assert spec.keep_float["onnxruntime"] == {"up": reason, "upper": reason}
    made = emit(net, spec, "affine", "onnxruntime")
    assert values(made)["up.weight/quantized"].dtype == np.int8
    assert optimized_kinds(made, tmp_path).count("QLinearConv") == 2
    assert snr(run(net, x), run(made, x)) > 27


def test_constant_operands_and_unary_operators(tmp_path):
    b = Builder(6)
    b.conv("x", "stem", 8, 3)
    b.add("LeakyRelu", ["stem"], "leaky", alpha=0.1)
    b.add("Mul", ["leaky", b.weight("factor", 1, 8, 1, 1)], "scaled")
    b.add("Add", ["scaled", b.constant("shift", np.float32(0.7))], "shifted")
    b.add("AveragePool", ["shifted"], "pool", kernel_shape=[2, 2], strides=[2, 2])
    b.add("Tanh", ["pool"], "y")
    net, x = b.model({"x": ["n", 3, 12, 12]}, {"y": ["n", 8, 6, 6]}), samples()
    made = emit(net, quantized(net), "affine", "onnxruntime")
    kinds = optimized_kinds(made, tmp_path)
    assert {"QLinearLeakyRelu", "QLinearMul", "QLinearAdd", "QLinearAveragePool", "Tanh"} <= set(kinds)
    assert snr(run(net, x), run(made, x)) > 25


def test_matrix_products_of_activations(tmp_path):
    b = Builder(7)
    b.add("MatMul", ["x", b.weight("query", 16, 16)], "q")
    b.add("MatMul", ["x", b.weight("key", 16, 16)], "k")
    b.add("Transpose", ["k"], "kt", perm=[0, 2, 1])
    b.add("MatMul", ["q", "kt"], "scores")
    b.add("Softmax", ["scores"], "weights", axis=-1)
    b.add("MatMul", ["weights", "k"], "y")
    net = b.model({"x": ["n", 10, 16]}, {"y": ["n", 10, 16]})
    x = samples(32, shape=(10, 16))
    spec = quantized(net, x)
    assert spec.tensors["weights"].high == pytest.approx(1.0, abs=0.05)
    made = emit(net, spec, "affine", "onnxruntime")
    assert optimized_kinds(made, tmp_path).count("QLinearMatMul") == 4
    assert snr(run(net, x), run(made, x)) > 20


def test_a_shared_weight_is_stored_once():
    b = Builder(8)
    b.conv("x", "one", 3, 3)
    b.add("Conv", ["one", "one.weight"], "y", pads=[1, 1, 1, 1])
    net = b.model({"x": ["n", 3, 12, 12]}, {"y": ["n", 3, 12, 12]})
    made = emit(net, quantized(net), "affine", "onnxruntime")
    assert [t.name for t in made.graph.initializer if t.name.startswith("one.weight/q")] == ["one.weight/quantized"]
    assert snr(run(net, samples()), run(made, samples())) > 30


def test_an_old_opset_is_refused(spec):
    old = residual_net()
    old.opset_import[0].version = 12
    with pytest.raises(BuildError, match="opset 13"):
        emit(old, spec, "affine", "onnxruntime")


def test_a_foreign_spec_is_refused(spec):
    with pytest.raises(BuildError, match="another graph"):
        emit(hard_net(), spec, "affine", "onnxruntime")


def test_folded_batch_norm_quantizes():
    b = Builder(9)
    b.conv("x", "conv", 8, 3, bias=False)
    for name in ("scale", "shift", "mean"):
        b.weight(name, 8)
    b.constant("var", np.abs(b.rng.standard_normal(8)).astype(np.float32) + 0.5)
    b.add("BatchNormalization", ["conv", "scale", "shift", "mean", "var"], "norm")
    b.add("Relu", ["norm"], "y")
    net = fold(normalise(b.model({"x": ["n", 3, 12, 12]}, {"y": ["n", 8, 12, 12]})))
    assert len(plan(net).nodes) == 2
    x = samples()
    assert snr(run(net, x), run(emit(net, quantized(net), "affine", "onnxruntime"), x)) > 30


@pytest.mark.usefixtures("exact_sums")
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("ceil", [0, 1])
@pytest.mark.parametrize("pad", [0, 1])
def test_pooling_that_counts_its_padding_is_what_the_graph_says(backend, ceil, pad):
    """The runtime's integers against its file computed in float: OpenVINO pads integers with 0, not with their zero
    point, and ONNX Runtime divides windows that reach over the end by too much."""
    b = Builder(3)
    b.conv("x", "first", 8, 3)
    attributes = {"kernel_shape": [4, 4], "strides": [2, 2], "pads": [pad] * 4, "ceil_mode": ceil}
    b.add("AveragePool", ["first"], "pool", count_include_pad=1, **attributes)
    b.conv("pool", "y", 4, 8, kernel=1)
    x = samples(shape=(3, 15, 15))
    net = b.model({"x": ["batch", 3, 15, 15]}, {"y": ["batch", 4, "h", "w"]})
    spec = quantized(net, x)
    plain = run(emit(net, spec, "affine", "none"), x, optimize=False)
    session = open_session(emit(net, spec, "affine", backend), runtime=backend)
    assert snr(plain, session([x])[0]) > 30


@pytest.mark.parametrize("factor", [np.float32([1.0]), np.float32([1.702]), np.float32(1.702), np.float32([[[1.5]]])])
def test_a_sigmoid_gate_with_a_factor_runs_on_openvino(factor, tmp_path):
    """OpenVINO fuses `x * Sigmoid(factor * x)`, and throws where the factor is dequantized and of rank 1."""
    b = Builder()
    b.conv("x", "stem", 8, 3)
    b.constant("factor", factor)
    b.add("Mul", ["stem", "factor"], "scaled")
    b.add("Sigmoid", ["scaled"], "gate")
    b.add("Mul", ["stem", "gate"], "swish")
    b.conv("swish", "last", 4, 8)
    gated = b.model({"x": ["n", 3, 12, 12]}, {"last": ["n", 4, 12, 12]})
    x = samples(64, seed=9)
    emitted = emit(gated, quantized(gated), "affine", "openvino")
    path = tmp_path / "model.onnx"
    onnx.save(emitted, path)
    ov = pytest.importorskip("openvino")
    compiled = ov.Core().compile_model(ov.convert_model(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    assert snr(run(gated, x), compiled([x])[0]) > 30
