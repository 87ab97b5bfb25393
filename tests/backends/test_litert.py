"""LiteRT builds against the QuantSpec, ONNX Runtime's file of the same spec, the host, and real networks.

Every conversion takes seconds, so all but the refusals are slow.
"""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import wild
from onnx import TensorProto, helper, numpy_helper

from edgekit.backends import Job
from edgekit.backends import _litert_convert as converter
from edgekit.backends import _litert_flatbuffer as fb
from edgekit.backends import _litert_run as run
from edgekit.backends import _tflite_check as tflite_check
from edgekit.backends._litert_decide import decide
from edgekit.backends._litert_finish import rename
from edgekit.backends._litert_match import match, onnx_tensors
from edgekit.backends.litert import LiteRT
from edgekit.errors import BuildError
from edgekit.graph.execute import run_onnx
from edgekit.graph.fold import fold
from edgekit.model import OnnxModel, TensorSpec
from edgekit.quant.qdq import emit
from edgekit.quant.weights import quantize_bias, quantize_weight, scale_array
from edgekit.target import BackendFacts
from edgekit.testing import small_data, small_network, unsupported_network

pytest.importorskip("litert_torch")
IMAGES = np.random.default_rng(5).standard_normal((8, 3, 12, 12)).astype(np.float32)


def job(model, work, role="float", samples=(IMAGES,), precision=None, **facts):
    work.mkdir(parents=True, exist_ok=True)
    target = wild.target()
    precision = precision or ("int8" if role == "quantized" else "fp32")
    return Job(model, role, precision, target, BackendFacts(**facts), work, samples)


def outputs(built, images):
    """The first output for every image, from the saved file."""
    content = built.files[built.entry].read_bytes()
    return np.concatenate([result[0] for result in run.outputs(content, [[image[None]] for image in images])])


def saved(built):
    model = fb.read(built.files[built.entry].read_bytes())
    return model, model.subgraphs[0]


def named(graph):
    return {fb.tensor_name(tensor): tensor for tensor in graph.tensors}


@pytest.fixture(scope="module")
def int8(tmp_path_factory):
    return wild.quantize(small_network(), small_data(), tmp_path_factory.mktemp("quantize"))


@pytest.fixture(scope="module")
def built(int8, tmp_path_factory):
    return LiteRT().build(job(int8, tmp_path_factory.mktemp("built"), "quantized"))


@pytest.mark.slow
def test_float_build_keeps_names_and_numbers(tmp_path):
    made = LiteRT().build(job(small_network(), tmp_path))
    model, graph = saved(made)
    assert [fb.tensor_name(graph.tensors[i]) for i in graph.inputs] == ["image"]
    assert [fb.tensor_name(graph.tensors[i]) for i in graph.outputs] == ["logits"]
    assert fb.shape(graph.tensors[int(graph.inputs[0])]) == (1, 3, 12, 12)
    loaded = run.interpreter(made.files[made.entry].read_bytes())
    assert loaded.get_signature_list() == {"serving_default": {"inputs": ["image"], "outputs": ["logits"]}}
    expected = run_onnx(small_network().proto, [IMAGES])[0]
    np.testing.assert_allclose(outputs(made, IMAGES), expected, atol=1e-4 * np.abs(expected).max())
    assert made.steps == (None,) and made.placement.int8_nodes == 0 and model.metadata is None


@pytest.mark.slow
def test_a_fixed_batch_stays(tmp_path):
    model = small_network()
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 2
    spec = TensorSpec("image", "float32", (2, 3, 12, 12))
    made = LiteRT().build(job(replace(model, proto=proto, inputs=(spec,)), tmp_path))
    _, graph = saved(made)
    assert fb.shape(graph.tensors[int(graph.inputs[0])]) == (2, 3, 12, 12)
    seen = run.outputs(made.files[made.entry].read_bytes(), [[IMAGES[:2]]])[0][0]
    np.testing.assert_allclose(seen, run_onnx(model.proto, [IMAGES[:2]])[0], atol=1e-4)


@pytest.mark.slow
def test_64_bit_outputs_keep_their_type(tmp_path):
    model = small_network()
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    proto.graph.node.append(helper.make_node("ArgMax", ["logits"], ["label"], "argmax", axis=1, keepdims=0))
    del proto.graph.output[:]
    proto.graph.output.append(helper.make_tensor_value_info("label", TensorProto.INT64, ["batch"]))
    model = replace(model, proto=proto, outputs=(TensorSpec("label", "int64", ("batch",)),))
    seen = outputs(LiteRT().build(job(model, tmp_path)), IMAGES)
    assert seen.dtype == np.int64
    np.testing.assert_array_equal(seen, run_onnx(proto, [IMAGES])[0])


