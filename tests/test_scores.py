"""Metrics from what was kept of every sample, against other libraries and numbers that follow by hand."""

from __future__ import annotations

import numpy as np
import pytest

from edgekit import scores
from edgekit.errors import UsageError
from edgekit.metrics import paired_difference, score
from edgekit.report.predictions import Predictions, read_predictions, write_predictions
from edgekit.scoring import Asked
from edgekit.scoring import score as score_task
from edgekit.tasks import METRICS, TASKS

sk = pytest.importorskip("sklearn.metrics", reason="scikit-learn is the oracle, and computes the area")


def asked(outputs, truth=None, reference=None, inputs=None):
    outputs = outputs if isinstance(outputs, list) else [outputs]
    return Asked(outputs, outputs if reference is None else [reference], truth, lambda: inputs)


def kept(evidence, n):
    """Predictions of a task without classes."""
    ids = tuple(map(str, range(n)))
    return Predictions(ids, None, np.empty((n, 0), np.int32), None, "0" * 64, "test", evidence=evidence)


def pictures(n=24, boxes=6, seed=0, noise=1.5, per_image=30):
    """Boxes of three classes, and middling detections with many ties and a fourth class that is never right."""
    rng = np.random.default_rng(seed)
    truth, found = np.full((n, boxes, 5), -1.0), np.zeros((n, per_image, 6))
    for i in range(n):
        count = rng.integers(0, boxes + 1)
        corner = rng.uniform(0, 80, (count, 2))
        truth[i, :count] = np.column_stack([rng.integers(0, 3, count), corner, corner + rng.uniform(8, 30, (count, 2))])
        for k in range(per_image):
            at = rng.uniform(0, 80, 2)
            box, kind, sure = np.r_[at, at + rng.uniform(5, 30, 2)], rng.integers(0, 4), rng.uniform(0, 0.6)
            if k < count and rng.random() < 0.8:
                box, kind, sure = truth[i, k, 1:] + rng.normal(0, noise, 4), truth[i, k, 0], rng.uniform(0.3, 1)
            found[i, k] = *box, round(sure, 2), kind
    return truth, found


def test_every_metric_of_a_task_is_known_and_every_known_one_is_of_a_task():
    assert sorted({name for names in TASKS.values() for name in names}) == sorted(METRICS)


def test_area_under_the_curve_equals_scikit_learns_and_resamples_like_it():
    rng = np.random.default_rng(1)
    truth = rng.integers(0, 2, 200)
    strange = np.round(rng.normal(size=200) + truth, 1)  # many ties
    found = score_task("anomaly", asked(strange, truth))
    assert found.values["auc"] == pytest.approx(sk.roc_auc_score(truth, strange))
    assert scores.value_of("auc", found.evidence, 200) == pytest.approx(found.values["auc"], abs=1e-12)
    counts = rng.multinomial(200, np.full(200, 1 / 200), size=5).astype(float)
    expected = [sk.roc_auc_score(truth, strange, sample_weight=row) for row in counts]
    np.testing.assert_allclose(scores.statistic("auc", found.evidence)(counts), expected, rtol=1e-12)


def test_a_network_that_gives_its_input_again_is_scored_by_its_error():
    rng = np.random.default_rng(2)
    inputs, truth = rng.normal(size=(40, 3, 4)), np.arange(40) % 2
    outputs = inputs + rng.normal(size=inputs.shape) * (1 + truth)[:, None, None]
    found = score_task("anomaly", asked(outputs, truth, inputs=[inputs]))
    expected = sk.roc_auc_score(truth, ((outputs - inputs) ** 2).mean(axis=(1, 2)))
    assert found.values["auc"] == pytest.approx(expected)


