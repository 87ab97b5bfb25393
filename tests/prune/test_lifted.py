"""What is followed on the lifted graph: constructs of real networks, each cut in half and held against its mask."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from prune_models import least  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from edgekit.errors import UsageError  # noqa: E402
from edgekit.graph.lifted import lift  # noqa: E402
from edgekit.prune.apply import counts_of, difference, masked, removed  # noqa: E402
from edgekit.prune.cost import Macs, Memory, Parameters, count_macs  # noqa: E402
from edgekit.prune.find import find_groups  # noqa: E402
from edgekit.prune.importance import evenly, score  # noqa: E402
from edgekit.prune.plan import choose  # noqa: E402


class Attention(nn.Module):
    def __init__(self, width=32, heads=4, *, chunks=False):
        super().__init__()
        self.heads, self.chunks = heads, chunks
        self.norm, self.qkv, self.proj = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.scale = nn.Parameter(torch.full((width,), 0.7))

    def forward(self, x):
        b, n, c = x.shape
        y = self.qkv(self.norm(x))
        if self.chunks:
            q, k, v = (part.view(b, n, self.heads, -1).transpose(1, 2) for part in y.chunk(3, -1))
            y = ((q @ k.transpose(-2, -1)) * 0.35).softmax(-1) @ v
        else:
            q, k, v = y.reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
            y = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj(y.transpose(1, 2).reshape(b, n, c)) * self.scale


class Transformer(nn.Module):
    """A patch embedding, a class token, a resized position table, attention, a gated MLP, a head."""

    def __init__(self, **settings):
        super().__init__()
        self.patch, self.token = nn.Conv2d(3, 32, 4, 4), nn.Parameter(torch.randn(1, 1, 32))
        self.position = nn.Parameter(torch.randn(1, 9, 32))
        self.attention, self.up, self.down = Attention(**settings), nn.Linear(32, 128), nn.Linear(64, 32)
        self.head = nn.Linear(32, 5)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)
        x = x + F.interpolate(self.position.transpose(1, 2), size=17, mode="linear").transpose(1, 2)
        x = self.attention(x)
        gate, value = self.up(x).chunk(2, -1)
        return self.head((x + self.down(F.silu(gate) * value))[:, 0])


class MultiHead(nn.Module):
    """torch's own attention, time first."""

    def __init__(self):
        super().__init__()
        self.a, self.attend, self.b = nn.Linear(6, 16), nn.MultiheadAttention(16, 4), nn.Linear(16, 3)

    def forward(self, x):
        x = self.a(x).transpose(0, 1)
        return self.b(self.attend(x, x, x, need_weights=False)[0].mean(0))


class Grouped(nn.Module):
    """Grouped queries: two heads of keys and values serve four."""

    def __init__(self):
        super().__init__()
        self.q, self.kv, self.out = nn.Linear(16, 32), nn.Linear(16, 32), nn.Linear(32, 4)

    def forward(self, x):
        b, n, _ = x.shape
        q = self.q(x).view(b, n, 4, 8).transpose(1, 2)
        k, v = self.kv(x).view(b, n, 2, 2, 8).permute(2, 0, 3, 1, 4)
        k, v = (t[:, :, None].expand(b, 2, 2, n, 8).reshape(b, 4, n, 8) for t in (k, v))
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Shuffled(nn.Module):
    """Split, shuffle and pixel shuffle, a transposed convolution, GroupNorm, and a stem whose weight is normed."""

    def __init__(self):
        super().__init__()
        self.stem = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 16, 3, padding=1))
        self.branch, self.norm = nn.Conv2d(8, 8, 3, padding=1), nn.GroupNorm(4, 16)
        self.up, self.wide = nn.ConvTranspose2d(16, 12, 2, 2, groups=2), nn.Conv2d(12, 24, 1)
        self.head = nn.Conv2d(6, 2, 1)

    def forward(self, x):
        one, two = self.stem(x).relu().chunk(2, 1)
        x = F.channel_shuffle(torch.cat([one, self.branch(two)], 1), 2)
        return self.head(F.pixel_shuffle(self.wide(self.up(self.norm(x)).relu()), 2))


