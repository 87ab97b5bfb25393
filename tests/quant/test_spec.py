import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from quant_graphs import residual_net, samples, stream

from edgekit.errors import UsageError
from edgekit.quant.choose import choose
from edgekit.quant.plan import plan
from edgekit.quant.spec import PerChannel, PerTensor, QuantSpec, Range


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