@pytest.mark.slow
def test_activations_are_on_the_grid_of_onnx_runtimes_file(int8, built):
    """Scale and zero point of every tensor, against the Q/DQ file that is emitted from the same spec."""
    emitted = emit(int8.proto, int8.quant, "affine", "onnxruntime")
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in emitted.graph.initializer}
    # Equal scales and zero points are one initializer: the node says which.
    grids = {node.output[0].removesuffix("/quantized"): [constants[name] for name in node.input[1:3]]
             for node in emitted.graph.node if node.op_type == "QuantizeLinear"}  # fmt: skip
    _, graph = saved(built)
    seen = 0
    for name, tensor in named(graph).items():
        source = name.removesuffix("_int8")
        if fb.type_name(tensor) != "INT8" or source not in grids:
            continue
        quantization, (scale, zero_point) = tensor.quantization, grids[source]
        assert np.float32(quantization.scale[0]) == scale, source
        assert int(quantization.zeroPoint[0]) == int(zero_point) - 128, source
        seen += 1
    assert seen >= 6


@pytest.mark.slow
def test_weights_and_biases_are_the_bytes_of_the_shared_quantizer(int8, built):
    """OIHW becomes OHWI (1HWO for a depthwise convolution); the integers stay the same."""
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in int8.lowered("affine").graph.initializer}
    model, graph = saved(built)
    found = {fb.operator_name(model, o): o for o in graph.operators}
    convolutions = [o for o in graph.operators if fb.operator_name(model, o) == "CONV_2D"]
    order = {"CONV_2D": (0, 2, 3, 1), "DEPTHWISE_CONV_2D": (1, 2, 3, 0), "FULLY_CONNECTED": (0, 1)}
    nodes = {node.name: node for node in int8.proto.graph.node}
    places = {
        "stem": convolutions[0],
        "pointwise": convolutions[-1],
        "depthwise": found["DEPTHWISE_CONV_2D"],
        "classifier": found["FULLY_CONNECTED"],
    }
    for name, operator in places.items():
        node = nodes[name]
        scales = int8.quant.weights[node.input[1]]
        wanted = quantize_weight(tensors[node.input[1]], scales, "affine")
        weight = graph.tensors[int(operator.inputs[1])]
        np.testing.assert_array_equal(
            fb.constant(model, weight), wanted.transpose(order[fb.operator_name(model, operator)]), name
        )
        np.testing.assert_array_equal(weight.quantization.scale, scale_array(scales, "affine"))
        step = int8.quant.grid(node.input[0], "affine").scale
        bias, steps = quantize_bias(tensors[node.input[2]], step, scale_array(scales, "affine"))
        np.testing.assert_array_equal(fb.constant(model, graph.tensors[int(operator.inputs[2])]), bias, name)
        np.testing.assert_array_equal(graph.tensors[int(operator.inputs[2])].quantization.scale, steps)


@pytest.mark.slow
def test_int8_build_agrees_with_onnx_runtime_to_a_step(int8, built):
    images = small_data().splits["test"].inputs
    theirs = run_onnx(emit(int8.lowered("affine"), int8.quant, "affine", "onnxruntime"), [images])[0]
    step = int8.quant.grid("logits", "affine").scale
    assert built.steps == (step,)
    assert np.abs(outputs(built, images) - theirs).max() <= 1.01 * step
    assert built.placement.float_nodes == 0 and not built.placement.reasons and built.notes == ()
    assert built.runner["runtimes"] == ["ai-edge-litert", "tflite-runtime"]


@pytest.mark.slow
def test_a_node_kept_float_stays_float_and_says_why(int8, tmp_path):
    spec = int8.quant.model_copy(update={"keep_float": {"litert": {"pointwise": "kept float by the recipe"}}})
    made = LiteRT().build(job(replace(int8, quant=spec), tmp_path, "quantized"))
    assert made.placement.reasons == {"pointwise": "kept float by the recipe"}
    model, graph = saved(made)
    floats = [o for o in graph.operators if fb.type_name(graph.tensors[int(o.outputs[0])]) == "FLOAT32"]
    assert sorted(fb.operator_name(model, o) for o in floats) == ["CONV_2D", "DEQUANTIZE", "DEQUANTIZE"]
    expected = run_onnx(small_network().proto, [IMAGES])[0]
    assert np.abs(outputs(made, IMAGES) - expected).max() < 0.1 * np.abs(expected).max()


