"""Every term of the loss against its formula, written out in numpy."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from edgekit.train.losses import Truth, bootstrapped, decoupled, divergence, relations, terms  # noqa: E402
from edgekit.train.settings import Matching, Regularizing, Settings  # noqa: E402
from edgekit.train.taps import attention_distance, feature_distance  # noqa: E402

PLAIN = Settings(
    epochs=1, batch_size=8, learning_rate=0.1, weight_decay=0.0, temperature=3.0, alpha=0.7, label_smoothing=0.0,
    augment="none", patience=1, precision="fp32", seed=0,
)  # fmt: skip
N, CLASSES = 12, 5


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    logits, wanted = (torch.from_numpy(rng.standard_normal((N, CLASSES)) * 2) for _ in range(2))
    return logits, wanted, torch.from_numpy(rng.integers(0, CLASSES, N))


def softmax(x, soft=1.0):
    e = np.exp(x.numpy() / soft)
    return e / e.sum(1, keepdims=True)


def entropy(logits, labels):
    return -np.log(softmax(logits)[np.arange(len(labels)), labels.numpy()])


def kl(p, q):
    return (p * np.log(p / q)).sum(1)


def test_divergence_is_kl_of_softened_logits(batch):
    logits, wanted, _ = batch
    np.testing.assert_allclose(divergence(logits, wanted, 3.0), kl(softmax(wanted, 3), softmax(logits, 3)))


def test_the_decoupled_parts_are_those_of_the_paper(batch):
    logits, wanted, labels = batch
    target, others = decoupled(logits, wanted, labels, 3.0)
    p, q, rows = softmax(wanted, 3), softmax(logits, 3), np.arange(N)
    own = p[rows, labels], q[rows, labels]
    pairs = [np.stack([x, 1 - x], 1) for x in own]
    np.testing.assert_allclose(target, kl(*pairs))
    rest = [np.stack([np.delete(x[i], labels[i]) for i in rows]) for x in (p, q)]
    rest = [x / x.sum(1, keepdims=True) for x in rest]
    np.testing.assert_allclose(others, kl(*rest))
    # Equation 7: plain distillation weighs the others by what the teacher leaves them.
    np.testing.assert_allclose(target.numpy() + (1 - own[0]) * others.numpy(), divergence(logits, wanted, 3.0))


def test_decoupled_logits_have_finite_slopes(batch):
    logits, wanted, labels = batch
    sure = (wanted * 100).requires_grad_(False)
    logits = (logits * 50).requires_grad_()
    sum(part.sum() for part in decoupled(logits, sure, labels, 1.0)).backward()
    assert bool(logits.grad.isfinite().all())


def test_plain_terms_are_cross_entropy_and_divergence_by_their_shares(batch):
    logits, wanted, labels = batch
    found = terms(logits, wanted, Truth(labels), PLAIN)
    assert found["labels"].item() == pytest.approx(0.3 * entropy(logits, labels).mean())
    assert found["teacher"].item() == pytest.approx(0.7 * 9 * kl(softmax(wanted, 3), softmax(logits, 3)).mean())
    assert terms(logits, wanted, Truth(None), PLAIN).keys() == {"teacher"}


def test_samples_without_a_label_learn_from_the_teacher_in_full(batch):
    logits, wanted, labels = batch
    some = labels.clone()
    some[:4] = -1
    found = terms(logits, wanted, Truth(some), PLAIN)
    soft, hard = 9 * kl(softmax(wanted, 3), softmax(logits, 3)), entropy(logits, labels)
    assert found["labels"].item() == pytest.approx(0.3 * hard[4:].sum() / N)
    assert found["teacher"].item() == pytest.approx((soft[:4].sum() + 0.7 * soft[4:].sum()) / N)
    # All labelled sample by sample is the same as by the plain road, and none at all as without labels.
    whole = terms(logits, wanted, Truth(labels, labels, 0.3), PLAIN)
    assert sum(whole.values()).item() == pytest.approx(sum(terms(logits, wanted, Truth(labels), PLAIN).values()).item())
    none = terms(logits, wanted, Truth(torch.full((N,), -1)), PLAIN)
    assert none["labels"].item() == 0
    assert none["teacher"].item() == pytest.approx(terms(logits, wanted, Truth(None), PLAIN)["teacher"].item())


def test_mixed_labels_count_by_their_shares(batch):
    logits, wanted, labels = batch
    others = labels.flip(0)
    found = terms(logits, wanted, Truth(labels, others, 0.8), PLAIN)
    hard = 0.8 * entropy(logits, labels) + 0.2 * entropy(logits, others)
    assert found["labels"].item() == pytest.approx(0.3 * hard.mean())
    assert found["teacher"].item() == pytest.approx(terms(logits, wanted, Truth(labels), PLAIN)["teacher"].item())


def test_dkd_weighs_both_parts(batch):
    logits, wanted, labels = batch
    settings = replace(PLAIN, match=Matching(logits="dkd", dkd_target=0.5, dkd_others=2.0))
    target, others = decoupled(logits, wanted, labels, 3.0)
    found = terms(logits, wanted, Truth(labels), settings)
    assert found["teacher"].item() == pytest.approx(0.7 * 9 * (0.5 * target + 2 * others).mean().item())
    without = terms(logits, wanted, Truth(None), settings)  # the teacher's own choice stands for the label
    target, others = decoupled(logits, wanted, wanted.argmax(1), 3.0)
    assert without["teacher"].item() == pytest.approx(9 * (0.5 * target + 2 * others).mean().item())


def test_bootstrapping_believes_itself_in_part(batch):
    logits, wanted, labels = batch
    given = entropy(logits, labels)
    own = entropy(logits, logits.argmax(1))
    np.testing.assert_allclose(bootstrapped(logits, torch.from_numpy(given), 0.2), 0.8 * given + 0.2 * own)
    settings = replace(PLAIN, regularize=Regularizing(bootstrap=0.2))
    found = terms(logits, wanted, Truth(labels), settings)
    assert found["labels"].item() == pytest.approx(0.3 * (0.8 * given + 0.2 * own).mean())
    # A label that contradicts a sure network pulls less than without.
    sure, wrong = torch.tensor([[9.0, 0.0]], requires_grad=True), torch.tensor([1])
    pulls = []
    for share in (0.0, 0.4):
        given = torch.nn.functional.cross_entropy(sure, wrong, reduction="none")
        (slope,) = torch.autograd.grad(bootstrapped(sure, given, share).sum(), sure)
        pulls.append(float(slope.abs().sum()))
    assert pulls[1] == pytest.approx(0.6 * pulls[0], rel=1e-3)


def test_relations_are_distances_of_two_and_angles_of_three():
    rng = np.random.default_rng(1)
    s, t = rng.standard_normal((7, 3)), rng.standard_normal((7, 6))

    def huber(x):
        return np.where(np.abs(x) < 1, 0.5 * x * x, np.abs(x) - 0.5)

    def distances(v):
        d = np.linalg.norm(v[:, None] - v[None], axis=-1)
        return d / d[~np.eye(len(v), dtype=bool)].mean()

    def angles(v):
        found = np.zeros((len(v),) * 3)
        for i, j, k in itertools.product(range(len(v)), repeat=3):
            one, other = v[j] - v[i], v[k] - v[i]
            size = np.linalg.norm(one) * np.linalg.norm(other)
            found[i, j, k] = one @ other / size if size else 0.0
        return found

    wanted = huber(distances(s) - distances(t)).mean() + 2 * huber(angles(s) - angles(t)).mean()
    student = torch.from_numpy(s).requires_grad_()
    found = relations(student, torch.from_numpy(t))
    assert found.item() == pytest.approx(wanted)
    found.backward()
    assert bool(student.grad.isfinite().all())
    # Turned, shifted and scaled vectors lie to each other as before.
    turn = np.linalg.qr(rng.standard_normal((3, 3)))[0]
    assert relations(torch.from_numpy(5 * s @ turn + 1), torch.from_numpy(s)).item() == pytest.approx(0, abs=1e-12)
    assert relations(torch.ones(1, 3), torch.ones(1, 3)).item() == 0


def test_attention_is_where_the_energy_lies():
    rng = np.random.default_rng(2)
    s, t = rng.standard_normal((2, 4, 4, 3)), rng.standard_normal((2, 4, 4, 8))
    maps = [np.square(x).sum(-1).reshape(2, -1) for x in (s, t)]
    maps = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in maps]
    wanted = np.square(maps[0] - maps[1]).sum(1).mean()
    assert attention_distance(torch.from_numpy(s), torch.from_numpy(t)).item() == pytest.approx(wanted)
    assert attention_distance(torch.from_numpy(3 * t), torch.from_numpy(t)).item() == pytest.approx(0, abs=1e-12)


def test_features_are_held_against_the_teachers_energy():
    t = torch.arange(6.0).reshape(1, 2, 3)
    assert feature_distance(0.9 * t, t).item() == pytest.approx(0.01)