def test_intersection_over_union_equals_scikit_learns_jaccard_score():
    rng = np.random.default_rng(3)
    truth, output = rng.integers(0, 4, (12, 8, 9)), rng.normal(size=(12, 5, 8, 9))
    output[:, 4] -= 9  # a class that never occurs counts for nothing
    blank = truth.copy()
    blank[:, 0], blank[:, 1] = 255, -1
    rest, answers = truth[:, 2:].ravel(), output.argmax(1)[:, 2:].ravel()
    for given in (output, output.transpose(0, 2, 3, 1), output.argmax(1)):
        found = score_task("segmentation", asked(given, blank)).evidence
        assert scores.value_of("miou", found, 12) == pytest.approx(sk.jaccard_score(rest, answers, average="macro"))
        assert scores.value_of("pixel_accuracy", found, 12) == pytest.approx(np.mean(rest == answers))


def test_resampled_intersection_over_union_is_that_of_the_repeated_images():
    rng = np.random.default_rng(4)
    truth, output = rng.integers(0, 3, (6, 5, 5)), rng.normal(size=(6, 3, 5, 5))
    rows = np.array([0, 0, 2, 5, 5, 5])
    whole = score_task("segmentation", asked(output, truth)).evidence
    again = score_task("segmentation", asked(output[rows], truth[rows])).evidence
    counted = scores.statistic("miou", whole)(np.bincount(rows, minlength=6)[None].astype(float))
    assert counted[0] == pytest.approx(scores.value_of("miou", again, 6))


@pytest.mark.parametrize("probabilities", [True, False])
def test_one_channel_is_the_score_of_class_one(probabilities):
    truth = np.array([[[0, 1], [1, 0]]])
    logits = np.array([[[-1.0, 0.3], [-0.2, -2.0]]])
    given = 1 / (1 + np.exp(-logits)) if probabilities else logits
    found = score_task("segmentation", asked(given[:, None], truth)).evidence
    assert scores.value_of("pixel_accuracy", found, 1) == 0.75
    assert scores.value_of("miou", found, 1) == pytest.approx((1 / 2 + 2 / 3) / 2)


def test_average_precision_equals_pycocotools_from_what_was_kept():
    pytest.importorskip("pycocotools")
    truth, found = pictures()
    scored = score_task("detection", asked(found.astype(np.float32), truth))
    assert 0.1 < scored.values["map"] < scored.values["map50"] < 0.9
    for name in ("map", "map50"):
        assert scores.value_of(name, scored.evidence, len(truth)) == pytest.approx(scored.values[name], abs=1e-12)


def test_average_precision_by_hand():
    """Two boxes; the surer detection is wrong, the next finds one of them: precision 1/2 up to a recall of 1/2."""
    pytest.importorskip("pycocotools")
    truth = np.array([[[0, 0, 0, 10, 10], [0, 20, 20, 30, 30]]])
    found = np.array([[[50, 50, 60, 60, 0.9, 0], [0, 0, 10, 10, 0.8, 0], [9, 9, 2, 2, 0.1, 0]]])
    scored = score_task("detection", asked(found, truth))
    assert scored.values == pytest.approx({"map": 51 / 101 / 2, "map50": 51 / 101 / 2})


@pytest.mark.parametrize("form", ["three", "each class"])
def test_detections_in_other_forms_are_the_same(form):
    pytest.importorskip("pycocotools")
    truth, found = pictures(n=6)
    boxes, sure, kinds = found[..., :4], found[..., 4], found[..., 5]
    each = sure[..., None] * (kinds[..., None] == np.arange(4))
    outputs = [boxes, sure, kinds] if form == "three" else [boxes, each]
    one, other = (score_task("detection", asked(given, truth)).values for given in (found, outputs))
    assert one == pytest.approx(other)


def test_regression_equals_scikit_learn():
    rng = np.random.default_rng(5)
    truth = rng.normal(size=(50, 3))
    output = truth + rng.normal(size=truth.shape)
    found = score_task("regression", asked(output[:, None], truth)).evidence
    assert scores.value_of("mae", found, 50) == pytest.approx(sk.mean_absolute_error(truth, output))
    assert scores.value_of("rmse", found, 50) == pytest.approx(sk.mean_squared_error(truth, output) ** 0.5)