@pytest.mark.slow
def test_it_is_silent_and_converts_once(tmp_path, capfd, monkeypatch):
    model = small_network(seed=7)
    LiteRT().build(job(model, tmp_path / "a"))
    seen = capfd.readouterr()
    assert (seen.out, seen.err) == ("", "")
    monkeypatch.setattr(converter, "_convert", lambda *_: pytest.fail("converted a second time"))
    LiteRT().build(job(model, tmp_path / "b"))


@pytest.mark.slow
def test_a_wrong_conversion_is_named(tmp_path, monkeypatch):
    model = small_network(seed=8)
    proto = fold(model.proto)
    broken = onnx.ModelProto()
    broken.CopyFrom(proto)
    pointwise = next(node for node in broken.graph.node if node.name == "pointwise")
    for tensor in broken.graph.initializer:
        if tensor.name == pointwise.input[1]:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.5), tensor.name))
    content = converter.to_float(broken, [IMAGES[:1]])
    monkeypatch.setattr(converter, "to_float", lambda *_: content)
    with pytest.raises(BuildError, match=r"strays from the host.*first operator to differ is") as caught:
        LiteRT().build(job(model, tmp_path))
    assert caught.value.nodes and not list(tmp_path.iterdir())


def test_refusals(tmp_path):
    with pytest.raises(BuildError, match=r"litert gets no fp16 build: .* only the file would gain"):
        LiteRT().build(job(small_network(), tmp_path, precision="fp16"))


@pytest.mark.slow
def test_refusals_that_need_the_converter(tmp_path):
    with pytest.raises(BuildError, match="put `quantize` into the recipe"):
        LiteRT().build(job(replace(small_network(), proto=fold(small_network().proto)), tmp_path, "quantized"))
    with pytest.raises(BuildError, match="odd_one"):
        LiteRT().build(job(unsupported_network("odd_one"), tmp_path))


@pytest.mark.slow
def test_ambiguous_and_unknown_tensors_are_errors_by_name(int8):
    content = converter.to_float(int8.proto, [IMAGES[:1]])
    samples = [[IMAGES[i : i + 1]] for i in range(2)]
    matches = match(content, onnx_tensors(int8.proto, samples), samples)
    model = fb.read(content)
    (first,) = [o for o in model.subgraphs[0].operators if fb.operator_name(model, o) == "DEPTHWISE_CONV_2D"]
    made = int(first.outputs[0])
    outcome = decide(content, int8.proto, int8.quant, "affine", matches)
    assert len(outcome.decision.operators) == len(model.subgraphs[0].operators)
    different = [n for n in int8.quant.tensors if int8.quant.tensors[n] != int8.quant.tensors[matches[made][0]]][:2]
    anonymous = rename(content, {}, int8.proto)  # the converter's names would decide
    with pytest.raises(BuildError, match=r"several tensors.*different ranges"):
        decide(anonymous, int8.proto, int8.quant, "affine", {**matches, made: tuple(different)})
    with pytest.raises(BuildError, match=r"DEPTHWISE_CONV_2D that makes .* no tensor of the ONNX graph"):
        decide(content, int8.proto, int8.quant, "affine", {**matches, made: ()})


