"""Small architectures as their runtimes compute them, against quantization simulated in float64.

What is compared, for every network, runtime and grid:

- Each operator alone. The runtime's own 8-bit tensors are read out and fed to the simulation; every value of every
  tensor lies within one quantization step of what the simulation makes of the same inputs, without exception.
- The output, end to end. A kernel may break a tie otherwise than the simulation; such a step early on may grow. So
  at least 85 % of the values lie within one step of the simulated output, and none is off by more than three.
"""

from functools import cache

import numpy as np
import onnx
import pytest
import zoo
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator
from quant_graphs import stream

from edgekit.graph.fold import fold
from edgekit.graph.integers import for_integers
from edgekit.graph.normalise import normalise
from edgekit.quant.choose import choose
from edgekit.quant.plan import plan
from edgekit.quant.qdq import emit, rewritten
from edgekit.quant.session import open_session
from edgekit.quant.simulate import simulate
from edgekit.quant.weights import quantize_weight

CASES = [
    ("onnxruntime", "affine"),
    ("onnxruntime", "reduced_range"),
    ("openvino", "affine"),
    ("tensorrt", "symmetric"),
]
ONE_STEP = 1.001


@cache
def quantized(name):
    """The folded graph of a network and its QuantSpec."""
    net = for_integers(fold(normalise(zoo.ZOO[name]())))
    images = zoo.inputs(net, 32, seed=1)
    return net, choose(net, plan(net), stream(images), "minmax").spec


def outputs(proto, backend, x):
    """As the runtime really runs it; a TensorRT graph by ONNX Runtime, node by node."""
    if backend == "openvino":
        return open_session(proto, runtime="openvino")([x])
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    if backend == "tensorrt":
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})


def observe(made, spec, variant, backend, x):
    """The graph's output, and every activation that the runtime keeps in 8 bits, as real numbers.

    Integers become outputs of the graph, which leaves ONNX Runtime's fusions as they are; OpenVINO has no integers to
    show and gives what it dequantizes.
    """
    open_ = onnx.ModelProto()
    open_.CopyFrom(made)
    constants = {tensor.name for tensor in made.graph.initializer}
    dequantized = {n.input[0]: n.output[0] for n in made.graph.node if n.op_type == "DequantizeLinear"}
    integers = {name: f"{name}/quantized" for name in spec.tensors if f"{name}/quantized" in dequantized}
    kept = {name: tensor for name, tensor in integers.items() if tensor not in constants}
    shown = {name: dequantized[tensor] if backend == "openvino" else tensor for name, tensor in kept.items()}
    present = {output.name for output in made.graph.output}
    open_.graph.output.extend(
        onnx.helper.make_empty_tensor_value_info(tensor) for tensor in shown.values() if tensor not in present
    )
    values = dict(zip([output.name for output in open_.graph.output], outputs(open_, backend, x), strict=True))
    found = {}
    for name, tensor in shown.items():
        value, grid = values[tensor].astype(np.float64), spec.grid(name, variant)
        found[name] = value if backend == "openvino" else (value - grid.zero_point) * grid.scale
    return values["y"], found


def off(spec, variant, expected, seen):
    """By how many steps the worst value of each tensor is off."""
    return {
        name: np.abs(expected[name] - value.reshape(expected[name].shape)).max() / spec.grid(name, variant).scale
        for name, value in seen.items()
    }


@pytest.mark.parametrize("name", zoo.ZOO)
@pytest.mark.parametrize(("backend", "variant"), CASES, ids=[f"{backend}-{variant}" for backend, variant in CASES])
def test_runtime_agrees_with_the_simulation(name, backend, variant, request):
    if variant == "affine":
        request.getfixturevalue("exact_sums")
    net, spec = quantized(name)
    x = zoo.inputs(net, 8, seed=9)
    made = emit(net, spec, variant, backend)
    onnx.checker.check_model(made, full_check=True)
    floats, fitted, _ = rewritten(net, spec, variant, backend)
    y, seen = observe(made, fitted, variant, backend, x)
    unseen = outputs(made, backend, x)[0]
    if backend == "onnxruntime":
        np.testing.assert_array_equal(y, unseen)  # reading tensors out leaves its fusions alone
    assert len(seen) > len(fitted.tensors) // 4
    alone = off(fitted, variant, simulate(floats, fitted, variant, backend, [x], observed=seen), seen)
    wrong = {tensor: f"{steps:.2f} steps" for tensor, steps in alone.items() if steps > ONE_STEP}
    assert not wrong, f"operators that make something else of their inputs: {wrong}"
    step = fitted.grid("y", variant).scale if "y" in fitted.tensors else np.abs(y).max() / 127
    steps = np.abs(simulate(floats, fitted, variant, backend, [x])["y"] - unseen) / step
    assert (steps <= ONE_STEP).mean() >= 0.85 and steps.max() < 3 * ONE_STEP


