"""A pruned network equals the masked one; what can't be pruned is left whole, with the reason."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from prune_models import Mixed, ResNet20, least, settled  # noqa: E402
from torch import nn  # noqa: E402

from edgekit.errors import UsageError  # noqa: E402
from edgekit.graph.lifted import lift  # noqa: E402
from edgekit.prune.apply import counts_of, difference, masked, removed  # noqa: E402
from edgekit.prune.cost import Macs, count_macs  # noqa: E402
from edgekit.prune.find import find_groups  # noqa: E402
from edgekit.prune.importance import evenly, score  # noqa: E402
from edgekit.prune.plan import block_of, choose  # noqa: E402
from edgekit.prune.rebuild import as_source, description_of, rebuilt  # noqa: E402
from edgekit.prune.shapes import restore, state  # noqa: E402


def found_in(module, *inputs):
    return find_groups(lift(module, inputs), inputs)


def some_of_each(groups, seed=0):
    rng = np.random.default_rng(seed)
    return {g.name: sorted(rng.choice(g.channels, g.channels // 3, replace=False).tolist()) for g in groups}


CASES = {"mixed": (Mixed, (3, 1, 12, 12)), "resnet20": (ResNet20, (3, 3, 32, 32))}


@pytest.mark.parametrize("case", CASES)
def test_pruned_equals_masked(case):
    build, shape = CASES[case]
    module = settled(build())
    x = torch.randn(shape)
    found = found_in(module, x)
    removal = some_of_each(found.groups)
    smaller, mask = removed(found, removal).view, masked(found, removal)
    with torch.no_grad():
        before, expected, seen = module(x), mask(x), smaller(x)
    assert not torch.allclose(before, expected, atol=1e-3)
    torch.testing.assert_close(seen, expected, rtol=1e-4, atol=1e-5)
    assert sum(p.numel() for p in smaller.parameters()) < 0.8 * sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("case", CASES)
def test_the_predicted_macs_are_the_counted_ones(case):
    build, shape = CASES[case]
    module = settled(build())
    x = torch.randn(shape)
    found = found_in(module, x)
    cost = Macs(found)
    assert cost.total == count_macs(module, (x[:1],)) == count_macs(module, (x,))
    removal = some_of_each(found.groups, seed=1)
    assert cost.left(counts_of(found, removal)) == count_macs(removed(found, removal).view, (x[:1],))


def test_macs_of_a_known_layer():
    layer = nn.Conv2d(8, 16, 3, padding=1, groups=4)
    assert count_macs(layer, (torch.zeros(1, 8, 10, 10),)) == 10 * 10 * 16 * (8 // 4) * 9


def test_channels_that_a_shortcut_pads_go_with_those_that_it_is_added_to():
    x = torch.randn(2, 3, 32, 32)
    found = found_in(settled(ResNet20()), x)
    assert found.whole == {"linear": "its channels are an output of the model"}
    inner = {f"layer{i}.{j}.conv1" for i in (1, 2, 3) for j in range(3)}
    assert inner < {g.name for g in found.groups}
    stem = next(g for g in found.groups if g.name == "conv1")
    last = next(m for m in stem.members if m.tensor == "linear.weight")
    assert (stem.channels, last.index[0]) == (16, (24,))  # padded by 8, then by 16
    removal = {"conv1": [0, 3], "layer2.0.conv2[0]": [1]}
    cut = removed(found, removal)
    assert sorted(v for call in cut.cut.calls.values() for v in call.values()) == [7]  # of 8 padded in front
    assert difference(cut.view, masked(found, removal), (x,)) < 1e-5


class HardView(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 8, 3), nn.Linear(8 * 4, 3)

    def forward(self, x):
        return self.b(nn.functional.adaptive_avg_pool2d(self.a(x), 2).view(-1, 32))


class Grouped(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3, groups=2), nn.Linear(8, 3)

    def forward(self, x):
        return self.c(self.b(self.a(x)).mean((2, 3)))


class Windowed(nn.Module):
    """Channels that become the length of a signal."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 8, 3), nn.Conv1d(1, 3, 3)

    def forward(self, x):
        return self.b(self.a(x).mean((2, 3))[:, None]).mean(2)


