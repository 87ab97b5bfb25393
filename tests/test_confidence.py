import numpy as np
import pytest

from edgekit import confidence, metrics
from edgekit.errors import UsageError


def answers(n=4000, seed=0, temperature=1.0):
    """Logits of ten classes whose labels are drawn from their own softmax: calibrated where the temperature is 1."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, 10)) * 2
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = (shares.cumsum(axis=1) < rng.random((n, 1))).sum(axis=1)
    return (logits / temperature).astype(np.float32), np.minimum(labels, 9)


def test_an_example_by_hand():
    sure = np.array([0.95, 0.95, 0.95, 0.95, 0.55, 0.55], np.float32)
    right = np.array([1, 1, 1, 0, 1, 0], bool)
    assert confidence.calibration_error(sure, right) == pytest.approx((4 * abs(0.75 - 0.95) + 2 * abs(0.5 - 0.55)) / 6)


def test_a_bin_holds_its_upper_end_and_not_its_lower_one():
    third = np.array([1 / 3, 1 / 3 + 1e-6])  # 5/15 ends a bin: two bins, whose errors do not cancel
    assert confidence.calibration_error(third, np.array([True, False])) == pytest.approx((2 / 3 + 1 / 3) / 2, abs=1e-5)
    assert confidence.calibration_error(np.array([1.0, 0.0]), np.array([True, False])) == 0.0


def test_the_error_equals_that_of_torchmetrics():
    functional = pytest.importorskip("torchmetrics.functional.classification")
    import torch

    logits, labels = answers(temperature=0.5)
    seen = metrics.evaluate(logits, labels).metrics.calibration_error
    pair = torch.from_numpy(logits).softmax(1), torch.from_numpy(labels)
    oracle = functional.multiclass_calibration_error(*pair, num_classes=10, n_bins=15, norm="l1")
    assert seen == pytest.approx(float(oracle), abs=1e-5)


def test_logits_and_their_probabilities_are_as_sure():
    logits, _ = answers(50)
    shares = np.exp(logits.astype(np.float64))
    expected = (shares / shares.sum(axis=1, keepdims=True)).max(axis=1)
    np.testing.assert_allclose(confidence.first_confidence(logits), expected, rtol=1e-6)
    sure = confidence.first_confidence(shares / shares.sum(axis=1, keepdims=True), probabilities=True)
    np.testing.assert_allclose(sure, expected, rtol=1e-6)


def test_outputs_that_are_not_finite_or_huge_have_a_confidence_all_the_same():
    rows = np.array([[np.nan, 1], [np.inf, 0], [1e4, -1e4], [0, 0]], np.float32)
    np.testing.assert_array_equal(confidence.first_confidence(rows), [0, 0, 1, 0.5])
    zeros = np.zeros((1, 2), np.float32)
    np.testing.assert_array_equal(confidence.first_confidence(zeros, probabilities=True), [0])


def test_the_interval_reaches_around_the_value_and_an_overconfident_network_is_told_apart():
    calibrated, labels = answers()
    found = metrics.evaluate(calibrated, labels).metrics
    low, high = found.intervals["calibration_error"]
    assert 0 <= low <= found.calibration_error <= high < 0.05
    sharp = metrics.evaluate(calibrated / 0.3, labels).metrics
    assert sharp.calibration_error > 0.15 > high
    assert sharp.intervals["calibration_error"][0] > high


def test_the_interval_covers_the_expected_error():
    """The error that samples of this size have on average lies in nearly all intervals, small as the error is."""
    seen = []
    for seed in range(60):
        logits, labels = answers(1000, seed)
        seen.append(metrics.evaluate(logits, labels).metrics)
    expected = np.mean([m.calibration_error for m in seen])
    inside = sum(m.intervals["calibration_error"][0] <= expected <= m.intervals["calibration_error"][1] for m in seen)
    assert inside >= 51


def test_the_paired_difference_sees_overconfidence_on_the_same_samples():
    logits, labels = answers()
    ids = tuple(map(str, range(len(labels))))
    kept = {"data_sha256": "d", "split": "test"}
    plain = metrics.evaluate(logits, labels).predictions(ids, labels, **kept)
    sharp = metrics.evaluate(logits * 2, labels).predictions(ids, labels, **kept)
    found = metrics.paired_difference("calibration_error", sharp, plain)
    assert 0.05 < found.low < found.value < found.high < 0.3
    same = metrics.paired_difference("calibration_error", plain, plain)
    assert (same.value, same.low, same.high) == (0, 0, 0)
    bare = metrics.evaluate(logits, labels).predictions(ids, labels, **kept)
    object.__setattr__(bare, "confidence", None)
    with pytest.raises(UsageError, match="needs the confidence of every sample"):
        metrics.paired_difference("calibration_error", plain, bare)


def test_unlike_numbers_of_samples_are_refused():
    with pytest.raises(UsageError, match="a confidence a sample"):
        confidence.calibration_error(np.ones(3), np.ones(2, bool))
    pair = np.ones(3), np.ones(3, bool)
    with pytest.raises(UsageError, match="the same samples, got 3 and 2"):
        confidence.paired_calibration(pair, (np.ones(2), np.ones(2, bool)))