def activations_network():
    """Convolutions around HardSigmoid, HardSwish, Sigmoid gates, a strided slice, a concat and two poolings."""
    rng = np.random.default_rng(2)

    def weight(name, *shape):
        return numpy_helper.from_array((rng.standard_normal(shape) / 3).astype(np.float32), name)

    def ints(name, *values):
        return numpy_helper.from_array(np.array(values, np.int64), name)

    nodes = [
        helper.make_node("Conv", ["image", "w1", "b1"], ["a"], "conv1", pads=[1, 1, 1, 1]),
        helper.make_node("HardSwish", ["a"], ["b"], "swish"),
        helper.make_node("GlobalAveragePool", ["b"], ["c"], "squeeze"),
        helper.make_node("Conv", ["c", "w2", "b2"], ["d"], "excite"),
        helper.make_node("HardSigmoid", ["d"], ["e"], "gate", alpha=0.2, beta=0.5),
        helper.make_node("Mul", ["b", "e"], ["f"], "scaled"),
        helper.make_node("MaxPool", ["f"], ["g"], "maxpool", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Slice", ["f", "starts", "ends", "axes", "steps"], ["h"], "strided"),
        helper.make_node("Concat", ["g", "h"], ["i"], "both", axis=1),
        helper.make_node("Conv", ["i", "w3", "b3"], ["j"], "conv3"),
        helper.make_node("Clip", ["j", "zero", "six"], ["k"], "relu6"),
        helper.make_node("ConvTranspose", ["k", "w4", "b4"], ["l"], "up", strides=[2, 2]),
        helper.make_node("Sigmoid", ["l"], ["m"], "sigmoid"),
        helper.make_node("Mul", ["l", "m"], ["n"], "silu"),
        helper.make_node("GlobalAveragePool", ["n"], ["o"], "pool"),
        helper.make_node("Flatten", ["o"], ["p"], "flatten"),
        helper.make_node("Gemm", ["p", "w5", "b5"], ["logits"], "classifier", transB=1),
    ]
    constants = [
        *(weight("w1", 8, 3, 3, 3), weight("b1", 8), weight("w2", 8, 8, 1, 1), weight("b2", 8)),
        *(weight("w3", 8, 16, 1, 1), weight("b3", 8), weight("w4", 8, 8, 2, 2), weight("b4", 8)),
        *(weight("w5", 4, 8), weight("b5", 4), ints("starts", 0, 0), ints("ends", 99, 99), ints("axes", 2, 3)),
        *(
            ints("steps", 2, 2),
            numpy_helper.from_array(np.float32(0), "zero"),
            numpy_helper.from_array(np.float32(6), "six"),
        ),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 12, 12])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 4])
    proto = helper.make_model(
        helper.make_graph(nodes, "g", [image], [logits], constants),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    onnx.checker.check_model(proto)
    specs = [TensorSpec("image", "float32", ("batch", 3, 12, 12)), TensorSpec("logits", "float32", ("batch", 4))]
    return OnnxModel(name="activations", proto=proto, inputs=(specs[0],), outputs=(specs[1],))


@pytest.mark.slow
def test_decomposed_activations_run_in_int8(tmp_path):
    """The converter splits HardSigmoid and fuses its factor into a weight: grids and integers still follow the spec."""
    model = wild.quantize(activations_network(), small_data(), tmp_path / "q")
    made = LiteRT().build(job(model, tmp_path / "b", "quantized"))
    assert made.placement.float_nodes == 0, dict(made.placement.reasons)
    images = small_data().splits["test"].inputs
    expected = run_onnx(activations_network().proto, [images])[0].astype(np.float64)
    noise = expected - outputs(made, images)
    assert 10 * np.log10((expected**2).sum() / (noise**2).sum()) > 20
    saved_model, graph = saved(made)
    tensors, compared = named(graph), 0
    for name in model.quant.tensors:
        if f"{name}_int8" in tensors:
            grid, seen = model.quant.grid(name, "affine"), tensors[f"{name}_int8"].quantization
            assert (float(seen.scale[0]), int(seen.zeroPoint[0])) == (grid.scale, grid.zero_point - 128), name
            compared += 1
    assert compared >= 12 and "m_int8" in tensors
    wanted = quantize_weight(
        next(numpy_helper.to_array(t) for t in model.lowered("affine").graph.initializer if t.name == "w2"),
        model.quant.weights["w2"],
        "affine",
    )
    weights = [fb.constant(saved_model, t) for t in graph.tensors if fb.shape(t) == (8, 1, 1, 8)]
    assert any(np.array_equal(value, wanted.transpose(0, 2, 3, 1)) for value in weights)


@pytest.mark.slow
def test_golden_samples_are_those_on_which_the_kernels_agree(int8, tmp_path):
    images = small_data().splits["test"].inputs
    made = LiteRT().build(job(int8, tmp_path, "quantized", samples=(images,)))
    content = made.files[made.entry].read_bytes()
    samples = [[image[None]] for image in images]
    one, other = (np.concatenate([r[0] for r in run.outputs(content, samples, builtin=b)]) for b in (False, True))
    rows = np.flatnonzero(np.abs(one - other).max(axis=1) <= 1.01 * made.steps[0])
    assert made.golden == tuple(rows) and len(rows) > 50


# -- tflite-runtime ------------------------------------------------------------------------------------------------

OTHER = """
import sys, numpy as np
from tflite_runtime.interpreter import Interpreter
loaded = Interpreter(model_path=sys.argv[1], num_threads=1)
loaded.allocate_tensors()
given, made = loaded.get_input_details()[0]["index"], loaded.get_output_details()[0]["index"]
out = []
for image in np.load(sys.argv[2]):
    loaded.set_tensor(given, image[None]); loaded.invoke(); out.append(loaded.get_tensor(made)[0].copy())
np.save(sys.argv[3], np.array(out))
"""


def with_tflite_runtime(python, path, images, work):
    np.save(work / "in.npy", images)
    subprocess.run(
        [python, "-c", OTHER, str(path), str(work / "in.npy"), str(work / "out.npy")], check=True, capture_output=True
    )
    return np.load(work / "out.npy")


@pytest.fixture(params=["3.9", "3.11"])
def tflite_python(request):
    """A Python with tflite-runtime and numpy < 2: EDGEKIT_TFLITE_PYTHONS lists interpreters, separated by colons."""
    for python in filter(None, os.environ.get("EDGEKIT_TFLITE_PYTHONS", "").split(":")):
        seen = subprocess.run([python, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"], capture_output=True)
        if seen.stdout.decode().strip() == request.param:
            return python
    pytest.skip(f"no Python {request.param} with tflite-runtime: list interpreters in EDGEKIT_TFLITE_PYTHONS")


@pytest.mark.slow
def test_tflite_runtime_gives_the_same(tflite_python, built, int8, tmp_path):
    images = small_data().splits["test"].inputs
    theirs = with_tflite_runtime(tflite_python, built.files[built.entry], images, tmp_path)
    assert np.abs(theirs - outputs(built, images)).max() <= 1.01 * built.steps[0]
    float_built = LiteRT().build(job(small_network(), tmp_path / "float"))
    theirs = with_tflite_runtime(tflite_python, float_built.files[float_built.entry], images, tmp_path)
    np.testing.assert_allclose(theirs, outputs(float_built, images), atol=1e-4)


@pytest.mark.slow
def test_the_table_of_operators_is_that_of_the_runtime(tflite_python, tmp_path):
    """Ask tflite-runtime for every operator that we write, at the version that the table calls its newest and above."""
    from edgekit.backends._litert_quantize import KERNELS

    table = dict(tflite_check._BUILTINS.values())
    files = []
    for name in sorted(KERNELS):
        for version in (table[name], table[name] + 1):
            model = fb.schema().ModelT()
            model.version, model.buffers, model.subgraphs = 3, [fb.schema().BufferT()], [fb.schema().SubGraphT()]
            model.operatorCodes = []
            operator = fb.schema().OperatorT()
            operator.opcodeIndex = fb.operator_code(model, name, version)
            operator.inputs, operator.outputs = [], []
            graph = model.subgraphs[0]
            graph.tensors, graph.inputs, graph.outputs, graph.operators = [], [], [], [operator]
            path = tmp_path / f"{name}-{version}.tflite"
            path.write_bytes(fb.write(model))
            files.append((path, version <= table[name]))
    ask = (
        "import sys\nfrom tflite_runtime.interpreter import Interpreter\n"
        "for path in sys.argv[1:]:\n"
        "    try: Interpreter(model_path=path); said = ''\n"
        "    except ValueError as error: said = str(error)\n"
        '    print("Didn\'t find op" not in said)\n'
    )
    seen = subprocess.run(
        [tflite_python, "-c", ask, *(str(path) for path, _ in files)], check=True, capture_output=True, text=True
    )
    assert seen.stdout.split() == [str(known) for _, known in files]


# -- real networks -------------------------------------------------------------------------------------------------


def demo():
    """The bundled example and its data."""
    from edgekit.datasource import load_data
    from edgekit.sources import load_model

    root = Path(__file__).parents[2]
    inputs = {"image": TensorSpec("image", "float32", ("batch", 1, 28, 28))}
    folder = root / "examples" / "fashion_mnist"
    model = load_model(
        "model.py:build", weights=folder / "weights.safetensors", inputs=inputs, base=folder, name="demo"
    )
    return model.reference, load_data("calibration_data/fashion_mnist", base=root)


def ready(split, count):
    from edgekit.data import batches

    return np.concatenate(list(batches(split, 64, limit=count)))


@pytest.mark.slow
def test_demo_in_int8(tmp_path):
    model, data = demo()
    images, labels = ready(data.split("test"), 2000), data.split("test").labels[:2000]
    reference = LiteRT().build(job(model, tmp_path / "f", samples=(images[:4],)))
    expected = run_onnx(model.proto, [images])[0]
    np.testing.assert_allclose(outputs(reference, images[:64]), expected[:64], atol=1e-4 * np.abs(expected).max())
    int8 = wild.quantize(model, data, tmp_path / "q")
    made = LiteRT().build(job(int8, tmp_path / "i", "quantized", samples=(images[:4],)))
    assert made.placement.float_nodes == 0 and made.notes == ()
    seen = outputs(made, images)
    assert (expected.argmax(1) == labels).mean() - (seen.argmax(1) == labels).mean() <= 0.005
    assert (expected.argmax(1) == seen.argmax(1)).mean() >= 0.985
    sizes = [b.files[b.entry].stat().st_size for b in (reference, made)]
    assert sizes[1] < 0.28 * sizes[0]
    details = run.interpreter(made.files[made.entry].read_bytes())._get_ops_details()
    assert sum(op["op_name"] == "DELEGATE" for op in details) == 1, "XNNPACK does not take the whole network"
    pythons = [p for p in os.environ.get("EDGEKIT_TFLITE_PYTHONS", "").split(":") if p]
    for python in pythons:
        theirs = with_tflite_runtime(python, made.files[made.entry], images, tmp_path)
        assert abs((theirs.argmax(1) == labels).mean() - (seen.argmax(1) == labels).mean()) <= 0.002
        # Other kernels round ties otherwise, and twenty layers pass that on.
        assert (np.abs(theirs - seen) <= 1.01 * made.steps[0]).mean() >= 0.99


@pytest.mark.slow
def test_resnet20_loses_half_a_point_at_most(tmp_path):
    model, data = wild.resnet20()
    test = data.splits["test"]
    int8 = wild.quantize(model, data, tmp_path / "q")
    made = LiteRT().build(job(int8, tmp_path / "i", "quantized", samples=(test.inputs[:4],)))
    expected, seen = run_onnx(model.proto, [test.inputs])[0], outputs(made, test.inputs)
    assert (expected.argmax(1) == test.labels).mean() - (seen.argmax(1) == test.labels).mean() <= 0.005
    assert made.placement.float_nodes == 0, dict(made.placement.reasons)


@pytest.mark.slow
def test_efficientnet_lite0_agrees_with_fp32(tmp_path):
    model, data = wild.efficientnet_lite0()
    images = data.splits["test"].inputs
    int8 = wild.quantize(model, data, tmp_path / "q")
    made = LiteRT().build(job(int8, tmp_path / "i", "quantized", samples=(images[:4],)))
    expected, seen = run_onnx(model.proto, [images])[0], outputs(made, images)
    assert (expected.argmax(1) == seen.argmax(1)).mean() >= 0.95
    assert made.files[made.entry].stat().st_size < 5.5e6


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, height, width", [("ch_ppocr_mobile_v2.0_cls_infer", 48, 192), ("ch_PP-OCRv4_det_infer", 96, 96)]
)
def test_paddle_files_go_through(name, height, width, tmp_path):
    model, data = wild.paddle(name, height, width)
    images = data.splits["test"].inputs
    reference = LiteRT().build(job(model, tmp_path / "f", samples=(images,)))
    expected = run_onnx(model.proto, [images])[0]
    np.testing.assert_allclose(outputs(reference, images), expected, atol=1e-4)
    int8 = wild.quantize(model, data, tmp_path / "q")
    made = LiteRT().build(job(int8, tmp_path / "i", "quantized", samples=(images,)))
    assert made.placement.float_nodes <= 1 and made.placement.int8_nodes > 100
    if "cls" in name:  # the detector's noise outputs are below one step: nothing to compare
        noise = expected - outputs(made, images)
        assert 10 * np.log10((expected**2).sum() / (noise**2).sum()) > 20


def test_importing_the_module_is_light():
    heavy = "('torch', 'onnx', 'ai_edge_litert')"
    code = f"import sys, edgekit.backends.litert; print(sorted(m for m in {heavy} if m in sys.modules))"
    seen = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert seen.stdout.strip() == "[]"
