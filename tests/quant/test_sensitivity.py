import numpy as np
import onnx
import pytest
from quant_graphs import Builder, residual_net, run, samples, session, stream

from edgekit.quant.choose import choose
from edgekit.quant.plan import plan
from edgekit.quant.qdq import emit
from edgekit.quant.sensitivity import layers, scan


def specified(net, x):
    return choose(net, plan(net), stream(x), "minmax").spec


def alone(net, spec, layer, variant, backend="onnxruntime"):
    """The whole graph as the emitter writes it where every other operator is kept float."""
    others = {name: "not looked at" for name in spec.nodes if name not in layer.nodes}
    return emit(net, spec.model_copy(update={"keep_float": {"*": others}}), variant, backend)


def energy(array):
    return float(np.square(array.astype(np.float64)).sum())


GRIDS = [("affine", "onnxruntime"), ("affine", "openvino"), ("symmetric", "tensorrt"), ("reduced_range", "onnxruntime")]


@pytest.mark.parametrize(("variant", "backend"), GRIDS)
def test_the_scan_gives_what_the_emitter_gives_layer_by_layer(variant, backend):
    net, x = residual_net(), samples(48)
    spec = specified(net, x)
    found = layers(net, spec, backend)
    seen = scan(net, spec, found, stream(x)(), variant=variant, backend=backend, runtime="onnxruntime")
    exact = run(net, x)
    assert seen.signal == pytest.approx(energy(exact), rel=1e-5)
    assert seen.samples == 48
    for layer in found:
        wanted = energy(run(alone(net, spec, layer, variant, backend), x) - exact)
        assert seen.noise[layer.name] == pytest.approx(wanted, rel=1e-3, abs=1e-9), layer


@pytest.mark.usefixtures("exact_sums")
def test_another_runtime_finds_the_same():
    pytest.importorskip("openvino")
    net, x = residual_net(), samples(32)
    spec = specified(net, x)
    found = layers(net, spec, "openvino")
    one, other = (
        scan(net, spec, found, stream(x)(), variant="affine", backend="openvino", runtime=runtime)
        for runtime in ("onnxruntime", "openvino")
    )
    for layer in found:
        # Beyond 100 dB it is the runtimes' own float rounding that is compared.
        pair = [min(side.snr_db(layer.name), 100.0) for side in (one, other)]
        assert pair[0] == pytest.approx(pair[1], abs=1.0), layer


def test_layers_take_clamps_and_moves_with_them():
    net = residual_net()
    found = layers(net, specified(net, samples(16)), "onnxruntime")
    nodes = {layer.name: layer.nodes for layer in found}
    assert nodes["depthwise"] == ("depthwise", "depthwise_clip")
    assert nodes["sum"] == ("sum", "sum_relu", "pool")
    assert nodes["both"] == ("both", "padded")
    assert sorted(name for group in nodes.values() for name in group) == sorted(node.name for node in net.graph.node)


def test_what_a_backend_computes_in_float_is_no_layer_there():
    net = residual_net()
    spec = specified(net, samples(16))
    kept = spec.model_copy(update={"keep_float": {"onnxruntime": {"fc": "said"}}})
    assert "fc" not in {layer.name for layer in layers(net, kept, "onnxruntime")}
    assert "fc" in {layer.name for layer in layers(net, kept, "openvino")}


def test_corrections_count_for_their_own_layer_alone():
    net, x = residual_net(), samples(32)
    spec = specified(net, x)
    found = layers(net, spec, "onnxruntime")
    bias = onnx.numpy_helper.to_array(next(t for t in net.graph.initializer if t.name == "project.bias"))
    plain = scan(net, spec, found, stream(x)(), variant="affine", backend="onnxruntime", runtime="onnxruntime")
    moved = scan(
        net,
        spec,
        found,
        stream(x)(),
        variant="affine",
        backend="onnxruntime",
        runtime="onnxruntime",
        corrections={"project.bias": bias + 1},
    )
    changed = [name for name in plain.noise if moved.noise[name] != pytest.approx(plain.noise[name], rel=1e-6)]
    assert changed == ["project"]
    assert moved.noise["project"] > 10 * plain.noise["project"]


def test_several_outputs_and_inputs_are_followed_past_their_ends():
    """An output that is made early does not change later, and a late input reaches its reader."""
    b = Builder()
    b.conv("x", "first", 4, 3)
    b.add("Relu", ["first"], "early")
    b.conv("early", "second", 4, 4)
    b.add("Add", ["second", "late"], "sum")
    b.conv("sum", "end", 4, 4, kernel=1)
    shape = ["n", 4, 8, 8]
    net = b.model({"x": ["n", 3, 8, 8], "late": shape}, {"early": shape, "end": shape})
    x, late = samples(8, shape=(3, 8, 8)), samples(8, seed=3, shape=(4, 8, 8))
    batches = lambda: ((x, late),)  # noqa: E731
    spec = choose(net, plan(net), batches, "minmax").spec
    found = layers(net, spec, "onnxruntime")
    seen = scan(net, spec, found, batches(), variant="affine", backend="onnxruntime", runtime="onnxruntime")
    both = lambda proto: session(proto).run(None, {"x": x, "late": late})  # noqa: E731
    exact = both(net)
    for layer in found:
        outputs = both(alone(net, spec, layer, "affine"))
        wanted = sum(energy(a - b) for a, b in zip(outputs, exact, strict=True))
        assert seen.noise[layer.name] == pytest.approx(wanted, rel=1e-3, abs=1e-9), layer
