import numpy as np
import pytest

from edgekit.errors import UsageError
from edgekit.metrics import paired_accuracy
from edgekit.report.predictions import Predictions
from edgekit.robust.statistics import mean_accuracy, paired_mean


def predictions(right, data="d"):
    top = np.where(right, 0, 1).astype(np.int32)[:, None]
    return Predictions(tuple(map(str, range(len(right)))), np.zeros(len(right), np.int64), top, None, data, "test")


def correlated(rng, n, conditions, share, copied):
    """`conditions` answers to `n` samples, right with `share`; with `copied` a sample is alike in all of them."""
    whole = rng.random((n, 1)) < share
    alike = rng.random((n, 1)) < copied
    return [predictions(row) for row in np.where(alike, whole, rng.random((n, conditions)) < share).T]


def test_the_mean_is_that_of_the_conditions():
    rng = np.random.default_rng(0)
    seen = correlated(rng, 300, 7, 0.7, 0.5)
    found = mean_accuracy(seen)
    assert found.value == pytest.approx(np.mean([c.correct().mean() for c in seen]))
    assert found.low < found.value < found.high and found.n == 300


def test_more_conditions_of_the_same_samples_are_not_more_samples():
    right = np.random.default_rng(1).random(400) < 0.8
    one, many = mean_accuracy([predictions(right)]), mean_accuracy([predictions(right)] * 15)
    assert (many.low, many.high) == pytest.approx((one.low, one.high))


@pytest.mark.parametrize("copied", [0.0, 0.6, 1.0])
def test_intervals_cover_the_truth_and_agree_with_a_bootstrap_over_samples(copied):
    rng, inside, paired = np.random.default_rng(2), 0, 0
    for _ in range(200):
        a, b = correlated(rng, 250, 6, 0.75, copied), correlated(rng, 250, 6, 0.70, copied)
        found = mean_accuracy(a)
        inside += found.low <= 0.75 <= found.high
        gap = paired_mean(a, b)
        paired += gap.low <= 0.05 <= gap.high
    assert inside >= 182 and paired >= 182
    shares = np.mean([x.correct() for x in a], axis=0) - np.mean([y.correct() for y in b], axis=0)
    drawn = rng.choice(shares, (4000, 250)).mean(axis=1)
    np.testing.assert_allclose((gap.low, gap.high), np.quantile(drawn, [0.025, 0.975]), atol=0.012)


def test_equal_answers_still_leave_room_for_a_difference():
    right = np.ones(100, bool)
    found = paired_mean([predictions(right)] * 3, [predictions(right)] * 3)
    assert found.value == 0 and found.low < 0 < found.high
    assert mean_accuracy([predictions(right)]).low < 0.98
    one = paired_mean([predictions(right)], [predictions(right)])
    newcombe = paired_accuracy(right, right)
    assert one.high == pytest.approx(newcombe.high, abs=0.03)


def test_other_samples_or_conditions_are_refused():
    a = predictions(np.ones(10, bool))
    with pytest.raises(UsageError, match="needs at least one"):
        mean_accuracy([])
    with pytest.raises(UsageError, match="the same samples in each"):
        mean_accuracy([a, predictions(np.ones(9, bool))])
    for b in ([a, a], [predictions(np.ones(10, bool), "other")]):
        with pytest.raises(UsageError, match="in every condition"):
            paired_mean([a], b)
