import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgekit.quant.spec import PerChannel, PerTensor
from edgekit.quant.weights import (
    WEIGHT_LIMIT,
    channel_scales,
    dequantize_weight,
    quantize_bias,
    quantize_weight,
    scale_array,
)

WEIGHTS = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=4, max_side=6),
    elements=st.floats(-1e3, 1e3, width=32, allow_subnormal=False),
)


@given(weight=WEIGHTS, axis=st.integers(0, 1), variant=st.sampled_from(["affine", "symmetric", "reduced_range"]))
def test_error_is_at_most_half_a_step(weight, axis, variant):
    scales = channel_scales(weight, axis)
    integers = quantize_weight(weight, scales, variant)
    assert np.abs(integers.astype(int)).max() <= WEIGHT_LIMIT[variant]
    shape = [-1 if i == axis else 1 for i in range(weight.ndim)]
    step = scale_array(scales, variant).astype(np.float64).reshape(shape)
    error = np.abs(weight - dequantize_weight(integers, scales, variant).astype(np.float64))
    assert (error <= step * 0.5 * (1 + 1e-4)).all()


@given(weight=WEIGHTS)
def test_scale_is_the_peak_over_127(weight):
    scales = channel_scales(weight, None)
    assert isinstance(scales, PerTensor)
    assert scales.scale == pytest.approx(max(np.abs(weight).max() / 127, 1e-37), rel=1e-6, abs=1e-31)


def test_variants_of_one_grid():
    weight = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
    scales = channel_scales(weight, 0)
    np.testing.assert_array_equal(
        quantize_weight(weight, scales, "affine"), quantize_weight(weight, scales, "symmetric")
    )
    np.testing.assert_allclose(
        scale_array(scales, "reduced_range"), scale_array(scales, "affine") * 127 / 64, rtol=1e-6
    )


def test_zero_channel_is_safe():
    weight = np.zeros((2, 3), np.float32)
    weight[1] = 0.5
    bias = np.array([0.3, -0.2], np.float32)
    scales = channel_scales(weight, 0, bias=bias, input_scale=0.02)
    assert isinstance(scales, PerChannel)
    assert (quantize_weight(weight, scales, "affine")[0] == 0).all()
    integers, steps = quantize_bias(bias, 0.02, scale_array(scales, "affine"))
    np.testing.assert_allclose(integers * steps.astype(np.float64), bias, rtol=1e-6)


@pytest.mark.parametrize("axis", [0, None])
def test_scale_grows_where_the_bias_would_overflow(axis):
    weight = np.full((2, 4), 1e-8, np.float32)
    bias = np.array([100.0, 1e-9], np.float32)
    plain = channel_scales(weight, axis)
    grown = channel_scales(weight, axis, bias=bias, input_scale=1e-3)
    overflowing = np.abs(bias / (1e-3 * scale_array(plain, "affine").astype(np.float64))).max()
    assert overflowing > 2**31
    integers, steps = quantize_bias(bias, 1e-3, scale_array(grown, "affine"))
    assert np.abs(integers.astype(np.int64)).max() < 2**31 - 1
    assert integers[0] * float(np.broadcast_to(steps, 2)[0]) == pytest.approx(100.0, rel=1e-6)


@given(
    bias=hnp.arrays(np.float32, 5, elements=st.floats(-10, 10, width=32)),
    scale=st.floats(1e-4, 1e-1, allow_subnormal=False),
)
def test_bias_error_is_at_most_half_a_step(bias, scale):
    integers, steps = quantize_bias(bias, scale, np.full(5, 1e-3, np.float32))
    assert (np.abs(integers * steps.astype(np.float64) - bias) <= steps * 0.500001).all()
