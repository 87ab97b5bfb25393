import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from quant_graphs import Builder, residual_net, samples, stream

from edgekit.errors import BuildError
from edgekit.quant.choose import choose
from edgekit.quant.legal import check_graph
from edgekit.quant.plan import plan
from edgekit.quant.qdq import emit
from edgekit.quant.spec import PerChannel, PerTensor, Range


@pytest.fixture(scope="module")
def net():
    return residual_net()


@pytest.fixture(scope="module")
def spec(net):
    return choose(net, plan(net), stream(samples()), "minmax").spec


def without(mapping, *names):
    return {name: value for name, value in mapping.items() if name not in names}


WIDE = Range(low=-9, high=9, calibrator="by hand")
EDITS = [
    ({"nodes": lambda s: (*s.nodes, "gone")}, r"belongs to another graph: it has no node 'gone'", ()),
    (
        {"tensors": lambda s: without(s.tensors, "gated")},
        r"gated: its tensor 'gated' has no range; project: its tensor 'gated' has no range",
        ("gated", "project"),
    ),
    ({"weights": lambda s: without(s.weights, "fc.weight")}, "fc: its weight 'fc.weight' has no scales", ("fc",)),
    (
        {"weights": lambda s: {**s.weights, "stem.weight": PerChannel(axis=1, scales=(1.0, 1.0, 1.0))}},
        "stem: its weight 'stem.weight' has scales along axis 1; kernels take one a channel of axis 0",
        ("stem",),
    ),
    (
        {"weights": lambda s: {**s.weights, "stem.weight": PerChannel(axis=0, scales=(1.0, 1.0, 1.0))}},
        "stem: its weight 'stem.weight' has 3 scales for 8 channels",
        ("stem",),
    ),
    (
        {"tensors": lambda s: {**s.tensors, "pool": WIDE}},
        "sum_relu, pool, branch, both, padded are tied and have 2 ranges",
        ("pool",),
    ),
]


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino", "tensorrt"])
@pytest.mark.parametrize(("edit", "fault", "nodes"), EDITS, ids=[fault[-40:] for _, fault, _ in EDITS])
def test_an_edited_spec_is_refused_by_name(net, spec, backend, edit, fault, nodes):
    edited = spec.model_copy(update={field: change(spec) for field, change in edit.items()})
    with pytest.raises(BuildError, match=fault) as caught:
        emit(net, edited, "symmetric" if backend == "tensorrt" else "affine", backend)
    assert caught.value.nodes == nodes


def test_legal_edits_pass(net, spec):
    """A node that stays float needs no range; one scale may serve a whole weight."""
    weights = {**spec.weights, "stem.weight": PerTensor(scale=0.01)}
    tensors = {**spec.tensors, "y": WIDE}
    emit(net, spec.model_copy(update={"weights": weights, "tensors": tensors}), "affine", "onnxruntime")
    kept = {"*": {"fc": "by hand"}, "tensorrt": {"stem": "by hand"}}
    emit(net, spec.model_copy(update={"keep_float": kept, "tensors": without(spec.tensors, "y")}), "affine", "openvino")


def test_tensorrt_takes_no_unsigned_grid(net, spec):
    with pytest.raises(BuildError, match=r"outside TensorRT's grid\. x/quantized: its integers are UINT8, not INT8"):
        emit(net, spec, "affine", "tensorrt")


def damaged(made, name, value):
    """An emitted graph with another initializer."""
    broken = onnx.ModelProto()
    broken.CopyFrom(made)
    for tensor in broken.graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(numpy_helper.from_array(value, name))
    return broken


def f32(*values):
    return np.array(values, np.float32)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino", "tensorrt", "another"])
def test_what_no_runtime_takes(net, spec, backend):
    made = emit(net, spec, "symmetric" if backend == "tensorrt" else "affine", backend)
    check_graph(made, backend)
    for name, value, fault, node in (
        ("stem.weight/zero_point", np.full(8, 2, np.int8), "its zero point is 2, not 0", "stem.weight/dequantize"),
        ("x/scale", f32(1, 1, 1), "it has 3 scales for an activation, one a channel", "x/quantized"),
        ("x/scale", f32(0)[0], "its scale is 0, which makes no grid", "x/quantized"),
        ("stem.weight/scale", f32(*[np.inf] * 8), "its scale is inf, which makes no grid", "stem.weight/dequantize"),
    ):
        with pytest.raises(BuildError, match=fault) as caught:
            check_graph(damaged(made, name, np.asarray(value)), backend)
        assert node in caught.value.nodes


def test_onnx_runtime_takes_biases_at_one_scale_alone(net, spec):
    """It multiplies input and weight scale by itself: a bias at another scale would come out wrong in silence."""
    made = emit(net, spec, "affine", "onnxruntime")
    scale = next(numpy_helper.to_array(t) for t in made.graph.initializer if t.name == "fc/bias/scale")
    with pytest.raises(BuildError, match=r"fc: the scale of its bias, by fc/bias/dequantize, is not that of its input"):
        check_graph(damaged(made, "fc/bias/scale", scale * np.float32(1.01)), "onnxruntime")
    check_graph(damaged(made, "fc/bias/scale", scale * np.float32(1.01)), "openvino")


def test_scales_that_are_computed_are_refused():
    b = Builder()
    b.add("Abs", ["s"], "scale")
    b.add("QuantizeLinear", ["x", "scale", b.constant("zero", np.uint8(3))], "q")
    b.add("DequantizeLinear", ["q", "scale", "zero"], "y")
    made = b.model({"x": ["n", 4], "s": []}, {"y": ["n", 4]})
    with pytest.raises(BuildError, match=r"q: its scale is computed while the model runs; y: its scale is computed"):
        check_graph(made, "openvino")
