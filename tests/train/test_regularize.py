"""What is put on a training beside its loss: mixtures, averages, dropout, frozen parts, changed samples."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from edgekit.data import Preprocess, Split  # noqa: E402
from edgekit.errors import UsageError  # noqa: E402
from edgekit.train.adversarial import Attacker  # noqa: E402
from edgekit.train.augment import mixed  # noqa: E402
from edgekit.train.regularize import Average, thawed, train_mode, with_dropout  # noqa: E402
from edgekit.train.samples import Samples  # noqa: E402
from edgekit.train.settings import AdversarialTraining  # noqa: E402


def drawn(seed=0):
    return torch.Generator().manual_seed(seed)


def test_mixup_adds_two_samples_by_the_share_that_their_labels_get():
    x, y = torch.randn(16, 3, 6, 6), torch.arange(16)
    changed, truth = mixed(x, y, 0.4, 0.0, drawn())
    assert 0 < truth.share < 1
    assert sorted(truth.others.tolist()) == list(range(16))
    torch.testing.assert_close(changed, truth.share * x + (1 - truth.share) * x[truth.others])
    assert mixed(x, y, 0.4, 0.0, drawn())[1].share == truth.share != mixed(x, y, 0.4, 0.0, drawn(1))[1].share
    assert torch.equal(mixed(x, y, 0.0, 0.0, drawn())[0], x)


@pytest.mark.parametrize("shape", [(3, 9, 7), (2, 30)])
def test_cutmix_pastes_one_box_and_counts_what_is_left(shape):
    x, y = torch.randn(8, *shape), torch.arange(8)
    shares = []
    for seed in range(20):
        changed, truth = mixed(x, y, 0.0, 1.0, drawn(seed))
        other = x[truth.others]
        pasted = (changed != x).any(1) | (truth.others == y).reshape(-1, *[1] * (len(shape) - 1))
        assert bool(((changed == x) | (changed == other)).all())
        row = next(i for i in range(8) if truth.others[i] != i)
        where = pasted[row].nonzero()
        if len(where):
            extent = where.max(0).values - where.min(0).values + 1
            assert int(extent.prod()) == len(where)  # a full box
        assert truth.share == pytest.approx(1 - len(where) / np.prod(shape[1:]))
        shares.append(truth.share)
    assert min(shares) < 0.4 and max(shares) > 0.8


def test_mixing_without_labels_or_positions():
    _, truth = mixed(torch.randn(8, 5), None, 1.0, 0.0, drawn())
    assert (truth.labels, truth.others, truth.share) == (None, None, 1.0)
    with pytest.raises(UsageError, match=r"shape \[5\] have no positions. Use mixup"):
        mixed(torch.randn(8, 5), None, 0.0, 1.0, drawn())


def test_the_average_is_torchs_own_once_it_is_warm():
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    average = Average(module, 0.9)
    average.updates = 10_000
    other = AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    other.n_averaged.fill_(1)
    for _ in range(5):
        with torch.no_grad():
            for value in (*module.parameters(), module[1].running_mean):
                value.add_(torch.randn_like(value))
        average.update(module)
        other.update_parameters(module)
    for name, value in other.module.state_dict().items():
        torch.testing.assert_close(average.values[name], value)
    copied = Average(module, 0.9)
    copied.load(average.state())
    assert copied.updates == average.updates
    assert all(torch.equal(value, copied.values[name]) for name, value in average.values.items())


def test_a_short_training_has_an_average_of_its_end():
    module = nn.Linear(1, 1, bias=False)
    average = Average(module, 0.999)
    nn.init.zeros_(module.weight)
    average.values["weight"].fill_(100.0)  # where it started
    for _ in range(50):
        average.update(module)
    assert 0 <= float(average.values["weight"]) < 1.0


def test_dropout_is_set_and_put_back():
    module = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.3), nn.Linear(4, 2))
    undo = with_dropout(module, 0.75)
    assert module[1].p == 0.75
    undo()
    assert module[1].p == 0.3
    plain = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(2, 2, bias=False))
    nn.init.ones_(plain[2].weight)
    undo = with_dropout(plain, 0.5)
    seen = plain.train()(torch.randn(200, 1, 3, 3))
    assert 20 < int((seen[:, 0] == 0).sum()) < 90  # both inputs dropped: a quarter
    assert not bool((plain.eval()(torch.randn(200, 1, 3, 3))[:, 0] == 0).any())
    undo()
    assert not plain[2]._forward_pre_hooks
    with pytest.raises(UsageError, match="dropout has no place"):
        with_dropout(nn.Conv2d(1, 1, 1), 0.5)


def test_frozen_parts_stay_frozen_unless_everything_is():
    module = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2))
    module[:2].requires_grad_(False)
    assert thawed(module) == 4 + 4
    train_mode(module)
    assert [layer.training for layer in module] == [True, False, True, True]
    module.requires_grad_(False)
    assert thawed(module) == 0
    assert all(parameter.requires_grad for parameter in module.parameters())


def samples(dtype=np.uint8):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (6, 5, 5, 3)).astype(dtype)
    prepared = Preprocess(scale=(0.02, 0.02, -0.01), offset=(-1.0, 0.0, 1.0), layout="NHWC", to="NCHW")
    return Samples(Split("train", x, np.arange(6), tuple(map(str, range(6))), prepared), np.arange(6))


@pytest.mark.parametrize("attack", ["fgsm", "pgd"])
def test_changed_samples_are_worse_and_within_their_box(attack):
    torch.manual_seed(0)
    taken = samples()
    x, y = taken.batch(np.arange(6))
    module = nn.Sequential(nn.Flatten(), nn.Linear(75, 6))

    def loss(inputs):
        return nn.functional.cross_entropy(module(inputs), y)

    settings = AdversarialTraining(attack=attack, epsilon="8/255", steps=5)
    attacker = Attacker.of(settings, taken, torch.device("cpu"))
    start = torch.rand(x.shape, generator=drawn()) * 2 - 1 if attack == "pgd" else None
    changed = attacker.changed(x, start, loss)
    reach = torch.tensor([0.02, 0.02, 0.01]).reshape(1, 3, 1, 1) * 8  # 8 of 255 levels, as the network takes them
    assert bool(((changed - x).abs() <= reach + 1e-5).all())
    low = torch.tensor([-1.0, 0.0, 1 - 2.55]).reshape(1, 3, 1, 1)
    high = torch.tensor([-1 + 5.1, 5.1, 1.0]).reshape(1, 3, 1, 1)
    assert bool((changed >= low - 1e-5).all()) and bool((changed <= high + 1e-5).all())
    assert float(loss(changed).detach()) > float(loss(x).detach()) + 0.1
    assert all(parameter.grad is None for parameter in module.parameters())
    if attack == "fgsm":
        inputs = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(loss(inputs), inputs)
        torch.testing.assert_close(changed, torch.maximum(torch.minimum(x + reach * slope.sign(), high), low))