def test_a_forward_that_repeats_an_extent_is_pruned_on_its_graph():
    x = torch.randn(2, 1, 12, 12)
    found = found_in(HardView().eval(), x)
    assert [(g.name, g.channels) for g in found.groups] == [("a", 8)]
    cut = removed(found, {"a": [0, 1]})
    assert cut.view.a.out_channels == 6
    assert cut.view(torch.randn(5, 1, 12, 12)).shape == (5, 3)
    assert "view" in str(cut.cut.calls) or "-1" in cut.view.code


def test_groups_of_a_convolution_go_whole_or_each_loses_the_same():
    x = torch.randn(2, 1, 12, 12)
    found = found_in(Grouped().eval(), x)
    assert sorted(g.channels for g in found.groups) == [2, 4, 4]
    removal = {g.name: [0] for g in found.groups}
    cut = removed(found, removal)
    assert (cut.view.b.groups, cut.view.b.in_channels, cut.view.b.out_channels) == (1, 3, 3)
    assert difference(cut.view, masked(found, removal), (x,)) < 1e-5


def test_a_model_with_nothing_to_prune_says_why():
    with pytest.raises(UsageError, match=r"No channels of this model can be pruned.*a: a window moves along it"):
        found_in(Windowed().eval(), torch.randn(2, 1, 12, 12))


def test_recurrent_layers_are_left_whole_and_named():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.lstm, self.b = nn.Linear(6, 16), nn.LSTM(16, 12, batch_first=True), nn.Linear(12, 20)
            self.c = nn.Linear(20, 3)

        def forward(self, x):
            return self.c(self.b(self.lstm(self.a(x))[0]).relu()[:, -1])

    found = found_in(Recurrent().eval(), torch.randn(2, 5, 6))
    assert [g.name for g in found.groups] == ["b"]
    assert found.whole["a"] == "it reaches aten.lstm, through which channels are not followed"


def test_a_plan_keeps_multiples_and_its_floor_and_lands_just_under_its_target():
    module = settled(Mixed())
    x = torch.randn(4, 1, 12, 12)
    found = found_in(module, x)
    cost, scores = Macs(found), score("l2", found, [])
    for share in (0.8, 0.5):
        plan = choose(found, evenly("l2", scores), cost, int(cost.total * share), round_to=4, least=least(found, 0.25))
        assert plan.reached
        assert 0.8 * share * cost.total < plan.left <= share * cost.total
        for group in found.groups:
            gone = len(plan.removal.get(group.name, ()))
            assert (group.channels - gone) % 4 == 0
            assert group.channels - gone >= 0.25 * group.channels
    plan = choose(found, evenly("l2", scores), cost, 0, round_to=4, least=least(found, 0.25))
    assert not plan.reached


@pytest.mark.parametrize("share", [0.9, 0.75, 0.5])
def test_a_plan_loses_little_more_than_the_best_one(share):
    """The oracle: all plans there are. A block of the residual stream frees more than is asked for."""
    module = ResNet20()
    module.layer1, module.layer2, module.layer3 = (some[:1] for some in (module.layer1, module.layer2, module.layer3))
    settled(module)
    found = found_in(module, torch.randn(2, 3, 32, 32))
    cost, ratios = Macs(found), []
    for seed in range(8):
        scores = {name: some**2 for name, some in score("random", found, [], seed=seed).items()}
        plan = choose(found, scores, cost, int(share * cost.total), round_to=8, least={})
        assert plan.reached
        ways = []
        for group in found.groups:
            unit = block_of(group, 8)
            sizes = range(0, group.channels - unit + 1, unit)
            order = scores[group.name].sort().values
            ways.append([(found.factors[group.name], group.channels - n, float(order[:n].sum())) for n in sizes])
        best = min(
            sum(lost for _, _, lost in some)
            for some in itertools.product(*ways)
            if cost.left({one: stay for one, stay, _ in some}) <= share * cost.total
        )
        lost = sum(float(scores[name][gone].sum()) for name, gone in plan.removal.items())
        ratios.append(lost / best)
    assert min(ratios) >= 1 - 1e-9
    assert max(ratios) < 1.5
    assert np.mean(ratios) < 1.1


