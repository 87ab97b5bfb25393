import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from quant_graphs import residual_net, samples, stream

from edgekit.errors import UsageError
from edgekit.quant.choose import choose
from edgekit.quant.plan import plan
from edgekit.quant.simulate import fake_quantize
from edgekit.quant.spec import Grid, PerChannel, PerTensor, QuantSpec, Range


@pytest.fixture(scope="module")
def spec():
    net = residual_net()
    return choose(net, plan(net), stream(samples()), source={"data": "noise"}).spec


def test_json_round_trip_is_exact(spec):
    text = spec.to_json()
    back = QuantSpec.from_json(text)
    assert back == spec == QuantSpec.model_validate_json(spec.model_dump_json())
    assert back.to_json() == text
    for name in spec.tensors:
        assert back.grid(name, "affine") == spec.grid(name, "affine")


@given(
    scales=st.lists(st.floats(2.0**-126, 2.0**120, width=32), min_size=1, max_size=5),
    low=st.floats(-3e38, 0, width=64),
    high=st.floats(0, 3e38, width=64),
    name=st.text(max_size=8),
)
def test_every_number_and_name_survives(scales, low, high, name):
    made = QuantSpec(
        nodes=(name,),
        tensors={name: Range(low=low, high=high, calibrator=name)},
        weights={name: PerChannel(axis=1, scales=tuple(scales)), f"{name}/one": PerTensor(scale=scales[0])},
        ties=((name, "other"),),
        keep_float={"*": {name: "because"}},
    )
    assert QuantSpec.from_json(made.to_json()) == made


def test_json_reads_well(spec):
    """An entry a line, and no digit more than a float32 needs."""
    lines = spec.to_json().splitlines()
    assert len([line for line in lines if line.startswith("  ")]) == sum(
        len(part) for part in (spec.nodes, spec.tensors, spec.weights, spec.ties, spec.keep_float, spec.source)
    )
    scale = spec.weights["stem.weight"].scales[0]
    assert f'"stem.weight": {{"kind": "per_channel", "axis": 0, "scales": [{np.float32(scale)!s}, ' in spec.to_json()
    assert len(spec.to_json()) < len(spec.model_dump_json(indent=1))


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda fields: fields.update(version=2), r"q.json has version 2.*reads versions up to 1.*pip install -U"),
        (lambda fields: fields.pop("version"), "q.json is no QuantSpec: it has no version"),
        (lambda fields: fields.pop("nodes"), "q.json: nodes: Field required"),
        (lambda fields: fields.update(colour="red"), "q.json: colour: Extra inputs"),
        (lambda fields: fields["tensors"]["y"].update(low=float("nan")), r"q.json: tensors.y.low: .*finite"),
        (lambda fields: fields["tensors"]["y"].update(low=9, high=1), r"tensors.y: .*low 9.0 lies above high 1.0"),
        (lambda fields: fields["tensors"]["y"].update(high=1e39), r"tensors.y.high: .*less than"),
        (lambda fields: fields["weights"]["fc.weight"].update(axis=-1), r"weights.fc.weight.axis: .*greater"),
        (lambda fields: fields["weights"]["fc.weight"]["scales"].append(0.0), r"fc.weight.scales: .*above zero, got 0"),
        (lambda fields: fields["weights"]["fc.weight"].update(kind="per_block"), r"weights.fc.weight: .*per_block"),
    ],
)
def test_damaged_and_newer_files_are_refused(spec, change, fault):
    fields = json.loads(spec.to_json())
    change(fields)
    with pytest.raises(UsageError, match=fault) as caught:
        QuantSpec.from_json(json.dumps(fields), "q.json")
    assert "\n" not in str(caught.value)


def test_what_is_no_json_is_refused():
    with pytest.raises(UsageError, match=r"q.json is no JSON: Expecting"):
        QuantSpec.from_json("{", "q.json")


BOUND = st.floats(width=32, allow_nan=False, allow_infinity=False)
"""All of float32: denormal, huge, and equal bounds too."""
USUAL = st.floats(-1e4, 1e4, width=32)
VARIANTS = ("affine", "symmetric", "reduced_range")


def grid_of(low, high, variant):
    spec = QuantSpec(nodes=(), tensors={"t": Range(low=low, high=high, calibrator="minmax")}, weights={})
    return spec.grid("t", variant)


def integers(value, grid):
    return np.clip(np.rint(value / grid.scale) + grid.zero_point, grid.low, grid.high)


