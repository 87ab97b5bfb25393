import numpy as np
import pytest

from edgekit import metrics
from edgekit.errors import UsageError
from edgekit.report.values import IDENTICAL_DB

stats = pytest.importorskip("scipy.stats", reason="scipy is the oracle of the intervals")
special = pytest.importorskip("scipy.special")


def classifier(n=600, classes=7, seed=0):
    """Logits of a middling classifier on unevenly many samples of each class; the last class never occurs."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(classes - 1, n, p=np.arange(1, classes) / np.arange(1, classes).sum())
    logits = rng.normal(size=(n, classes)).astype(np.float32)
    logits[np.arange(n), labels] += 1.5
    logits[:, -1] -= 50
    return logits, labels


def test_loss_is_the_negative_log_softmax_of_the_label():
    logits, labels = classifier()
    expected = -special.log_softmax(logits.astype(np.float64), axis=1)[np.arange(len(labels)), labels]
    np.testing.assert_allclose(metrics.cross_entropy(logits, labels), expected, rtol=1e-6)


def test_loss_of_probabilities_equals_that_of_their_logits_only_when_said():
    logits, labels = classifier()
    probabilities = special.softmax(logits.astype(np.float64), axis=1)
    said = metrics.evaluate(probabilities, labels, probabilities=True).metrics.loss
    assert said == pytest.approx(metrics.evaluate(logits, labels).metrics.loss, rel=1e-6)
    assert metrics.evaluate(probabilities, labels).metrics.loss > said + 0.1


def test_loss_of_large_logits_does_not_overflow():
    logits = np.array([[1e4, 0.0], [0.0, 1e4]], np.float32)
    np.testing.assert_allclose(metrics.cross_entropy(logits, np.array([0, 0])), [0.0, 1e4])


def test_averages_and_classes_equal_torchmetrics():
    torchmetrics = pytest.importorskip("torchmetrics.functional.classification")
    import torch

    logits, labels = classifier()
    found = metrics.evaluate(logits, labels)
    data = torch.from_numpy(logits), torch.from_numpy(labels)
    for name in ("precision", "recall", "f1"):
        oracle = getattr(torchmetrics, f"multiclass_{'f1_score' if name == 'f1' else name}")
        assert getattr(found.metrics, name) == pytest.approx(float(oracle(*data, num_classes=7, average="macro")))
        each = oracle(*data, num_classes=7, average=None)
        np.testing.assert_allclose([getattr(c, name) for c in found.per_class], each, rtol=1e-6)
    accuracy = torchmetrics.multiclass_accuracy(*data, num_classes=7, average="micro")
    assert found.metrics.accuracy.value == pytest.approx(float(accuracy))


def test_class_accuracy_is_one_against_the_rest():
    logits, labels = classifier()
    chosen = logits.argmax(axis=1)
    for i, found in enumerate(metrics.evaluate(logits, labels, classes=list("abcdefg")).per_class):
        assert found.accuracy == pytest.approx(np.mean((chosen == i) == (labels == i)))
        assert found.support == np.sum(labels == i)
        assert found.name == "abcdefg"[i]


@pytest.mark.parametrize(("hits", "n"), [(0, 10), (10, 10), (3, 10), (9300, 10_000), (1, 1)])
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
def test_wilson_equals_scipy(hits, n, confidence):
    expected = stats.binomtest(hits, n).proportion_ci(confidence, method="wilson")
    found = metrics.wilson(hits, n, confidence)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)


def answers(both, only_a, only_b, neither):
    a = np.repeat([True, True, False, False], [both, only_a, only_b, neither])
    b = np.repeat([True, False, True, False], [both, only_a, only_b, neither])
    return a, b


def test_paired_difference_reproduces_newcombes_example():
    found = metrics.paired_accuracy(*answers(36, 12, 2, 0))
    assert found.value == pytest.approx(0.2)
    assert (found.low, found.high) == pytest.approx((0.0569, 0.3404), abs=5e-5)


def test_paired_difference_of_a_model_with_itself_holds_zero():
    a, _ = answers(930, 0, 0, 70)
    found = metrics.paired_accuracy(a, a)
    assert found.value == 0.0
    assert found.low <= 0.0 <= found.high
    assert found.high - found.low < 0.01


def test_paired_difference_covers_the_truth_at_least_as_often_as_promised():
    rng = np.random.default_rng(0)
    truth = 0.93 - (0.93 * 0.97 + 0.07 * 0.03)
    held = 0
    for _ in range(500):
        a = rng.random(400) < 0.93
        b = np.where(rng.random(400) < 0.03, ~a, a)
        found = metrics.paired_accuracy(a, b)
        held += found.low <= truth <= found.high
    assert held >= 0.94 * 500


def test_bootstrap_is_deterministic_and_brackets_the_value():
    logits, labels = classifier()
    first, second = metrics.evaluate(logits, labels).metrics, metrics.evaluate(logits, labels).metrics
    assert first == second
    for name in ("precision", "recall", "f1", "loss"):
        low, high = first.intervals[name]
        assert low < getattr(first, name) < high


def test_bootstrap_of_recall_agrees_with_the_binomial_where_classes_are_even():
    labels = np.repeat([0, 1], 2000)
    predicted = labels.copy()
    predicted[::10] = 1 - predicted[::10]
    counts = metrics.confusion(predicted, labels, 2)
    low, high = metrics.bootstrap_macro(counts, resamples=1000)["recall"]
    exact = stats.binomtest(3600, 4000).proportion_ci(0.95, method="wilson")
    assert (low, high) == pytest.approx((exact.low, exact.high), abs=0.002)


def predictions(logits, labels, **more):
    ids = [str(i) for i in range(len(labels))]
    defaults = {"data_sha256": "d", "split": "test"}
    return metrics.evaluate(logits, labels).predictions(ids, labels, **{**defaults, **more})


@pytest.mark.parametrize("metric", ["accuracy", "precision", "recall", "f1", "loss"])
def test_paired_differences_equal_the_difference_of_the_metrics(metric):
    logits, labels = classifier()
    noisy = logits + np.random.default_rng(5).normal(0, 1.0, logits.shape).astype(np.float32)
    a, b = metrics.evaluate(logits, labels).metrics, metrics.evaluate(noisy, labels).metrics
    values = [m.accuracy.value if metric == "accuracy" else getattr(m, metric) for m in (a, b)]
    found = metrics.paired_difference(metric, predictions(logits, labels), predictions(noisy, labels))
    assert found.value == pytest.approx(values[0] - values[1], abs=1e-6)
    assert found.low < found.value < found.high
    assert found.n == len(labels)


def test_paired_difference_refuses_other_samples():
    logits, labels = classifier()
    with pytest.raises(UsageError, match="same labelled samples"):
        metrics.paired_difference("f1", predictions(logits, labels), predictions(logits, labels, split="train"))


def test_top_k_breaks_ties_to_the_lower_class_in_both_of_its_ways():
    ties = np.zeros((2, 50), np.float32)
    ties[1, 30] = 1
    np.testing.assert_array_equal(metrics.top_k(ties, 3), [[0, 1, 2], [30, 0, 1]])
    rng = np.random.default_rng(0)
    for classes in (6, 100):
        scores = rng.integers(0, 9, (200, classes)).astype(np.float32)
        expected = np.argsort(-scores, axis=1, kind="stable")[:, :5]
        np.testing.assert_array_equal(metrics.top_k(scores, 5), expected)


def test_outputs_that_are_not_finite_are_wrong_and_never_nan():
    logits, labels = classifier()
    sane = metrics.evaluate(logits, labels).metrics.accuracy
    right = np.flatnonzero(logits.argmax(axis=1) == labels)[:3]
    logits[right] = np.nan
    found = metrics.evaluate(logits, labels)
    assert found.metrics.accuracy.value == pytest.approx(sane.value - 3 / len(labels))
    assert found.metrics.loss is None
    assert "loss" not in found.metrics.intervals
    assert (found.top[right] == -1).all()


@pytest.mark.parametrize(
    ("outputs", "labels", "message"),
    [
        (np.zeros((4, 1)), np.zeros(4, int), r"two classes or more, got \[4, 1\]"),
        (np.zeros((4, 3, 2)), np.zeros(4, int), r"got \[4, 3, 2\]"),
        (np.zeros((4, 3)), np.zeros(5, int), r"4 outputs need labels \[4\], got \[5\]"),
        (np.zeros((4, 3)), np.array([0, 1, 2, 3]), r"must be in 0..2 \(the model's outputs\), got 0..3"),
        (np.zeros((4, 3)), np.array([0, -1, 2, 1]), r"got -1..2"),
        (np.zeros((4, 3)), np.zeros(4), "must be integers"),
    ],
)
def test_bad_input_is_one_clear_error(outputs, labels, message):
    with pytest.raises(UsageError, match=message):
        metrics.evaluate(outputs, labels)


def test_trailing_axes_of_one_are_dropped():
    logits, labels = classifier()
    assert metrics.evaluate(logits[:, :, None, None], labels).metrics == metrics.evaluate(logits, labels).metrics


def test_unlabelled_outputs_give_only_the_choices():
    logits, _ = classifier()
    found = metrics.evaluate(logits, None)
    assert found.metrics.accuracy is None
    assert found.loss is None
    np.testing.assert_array_equal(found.top[:, 0], logits.argmax(axis=1))


def test_agreement_counts_equal_choices():
    logits, _ = classifier()
    other = logits.copy()
    other[:6] = np.roll(other[:6], 1, axis=1)
    found = metrics.agreement(logits, other)
    assert found.value == pytest.approx(1 - 6 / len(logits))
    assert found.n == len(logits)


def test_snr_is_ten_decibels_a_decade():
    reference = np.ones((10, 4))
    assert metrics.snr_db(reference, reference + 0.1) == pytest.approx(20.0)
    assert metrics.snr_db([reference, reference], [reference, reference + 0.1]) == pytest.approx(10 * np.log10(200))


def test_snr_at_its_edges():
    reference = np.ones((2, 2))
    assert metrics.snr_db(reference, reference) == IDENTICAL_DB
    assert metrics.snr_db(np.zeros(3), np.ones(3)) is None
    assert metrics.snr_db(reference, reference * np.nan) is None
    with pytest.raises(UsageError, match="unlike shape"):
        metrics.snr_db(reference, np.ones(4))
