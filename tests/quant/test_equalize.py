import numpy as np
import onnx
import pytest
from quant_graphs import Builder, residual_net, run, samples, snr, stream, values

from edgekit.graph.tools import with_initializers
from edgekit.quant import equalize as module
from edgekit.quant.channels import channel_statistics
from edgekit.quant.choose import choose
from edgekit.quant.equalize import equalize, places
from edgekit.quant.plan import plan
from edgekit.quant.qdq import emit


def chain(activation="Relu", opset=18):
    """Convolutions of all kinds behind each other, a pool, and two Gemms."""
    b = Builder(3)

    def act(x):
        slope = b.constant(f"{x}_slope", np.full((8, 1, 1), 0.2, np.float32)) if activation == "PRelu" else None
        if activation == "Identity":
            return x
        return b.add(activation, [x, *([slope] if slope else [])], f"{x}_{activation}")

    x = act(b.conv("x", "stem", 8, 3))
    x = act(b.conv(x, "depthwise", 8, 8, groups=8))
    x = act(b.conv(x, "grouped", 8, 8, groups=2, bias=False))
    b.weight("up.weight", 8, 4, 2, 2)
    b.weight("up.bias", 8, scale=0.2)
    x = act(b.add("ConvTranspose", [x, "up.weight", "up.bias"], "up", kernel_shape=[2, 2], strides=[2, 2], group=2))
    x = act(b.conv(x, "last", 8, 8, strides=[2, 2]))
    x = b.add("MaxPool", [x], "pool", kernel_shape=[4, 4], strides=[4, 4])
    x = b.add("Flatten", [x], "flat")
    b.weight("fc1.weight", 72, 16)
    x = (
        act(b.add("Gemm", [x, "fc1.weight"], "fc1"))
        if activation != "PRelu"
        else b.add("Gemm", [x, "fc1.weight"], "fc1")
    )
    b.weight("fc2.weight", 5, 16)
    b.weight("fc2.bias", 5)
    b.add("Gemm", [x, "fc2.weight", "fc2.bias"], "y", transB=1)
    return b.model({"x": ["batch", 3, 12, 12]}, {"y": ["batch", 5]}, opset)


def unbalanced(net, names, seed=0):
    """The same function with channels of these layers' outputs scaled against each other, by the readers' columns."""
    rng = np.random.default_rng(seed)
    changed = {}
    for place in places(net):
        if place.makers[0].node.name not in names:
            continue
        factors = np.exp(rng.uniform(-4, 4, place.makers[0].outputs))
        from edgekit.quant.view import GraphView

        module.absorb(place, factors, changed, GraphView(net.graph))
    return with_initializers(net, {name: value.astype(np.float32) for name, value in changed.items()})


LAYERS = ["stem", "depthwise", "grouped", "up", "last", "fc1"]


@pytest.mark.parametrize("opset", [13, 18])
@pytest.mark.parametrize("activation", ["Relu", "LeakyRelu", "PRelu", "Identity"])
def test_the_float_network_stays_the_same(activation, opset):
    net, x = chain(activation, opset), samples(48)
    assert {place.makers[0].node.name for place in places(net)} == set(LAYERS)
    for given in (net, unbalanced(net, LAYERS)):
        done = equalize(given, stream(x), len(x), always=True)
        onnx.checker.check_model(done.proto)
        assert len(done.gains_db) >= 4
        assert any(not np.array_equal(a, values(given)[name]) for name, a in values(done.proto).items())
        np.testing.assert_allclose(run(done.proto, x), run(net, x), rtol=1e-4, atol=1e-4)


def int8(net, x):
    spec = choose(net, plan(net), stream(x), "minmax").spec
    return emit(net, spec, "affine", "onnxruntime")


