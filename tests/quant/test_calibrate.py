import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from quant_graphs import Builder, residual_net, run, samples, stream

from edgekit.errors import UsageError
from edgekit.quant.calibrate import calibrate, calibrated
from edgekit.quant.layers import layers
from edgekit.quant.observe import observe, stride_for
from edgekit.quant.plan import plan
from edgekit.quant.saturated import saturated
from edgekit.quant.view import GraphView


def look(net, x, size=16, **more):
    return observe(net, calibrated(plan(net)), stream(x, size), total=len(x), **more)


def ranges(net, x, calibration="minmax", size=16):
    return calibrate(net, plan(net), look(net, x, size).histograms, calibration)


def every_activation(net, x):
    """The oracle: every tensor read back in full."""
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(net)
    names = [name for node in net.graph.node for name in node.output if name != "y"]
    copy.graph.output.extend(onnx.helper.make_tensor_value_info(name, 1, None) for name in names)
    import onnxruntime as ort

    session = ort.InferenceSession(copy.SerializeToString(), providers=["CPUExecutionProvider"])
    return {"x": x, **dict(zip(["y", *names], session.run(None, {"x": x}), strict=True))}


@pytest.mark.parametrize("size", [64, 10])
def test_extremes_equal_numpy_and_histograms_are_a_fair_sample(size):
    net, x = residual_net(), samples()
    found = look(net, x, size)
    values = every_activation(net, x)
    assert set(found.histograms) == set(plan(net).ranges) - {"gate"}
    for name, seen in found.histograms.items():
        low = min(0.0, values[name].min()) if name.endswith(("relu", "clip")) else values[name].min()
        assert seen.low == pytest.approx(low, rel=1e-4, abs=1e-5)
        assert seen.high == pytest.approx(values[name].max(), rel=1e-4, abs=1e-5)
        mean = (seen.counts * seen.middles).sum() / seen.total
        assert mean == pytest.approx(values[name].mean(), abs=float(0.2 * values[name].std()) + 1e-6)
        shares = [seen.zeros / seen.total, (values[name] == 0).mean()]
        assert shares[0] == pytest.approx(shares[1], abs=0.1)
    assert found.samples == len(x)