def test_the_least_important_channels_go_first():
    module = settled(Mixed())
    x = torch.randn(4, 1, 12, 12)
    found = found_in(module, x)
    cost, scores = Macs(found), score("random", found, [], seed=3)
    plan = choose(found, evenly("l2", scores), cost, cost.total // 2, round_to=4, least={})
    for name, gone in plan.removal.items():
        kept = [c for c in range(len(scores[name])) if c not in gone]
        assert scores[name][gone].max() <= scores[name][kept].min()


def test_the_importance_for_the_outputs_is_how_far_they_move():
    """The oracle: channels that a linear layer reads move its outputs by just their columns, however many go."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 5)).eval()
    x = torch.randn(20_000, 6)
    found = found_in(module, x[:2])
    (group,) = found.groups
    seen = score("outputs", found, [(x, None)])[group.name]
    assert torch.equal(seen, score("outputs", found, [(x, None)])[group.name])
    with torch.no_grad():
        whole = module(x)
        size = whole.norm(dim=1).mean() ** 2
        gone, total, highest = [], 0.0, 0.0
        for _ in range(group.channels):
            moved = {}
            for channel in set(range(group.channels)) - set(gone):
                hidden = module[1](module[0](x))
                hidden[:, [*gone, channel]] = 0
                moved[channel] = float((module[2](hidden) - whole).square().sum(1).mean() / size) - total
            at = min(moved, key=moved.get)
            total, highest = total + moved[at], max(highest, moved[at])
            assert float(seen[at]) == pytest.approx(highest, rel=0.15, abs=0.01 * float(seen.max()))
            gone.append(at)


@pytest.mark.parametrize("kind", ["outputs", "taylor", "fisher", "activation", "l1", "l2", "bn_scale"])
def test_a_dead_channel_scores_lowest(kind):
    module = settled(Mixed())
    with torch.no_grad():
        for tensor in (module.a[0].weight, module.a[0].bias, module.a[1].weight, module.a[1].bias):
            tensor[5] = 0
        for tensor in (module.b[0].weight, module.b[0].bias, module.b[1].weight, module.b[1].bias):
            tensor[5] = 0
        for consumer in (module.b[0].weight, module.c.weight):
            consumer[:, 5] = 0
        module.c.weight[:, 21] = 0
    x, y = torch.randn(32, 1, 12, 12), torch.randint(0, 4, (32,))
    found = found_in(module, x[:2])
    groups = tuple(g for g in found.groups if any(m.tensor == "a.0.weight" for m in g.members))
    scores = score(kind, replace(found, groups=groups), [(x, y)])[groups[0].name]
    assert int(scores.argmin()) == 5
    assert scores.min() < 1e-9 < scores.sort().values[1]


def test_a_local_plan_takes_the_same_share_of_every_group():
    module = settled(ResNet20())
    found = found_in(module, torch.randn(2, 3, 32, 32))
    cost, scores = Macs(found), score("l2", found, [])
    plan = choose(found, evenly("l2", scores), cost, cost.total // 2, round_to=1, least=least(found, 0.1), local=True)
    shares = [line.kept / line.channels for line in plan.lines if line.channels > 8]
    assert plan.reached
    assert max(shares) - min(shares) < 0.15


def test_fisher_is_the_mean_square_of_every_samples_gradient():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).eval()
    x, y = torch.randn(7, 6), torch.tensor([0, 1, 2, 1, 0, 2, 2])
    found = found_in(module, x[:2])

    def loss(weights, one, label):
        logits = torch.func.functional_call(module, weights, (one[None],))
        return nn.functional.cross_entropy(logits, label[None])

    weights = dict(module.named_parameters())
    grads = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(weights, x, y)
    lost = {n: weights[n].detach() ** 2 * grads[n].pow(2).mean(0) / 2 for n in weights}
    expected = lost["0.weight"].sum(1) + lost["0.bias"] + lost["2.weight"].sum(0)
    seen = score("fisher", found, [(x[:4], y[:4]), (x[4:], y[4:])])["0"]
    torch.testing.assert_close(seen.float(), expected, rtol=1e-4, atol=1e-9)


def test_what_lies_at_the_geometric_median_goes_first():
    layer = nn.Conv2d(1, 5, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([0.0, 1.0, 2.0, 10.0, -5.0]).reshape(5, 1, 1, 1))
    module = nn.Sequential(layer, nn.ReLU(), nn.Conv2d(5, 2, 1)).eval()
    found = found_in(module, torch.randn(2, 1, 4, 4))
    assert score("geometric_median", found, [])["0"].tolist() == [18.0, 17.0, 18.0, 42.0, 33.0]


def test_taylor_is_the_squared_gradient_of_a_gate():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(1, 6, 3), nn.Linear(6, 3)

        def forward(self, x, gate=None):
            h = self.a(x).relu()
            return self.b((h if gate is None else h * gate[:, :, None, None]).mean((2, 3)))

    torch.manual_seed(0)
    module, x, y = Two().eval(), torch.randn(5, 1, 8, 8), torch.tensor([0, 1, 2, 1, 0])
    found = found_in(module, x[:2])
    gate = torch.ones(5, 6, requires_grad=True)
    nn.functional.cross_entropy(module(x, gate), y, reduction="sum").backward()
    expected = gate.grad.double().pow(2).mean(0)
    seen = score("taylor", found, [(x[:3], y[:3]), (x[3:], y[3:])])["a"]
    torch.testing.assert_close(seen, expected, rtol=1e-4, atol=1e-10)


@pytest.mark.parametrize("case", [*CASES, "view"])
def test_a_pruned_module_is_rebuilt_from_tensors_alone(case):
    build, shape = {**CASES, "view": (HardView, (3, 1, 12, 12))}[case]
    module = settled(build())
    x = torch.randn(shape)
    found = found_in(module, x)
    smaller = as_source(module, removed(found, some_of_each(found.groups)), (x,))
    assert description_of(smaller)["lifted"] == (case != "mixed")
    assert isinstance(smaller, Mixed) == (case == "mixed")
    tensors, shapes = state(smaller)
    description = json.loads(json.dumps(description_of(smaller)))
    again = rebuilt(build(), tensors, description, (x,))
    assert shapes == {n: list(t.shape) for n, t in again.state_dict().items()}
    with torch.no_grad():
        assert torch.equal(again(x), smaller(x))
    attributes = [str(m) for m in again.modules() if not list(m.children())]
    assert attributes == [str(m) for m in smaller.modules() if not list(m.children())]
    with pytest.raises(UsageError, match="of another model"):
        restore(build(), {"strange": torch.zeros(1)})


def test_cut_twice_it_is_rebuilt_once():
    module = settled(ResNet20())
    x = torch.randn(2, 3, 32, 32)
    for share in (3, 4):
        found = found_in(module, x)
        removal = {g.name: list(range(g.channels // share)) for g in found.groups}
        module = as_source(module, removed(found, removal), (x,))
    again = rebuilt(ResNet20(), state(module)[0], description_of(module), (x,))
    with torch.no_grad():
        assert torch.equal(again(x), module(x))


class Detector(nn.Module):
    """Two flattened maps joined and taken apart again: the positions of a channel are new each time round."""

    def __init__(self):
        super().__init__()
        self.stem, self.down = nn.Conv2d(1, 8, 3, 2, 1), nn.Conv2d(8, 16, 3, 2, 1)
        self.fine, self.coarse = nn.Conv2d(8, 6, 1), nn.Conv2d(16, 6, 1)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        low = torch.relu(self.down(x))
        y = torch.cat([self.fine(x).flatten(2), self.coarse(low).flatten(2)], 2).transpose(1, 2)
        centre, size = y[..., :2].sigmoid() * 2 - 0.5, (y[..., 2:4].sigmoid() * 2) ** 2
        return torch.cat([centre, size, y[..., 4:].sigmoid()], -1)


def test_a_detectors_head_is_left_whole_and_the_rest_is_found():
    found = found_in(Detector(), torch.randn(2, 1, 32, 32))
    assert {g.name for g in found.groups} == {"stem", "down"}
    assert set(found.whole) == {"fine", "coarse"}


class Dense(nn.Module):
    def __init__(self, layers):
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 1)
        self.convolutions = nn.ModuleList(nn.Conv2d(4 + 4 * i, 4, 1) for i in range(layers))
        self.head = nn.Conv2d(4 + 4 * layers, 3, 1)

    def forward(self, x):
        x = self.stem(x)
        for layer in self.convolutions:
            x = torch.cat([x, torch.relu(layer(x))], 1)
        return self.head(x)


def test_channels_that_many_layers_read_are_followed_to_all_of_them():
    found = found_in(Dense(16), torch.randn(2, 1, 4, 4))
    assert len(found.groups) == 17
    assert {g.name: len(g.consumers) for g in found.groups}["stem"] == 17
