import numpy as np
import pytest
from quant_graphs import residual_net, samples, stream

from edgekit.quant.choose import choose
from edgekit.quant.correct import correct
from edgekit.quant.layers import layers, own_biases
from edgekit.quant.learned import best, learn
from edgekit.quant.plan import plan
from edgekit.quant.rounding import compensate, output_error
from edgekit.quant.weights import dequantize_weight, quantize_weight


def problem(seed, groups=2, outputs=12, k=27):
    """Weights in steps, and the moments of correlated inputs."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((groups, 400, 6)) @ rng.standard_normal((groups, 6, k))
    x = x + 0.3 * rng.standard_normal(x.shape)
    moment = (np.swapaxes(x, 1, 2) @ x / 400).astype(np.float32)
    return rng.uniform(-60, 60, (groups, outputs, k)).astype(np.float32), moment


@pytest.mark.parametrize("seed", range(3))
def test_learned_rounding_is_never_worse_than_the_others(seed):
    weight, moment = problem(seed)
    error = {
        name: output_error(rounded - weight, moment)
        for name, rounded in (
            ("nearest", np.rint(weight)), ("compensated", compensate(weight, moment, 64)),
            ("best", best(weight, moment, 64, 300)),
        )
    }  # fmt: skip
    assert (error["best"] <= error["nearest"] + 1e-4).all()
    assert (error["best"] <= error["compensated"] + 1e-4).all()


def test_learning_from_nearest_rounding_finds_much_less_error():
    weight, moment = problem(5)
    start = np.rint(weight)
    found = learn(weight, moment, 64, start, 400)
    assert np.abs(found - weight).max() < 1.001
    assert np.abs(found).max() <= 64
    assert output_error(found - weight, moment).sum() < 0.6 * output_error(start - weight, moment).sum()


def test_learned_weights_lie_on_the_grid_of_every_variant():
    net, x = own_biases(residual_net()), samples()
    planned = plan(net)
    choice = choose(net, planned, stream(x), "minmax", layers=layers(net, planned.nodes), total=len(x))
    variants = ("affine", "reduced_range")
    found = correct(net, choice.spec, variants, stream(x), choice.observed, rounding="learned")
    for variant in variants:
        weights = set(found[variant]) & set(choice.spec.weights)
        assert weights
        for name in weights:
            value, scales = found[variant][name], choice.spec.weights[name]
            again = dequantize_weight(quantize_weight(value, scales, variant), scales, variant)
            np.testing.assert_array_equal(again, value)
