"""Ratios at percentiles other than the median, from the samples of interleaved blocks."""

import numpy as np
import pytest

from edgekit.compare import Comparison, at_percentile, compare, paired_ratio
from edgekit.devices import Pairs


def block(rng, scale, n=200):
    """Latencies whose tail beyond the 75th percentile is three times as slow for `a` only where `scale` says so."""
    base, tail = scale
    values = base * np.exp(0.02 * rng.standard_normal(n))
    values[rng.random(n) < 0.25] *= tail
    return values.tolist()


def rounds(n=10, size=200, a=(1.0, 3.0), b=(1.0, 1.5), seed=0):
    rng = np.random.default_rng(seed)
    return [tuple(block(rng, s, size) for s in (a, b, b, a)) for _ in range(n)]


def told(samples):
    """What the device tells of each round, whose blocks were taken in two turns."""
    return tuple({"samples_s": [[x[::2] for x in four], [x[1::2] for x in four]]} for four in samples)


def comparison(samples):
    medians = [tuple(float(np.median(x)) for x in four) for four in samples]
    return Comparison(*paired_ratio(medians), tuple(medians), told(samples))


def test_a_tail_shows_at_its_percentile_and_not_in_the_median():
    seen = comparison(rounds())
    assert seen.low < 1.0 < seen.high
    slow = at_percentile(seen, 90)
    assert slow.low < 2.0 < slow.high
    assert slow.low > 1.8
    assert len(slow.rounds) == 10


def test_the_ratio_is_that_of_nearest_rank_percentiles_of_the_blocks():
    samples = rounds(n=3)
    expected = [[float(np.sort(x)[int(np.ceil(0.9 * len(x))) - 1]) for x in four] for four in samples]
    found = at_percentile(comparison(samples), 90)
    assert (found.ratio, found.low, found.high) == pytest.approx(paired_ratio(expected))


def test_blocks_with_too_few_samples_give_nothing():
    assert at_percentile(comparison(rounds(size=63)), 90) is None
    assert at_percentile(comparison(rounds(size=64)), 90) is not None
    assert at_percentile(comparison(rounds(size=64)), 99) is None
    assert at_percentile(Comparison(1.0, 1.0, 1.0, ()), 90) is None


def test_looking_several_times_widens_the_interval_here_too():
    samples = rounds(n=24, a=(1.0, 1.0), b=(1.0, 1.0))

    class Device:
        taken = 0

        def pairs(self, a, b, *, rounds, threads, inputs):
            mine = samples[self.taken : self.taken + rounds]
            self.taken += rounds
            return Pairs(comparison(mine).rounds, told(mine))

    seen = compare(Device(), None, None)
    found = at_percentile(seen, 90)
    assert seen.confidence == pytest.approx(1 - 0.05 / 3)
    assert len(found.rounds) == len(seen.rounds)
    narrow = paired_ratio(found.rounds)
    assert found.low < narrow[1] < narrow[2] < found.high