@pytest.mark.parametrize("name", zoo.ZOO)
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_rewrites_for_a_runtime_change_no_number(name, backend):
    net, spec = quantized(name)
    floats, _, _ = rewritten(net, spec, "affine", backend)
    if floats != net:
        x = zoo.inputs(net, 8, seed=9)
        wanted, seen = (outputs(proto, "onnxruntime", x)[0] for proto in (net, floats))
        np.testing.assert_allclose(seen, wanted, rtol=1e-4, atol=1e-5)


def by_reference(model, inputs):
    """ONNX's own reference implementation, in float64."""
    double = onnx.ModelProto()
    double.CopyFrom(model)
    for tensor in double.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.dtype == np.float32 and model.graph.node[0].op_type != "Resize":
            tensor.CopyFrom(numpy_helper.from_array(array.astype(np.float64), tensor.name))
    for value in (*double.graph.input, *double.graph.output):
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT:
            value.type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
    names = [value.name for value in double.graph.input]
    return ReferenceEvaluator(double).run(None, dict(zip(names, inputs, strict=True)))


@pytest.mark.parametrize("name", ["plain", "mobilenet_v2", "efficientnet", "attention", "unet", "split_slice_pad"])
def test_simulation_does_not_hang_on_one_implementation(name):
    """The torch view in double precision against ONNX's reference implementation: the same numbers in every tensor."""
    net, spec = quantized(name)
    x = zoo.inputs(net, 2, seed=9)
    one = simulate(net, spec, "affine", "onnxruntime", [x])
    other = simulate(net, spec, "affine", "onnxruntime", [x], compute=by_reference, observed=one)
    for tensor, value in one.items():
        if value.dtype.kind == "f":
            np.testing.assert_allclose(value, other[tensor], rtol=1e-6, atol=1e-6, err_msg=tensor)


def damaged(made, what):
    """An emitted graph with one thing wrong, as a careless emitter would make it."""
    broken = onnx.ModelProto()
    broken.CopyFrom(made)
    constants = {tensor.name: tensor for tensor in broken.graph.initializer}

    def change(name, function):
        value = numpy_helper.to_array(constants[name])
        constants[name].CopyFrom(numpy_helper.from_array(function(value).astype(value.dtype), name))

    first = next(node for node in broken.graph.node if node.op_type == "Conv" and node.name != "conv1")
    if what == "scale of a tensor":
        relu = next(name for name in constants if name.startswith("relu") and name.endswith("/scale"))
        change(relu, lambda scale: scale * 1.1)
    elif what == "zero point of a tensor":
        change("x/zero_point", lambda zero: zero + 2)
    elif what == "scales of a weight":
        change(f"{first.name}.weight/scale", lambda scale: np.full_like(scale, scale.mean()))
    elif what == "bias":
        change(f"{first.name}/bias/quantized", lambda bias: bias[::-1])
    else:
        change(f"{first.name}.weight/quantized", lambda weight: np.where(weight > 60, weight - 1, weight))
    return broken


@pytest.mark.parametrize(
    "what", ["scale of a tensor", "zero point of a tensor", "scales of a weight", "bias", "rounding of a weight"]
)
@pytest.mark.usefixtures("exact_sums")
def test_a_wrong_graph_is_noticed(what):
    net, spec = quantized("resnet_basic")
    x = zoo.inputs(net, 8, seed=9)
    floats, fitted, _ = rewritten(net, spec, "affine", "onnxruntime")
    broken = damaged(emit(net, spec, "affine", "onnxruntime"), what)
    _, seen = observe(broken, fitted, "affine", "onnxruntime", x)
    alone = off(fitted, "affine", simulate(floats, fitted, "affine", "onnxruntime", [x], observed=seen), seen)
    assert max(alone.values()) > ONE_STEP


@pytest.mark.parametrize("name", zoo.ZOO)
@pytest.mark.parametrize("variant", ["affine", "symmetric", "reduced_range"])
def test_weights_are_the_same_bytes_in_every_graph(name, variant):
    net, spec = quantized(name)
    floats = {tensor.name: numpy_helper.to_array(tensor) for tensor in net.graph.initializer}
    for backend in ("onnxruntime", "openvino", *(("tensorrt",) if variant == "symmetric" else ())):
        made = emit(net, spec, variant, backend)
        stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in made.graph.initializer}
        for weight, scales in spec.weights.items():
            expected = quantize_weight(floats[weight], scales, variant)
            assert stored[f"{weight}/quantized"].tobytes() == expected.tobytes(), (backend, weight)