def test_retrieval_equals_scikit_learns_average_precision_query_by_query():
    rng = np.random.default_rng(6)
    truth = np.r_[rng.integers(0, 5, 39), 99]  # the last one is alone of its class, and asks nothing
    output = rng.normal(size=(40, 8)) + 2 * np.eye(8)[truth % 8]
    found = score_task("embedding", asked(output, truth, reference=output * 3)).evidence
    near = output @ output.T / np.outer(*[np.linalg.norm(output, axis=1)] * 2)
    expected, first, five = [], [], []
    for i in range(39):
        others = np.delete(np.arange(40), i)
        right = truth[others] == truth[i]
        expected.append(sk.average_precision_score(right, near[i, others]))
        order = np.argsort(-near[i, others])
        first.append(right[order[0]])
        five.append(right[order[:5]].any())
    assert scores.value_of("retrieval_map", found, 40) == pytest.approx(np.mean(expected))
    assert scores.value_of("recall_at_1", found, 40) == pytest.approx(np.mean(first))
    assert scores.value_of("recall_at_5", found, 40) == pytest.approx(np.mean(five))
    assert scores.value_of("cosine", found, 40) == pytest.approx(1)
    assert score("recall_at_1", found, 40).n == 39


@pytest.mark.parametrize("shape", [(4, 3, 16, 16), (4, 16, 16, 3), (4, 16, 16)])
def test_peak_signal_to_noise_is_the_formula_and_an_equal_image_is_alike(shape):
    pytest.importorskip("skimage")
    rng = np.random.default_rng(7)
    truth = rng.uniform(size=shape)
    output = truth + rng.normal(scale=0.1, size=shape)
    output[0] = truth[0]
    found = score_task("restoration", asked(output, truth)).evidence
    error = ((output - truth) ** 2).reshape(4, -1).mean(axis=1)
    np.testing.assert_allclose(found["psnr"][1:], -10 * np.log10(error[1:]))
    assert (found["psnr"][0], found["ssim"][0]) == (100, pytest.approx(1))
    assert (np.abs(found["ssim"][1:]) < 0.99).all()


def test_the_bootstrap_of_a_mean_is_as_wide_as_the_formula_says():
    values = np.random.default_rng(8).normal(size=400)
    _, low, high = scores.interval_of("rmse", {"squares": values**2}, 400)
    spread = (values**2).std(ddof=1) / 20 / (2 * np.sqrt(np.mean(values**2)))  # delta method
    assert (high - low) / (2 * 1.96) == pytest.approx(spread, rel=0.2)


def test_a_paired_difference_is_narrower_than_two_alone_and_has_the_sign_of_a_minus_b():
    rng = np.random.default_rng(9)
    truth = rng.integers(0, 3, (60, 6, 6))
    output = rng.normal(size=(60, 3, 6, 6)) + 1.5 * (truth[:, None] == np.arange(3)[:, None, None])
    worse = output + rng.normal(scale=0.4, size=output.shape)
    a, b = (kept(score_task("segmentation", asked(given, truth)).evidence, 60) for given in (output, worse))
    gap = paired_difference("miou", a, b)
    alone = scores.interval_of("miou", a.evidence, 60)
    assert 0 < gap.low < gap.value < gap.high
    assert gap.high - gap.low < alone[2] - alone[1]
    same = paired_difference("miou", a, a)
    assert (same.value, same.low, same.high) == (0, 0, 0)


def test_shares_of_hits_are_paired_by_newcombe_and_means_by_their_differences():
    rng = np.random.default_rng(10)
    hits = rng.integers(0, 2, (2, 80)).astype(float)
    a, b = (kept({"recall_at_1": row, "mae": row + 1}, 80) for row in hits)
    by_hits = paired_difference("recall_at_1", a, b)
    by_mean = paired_difference("mae", a, b)
    assert by_hits.value == pytest.approx(by_mean.value) == pytest.approx(hits[0].mean() - hits[1].mean())
    assert by_hits.high < by_mean.high + 0.02 and by_hits.low > by_mean.low - 0.02


