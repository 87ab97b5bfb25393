import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from quant_graphs import residual_net, samples, stream

from edgekit.quant.choose import choose
from edgekit.quant.plan import plan
from edgekit.quant.spec import QuantSpec, Range


@pytest.fixture(scope="module")
def spec():
    net = residual_net()
    return choose(net, plan(net), stream(samples()), stream(samples(16, 2)), source={"data": "noise"}).spec


def test_json_round_trip_is_exact(spec):
    text = spec.model_dump_json()
    back = QuantSpec.model_validate_json(text)
    assert back == spec
    assert back.model_dump_json() == text
    for name in spec.tensors:
        assert back.grid(name, "affine") == spec.grid(name, "affine")


BOUND = st.floats(-1e4, 1e4, width=32)


@given(a=BOUND, b=BOUND, share=st.floats(0, 1))
def test_affine_grid_holds_zero_and_every_value_to_half_a_step(a, b, share):
    low, high = min(a, b), max(a, b)
    spec = QuantSpec(nodes=(), tensors={"t": Range(low=low, high=high, calibrator="minmax")}, weights={})
    grid = spec.grid("t", "affine")
    assert 0 <= grid.zero_point <= 255
    value = min(low, 0.0) + share * (max(high, 0.0) - min(low, 0.0))
    quantized = np.clip(np.rint(value / grid.scale) + grid.zero_point, grid.low, grid.high)
    # The zero point is rounded, so the ends of the range may lie half a step further out.
    assert abs(grid.scale * (quantized - grid.zero_point) - value) <= grid.scale * 1.001
    assert np.rint(0 / grid.scale) + grid.zero_point == grid.zero_point


def test_symmetric_grid_is_centred():
    spec = QuantSpec(nodes=(), tensors={"t": Range(low=-1.0, high=3.0, calibrator="minmax")}, weights={})
    grid = spec.grid("t", "symmetric")
    assert grid.zero_point == 0
    assert grid.scale == pytest.approx(3 / 127, rel=1e-6)