class Signal(nn.Module):
    """One dimension, dense weights used directly, tokens, and one embedding that reads and writes."""

    def __init__(self):
        super().__init__()
        self.table, self.wide = nn.Embedding(20, 16), nn.Parameter(torch.randn(16, 24) / 4)
        self.mix, self.back = nn.Conv1d(24, 24, 3, padding=1, groups=24), nn.Linear(24, 16)

    def forward(self, x):
        y = self.mix((self.table(x) @ self.wide).transpose(1, 2)).transpose(1, 2)
        return F.linear(self.back(y.relu()), self.table.weight)


class Mixer(nn.Module):
    """Dense layers over positions and over channels in turns, with an activation that torch does not mark."""

    def __init__(self):
        super().__init__()
        self.patch, self.norm = nn.Conv2d(3, 24, 4, 4), nn.LayerNorm(24)
        self.over, self.back = nn.Linear(16, 40), nn.Linear(40, 16)
        self.up, self.down, self.head = nn.Linear(24, 48), nn.Linear(48, 24), nn.Linear(24, 3)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = x + self.back(F.hardswish(self.over(self.norm(x).transpose(1, 2)))).transpose(1, 2)
        return self.head((x + self.down(F.hardswish(self.up(x), inplace=True))).mean(1))


def image(*shape):
    return torch.randn(shape)


CASES = {
    "transformer": (Transformer, image(2, 3, 16, 16), {"patch", "attention.qkv[0]", "attention.qkv[1]", "up"}),
    "chunked heads": (lambda: Transformer(chunks=True), image(2, 3, 16, 16), {"patch", "up"}),
    "multi head": (MultiHead, image(2, 7, 6), {"a"}),
    "grouped queries": (Grouped, image(2, 5, 16), {"q[0]", "q[1]", "q[2]"}),
    "shuffled": (Shuffled, image(2, 3, 8, 8), set()),
    "mixer": (Mixer, image(2, 3, 16, 16), {"patch", "over", "up"}),
    "signal": (Signal, torch.randint(0, 20, (2, 9)), {"back"}),
}


@pytest.mark.parametrize("case", CASES)
def test_half_of_every_group_can_go(case):
    build, x, names = CASES[case]
    torch.manual_seed(0)
    module = build().eval()
    view = lift(module, (x,))
    more = torch.cat([x, x, x])[:5]
    with torch.no_grad():
        assert torch.equal(view(x), module(x))
        assert torch.equal(view(more), module(more))
    found = find_groups(view, (x,))
    assert names <= {g.name for g in found.groups}
    assert Macs(found).total == count_macs(module, (x,))
    removal = {g.name: list(range(0, g.channels, 2)) for g in found.groups}
    cut = removed(found, removal)
    assert difference(cut.view, masked(found, removal), (x,)) < 1e-5
    assert Macs(found).left(counts_of(found, removal)) == count_macs(cut.view, (x,)) < 0.7 * Macs(found).total
    with torch.no_grad():
        assert cut.view(more).shape == module(more).shape


