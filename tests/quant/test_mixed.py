"""Accuracy-aware quantization: what is kept in float, why, at what cost, and that the bound is met after it."""

import numpy as np
import onnx
import pytest
from quant_graphs import Builder, residual_net, run, samples, snr, stream

from edgekit.quant.choose import choose
from edgekit.quant.mixed import Bound, Network, Samples, settle
from edgekit.quant.plan import plan
from edgekit.quant.qdq import emit
from edgekit.quant.sensitivity import layers
from edgekit.quant.timing import Cost, costs

FLOOR = Bound(max_drop=0.005, min_snr=20.0)


def chain(bad=(), channels=8, depth=5, seed=0):
    """Convolutions in a row. What a bad one makes has a channel that is 1000 times the others and that nobody reads."""
    b = Builder(seed)
    x, width = "x", 3
    dead = False
    for i in range(depth):
        name = f"conv{i}"
        b.conv(x, name, channels, width)
        weight = onnx.numpy_helper.to_array(b.constants[-2]).copy()
        if dead:
            weight[:, 0] = 0
        dead = name in bad
        if dead:
            weight[0] *= 1000
        b.constants[-2].CopyFrom(onnx.numpy_helper.from_array(weight, f"{name}.weight"))
        x, width = b.add("Relu", [name], f"relu{i}"), channels
    b.add("GlobalAveragePool", [x], "mean")
    b.add("Flatten", ["mean"], "flat", axis=1)
    b.weight("fc.weight", 10, channels)
    b.add("Gemm", ["flat", "fc.weight"], "y", name="fc", transB=1)
    return b.model({"x": ["n", 3, 12, 12]}, {"y": ["n", 10]})


def specified(net, x, calibration="minmax"):
    return choose(net, plan(net), stream(x), calibration).spec


def settled(net, x, bound=FLOOR, grids=None, labels=None, timer=None, **more):
    network = Network(net, specified(net, x), grids or {"affine": ("*",)})
    look = Samples(stream(x), labels)
    return settle(network, bound, look, look, scanned=Samples(stream(x[:16])), timer=timer or even, **more)


def even(spec, found, batch):
    return {layer.name: Cost(1e-3, "s", 2e-3, 1e-3) for layer in found}


def kept(done, variant="affine"):
    return [row.layer for row in done.rows if row.kept and row.variant == variant]


def emitted_snr(net, done, x, variant="affine", backend="onnxruntime"):
    return snr(run(net, x), run(emit(net, done.spec, variant, backend), x))


def test_a_network_that_meets_the_bound_keeps_nothing_and_is_not_scanned():
    net, x = chain(), samples(64)
    done = settled(net, x, timer=lambda *_: pytest.fail("costs were measured"))
    assert done.spec == specified(net, x)
    assert done.rows == ()
    assert done.notes == ()
    assert done.refused == {}


def test_layers_made_sensitive_are_found_and_kept_and_the_bound_is_met():
    net, x = chain(bad=("conv2",)), samples(64)
    assert snr(run(net, x), run(emit(net, specified(net, x), "affine", "onnxruntime"), x)) < 10
    done = settled(net, x)
    # The tensor between conv2 and conv3 holds the outliers: both ends must let go of it.
    assert kept(done) == ["conv2", "conv3"]
    assert set(done.spec.keep_float["*"]) == {"conv2", "relu2", "conv3", "relu3"}
    assert emitted_snr(net, done, x) >= 20
    assert emitted_snr(net, done, samples(64, seed=7)) >= 20
    worst = sorted(done.rows, key=lambda row: row.snr_db)[:2]
    assert {row.layer for row in worst} == {"conv2", "conv3"}
    assert sum(row.share for row in done.rows) == pytest.approx(1)
    assert "with 2 in float (conv2, conv3;" in done.notes[0] or "with 2 in float (conv3, conv2;" in done.notes[0]


def test_no_layer_is_kept_that_the_bound_is_met_without():
    net, x = chain(bad=("conv1",)), samples(64)
    done = settled(net, x)
    assert kept(done)
    for layer in kept(done):
        nodes = {row.layer: row for row in done.rows}
        assert nodes[layer].kept
        fewer = {n: why for n, why in done.spec.keep_float["*"].items() if f"with {layer} alone" not in why}
        without = done.spec.model_copy(update={"keep_float": {"*": fewer}})
        assert snr(run(net, x), run(emit(net, without, "affine", "onnxruntime"), x)) < 20


def twins(seed=3):
    """Two equal branches whose sum is the output: they are equally sensitive."""
    b = Builder(seed)
    b.conv("x", "left", 4, 3)
    left = onnx.numpy_helper.to_array(b.constants[-2]).copy()
    bias = onnx.numpy_helper.to_array(b.constants[-1]).copy()
    b.constants.append(onnx.numpy_helper.from_array(left, "right.weight"))
    b.constants.append(onnx.numpy_helper.from_array(bias, "right.bias"))
    b.add("Conv", ["x", "right.weight", "right.bias"], "right", kernel_shape=[3, 3], pads=[1] * 4)
    return b.model({"x": ["n", 3, 8, 8]}, {"left": ["n", 4, 8, 8], "right": ["n", 4, 8, 8]})


@pytest.mark.parametrize(("cheap", "dear"), [("left", "right"), ("right", "left")])
def test_of_two_equally_sensitive_layers_the_cheap_one_is_kept(cheap, dear):
    net, x = twins(), samples(32, shape=(3, 8, 8))
    table = {cheap: Cost(1e-4, "s", 2e-4, 1e-4), dear: Cost(1e-3, "s", 2e-3, 1e-3)}
    both = settled(net, x, always=True)
    noise = {row.layer: row.share for row in both.rows}
    assert noise["left"] == pytest.approx(noise["right"], rel=1e-6)
    seen = both.rows[0].snr_db - 10 * np.log10(2)  # of both in integers
    done = settled(net, x, Bound(0.005, seen + 1), timer=lambda spec, found, batch: table)
    assert kept(done) == [cheap]