@given(a=BOUND, b=BOUND, share=st.floats(0, 1), variant=st.sampled_from(VARIANTS))
def test_every_value_of_the_range_is_kept_to_half_a_step(a, b, share, variant):
    low, high = min(a, b, 0.0), max(a, b, 0.0)
    grid = grid_of(min(a, b), max(a, b), variant)
    assert 0 < grid.scale < np.inf and grid.scale == np.float32(grid.scale)
    value = (1 - share) * low + share * high
    error = abs(grid.scale * (integers(value, grid) - grid.zero_point) - value)
    assert error <= grid.scale * 0.5001  # the scale is rounded to float32


@given(a=BOUND, b=BOUND, variant=st.sampled_from(VARIANTS))
def test_zero_is_a_value_of_every_grid(a, b, variant):
    grid = grid_of(min(a, b), max(a, b), variant)
    assert grid.low <= grid.zero_point <= grid.high
    assert integers(0.0, grid) == grid.zero_point


@given(a=BOUND, b=BOUND)
def test_grids_of_variants(a, b):
    """u8 for the affine ones, the reduced range narrows weights alone; s8 around zero for the symmetric one."""
    affine, symmetric, reduced = (grid_of(min(a, b), max(a, b), variant) for variant in VARIANTS)
    assert reduced == affine and (affine.low, affine.high) == (0, 255)
    assert symmetric.zero_point == 0 and (symmetric.low, symmetric.high) == (-128, 127)


@given(a=USUAL, b=USUAL, values=st.lists(st.floats(-2e4, 2e4, width=32), min_size=2))
def test_u8_is_s8_shifted(a, b, values):
    """The grid that ONNX Runtime gets and the one that LiteRT gets stand for the same numbers."""
    grid = grid_of(min(a, b), max(a, b), "affine")
    signed = Grid(scale=grid.scale, zero_point=grid.zero_point - 128, low=-128, high=127)
    array = np.array(values)
    np.testing.assert_array_equal(integers(array, grid) - 128, integers(array, signed))
    np.testing.assert_array_equal(fake_quantize(array, grid), fake_quantize(array, signed))


@given(a=USUAL, b=USUAL, values=st.lists(st.floats(-2e4, 2e4, width=32), min_size=2), variant=st.sampled_from(VARIANTS))
def test_order_is_kept_and_a_second_rounding_changes_nothing(a, b, values, variant):
    grid = grid_of(min(a, b), max(a, b), variant)
    rounded = fake_quantize(np.sort(np.array(values)), grid)
    assert (np.diff(rounded) >= 0).all()
    np.testing.assert_array_equal(fake_quantize(rounded, grid), rounded)


@given(a=USUAL, b=USUAL, more=st.floats(0, 1e3, width=32), variant=st.sampled_from(VARIANTS))
def test_a_wider_range_covers_all_that_a_narrower_does(a, b, more, variant):
    narrow = grid_of(min(a, b), max(a, b), variant)
    wide = grid_of(min(a, b) - more, max(a, b) + more, variant)
    assert wide.scale >= narrow.scale

    def ends(grid):
        return grid.scale * (grid.low - grid.zero_point), grid.scale * (grid.high - grid.zero_point)

    # Each end of a grid lies within half of its own steps of the range's.
    room = 0.501 * (wide.scale + narrow.scale)
    assert ends(wide)[0] <= ends(narrow)[0] + room and ends(wide)[1] >= ends(narrow)[1] - room


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("low", [0.0, 3.0, -2.5, 1e-45, -1e-45, 3e38, -3e38])
def test_a_constant_has_a_grid(low, variant):
    grid = grid_of(low, low, variant)
    assert abs(fake_quantize(np.array([low]), grid)[0] - low) <= grid.scale / 2


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e39])
def test_what_is_no_number_has_no_range(bad):
    with pytest.raises(ValueError, match="low"):
        Range(low=bad, high=1.0, calibrator="minmax")


def test_what_is_tied_shares_its_grid(spec):
    assert spec.ties
    for group in spec.ties:
        for variant in VARIANTS:
            assert len({spec.grid(name, variant) for name in group if name in spec.tensors}) == 1


def test_symmetric_grid_is_centred():
    grid = grid_of(-1.0, 3.0, "symmetric")
    assert grid.zero_point == 0
    assert grid.scale == pytest.approx(3 / 127, rel=1e-6)