class Hourglass(nn.Module):
    """Wide in the middle at full resolution, with a skip that stays alive."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 32, 3, padding=1)
        self.c, self.d = nn.Conv2d(32, 8, 3, padding=1), nn.Conv2d(8, 2, 1)

    def forward(self, x):
        y = self.a(x).relu()
        return self.d(self.c(self.b(y).relu()) + y).mean((2, 3))


def test_parameters_and_peak_memory_are_counted_by_hand():
    x = image(2, 1, 10, 10)
    found = find_groups(lift(Hourglass().eval(), (x,)), (x,))
    weights = {"a": 80, "b": 8 * 32 * 9 + 32, "c": 32 * 8 * 9 + 8, "d": 18}
    assert Parameters(found).total == sum(weights.values())
    # While c runs: its input of 32 channels, its output of 8, and the skip of 8, of 100 floats each.
    assert Memory(found).total == (32 + 8 + 8) * 100 * 4
    half = counts_of(found, {"b": list(range(16))})
    assert Memory(found).left(half) == (16 + 8 + 8) * 100 * 4
    assert Parameters(found).left(half) == sum(weights.values()) - (weights["b"] + 32 * 8 * 9) // 2


def test_a_budget_of_memory_is_met_where_the_bottleneck_moves():
    x = image(2, 1, 10, 10)
    found = find_groups(lift(Hourglass().eval(), (x,)), (x,))
    scores, cost = score("l2", found, []), Memory(found)
    plan = choose(found, evenly("l2", scores), cost, cost.total // 3, round_to=4, least=least(found, 0.1))
    assert plan.reached
    assert {line.group: line.kept for line in plan.lines}["b"] <= 12
    assert plan.left == cost.left(counts_of(found, plan.removal)) <= cost.total // 3
    impossible = choose(found, evenly("l2", scores), cost, 0, round_to=4, least=least(found, 0.5))
    assert (impossible.reached, set(impossible.binding)) == (False, {"a", "b"})


def test_a_mask_is_no_copy_of_the_removal():
    """The oracle by hand: zeros in the weights that read the channels."""
    torch.manual_seed(0)
    module, x = Transformer().eval(), image(2, 3, 16, 16)
    found = find_groups(lift(module, (x,)), (x,))
    with torch.no_grad():
        expected = lift(module, (x,))
        expected.down.weight[:, [1, 5]] = 0  # a gated MLP's width
        expected.attention.proj.weight[:, 8:16] = 0  # its second head
        seen = removed(found, {"up": [1, 5], "attention.qkv[0]": [1]}).view
        torch.testing.assert_close(seen(x), expected(x), rtol=1e-4, atol=1e-5)
    assert seen.attention.qkv.weight.shape == (72, 32)


def test_weights_keep_their_names_and_train_again():
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Dropout(0.5), nn.Flatten(), nn.Linear(288, 4))
    module[0].weight.requires_grad_(False)
    x = image(2, 3, 8, 8)
    view = lift(module, (x,))
    assert {k: v.requires_grad for k, v in view.named_parameters()} == {
        k: v.requires_grad for k, v in module.named_parameters()
    }
    assert dict(view.named_buffers()).keys() == dict(module.named_buffers()).keys()
    view.train()
    assert not torch.equal(view(x), view(x))
    assert not torch.equal(dict(view.named_buffers())["1.running_mean"], module[1].running_mean)


def test_a_forward_that_fixes_its_batch_is_refused():
    class Counts(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(6, 4)

        def forward(self, x):
            return self.a(x) + torch.ones(len(x), 4)

    with pytest.raises(UsageError, match=r"takes 2 samples at once and no other number.*x.shape\[0\]"):
        lift(Counts(), (image(2, 6),))


def test_what_a_shared_weight_loses_it_loses_once():
    module, x = Signal().eval(), torch.randint(0, 20, (2, 9))
    found = find_groups(lift(module, (x,)), (x,))
    cut = removed(found, {next(g.name for g in found.groups if g.channels == 16): [0, 1, 2, 3]}).view
    assert len({id(p) for p in cut.parameters()}) == len(list(module.parameters()))


@pytest.mark.parametrize("layer", ["a.0", "c"])
def test_torch_pruning_finds_the_same_channels(layer):
    tp = pytest.importorskip("torch_pruning")
    from prune_models import Mixed, settled

    module, x = settled(Mixed()), image(2, 1, 12, 12)
    graph = tp.DependencyGraph().build_dependency(module, example_inputs=x, verbose=False)
    names = {id(m): n for n, m in module.named_modules()}
    group = graph.get_pruning_group(module.get_submodule(layer), tp.prune_conv_out_channels, [5])
    expected = set()
    for dep, at in group:
        name = names.get(id(dep.target.module))
        if name is not None:
            side = "out" if graph.is_out_channel_pruning_fn(dep.handler) else "in"
            expected |= {(name, side, i) for i in at}
    ours = next(g for g in find_groups(lift(module, (x,)), (x,)).groups if g.name == layer)
    seen = {(m.layer, m.side, i) for m in ours.members if m.tensor.endswith(".weight") for i in m.index[5]}
    assert {one for one in seen if one[0] != "depthwise"} == {one for one in expected if one[0] != "depthwise"}
    assert {i for name, _, i in seen if name == "depthwise"} == {i for name, _, i in expected if name == "depthwise"}