def test_what_is_kept_survives_the_file(tmp_path):
    pytest.importorskip("pycocotools")
    truth, found = pictures(n=5)
    seen = kept(score_task("detection", asked(found, truth)).evidence, 5)
    write_predictions(seen, tmp_path / "p.npz")
    again = read_predictions(tmp_path / "p.npz")
    assert scores.value_of("map", again.evidence, 5) == scores.value_of("map", seen.evidence, 5)
    assert again.same_samples(seen) and not again.top.size


@pytest.mark.parametrize(
    ("name", "values"),
    [("squares", np.zeros(4)), ("found", np.full((2, 13), 9.0)), ("wanted", np.full((1, 2), -1.0)),
     ("anomaly", np.zeros((5, 3))), ("mae", np.full(5, np.inf)), ("strange", np.zeros(5))],
)  # fmt: skip
def test_a_file_with_evidence_that_no_run_keeps_is_refused(tmp_path, name, values):
    write_predictions(kept({name: values}, 5), tmp_path / "p.npz")
    with pytest.raises(UsageError, match=f"not a predictions file .*evidence.{name}"):
        read_predictions(tmp_path / "p.npz")


def test_what_was_not_kept_is_said():
    with pytest.raises(UsageError, match="miou cannot be computed: overlap of the samples was not kept"):
        paired_difference("miou", kept({}, 3), kept({}, 3))
    with pytest.raises(UsageError, match="mae was not kept of the samples: run the recipe again"):
        paired_difference("mae", kept({}, 3), kept({}, 3))


BAD = [
    ("detection", np.zeros((2, 3, 7)), np.ones((2, 1, 5)), "needs one output \\[N, K, 6\\]"),
    ("detection", np.zeros((2, 3, 6)), np.full((2, 1, 5), -1.0), "no sample has a box"),
    ("segmentation", np.zeros((2, 3, 4, 4)), np.zeros((2, 8, 8), int), "labels \\[2, 8, 8\\], the model gives"),
    ("segmentation", np.zeros((2, 3, 4, 4)), np.full((2, 4, 4), 3), "label 3 is out of range: the model has 3"),
    ("segmentation", np.zeros((2, 3, 4, 4)), np.full((2, 4, 4), 255), "no pixel has a label that counts"),
    ("regression", np.zeros((2, 3)), np.zeros((2, 4)), "an output of the labels' shape \\[4\\]"),
    ("regression", [np.zeros((2, 3)), np.zeros(2)], np.zeros((2, 3)), "needs one output, .*; the model has 2"),
    ("embedding", np.zeros((2, 3, 4)), np.zeros(2, int), "needs an output \\[N, D\\]"),
    ("embedding", np.zeros((2, 3)), np.arange(2), "no two samples share a label"),
    ("restoration", np.zeros((2, 5, 9)), np.zeros((2, 5, 9)), "5 x 9 pixels are smaller than the window"),
    ("restoration", np.zeros((2, 9, 9)), np.full((2, 9, 9), 5.0), "every value of the labels is 5: there is no range"),
    ("anomaly", np.zeros(3), np.ones(3, int), "all 3 samples are labelled 1; .* undefined with one class only"),
    ("anomaly", np.zeros((3, 2)), np.array([0, 1, 1]), "one score a sample or the input again"),
]  # fmt: skip


@pytest.mark.parametrize(("task", "outputs", "truth", "message"), BAD)
def test_answers_that_do_not_fit_the_task_are_refused_in_one_line(task, outputs, truth, message):
    for library in ("pycocotools", "skimage"):
        pytest.importorskip(library)
    with pytest.raises(UsageError, match=message):
        score_task(task, asked(outputs, truth, inputs=[]))
