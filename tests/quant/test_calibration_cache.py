"""Observations that are kept are those that were made, and serve nothing else."""

import numpy as np
import onnx
import pytest
from quant_graphs import residual_net, samples, stream

from edgekit.quant import cache
from edgekit.quant.calibrate import calibrated
from edgekit.quant.layers import layers
from edgekit.quant.observe import observe
from edgekit.quant.plan import plan


@pytest.fixture(autouse=True)
def own(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path))


def look(net, x):
    return observe(net, calibrated(plan(net)), stream(x), layers(net, plan(net).nodes), total=len(x))


def same(one, other):
    for name, seen in one.histograms.items():
        again = other.histograms[name]
        assert (seen.low, seen.high, seen.zeros) == (again.low, again.high, again.zeros)
        np.testing.assert_array_equal(seen.counts, again.counts)
    for name, channels in one.channels.items():
        np.testing.assert_array_equal(channels.square, other.channels[name].square)
        np.testing.assert_array_equal(one.means[name], other.means[name])
    for name, blocks in one.moments.items():
        for a, b in zip(blocks, other.moments[name], strict=True):
            np.testing.assert_array_equal(a, b)
    assert one.samples == other.samples
    assert one.histograms.keys() == other.histograms.keys() and one.moments.keys() == other.moments.keys()


def test_the_second_time_nothing_is_run():
    net, x = residual_net(), samples()
    made = look(net, x)
    first, there = cache.kept("key", lambda: made)
    assert first is made and not there
    again, there = cache.kept("key", lambda: pytest.fail("it was run again"))
    assert there
    same(made, again)


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 not a zip", None])
def test_a_damaged_file_is_observed_again(tmp_path, damage):
    made = look(residual_net(), samples(16))
    cache.kept("key", lambda: made)
    file = tmp_path / "calibration" / "key.npz"
    file.write_bytes(file.read_bytes()[:-200] if damage is None else damage)
    again, there = cache.kept("key", lambda: made)
    assert again is made and not there
    assert cache.kept("key", lambda: pytest.fail("it was not mended"))[1]


def test_every_part_of_the_key_counts():
    net, x = residual_net(), samples(4)
    other = onnx.ModelProto.FromString(net.SerializeToString())
    other.graph.node[0].name = "renamed"
    keys = {
        cache.key_of(net, ("a",), [x], ("p",)),
        cache.key_of(other, ("a",), [x], ("p",)),
        cache.key_of(net, ("a", "b"), [x], ("p",)),
        cache.key_of(net, ("a",), [x + 1], ("p",)),
        cache.key_of(net, ("a",), [x[:2]], ("p",)),
        cache.key_of(net, ("a",), [x], ("q",)),
    }
    assert len(keys) == 6
    assert cache.key_of(net, ("a",), [x.copy()], ("p",)) in keys


def test_old_observations_make_room(tmp_path, monkeypatch):
    made = look(residual_net(), samples(16))
    cache.kept("one", lambda: made)
    size = (tmp_path / "calibration" / "one.npz").stat().st_size
    monkeypatch.setattr(cache, "KEPT_BYTES", int(2.5 * size))
    for key in ("two", "three"):
        cache.kept(key, lambda: made)
    assert len(list((tmp_path / "calibration").glob("*.npz"))) == 2


def test_a_cache_that_cannot_be_written_is_none(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "file"))
    made = look(residual_net(), samples(16))
    assert cache.kept("key", lambda: made) == (made, False)