def test_means_and_moments_equal_numpy():
    b = Builder()
    b.conv("x", "a", 6, 4, kernel=1)
    b.add("Relu", ["a"], "r")
    b.conv("r", "depth", 6, 6, groups=6)
    b.add("GlobalAveragePool", ["depth"], "mean")
    b.add("Flatten", ["mean"], "flat")
    b.weight("w", 6, 3)
    b.add("MatMul", ["flat", "w"], "y")
    net = b.model({"x": ["batch", 4, 4, 4]}, {"y": ["batch", 3]})
    x = samples(16, shape=(4, 4, 4)) + 1  # as many as moments are made of
    found = observe(net, [], stream(x), layers(net, ["a", "depth", "y"]), total=16)
    values = every_activation(net, x)
    for name in ("x", "r"):
        np.testing.assert_allclose(found.means[name], values[name].mean((0, 2, 3)), rtol=1e-4)
    np.testing.assert_allclose(found.means["flat"], values["flat"].mean(0), rtol=1e-4, atol=1e-6)
    channels = found.channels["r"]
    np.testing.assert_allclose(channels.high, values["r"].max((0, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(channels.square, np.square(values["r"]).mean((0, 2, 3)), rtol=1e-4)
    rows = x.transpose(0, 2, 3, 1).reshape(-1, 4)
    np.testing.assert_allclose(found.moments["a"][0][0], rows.T @ rows / len(rows), rtol=1e-4)
    padded = np.pad(values["r"], [(0, 0), (0, 0), (1, 1), (1, 1)])
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3))
    patches = windows.transpose(1, 0, 2, 3, 4, 5).reshape(6, -1, 9)
    wanted = patches.transpose(0, 2, 1) @ patches / patches.shape[1]
    np.testing.assert_allclose(found.moments["depth"][0], wanted, rtol=1e-3, atol=1e-4)


def test_percentile_equals_numpy_within_a_bin():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((64, 3, 12, 12)).astype(np.float32)
    x[5, 1, 2, 3], x[9, 0, 0, 0] = 80.0, -60.0
    found = ranges(residual_net(), x, "percentile")
    assert found["x"].low == pytest.approx(-4, abs=1.5)  # a normal distribution's 0.01 % of a sample of it
    assert found["x"].high == pytest.approx(4, abs=1.5)
    assert found["x"].calibrator == "percentile"


@pytest.mark.parametrize("calibration", ["minmax", "percentile", "entropy", "mse", "auto"])
def test_runs_repeat_and_no_range_reaches_beyond_what_was_seen(calibration):
    net, x = residual_net(), samples()
    first = ranges(net, x, calibration)
    assert ranges(net, x, calibration) == first
    everything = ranges(net, x, "minmax")
    for name, one in first.items():
        assert one.low >= min(everything[name].low, 0) - 1e-6
        assert one.high <= max(everything[name].high, 0) + 1e-6
    wanted, seen = run(net, samples(8, 9)), run(net, samples(8, 9))
    assert np.array_equal(wanted, seen)


def test_batches_do_not_matter_to_extremes():
    net, x = residual_net(), samples()
    for name, one in ranges(net, x, size=64).items():
        other = ranges(net, x, size=7)[name]
        assert (one.low, one.high) == pytest.approx((other.low, other.high), rel=1e-4, abs=1e-5)


def test_ties_share_the_union():
    found = ranges(residual_net(), samples())
    group = ["sum_relu", "pool", "branch", "both", "padded"]
    assert len({(found[name].low, found[name].high) for name in group}) == 1
    assert found["branch"].low < 0
    assert (found["gate"].low, found["gate"].high, found["gate"].fixed) == (0.0, 255 / 256, True)


def test_memory_does_not_grow_with_the_samples():
    import tracemalloc

    net = residual_net()
    chosen = layers(net, plan(net).nodes)

    def peak(count):
        def batches():
            for i in range(count):
                yield (samples(32, seed=i),)

        tracemalloc.start()
        observe(net, calibrated(plan(net)), batches, chosen, total=32 * count)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(2)  # imports and caches
    assert peak(40) < 1.3 * peak(8)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_bad_sample_names_the_input(bad):
    x = samples()
    x[40, 0, 0, 0] = bad
    with pytest.raises(UsageError, match="NaN or infinity in tensor 'x'"):
        look(residual_net(), x)


def test_nan_made_inside_names_the_tensor():
    b = Builder()
    b.conv("x", "conv", 4, 3)
    b.add("Sqrt", ["conv"], "root")
    b.add("Relu", ["root"], "relu")
    b.conv("relu", "y", 4, 4)
    net = b.model({"x": ["n", 3, 12, 12]}, {"y": ["n", 4, 12, 12]})
    with pytest.raises(UsageError, match="NaN or infinity in tensor 'root'"):
        look(net, samples())


def test_overflow_inside_names_the_tensor():
    b = Builder()
    b.add("Conv", ["x", b.constant("w", np.full((4, 3, 1, 1), 3e38, np.float32))], "y")
    net = b.model({"x": ["n", 3, 12, 12]}, {"y": ["n", 4, 12, 12]})
    with pytest.raises(UsageError, match="NaN or infinity in tensor 'y'"):
        look(net, samples() * 100)


def test_no_samples():
    net = residual_net()
    with pytest.raises(UsageError, match="got no samples"):
        observe(net, calibrated(plan(net)), lambda: iter(()))


@given(st.integers(1, 10**9), st.integers(1, 10**5))
def test_stride_reads_enough_and_walks_over_all_channels(count, wanted):
    stride = stride_for(count, wanted)
    assert stride == 1 or count % stride != 0
    assert stride == 1 or count / stride <= 2 * wanted
    assert stride == 1 or all(stride % d for d in range(2, int(stride**0.5) + 1))


def test_a_constant_activation_keeps_its_range():
    b = Builder()
    b.add("Mul", ["x", b.constant("nothing", np.zeros(1, np.float32))], "zero")
    b.conv("zero", "y", 4, 3)
    net = b.model({"x": ["n", 3, 12, 12]}, {"y": ["n", 4, 12, 12]})
    for calibration in ("percentile", "entropy", "mse", "auto"):
        found = ranges(net, samples(), calibration)
        assert (found["zero"].low, found["zero"].high) == (0.0, 0.0)
    assert np.isfinite(run(net, samples())).all()


def test_a_clip_that_reaches_its_bound_is_known_without_looking():
    b = Builder()
    b.conv("x", "a", 8, 3)
    zero, low, high = (b.constant(name, np.float32(v)) for name, v in (("zero", 0), ("low", 0.25), ("high", 1e4)))
    b.add("Clip", ["a", zero, low], "reaches")
    b.conv("reaches", "b", 8, 8)
    b.add("Clip", ["b", zero, high], "below")
    b.conv("below", "c", 8, 8)
    b.add("GlobalAveragePool", ["c"], "y")
    net = b.model({"x": ["batch", 3, 12, 12]}, {"y": ["batch", 8, 1, 1]})
    x = samples(96)
    assert saturated(net, GraphView(net.graph), [x[:16]]) == {"reaches": 0.25}
    found = observe(net, ["reaches", "below"], stream(x), layers(net, ["b", "c"]), total=96)
    values = every_activation(net, x)
    for name in ("reaches", "below"):
        assert found.histograms[name].high == pytest.approx(values[name].max(), rel=1e-5)
        assert (found.channels[name].low == 0).all()
    assert found.histograms["reaches"].high == 0.25
    np.testing.assert_allclose(found.channels["below"].high, values["below"].max((0, 2, 3)), rtol=1e-4)
    assert found.channels["reaches"].high.tolist() == [0.25] * 8