def test_always_scans_and_keeps_nothing_where_the_bound_is_met():
    done = settled(chain(), samples(32), always=True)
    assert len(done.rows) == 7
    assert not kept(done)
    assert "which meets" in done.notes[0]


def test_a_bound_that_no_set_short_of_all_meets_is_said_so():
    net, x = chain(), samples(32)
    done = settled(net, x, Bound(0.005, 190.0))
    assert not kept(done)
    assert done.spec == specified(net, x)
    assert len(done.notes) == 1
    assert "no set of layers in float short of all meets" in done.notes[0]
    assert list(done.refused) == ["*"]
    assert "dB on 32 samples of calibration, simulated on the host" in done.refused["*"]


def test_each_grid_is_held_against_the_bound_and_its_backends_get_their_own_layers():
    net, x = chain(bad=("conv2",)), samples(64)
    grids = {"affine": ("onnxruntime", "litert"), "symmetric": ("tensorrt",)}
    done = settled(net, x, grids=grids)
    assert {row.variant for row in done.rows} == {"affine", "symmetric"}
    assert set(done.spec.keep_float) == {"onnxruntime", "litert", "tensorrt"}
    assert done.spec.keep_float["onnxruntime"] == done.spec.keep_float["litert"]
    assert emitted_snr(net, done, x, "symmetric", "tensorrt") >= 20


def test_what_is_kept_loses_its_corrections_and_the_rest_keeps_theirs():
    net, x = chain(bad=("conv2",)), samples(64)
    changed = {f"conv{i}.bias": np.full(8, i, np.float32) for i in range(5)}
    spec = specified(net, x)
    biases = {t.name: onnx.numpy_helper.to_array(t) for t in net.graph.initializer if t.name in changed}
    network = Network(net, spec, {"affine": ("*",)}, {"affine": biases})
    look = Samples(stream(x))
    done = settle(network, FLOOR, look, look, scanned=look, timer=even)
    assert kept(done) == ["conv2", "conv3"]
    assert set(done.corrections["affine"]) == {"conv0.bias", "conv1.bias", "conv4.bias"}


def centred(net, x):
    """The network with a bias that lets every class come first on some samples."""
    scores = run(net, x)
    bias = -scores.mean(axis=0) * (1 + 0.01 * np.arange(10, dtype=np.float32))
    net.graph.initializer.append(onnx.numpy_helper.from_array(bias.astype(np.float32), "fc.bias"))
    net.graph.node[-1].input.append("fc.bias")
    return net


def test_with_labels_accuracy_decides():
    x = samples(256) + 3 * samples(256, seed=2, shape=(3, 1, 1))
    net = centred(chain(bad=("conv2",)), x)
    labels = run(net, x).argmax(1).astype(np.int64)  # the float network is always right
    assert len(set(labels)) > 3
    done = settled(net, x, Bound(max_drop=0.02, min_snr=20.0), labels=labels)
    assert kept(done)
    right = run(emit(net, done.spec, "affine", "onnxruntime"), x).argmax(1) == labels
    assert 1 - right.mean() <= 0.02
    assert "of accuracy lost on 256 samples" in done.notes[0]
    # A bound that is as loose as the loss is large asks for nothing.
    plain = run(emit(net, specified(net, x), "affine", "onnxruntime"), x).argmax(1) == labels
    loose = settled(net, x, Bound(max_drop=float(1 - plain.mean()), min_snr=20.0), labels=labels)
    assert loose.rows == ()


def test_costs_are_those_of_the_runtime():
    """Every layer has its times; a large convolution takes longer than a small one in either form."""
    b = Builder()
    b.conv("x", "small", 4, 3, kernel=1)
    b.add("Relu", ["small"], "small_relu")
    b.conv("small_relu", "large", 256, 4)
    b.add("Relu", ["large"], "large_relu")
    b.conv("large_relu", "y", 128, 256)
    net = b.model({"x": ["n", 3, 32, 32]}, {"y": ["n", 128, 32, 32]})
    x = samples(8, shape=(3, 32, 32))
    spec = specified(net, x)
    found = layers(net, spec, "onnxruntime")
    seen = costs(net, spec, found, [x])
    assert set(seen) == {"small", "large", "y"}
    assert all(cost.unit == "s" and cost.float_s > 0 and cost.int8_s > 0 and cost.kept > 0 for cost in seen.values())
    assert seen["y"].float_s > 10 * seen["small"].float_s  # 295 M multiply-accumulates against 12 k


def test_without_a_runtime_multiply_accumulates_stand_in(monkeypatch):
    net, x = chain(), samples(8)
    spec = specified(net, x)
    found = layers(net, spec, "onnxruntime")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    seen = costs(net, spec, found, [x])
    assert seen["conv0"] == Cost(12 * 12 * 8 * 3 * 9, "MACs")
    assert seen["fc"] == Cost(80, "MACs")


def test_nothing_to_quantize_is_left_alone():
    net = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 18]> net (float[n, 4] x) => (float[n, 4] y) { y = Sin(x) }"""
    )
    x = samples(4, shape=(4,))
    assert settled(net, x).rows == ()


def test_a_residual_network_is_brought_to_a_higher_floor():
    net, x = residual_net(), samples(64)
    plain = snr(run(net, x), run(emit(net, specified(net, x), "affine", "onnxruntime"), x))
    done = settled(net, x, Bound(0.005, plain + 3))
    assert 1 <= len(kept(done)) < len(done.rows)
    assert emitted_snr(net, done, x) >= plain + 3
