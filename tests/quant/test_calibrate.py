import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from quant_graphs import Builder, residual_net, run, samples, stream

from edgekit.errors import UsageError
from edgekit.quant.calibrate import BINS, calibrate, find_extremes, percentile_range, stride_for
from edgekit.quant.plan import plan


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


def test_minmax_equals_numpy():
    net, x = residual_net(), samples()
    made = plan(net)
    found = find_extremes(net, made, stream(x, 10))
    values = every_activation(net, x)
    assert set(found.low) == set(made.ranges) - {"gate"}
    for name in found.low:
        assert found.low[name] == pytest.approx(values[name].min(), rel=1e-4, abs=1e-5)
        assert found.high[name] == pytest.approx(values[name].max(), rel=1e-4, abs=1e-5)
    assert found.samples == len(x)


def test_percentile_equals_numpy_within_a_bin():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((64, 3, 12, 12)).astype(np.float32)
    x[5, 1, 2, 3], x[9, 0, 0, 0] = 80.0, -60.0
    net = residual_net()
    ranges = calibrate(net, plan(net), stream(x), "percentile")
    low, high = np.percentile(x, [0.01, 99.99])
    # 0.01 % of 27,648 values are 2.8: the outlier and its neighbours decide; a bin is 140 / 4096 wide.
    assert ranges["x"].low == pytest.approx(low, abs=0.5)
    assert ranges["x"].high == pytest.approx(high, abs=0.5)
    assert ranges["x"].calibrator == "percentile"


@given(st.lists(st.integers(0, 50), min_size=1, max_size=40).filter(lambda h: sum(h) > 0), st.floats(50.5, 100))
def test_percentile_range_leaves_out_what_it_says(counts, percentile):
    histogram = np.array(counts, np.int64)
    low, high = percentile_range(histogram, 0.0, float(len(counts)), percentile)
    below, above = histogram[: round(low)].sum(), histogram[round(high) :].sum()
    tail = histogram.sum() * (100 - percentile) / 100
    assert low < high
    assert below <= tail + 1e-9
    assert above <= tail + 1e-9


def test_batches_do_not_matter_and_runs_repeat():
    net, x = residual_net(), samples()
    made = plan(net)
    first = calibrate(net, made, stream(x, 16), "percentile")
    assert calibrate(net, made, stream(x, 16), "percentile") == first
    for name, one in calibrate(net, made, stream(x, 64), "minmax").items():
        other = calibrate(net, made, stream(x, 7), "minmax")[name]
        assert (one.low, one.high) == pytest.approx((other.low, other.high), rel=1e-4, abs=1e-5)


def test_ties_share_the_union():
    net = residual_net()
    ranges = calibrate(net, plan(net), stream(samples()))
    group = ["sum_relu", "pool", "branch", "both", "padded"]
    assert len({(ranges[name].low, ranges[name].high) for name in group}) == 1
    assert ranges["branch"].low < 0
    assert (ranges["gate"].low, ranges["gate"].high, ranges["gate"].fixed) == (0.0, 255 / 256, True)


def test_memory_does_not_grow_with_the_samples():
    net = residual_net()
    made = plan(net)

    def peak(count):
        def batches():
            for i in range(count):
                yield (samples(32, seed=i),)

        tracemalloc.start()
        calibrate(net, made, batches, "percentile")
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(2)  # imports and caches
    assert peak(40) < 1.2 * peak(4)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_bad_sample_names_the_input(bad):
    x = samples()
    x[40, 0, 0, 0] = bad
    net = residual_net()
    with pytest.raises(UsageError, match="NaN or infinity in tensor 'x'"):
        find_extremes(net, plan(net), stream(x))


def test_nan_made_inside_names_the_tensor():
    b = Builder()
    b.conv("x", "conv", 4, 3)
    b.add("Sqrt", ["conv"], "root")
    b.add("Relu", ["root"], "relu")
    b.conv("relu", "y", 4, 4)
    net = b.model({"x": ["n", 3, 12, 12]}, {"y": ["n", 4, 12, 12]})
    with pytest.raises(UsageError, match="NaN or infinity in tensor 'root'"):
        find_extremes(net, plan(net), stream(samples()))


def test_overflow_inside_names_the_tensor():
    b = Builder()
    b.add("Conv", ["x", b.constant("w", np.full((4, 3, 1, 1), 3e38, np.float32))], "y")
    net = b.model({"x": ["n", 3, 12, 12]}, {"y": ["n", 4, 12, 12]})
    with pytest.raises(UsageError, match="NaN or infinity in tensor 'y'"):
        find_extremes(net, plan(net), stream(samples() * 100))


def test_no_samples():
    net = residual_net()
    with pytest.raises(UsageError, match="got no samples"):
        find_extremes(net, plan(net), lambda: iter(()))


@given(st.integers(1, 10**9))
def test_stride_reads_enough_and_walks_over_all_channels(count):
    stride = stride_for(count)
    assert stride == 1 or count % stride != 0
    assert stride == 1 or count / stride <= 2 * 32768
    assert stride == 1 or all(stride % d for d in range(2, int(stride**0.5) + 1))


def test_a_constant_activation_keeps_its_range():
    b = Builder()
    b.add("Mul", ["x", b.constant("nothing", np.zeros(1, np.float32))], "zero")
    b.conv("zero", "y", 4, 3)
    net = b.model({"x": ["n", 3, 12, 12]}, {"y": ["n", 4, 12, 12]})
    ranges = calibrate(net, plan(net), stream(samples()), "percentile")
    assert (ranges["zero"].low, ranges["zero"].high) == (0.0, 0.0)
    assert np.isfinite(run(net, samples())).all()
    assert BINS > 1000
