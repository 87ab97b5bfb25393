"""Constructs of networks that nobody listed: each is cut in half and held against its mask, or refused in one line."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from edgekit.errors import UsageError  # noqa: E402
from edgekit.graph.crossing import export_module  # noqa: E402
from edgekit.graph.einsum import contract, pairwise  # noqa: E402
from edgekit.graph.lifted import lift  # noqa: E402
from edgekit.model import TensorSpec  # noqa: E402
from edgekit.prune.apply import counts_of, difference, masked, removed  # noqa: E402
from edgekit.prune.cost import Macs, count_macs  # noqa: E402
from edgekit.prune.find import find_groups  # noqa: E402
from edgekit.prune.importance import score  # noqa: E402
from edgekit.prune.rebuild import as_source  # noqa: E402


class Norms(nn.Module):
    """Norms over channels as forwards write them out, and attention over pixels that pools the channels."""

    def __init__(self, width=16):
        super().__init__()
        self.a, self.gain = nn.Conv2d(3, width, 3, padding=1), nn.Parameter(torch.rand(width, 1, 1) + 0.5)
        self.b, self.scale = nn.Conv2d(width, 24, 1), nn.Parameter(torch.rand(24) + 0.5)
        self.pixels, self.head = nn.Conv2d(2, 1, 3, padding=1), nn.Linear(24, 3)

    def forward(self, x):
        x = self.a(x)
        centred = x - x.mean(1, keepdim=True)
        x = self.gain * centred / torch.sqrt(centred.pow(2).mean(1, keepdim=True) + 1e-6)
        x = torch.max(self.b(x), self.b(-x))
        x = x * self.pixels(torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)).sigmoid()
        x = F.normalize(x.mean((2, 3)), dim=1)
        return self.head(self.scale * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


class Einstein(nn.Module):
    """Attention in Einstein's notation, the last product of three tensors."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 3)
        self.q, self.k, self.v = (nn.Parameter(torch.randn(16, 4, 6) / 4) for _ in range(3))
        self.out = nn.Parameter(torch.randn(4, 6, 16) / 4)

    def forward(self, x):
        x = self.a(x)
        q, k, v = (torch.einsum("btw,whd->bhtd", x, one) for one in (self.q, self.k, self.v))
        seen = torch.einsum("bhtd,bhsd->bhts", q, k).softmax(-1)
        return self.b(x + torch.einsum("bhts,bhsd,hdw->btw", seen, v, self.out))


class Windows(nn.Module):
    """Windows taken apart and laid together again, and pixels picked by coordinates."""

    def __init__(self):
        super().__init__()
        self.a, self.mix, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv1d(72, 72, 1), nn.Conv2d(8, 12, 1)
        self.where, self.head = nn.Linear(12, 32), nn.Linear(12, 2)

    def forward(self, x):
        x = F.fold(self.mix(F.unfold(self.a(x).relu(), 3, padding=1)), (8, 8), 3, padding=1)
        x = self.b(x)
        grid = self.where(x.mean((2, 3))).tanh().view(-1, 4, 4, 2)
        return self.head(F.grid_sample(x, grid, align_corners=False).mean((2, 3)))


class Regions(nn.Module):
    """A frozen stem without gradients, a head without autocast, and outputs by name."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 16, 3), nn.Linear(16, 3)

    def forward(self, x):
        with torch.no_grad():
            x = self.a(x).relu()
        with torch.autocast("cpu", enabled=False):
            x = self.b(x.float()).relu()
        return {"scores": self.head(x.mean((2, 3))), "all": x.mean(1)}


class Normed(nn.Module):
    """Weight norm as torch had it at first, and spectral norm."""

    def __init__(self):
        super().__init__()
        self.a = nn.utils.weight_norm(nn.Conv2d(3, 16, 3))
        self.b = nn.utils.parametrizations.spectral_norm(nn.Conv2d(16, 16, 3))
        self.head = nn.Linear(16, 3)

    def forward(self, x):
        return self.head(F.elu(self.b(F.elu(self.a(x)))).mean((2, 3)))


class Translator(nn.Module):
    """torch's own encoder and decoder, with a causal mask."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 3)
        self.body = nn.Transformer(16, 2, 1, 1, 32, batch_first=True)
        self.queries = nn.Parameter(torch.randn(1, 4, 16))

    def forward(self, x):
        mask = nn.Transformer.generate_square_subsequent_mask(4)
        return self.b(self.body(self.a(x), self.queries.expand(x.shape[0], -1, -1), tgt_mask=mask))


CASES = {
    "norms": (Norms, (2, 3, 8, 8), {"a", "b"}),
    "einstein": (Einstein, (2, 5, 6), {"a", "q", "q[1]", "v"}),
    "windows": (Windows, (2, 3, 8, 8), {"a", "mix", "b"}),
    "regions": (Regions, (2, 3, 8, 8), {"a"}),
    "weight norm": (Normed, (2, 3, 8, 8), {"a", "b"}),
    "translator": (Translator, (2, 5, 6), {"a", "body.encoder.layers.0.linear1", "body.decoder.layers.0.linear1"}),
}


