"""Low-rank factors against numpy's decomposition, and the choice of ranks against trying them all."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from edgekit.prune.factored import Layer, fill, observed, pair_of, usable  # noqa: E402
from edgekit.prune.faster import within  # noqa: E402
from edgekit.prune.lowrank import Channel, Moments, Spatial  # noqa: E402
from edgekit.prune.ranks import Option, choose  # noqa: E402

MANY = 10**12
"""So many samples that the covariance is taken as it is."""


def moments(mean: np.ndarray, covariance: np.ndarray) -> Moments:
    """As if seen in `MANY` samples."""
    made = Moments(len(mean))
    made.add(torch.from_numpy(mean[None]))
    made.count, made._square = MANY, torch.from_numpy(covariance) * MANY
    made._total = torch.zeros(len(mean), dtype=torch.float64)
    return made


def product(made) -> np.ndarray:
    return (made.second.flatten(1) @ made.first.flatten(1)).double().numpy()


@pytest.mark.parametrize("inputs", [False, True])
def test_with_white_inputs_the_tail_of_singular_values_is_lost(inputs):
    weight = np.random.default_rng(0).standard_normal((12, 20) if not inputs else (20, 12))
    seen = moments(np.zeros(12), np.eye(12)) if inputs else moments(np.zeros(12), weight @ weight.T)
    ranks = Channel(torch.from_numpy(weight), None, seen, inputs=inputs)
    tail = np.linalg.svd(weight, compute_uv=False) ** 2
    for rank in (1, 5, 11):
        error = np.linalg.norm(weight - product(ranks.factors(rank))) ** 2
        assert error == pytest.approx(tail[rank:].sum(), rel=1e-5)  # Eckart and Young
        assert ranks.lost(rank) == pytest.approx(tail[rank:].sum() / tail.sum(), rel=1e-6)
    np.testing.assert_allclose(product(ranks.factors(12)), weight, atol=1e-5)
    assert ranks.lost(12) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("shape", [(12, 20), (20, 12)])
def test_by_a_covariance_it_is_the_whitened_decomposition_and_no_worse_than_the_plain_one(shape):
    rng = np.random.default_rng(1)
    weight, mix = rng.standard_normal(shape), rng.standard_normal((shape[1], shape[1])) * 0.7 ** np.arange(shape[1])
    covariance, mean = mix @ mix.T, rng.standard_normal(shape[1])
    root = np.linalg.cholesky(covariance)
    u, s, vt = np.linalg.svd(weight @ root)
    for by_inputs in (False, True):
        seen = moments(mean, covariance) if by_inputs else moments(weight @ mean + 0.5, weight @ covariance @ weight.T)
        bias = torch.full((shape[0],), 0.5)
        made = Channel(torch.from_numpy(weight), bias, seen, inputs=by_inputs).factors(4)
        oracle = (u[:, :4] * s[:4]) @ vt[:4] @ np.linalg.inv(root)
        np.testing.assert_allclose(product(made), oracle, atol=1e-4)
        weighted = np.linalg.norm((weight - product(made)) @ root) ** 2
        assert weighted == pytest.approx((s[4:] ** 2).sum(), rel=1e-5)
        a, b, c = np.linalg.svd(weight)
        plain = (a[:, :4] * b[:4]) @ c[:4]
        assert weighted < np.linalg.norm((weight - plain) @ root) ** 2
        np.testing.assert_allclose(product(made) @ mean + made.bias.numpy(), weight @ mean + 0.5, atol=1e-5)


def test_few_samples_do_not_decide_alone():
    """They lie in one direction: after it come those in which the weights are largest."""
    weight = torch.diag(torch.tensor([6.0, 5, 4, 3, 2, 1]))
    seen = Moments(6)
    seen.add(torch.zeros(1, 6))
    seen.add(torch.eye(6)[5:] * 3)
    left = weight - torch.from_numpy(product(Channel(weight, None, seen).factors(3)))
    torch.testing.assert_close(left.diag(), torch.tensor([0.0, 0, 4, 3, 2, 0], dtype=torch.float64), atol=1e-5, rtol=0)


def convolved(layer: nn.Module, scheme: str, rank: int, x: torch.Tensor) -> tuple[nn.Module, float]:
    """The pair fitted on `x`, and its foreseen loss."""
    seen = observed(nn.Sequential(layer).eval(), [x])["0"]
    pair = pair_of(layer, scheme, rank)
    fill(pair, seen.factors(scheme, rank))
    return pair, seen.schemes()[scheme].lost(rank)


CONVOLUTIONS = {
    "strided": nn.Conv2d(6, 10, 3, stride=2, padding=1),
    "uneven": nn.Conv2d(6, 10, (3, 5), stride=(1, 2), padding=(2, 1), dilation=(2, 1), bias=False),
    "same": nn.Conv2d(6, 10, (5, 3), padding="same", dilation=(1, 2)),
    "1-D": nn.Conv1d(6, 10, 5, stride=2, padding=2),
    "3-D": nn.Conv3d(3, 6, 3, padding=1),
    "pointwise": nn.Conv2d(6, 10, 1, stride=2),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_of_full_rank_a_convolution_is_the_same(name):
    torch.manual_seed(0)
    layer = CONVOLUTIONS[name].eval()
    x = torch.randn(8, layer.in_channels, *[9] * (layer.weight.ndim - 2)) + 0.5
    expected = layer(x)
    schemes = ["channel"] + ["spatial"] * ("spatial" in observed(nn.Sequential(layer), [x])["0"].schemes())
    assert ("spatial" in schemes) == (isinstance(layer, nn.Conv2d) and name != "pointwise")
    for scheme in schemes:
        seen = observed(nn.Sequential(layer), [x])["0"]
        if scheme == "spatial":
            spatial = Spatial(layer.weight, layer.bias, seen.patches, most=10**6)
            rank, factors = spatial.ranks, spatial.factors(spatial.ranks)
        else:
            rank = seen.schemes()[scheme].ranks
            factors = seen.factors(scheme, rank)
        pair = pair_of(layer, scheme, rank)
        fill(pair, factors)
        torch.testing.assert_close(pair(x), expected, atol=2e-4, rtol=1e-3)


def test_a_convolution_of_low_rank_is_recovered_without_loss():
    torch.manual_seed(0)
    first, second = nn.Conv2d(6, 3, (3, 1), padding=(1, 0), bias=False), nn.Conv2d(3, 12, (1, 3), padding=(0, 1))
    whole = nn.Conv2d(6, 12, 3, padding=1)
    with torch.no_grad():
        whole.weight.copy_(torch.einsum("ripx,orxq->oipq", first.weight, second.weight))
        whole.bias.copy_(second.bias)
        x = torch.randn(16, 6, 10, 10) * torch.linspace(0.2, 2, 6)[:, None, None]
        pair, lost = convolved(whole, "spatial", 3, x)
        assert lost < 1e-9
        torch.testing.assert_close(pair(x), second(first(x)), atol=1e-5, rtol=1e-4)
        whole.weight.copy_(torch.einsum("or,ripq->oipq", torch.randn(12, 3), torch.randn(3, 6, 3, 3)))
        pair, lost = convolved(whole, "channel", 3, x)
        assert lost < 1e-6
        torch.testing.assert_close(pair(x), whole(x), atol=1e-4, rtol=1e-4)
        assert convolved(whole, "spatial", 3, x)[1] > 0.05  # the other scheme is no match for it


@pytest.mark.parametrize("scheme", ["channel", "spatial"])
def test_the_foreseen_loss_is_what_is_lost_on_the_samples(scheme):
    """A channel counts by its variance over its deviation. Without padding, patches are those of all positions."""
    torch.manual_seed(0)
    layer, x = nn.Conv2d(6, 16, 3), torch.randn(128, 6, 8, 8).cumsum(2)
    with torch.no_grad():
        layer.weight[3] *= 30
        pair, lost = convolved(layer, scheme, 5, x)
        whole, part = layer(x), pair(x)
        deviation = whole.std((0, 2, 3))
        error = ((whole - part).square().mean((0, 2, 3)) / deviation).sum()
        assert float(error / deviation.sum()) == pytest.approx(lost, rel=0.1)


@pytest.mark.parametrize("outputs", [12, 30])
def test_one_channel_far_above_the_others_does_not_take_the_rank(outputs):
    rng = np.random.default_rng(0)
    weight, x = rng.standard_normal((outputs, 20)), rng.standard_normal((5000, 20)) * 0.8 ** np.arange(20)
    weight[0] *= 1000
    layer = nn.Linear(20, outputs, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weight))
    seen = observed(nn.Sequential(layer), [torch.from_numpy(x).float()])["0"]
    even = (x @ weight.T).std(0) ** 0.5
    root = np.linalg.cholesky(np.cov(x.T))
    tail = np.linalg.svd(weight / even[:, None] @ root, compute_uv=False)
    made = seen.factors("channel", 6)
    left = (weight - product(made)) / even[:, None] @ root
    assert np.linalg.norm(left) ** 2 == pytest.approx((tail[6:] ** 2).sum(), rel=0.02)


def test_a_dense_layer_that_sees_rows_of_a_batch_counts_them_for_one_sample():
    class Rows(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.twice = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x):
            return self.twice(self.twice(self.fc(x.reshape(-1, 8)))).reshape(x.shape)

    seen = observed(Rows(), [torch.randn(4, 7, 8)])
    assert (seen["fc"].outer, seen["twice"].outer) == (7, 14)


def test_layers_of_their_own_kind_stay_whole():
    module = nn.ModuleDict(
        {
            "tied": nn.Linear(4, 4),
            "embedding": nn.Embedding(4, 4),
            "grouped": nn.Conv2d(4, 4, 3, groups=2),
            "circular": nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"),
            "normed": nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)),
            "short": nn.Linear(4, 4).half(),
            "plain": nn.Linear(4, 4),
        }
    )
    module["embedding"].weight = module["tied"].weight
    found, refused = usable(module)
    assert list(found) == ["plain"]
    assert refused == {
        "tied": "its weight is used elsewhere too",
        "grouped": "grouped",
        "circular": "not padded with zeros",
        "normed": "a ParametrizedLinear of its own kind",
        "short": "its weights are torch.float16",
    }


def options(*pairs: tuple[int, float]) -> list[Option]:
    return [Option("channel", 8, freed, lost) for freed, lost in pairs]


def test_ranks_are_chosen_by_energy_lost_for_what_is_freed():
    given = {"a": options((10, 0.01), (20, 0.05), (30, 0.3)), "b": options((10, 0.2), (40, 0.25)), "c": []}
    some = choose(given, 10)
    assert {name: o.freed for name, o in some.options.items()} == {"a": 10}
    assert {name: o.freed for name, o in choose(given, 55).options.items()} == {"a": 20, "b": 40}
    least = choose(given, 71)
    assert not least.reached
    assert least.binding == ("a", "b")
    assert least.freed == 70
    assert choose(given, 0).options == {}


def test_the_choice_is_near_the_best_of_all():
    rng = np.random.default_rng(0)
    for _ in range(20):
        given = {}
        for name in "abcd":
            freed = np.sort(rng.choice(np.arange(1, 60), 5, replace=False))
            lost = np.sort(rng.uniform(0, 1, 5))
            given[name] = options(*zip(freed.tolist(), lost.tolist(), strict=True))
        wanted = int(rng.integers(20, 100))
        made = choose(given, wanted)
        each = [[(0, 0.0), *((o.freed, o.lost) for o in some)] for some in given.values()]
        fitting = [sum(o[1] for o in all_) for all_ in itertools.product(*each) if sum(o[0] for o in all_) >= wanted]
        if not fitting:
            assert not made.reached
            continue
        assert made.reached
        assert made.freed == sum(o.freed for o in made.options.values()) >= wanted
        assert sum(o.lost for o in made.options.values()) <= 2 * min(fitting) + 0.05


def test_a_layer_knows_the_shapes_of_its_pairs():
    layer = Layer(nn.Conv2d(6, 10, (3, 5)))
    assert layer.shapes("channel", 4) == ((4, 6, 3, 5), (10, 4, 1, 1))
    assert layer.shapes("spatial", 4) == ((4, 6, 3, 1), (10, 4, 1, 5))
    for scheme in ("channel", "spatial"):
        assert tuple(tuple(part.weight.shape) for part in pair_of(layer.layer, scheme, 4)) == layer.shapes(scheme, 4)


def in_time(wanted: float, time_of):
    """Thirty layers of 100 of which each can be cut by 10, 20 ... 90; what was measured, too."""
    given = {f"{i:02}": options(*((10 * k, (k / 9) ** 2 * (1 + i / 30)) for k in range(1, 10))) for i in range(30)}
    log = []

    def measure(choice):
        ratio = time_of(1 - choice.freed / 3000)
        log.append(ratio)
        return ratio, ratio - 0.01, ratio + 0.01

    return (*within(given, 3000, wanted, measure), log)


@pytest.mark.parametrize("fixed", [0.0, 0.3, 0.5])
def test_a_time_is_met_by_measuring(fixed):
    timed, reached, log = in_time(0.7, lambda macs: fixed + (1 - fixed) * macs)
    assert reached
    assert 0.67 <= timed.ratio <= 0.7
    assert timed.ratio == 1 - (1 - fixed) * timed.choice.freed / 3000
    assert len(log) <= 6


def test_of_noisy_times_the_slowest_that_fits_is_taken_and_else_the_fastest():
    noise = iter([0.05, -0.05, 0.03, -0.02, 0.01, 0.0])
    timed, reached, log = in_time(0.7, lambda macs: macs + next(noise))
    assert reached
    assert timed.ratio == max(ratio for ratio in log if ratio <= 0.7)
    timed, reached, log = in_time(0.5, lambda macs: 0.6 + 0.4 * macs)
    assert not reached
    assert timed.ratio == min(log)
    assert in_time(1.0, lambda macs: macs)[:2] == (timed.__class__(choose({}, 0), 1.0, 1.0, 1.0), True)
