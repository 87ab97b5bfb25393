"""Calibrators against numpy on the values themselves."""

import itertools

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edgekit.quant.histogram import BINS, CALIBRATORS, Histogram, choose, entropy, mse, percentile, squared_error


def counted(*batches):
    histogram = Histogram()
    for values in batches:
        array = np.asarray(values, np.float32)
        histogram.add(array, float(array.min()), float(array.max()))
    return histogram


def rounding_error(values, low, high):
    """What an 8-bit grid over [low, high] does to `values`, by doing it."""
    low, high = min(low, 0.0), max(high, 0.0)
    step = (high - low) / 255
    zero = np.rint(-low / step)
    return np.square((np.clip(np.rint(values / step) + zero, 0, 255) - zero) * step - values).mean()


def laplace(count=100_000, seed=0, scale=1.0):
    return np.random.default_rng(seed).laplace(size=count).astype(np.float32) * np.float32(scale)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=60), st.integers(1, 5))
@example([0.0, 8.724344109039879e-41], 1)
def test_nothing_is_lost_however_the_range_grows(values, parts):
    histogram = counted(*(part for part in np.array_split(np.float32(values), parts) if part.size))
    assert histogram.total == pytest.approx(len(values))
    assert (histogram.low, histogram.high) == (np.float32(values).min(), np.float32(values).max())
    held = histogram.middles[histogram.counts > 0]
    assert held.min() >= histogram.low and held.max() <= histogram.high


def test_batches_that_grow_give_the_histogram_of_all_at_once():
    parts = [laplace(20_000, seed, scale) for seed, scale in enumerate((0.01, 1.0, 30.0, 3.0))]
    grown, once = counted(*parts), counted(np.concatenate(parts))
    edges = np.linspace(-20, 20, 8)
    for low, high in itertools.pairwise(edges):
        counts = [h.counts[(h.middles >= low) & (h.middles < high)].sum() for h in (grown, once)]
        assert counts[0] == pytest.approx(counts[1], rel=0.05, abs=200)


def test_percentile_is_numpys():
    values = laplace()
    low, high = percentile(counted(values))
    wanted = np.percentile(values, [0.01, 99.99])
    assert (low, high) == pytest.approx(tuple(wanted), abs=0.15)


@pytest.mark.parametrize("values", [laplace(), np.maximum(laplace(), 0), np.clip(laplace(scale=4), 0, 6)])
def test_expected_error_is_the_true_one(values):
    histogram = counted(values)
    for low, high in ((histogram.low, histogram.high), (-2.0, 3.0), (0.0, 5.0)):
        if histogram.low >= 0:
            low = 0.0
        assert squared_error(histogram, low, high) == pytest.approx(rounding_error(values, low, high), rel=0.35)


@pytest.mark.parametrize("values", [laplace(), np.maximum(laplace(), 0), np.clip(laplace(scale=4), 0, 6)])
def test_mse_finds_the_best_pair_of_ends(values):
    histogram = counted(values)
    found = rounding_error(values, *mse(histogram))
    shares = np.linspace(0.1, 1, 25)
    best = min(rounding_error(values, histogram.low * a, histogram.high * b) for a in shares for b in shares)
    assert found <= best * 1.1


def test_entropy_leaves_out_far_tails_and_keeps_clamped_values():
    values = np.concatenate([np.random.default_rng(0).standard_normal(100_000), [60.0]]).astype(np.float32)
    assert 2 < entropy(counted(values))[1] < 30
    clamped = np.clip(laplace(scale=4), 0, 6)
    assert entropy(counted(clamped))[1] > 4


def test_auto_takes_the_least_error():
    spiked = np.concatenate([laplace(), [500.0, -400.0]]).astype(np.float32)
    histogram = counted(spiked)
    name, interval = choose(histogram)
    usual = spiked[:-2]
    errors = {who: rounding_error(usual, *CALIBRATORS[who](histogram)) for who in ("minmax", "percentile", "mse")}
    assert rounding_error(usual, *interval) <= 1.1 * min(errors.values()) < 0.01 * errors["minmax"]
    assert name != "minmax"
    even = counted(np.linspace(-1, 1, 10_000))
    assert choose(even)[0] == "minmax"


@pytest.mark.parametrize("value", [0.0, 3.0, -2.5])
def test_a_single_value(value):
    histogram = counted(np.full(100, value))
    for calibrate in CALIBRATORS.values():
        assert calibrate(histogram) == (value, value)
    assert choose(histogram)[1] == (value, value)
    assert BINS > 1000