@pytest.mark.filterwarnings("ignore:.*torch.nn.utils.weight_norm.*:FutureWarning")
@pytest.mark.parametrize("case", CASES)
def test_half_of_every_group_can_go(case):
    build, shape, names = CASES[case]
    torch.manual_seed(0)
    module, x = build().eval(), torch.randn(shape)
    found = find_groups(lift(module, (x,)), (x,))
    assert names <= {g.name for g in found.groups}
    assert Macs(found).total == count_macs(module, (x,))
    removal = {g.name: list(range(0, g.channels, 2)) for g in found.groups}
    cut = removed(found, removal)
    assert difference(found.view, module, (x,)) < 1e-5
    assert difference(cut.view, masked(found, removal), (x,)) < 1e-5
    assert difference(as_source(module, cut, (x,)), cut.view, (x,)) < 1e-5
    assert Macs(found).left(counts_of(found, removal)) == count_macs(cut.view, (x,)) < 0.8 * Macs(found).total
    for scores in score("activation", found, [(x, None)]).values():
        assert bool((scores >= 0).all())
        assert float(scores.sum()) > 0


def test_a_norm_that_is_written_out_goes_over_what_is_left():
    """The oracle by hand: the same module made narrower."""
    torch.manual_seed(0)
    module, narrow, x = Norms(16).eval(), Norms(12).eval(), torch.randn(2, 3, 8, 8)
    stay = [i for i in range(16) if i not in (1, 6, 7, 15)]
    found = find_groups(lift(module, (x,)), (x,))
    with torch.no_grad():
        for name, value in module.state_dict().items():
            own = value[stay] if name in ("a.weight", "a.bias", "gain") else value
            narrow.get_parameter(name).copy_(own[:, stay] if name == "b.weight" else own)
        seen = removed(found, {"a": [1, 6, 7, 15]}).view(x)
        torch.testing.assert_close(seen, narrow(x), rtol=1e-5, atol=1e-6)


def test_what_runs_without_gradients_stays_frozen():
    view = lift(Regions(), (torch.randn(2, 3, 8, 8),))
    assert {name: p.requires_grad for name, p in view.named_parameters() if name.endswith("weight")} == {
        "a.weight": False,
        "b.weight": True,
        "head.weight": True,
    }


def test_pieces_of_a_weight_are_trained():
    class Pieces(nn.Module):
        def __init__(self):
            super().__init__()
            self.wide = nn.Parameter(torch.randn(16, 6))

        def forward(self, x):
            one, two = self.wide.chunk(2)
            return F.linear(x, one) * F.linear(x, two)

    view = lift(Pieces(), (torch.randn(2, 6),))
    assert [(p.shape, p.requires_grad) for p in view.parameters()] == [((8, 6), True)] * 2


def test_a_part_in_another_precision_is_refused():
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(6, 4)

        def forward(self, x):
            with torch.autocast("cpu", torch.bfloat16):
                return self.a(x)

    with pytest.raises(UsageError, match=r"runs in torch.bfloat16 \(torch.autocast\). Take autocast out"):
        lift(Half(), (torch.randn(2, 6),))


def test_a_branch_on_data_is_named_by_its_line_and_nothing_else_is_printed(capfd):
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(6, 16)

        def forward(self, x):
            return self.a(x) if x.sum() > 0 else self.a(-x)

    with pytest.raises(UsageError, match=r"data.*at test_constructs.py:\d+, `return self.a\(x\) if x.sum\(\) > 0"):
        lift(Branches(), (torch.randn(2, 6),))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_recurrent_layers_are_named_where_nothing_else_can_be_pruned(kind):
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.cells, self.head = kind(6, 12, batch_first=True), nn.Linear(12, 3)

        def forward(self, x):
            return self.head(self.cells(x)[0][:, -1])

    why = rf"cells: it is computed by aten.{kind.__name__.lower()}, through which channels are not followed"
    with pytest.raises(UsageError, match=why):
        find_groups(lift(Recurrent(), (x := torch.randn(2, 5, 6),)), (x,))


def test_complex_numbers_inside_leave_what_they_touch_whole():
    class Fourier(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.up, self.down, self.b = nn.Linear(6, 8), nn.Linear(8, 32), nn.Linear(32, 8), nn.Linear(8, 3)

        def forward(self, x):
            x = self.a(x)
            x = x + torch.fft.fft2(x).real
            return self.b(x + self.down(self.up(x).relu()))

    x = torch.randn(2, 5, 6)
    found = find_groups(lift(Fourier(), (x,)), (x,))
    assert [g.name for g in found.groups] == ["up"]
    assert "comes out of aten.real" in found.whole["a"]


@pytest.mark.slow
def test_a_causal_mask_reaches_onnx():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 1)

        def forward(self, x):
            return self.body(x, nn.Transformer.generate_square_subsequent_mask(5))

    module, x = Masked().eval(), torch.randn(2, 5, 8)
    onnxruntime = pytest.importorskip("onnxruntime")
    graph = export_module(module, (TensorSpec("x", "float32", ("batch", 5, 8)),), "masked")
    session = onnxruntime.InferenceSession(graph.proto.SerializeToString(), providers=["CPUExecutionProvider"])
    seen = torch.from_numpy(session.run(None, {"x": x.numpy()})[0])
    with torch.no_grad():
        torch.testing.assert_close(seen, module(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("equation", ["ab,bc,cd->ad", "ab,bc->ca", "abc->ba", "ab,cd,bd", "abc,abd,a->cd"])
def test_einstein_summation_by_pairs_is_the_whole(equation):
    sizes = {"a": 2, "b": 3, "c": 4, "d": 5}
    given = [torch.randn([sizes[letter] for letter in term]) for term in equation.split("->")[0].split(",")]
    result = None
    for step, several in pairwise(equation, given):
        result = contract(step, *(result if one is None else one for one in several))
    torch.testing.assert_close(result, torch.einsum(equation, *given), rtol=1e-5, atol=1e-5)
    assert pairwise("...a,ab->...b", given) is None
    assert pairwise("aa->a", given) is None
