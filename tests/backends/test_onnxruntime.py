import importlib.metadata

import numpy as np
import onnx
import pytest
from onnx import helper

from edgekit.backends import Backend, Job
from edgekit.backends.onnxruntime import OnnxRuntime, installed, unsupported
from edgekit.errors import BuildError
from edgekit.graph.normalise import normalise
from edgekit.graph.tools import tensor_specs
from edgekit.model import OnnxModel
from edgekit.quant.choose import choose
from edgekit.quant.plan import plan
from edgekit.target import load_target

NET = """<ir_version: 8, opset_import: ["": 18]>
net (float[batch, 3, 8, 8] x) => (float[batch, 4] y) {
  c = Conv<pads = [1, 1, 1, 1]>(x, w, b)
  s = HardSwish(c)
  m = GlobalAveragePool(s)
  flat = Flatten(m)
  y = Gemm<transB = 1>(flat, f)
}"""


def network():
    proto = onnx.parser.parse_model(NET)
    rng = np.random.default_rng(0)
    for name, shape in {"w": (8, 3, 3, 3), "b": (8,), "f": (4, 8)}.items():
        value = rng.standard_normal(shape).astype(np.float32) * 0.5
        proto.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    for node in proto.graph.node:
        node.name = f"n_{node.output[0]}"
    proto = normalise(proto)
    inputs, outputs = tensor_specs(proto)
    return OnnxModel(name="net", proto=proto, inputs=inputs, outputs=outputs)


def quantized(model, x, keep_float=()):
    def batches():
        return iter([(x,)])

    spec = choose(model.proto, plan(model.proto, keep_float), batches, "minmax").spec
    return OnnxModel(name=model.name, proto=model.proto, inputs=model.inputs, outputs=model.outputs, quant=spec)


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(1).standard_normal((16, 3, 8, 8)).astype(np.float32)


def job(model, role, work, x, target="x86-64"):
    target = load_target(target)
    precision = "int8" if role == "quantized" else "fp32"
    return Job(model, role, precision, target, target.backends["onnxruntime"], work, (x[:4],))


def run(path, x):
    import onnxruntime as ort

    return ort.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]


def test_it_is_a_backend_and_available():
    backend: Backend = OnnxRuntime()
    found = backend.availability()
    assert found.compiles
    assert found.runs
    assert importlib.metadata.version("onnxruntime") in (found.version or "")


def test_other_flavours_are_told_apart(monkeypatch):
    def version(name):
        if name in {"onnxruntime-gpu", "onnx"}:
            return "1.23.0"
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert installed() == ("onnxruntime-gpu", "1.23.0")
    assert OnnxRuntime().availability().version == "onnxruntime-gpu 1.23.0"


def test_missing_package_says_what_to_type(monkeypatch):
    def version(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    found = OnnxRuntime().availability()
    assert not found.compiles
    assert not found.runs
    assert "pip install 'edgekit-toolchain[onnxruntime]'" in found.reason


@pytest.mark.parametrize("role", ["reference", "float"])
def test_float_build_equals_the_host(role, tmp_path, x):
    from edgekit.graph.execute import run_onnx

    model = network()
    built = OnnxRuntime().build(job(model, role, tmp_path, x))
    np.testing.assert_allclose(run(built.files["model.onnx"], x), run_onnx(model.proto, [x])[0], atol=1e-5)
    assert built.status == "built"
    assert built.entry == "model.onnx"
    assert built.steps == (None,)
    assert built.placement.int8_nodes == 0
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_quantized_build(tmp_path, x):
    from edgekit.graph.execute import run_onnx

    model = quantized(network(), x)
    built = OnnxRuntime().build(job(model, "quantized", tmp_path, x))
    wanted, seen = run_onnx(model.proto, [x])[0], run(built.files["model.onnx"], x)
    assert 10 * np.log10(np.square(wanted).sum() / np.square(wanted - seen).sum()) > 25
    assert built.placement.float_nodes == 0
    assert built.placement.int8_nodes == 5
    step = built.steps[0]
    assert step == pytest.approx(model.quant.grid("y", "affine").scale)
    np.testing.assert_allclose(seen / step, np.rint(seen / step), atol=1e-3)
    assert set(built.versions) == {"onnx", "onnxruntime"}


def test_the_target_chooses_the_grid(tmp_path, x):
    built = OnnxRuntime().build(job(quantized(network(), x), "quantized", tmp_path, x, "x86-64-no-vnni"))
    weights = [
        onnx.numpy_helper.to_array(t)
        for t in onnx.load(built.files["model.onnx"]).graph.initializer
        if t.name.endswith("/quantized") and t.data_type == onnx.TensorProto.INT8
    ]
    assert len(weights) == 2
    assert all(np.abs(w.astype(int)).max() == 64 for w in weights)


def test_placement_names_what_stays_float(tmp_path, x):
    model = network()
    name = next(node.name for node in model.proto.graph.node if node.op_type == "HardSwish")
    built = OnnxRuntime().build(job(quantized(model, x, {name}), "quantized", tmp_path, x))
    among = dict.fromkeys(["n_m", "n_flat"], "among float operators")
    assert built.placement.reasons == {name: "kept float by the recipe", **among}
    assert built.placement.float_nodes == 3
    assert built.placement.int8_nodes == 2
    assert "conversions between float and 8 bits" in built.notes[0]


def test_builds_repeat_byte_for_byte(tmp_path, x):
    model = quantized(network(), x)
    files = []
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        built = OnnxRuntime().build(job(model, "quantized", tmp_path / name, x))
        files.append(built.files["model.onnx"].read_bytes())
    assert files[0] == files[1]


def test_not_quantized_is_refused(tmp_path, x):
    with pytest.raises(BuildError, match="no stage has quantized it"):
        OnnxRuntime().build(job(network(), "quantized", tmp_path, x))


def test_an_unsupported_operator_is_named(tmp_path):
    nodes = [
        helper.make_node("Relu", ["x"], ["r"], name="relu"),
        helper.make_node("Frobnicate", ["r"], ["y"], name="odd_one", domain="com.acme"),
    ]
    values = [helper.make_tensor_value_info(name, 1, ["n", 4]) for name in "xy"]
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.acme", 1)]
    graph = helper.make_graph(nodes, "net", values[:1], values[1:])
    proto = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    inputs, outputs = tensor_specs(proto)
    model = OnnxModel(name="net", proto=proto, inputs=inputs, outputs=outputs)
    with pytest.raises(BuildError, match="odd_one") as caught:
        OnnxRuntime().build(job(model, "reference", tmp_path, np.zeros((4, 4), np.float32)))
    assert caught.value.nodes == ("odd_one",)
    assert list(tmp_path.glob("*.part")) == []


def test_nodes_in_messages():
    graph = helper.make_graph([helper.make_node("Foo", ["x"], ["y"], name="a")], "g", [], [])
    proto = helper.make_model(graph)
    for message in (
        "[ONNXRuntimeError] : 9 : NOT_IMPLEMENTED : Could not find an implementation for Foo(9) node with name 'a'",
        "Fatal error: com.acme:Foo(-1) is not a registered function/op",
        'This is an invalid model. In Node, ("a", Foo, "", -1) : ("x",) -> ("y",) , Error No Op registered for Foo',
    ):
        assert unsupported(message, proto) == ("a",)
