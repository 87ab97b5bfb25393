import numpy as np
import onnx
import pytest
from quant_graphs import Builder, run, samples, snr, stream, values

from edgekit.quant.channels import channel_statistics
from edgekit.quant.choose import choose
from edgekit.quant.equalize import equalize
from edgekit.quant.plan import plan
from edgekit.quant.qdq import emit
from edgekit.quant.smooth import norm_places

WIDTH, TOKENS = 32, 8


def mlp(norm="LayerNormalization", loud=80.0, readers=2):
    """A pre-norm block: a normalisation with two loud channels, matrix products, Relu, residual sum."""
    b = Builder(3)
    gamma = np.random.default_rng(1).uniform(0.5, 1.5, WIDTH).astype(np.float32)
    gamma[[3, 17]] *= loud
    b.constant("gamma", gamma)
    b.weight("beta", WIDTH, scale=0.3)
    if norm == "LayerNormalization":
        b.add(norm, ["x", "gamma", "beta"], "normed", axis=-1)
    else:
        b.add("Mul", ["x", "gamma"], "scaled")
        b.add("Add", ["scaled", "beta"], "normed")
    loudness = np.ones((WIDTH, 1), np.float32)
    loudness[[3, 17]] /= loud
    outs = []
    for i in range(readers):
        name = b.weight(f"w{i}", WIDTH, WIDTH, scale=WIDTH**-0.5)
        b.constants[-1].CopyFrom(
            onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(b.constants[-1]) * loudness, name)
        )
        outs.append(b.add("Relu", [b.add("MatMul", ["normed", name], f"product{i}")], f"relu{i}"))
    total = outs[0]
    for i, other in enumerate(outs[1:]):
        total = b.add("Add", [total, other], f"sum{i}")
    b.add("MatMul", [total, b.weight("last", WIDTH, WIDTH, scale=WIDTH**-0.5)], "y")
    return b.model({"x": ["batch", TOKENS, WIDTH]}, {"y": ["batch", TOKENS, WIDTH]})


def data(count, seed):
    return samples(count, seed, (TOKENS, WIDTH))


def int8(net, x):
    return emit(net, choose(net, plan(net), stream(x), "minmax").spec, "affine", "openvino")


@pytest.mark.parametrize("norm", ["LayerNormalization", "Mul and Add"])
def test_outliers_move_into_the_weights(norm):
    net, x, fresh = mlp(norm), data(64, 1), data(64, 9)
    (place,) = norm_places(net)
    assert (place.tensor, place.vectors, len(place.readers)) == ("normed", ("gamma", "beta"), 2)
    done = equalize(net, stream(x), len(x), where=[place])
    onnx.checker.check_model(done.proto)
    assert done.gains_db["normed"] > 10
    wanted = run(net, fresh)
    np.testing.assert_allclose(run(done.proto, fresh), wanted, rtol=1e-3, atol=1e-4)
    before, after = (channel_statistics(m, {"normed": (3, -1)}, stream(x))["normed"].high for m in (net, done.proto))
    assert before.max() / np.median(before) > 30 > 6 > after.max() / np.median(after)
    plain, smoothed = (snr(wanted, run(int8(m, x), fresh, optimize=False)) for m in (net, done.proto))
    assert smoothed > plain + 10


def test_a_healthy_normalisation_is_left_alone():
    net, x = mlp(loud=1.0), data(32, 1)
    assert equalize(net, stream(x), len(x), where=norm_places(net)).proto is net


def test_a_normalisation_that_a_residual_sum_reads_too_is_no_place():
    net = mlp()
    net.graph.node.append(onnx.helper.make_node("Add", ["normed", "y"], ["z"], name="residual"))
    net.graph.output[0].name = "z"
    assert norm_places(net) == []


def test_shared_factors_are_no_place():
    net = mlp()
    net.graph.node.append(onnx.helper.make_node("Mul", ["y", "gamma"], ["z"], name="again"))
    net.graph.output[0].name = "z"
    assert norm_places(net) == []


def test_the_stage_smooths(tmp_path):
    from edgekit.data import DataSet, Preprocess, Split
    from edgekit.graph.normalise import normalise
    from edgekit.graph.tools import tensor_specs
    from edgekit.model import OnnxModel
    from edgekit.stages.quantize import Quantize
    from edgekit.testing import Lent

    proto, x = normalise(mlp()), data(64, 1)
    inputs, outputs = tensor_specs(proto)
    model = OnnxModel(name="net", proto=proto, inputs=inputs, outputs=outputs)
    split = Split("calibration", x, None, tuple(map(str, range(len(x)))), Preprocess())
    ctx = Lent(tmp_path, DataSet("noise", {"calibration": split}, task="none"))
    on, off = (Quantize(smooth=how, sensitivity="never").apply(model, ctx) for how in ("auto", False))
    assert any("smoothed" in note for note in on.history[-1].notes)
    assert not any("smoothed" in note for note in off.history[-1].notes)
    np.testing.assert_array_equal(values(off.proto)["gamma"], values(proto)["gamma"])
    assert values(on.proto)["gamma"][3] < values(proto)["gamma"][3] / 4
