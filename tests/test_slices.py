import numpy as np
import pytest

from edgekit import slices
from edgekit.errors import UsageError
from edgekit.metrics import paired_accuracy, wilson
from edgekit.report.predictions import Predictions


def predictions(right, labels, **columns):
    """Predictions of 12 classes that are right where `right` says so."""
    labels = np.asarray(labels)
    top = np.where(right, labels, (labels + 1) % 12).astype(np.int32)[:, None]
    ids = tuple(map(str, range(len(labels))))
    named = {name: np.asarray(values, np.str_) for name, values in columns.items()}
    return Predictions(ids, labels, top, None, "d", "test", None, named)


LABELS = np.repeat([0, 1, 2, 3], [400, 400, 400, 20])
KINDS = np.where(np.arange(1220) % 2, "day", "night")
EVERY = np.ones(1220, bool)
WORSE = EVERY.copy()
WORSE[400:440] = False  # a tenth of class 1
WORSE[1200:] = False  # all of class 3, which has 20 samples


def test_the_lowest_recall_has_the_name_of_its_class_and_an_interval_for_all_of_them():
    found = slices.worst_class(predictions(WORSE, LABELS), ["shirt", "coat", "bag", "boot"])
    assert (found.name, found.value, found.n, found.groups, found.skipped) == ("coat", 0.9, 400, 3, ("boot",))
    alone = wilson(360, 400)
    assert found.low < alone.low < found.value < alone.high < found.high
    assert slices.worst_class(predictions(WORSE, LABELS), least=1).name == "3"


def test_the_largest_drop_is_paired_and_positive_where_something_is_lost():
    before, after = predictions(EVERY, LABELS), predictions(WORSE, LABELS)
    found = slices.worst_class_drop(before, after, ["shirt", "coat"])
    assert (found.name, found.groups, found.skipped) == ("coat", 3, ("3",))
    assert found.value == pytest.approx(0.1)
    alone = paired_accuracy(EVERY[400:800], WORSE[400:800])
    assert found.low < alone.low < 0.1 < alone.high < found.high
    assert slices.worst_class_drop(after, before).value == pytest.approx(0)


def test_one_group_alone_has_the_plain_interval():
    right = np.arange(100) % 10 > 0
    found = slices.worst_class(predictions(right, np.zeros(100, int)))
    assert (found.low, found.high) == (wilson(90, 100).low, wilson(90, 100).high)


def test_the_interval_of_the_worst_covers_the_largest_true_drop():
    """Ten classes that all lose 4 points: the largest seen is larger by chance, and its interval knows."""
    rng, labels = np.random.default_rng(0), np.repeat(np.arange(10), 200)
    covered, seen = 0, []
    for _ in range(200):
        before = rng.random(2000) < 0.9
        after = before & (rng.random(2000) > 0.04 / 0.9)
        found = slices.worst_class_drop(predictions(before, labels), predictions(after, labels))
        seen.append(found.value)
        covered += found.low <= 0.04 <= found.high
    assert np.mean(seen) > 0.055
    assert covered >= 190


def test_slices_are_compared_within_a_column_and_across_all():
    after = predictions(np.where(KINDS == "night", WORSE, EVERY), LABELS, light=KINDS, half=np.arange(1220) > 609)
    found = slices.worst_slice(after)
    assert (found.name, found.groups, found.value) == ("light=night", 4, pytest.approx(580 / 610))
    assert slices.worst_slice(after, "half").name == "half=False"
    before = predictions(EVERY, LABELS)
    drop = slices.worst_slice_drop(before, after, "light")
    assert (drop.name, drop.value, drop.groups) == ("light=night", pytest.approx(30 / 610), 2)


def test_what_cannot_be_compared_is_refused_with_what_to_do():
    seen = predictions(EVERY, LABELS)
    with pytest.raises(UsageError, match="no slices; it names none"):
        slices.worst_slice(seen)
    with pytest.raises(UsageError, match="no slices 'light'; it has: half"):
        slices.worst_slice(predictions(EVERY, LABELS, half=KINDS), "light")
    with pytest.raises(UsageError, match="No class has 500 samples or more"):
        slices.worst_class(seen, least=500)
    with pytest.raises(UsageError, match="same labelled samples"):
        slices.worst_class_drop(predictions(EVERY[:900], LABELS[:900]), seen)
    bare = Predictions(("a",), None, np.zeros((1, 1), np.int32), None, "d", "test")
    with pytest.raises(UsageError, match="no labels"):
        slices.worst_class(bare)