def test_a_network_whose_channels_were_scaled_comes_back():
    net, x, fresh = chain(), samples(64), samples(64, seed=9)
    spoilt = unbalanced(net, LAYERS)
    np.testing.assert_allclose(run(spoilt, fresh), run(net, fresh), rtol=1e-3, atol=1e-3)
    wanted = run(net, fresh)
    done = equalize(spoilt, stream(x), len(x))
    assert set(done.gains_db) == {place.tensor for place in places(spoilt)}
    plain, collapsed, back = (snr(wanted, run(int8(m, x), fresh)) for m in (net, spoilt, done.proto))
    assert collapsed < plain - 8
    assert back > plain - 2


def test_it_converges_in_one_pass():
    spoilt, x = unbalanced(chain(), LAYERS), samples(64)
    once = equalize(spoilt, stream(x), len(x))
    twice = equalize(once.proto, stream(x), len(x))
    assert once.gains_db and not twice.gains_db
    assert twice.proto is once.proto


def test_like_channels_have_like_ranges_afterwards():
    spoilt, x = unbalanced(chain(), ["stem"]), samples(64)
    name = next(place.tensor for place in places(spoilt) if place.makers[0].node.name == "stem")

    def spread(net):
        high = channel_statistics(net, {name: (4, 1)}, stream(x))[name].high
        return high.max() / high.min()

    assert spread(spoilt) > 50 > 5 > spread(equalize(spoilt, stream(x), len(x)).proto)


def test_statistics_of_channels():
    x = samples(20)
    b = Builder()
    b.conv("x", "y", 2, 3)
    net = b.model({"x": ["batch", 3, 12, 12]}, {"y": ["batch", 2, 12, 12]})
    seen = channel_statistics(net, {"x": (4, 1), "y": (4, -1)}, stream(x, 8))
    y = run(net, x)
    for got, array, axes in ((seen["x"], x, (0, 2, 3)), (seen["y"], y, (0, 1, 2))):
        np.testing.assert_allclose(got.low, array.min(axes), rtol=1e-5)
        np.testing.assert_allclose(got.high, array.max(axes), rtol=1e-5)
        np.testing.assert_allclose(got.square, np.square(array).mean(axes), rtol=1e-4)


def test_what_cannot_be_scaled_is_left_alone():
    """Clip, a second reader that is no weighted operator, an output, shared weights."""
    net = residual_net()
    assert {place.tensor for place in places(net)} == {"flat"}
    b = Builder(1)
    b.conv("x", "a", 4, 3)
    b.conv("a", "b", 4, 4)
    b.add("Conv", ["b", "b.weight", "b.bias"], "c", kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    shared = b.model({"x": ["batch", 3, 8, 8]}, {"a": ["batch", 4, 8, 8], "c": ["batch", 4, 8, 8]})
    assert places(shared) == []
    x = samples(8)
    assert equalize(shared, stream(x), 8, always=True).proto is shared


def test_dead_channels_and_strange_numbers_do_no_harm():
    net = chain()
    weight = values(net)["stem.weight"].copy()
    weight[2] = 0
    bias = values(net)["stem.bias"].copy()
    bias[2] = 0
    dead = with_initializers(net, {"stem.weight": weight, "stem.bias": bias})
    x = samples(32)
    done = equalize(dead, stream(x), len(x), always=True)
    np.testing.assert_allclose(run(done.proto, x), run(dead, x), rtol=1e-4, atol=1e-4)
    weight[0, 0, 0, 0] = np.inf
    infinite = with_initializers(net, {"stem.weight": weight})
    done = equalize(infinite, stream(x), len(x))
    assert np.isinf(values(done.proto)["stem.weight"][0, 0, 0, 0])


def test_few_samples_of_a_costly_network_are_looked_at(monkeypatch):
    monkeypatch.setattr(module, "MACS", 1.0)
    x = samples(128)
    sizes = []

    def batches():
        for start in range(0, len(x), 16):
            sizes.append(start)
            yield (x[start : start + 16],)

    assert module.affordable(chain(), 128) == module.FEW
    done = equalize(unbalanced(chain(), LAYERS), batches, 128)
    assert done.gains_db and len(sizes) == 8
