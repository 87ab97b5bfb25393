"""The stage `factorize`: on a module, on the torch view of its ONNX file, on a lifted graph; and what follows it."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from pydantic import ValidationError

torch = pytest.importorskip("torch")

from onnx import TensorProto  # noqa: E402
from prune_models import Mixed, settled, stripes  # noqa: E402
from torch import nn  # noqa: E402

from edgekit.context import Silent  # noqa: E402
from edgekit.errors import UsageError  # noqa: E402
from edgekit.graph.cost import cost  # noqa: E402
from edgekit.graph.crossing import export_module, to_onnx, to_torch  # noqa: E402
from edgekit.graph.execute import run_onnx  # noqa: E402
from edgekit.graph.lifted import is_lifted  # noqa: E402
from edgekit.graph.torch_view import torch_view  # noqa: E402
from edgekit.model import TensorSpec, TorchModel  # noqa: E402
from edgekit.prune.cost import count_macs  # noqa: E402
from edgekit.prune.factored import Factored  # noqa: E402
from edgekit.stages.distill import Distill  # noqa: E402
from edgekit.stages.factorize import Factorize  # noqa: E402
from edgekit.stages.prune import Prune  # noqa: E402
from edgekit.stages.quantize import Quantize  # noqa: E402
from edgekit.target import load_target  # noqa: E402
from edgekit.train.taps import layers, paired  # noqa: E402
from edgekit.workspace import load_stage, save_stage  # noqa: E402

INPUTS = (TensorSpec("image", "float32", ("batch", 1, 12, 12)),)
X = torch.randn(3, 1, 12, 12, generator=torch.Generator().manual_seed(0))


def context(tmp_path: Path, *targets: str, measure=None):
    return SimpleNamespace(
        data=stripes(), targets=tuple(map(load_target, targets)), seed=0, work=tmp_path, deadline=None,
        progress=Silent(), base=tmp_path, measure=measure,
    )  # fmt: skip


def modelled(module: nn.Module) -> TorchModel:
    reference = export_module(module, INPUTS, "net")
    return TorchModel(name="net", module=module, inputs=INPUTS, outputs=reference.outputs, reference=reference)


@pytest.fixture(scope="module")
def dense() -> TorchModel:
    torch.manual_seed(0)
    return modelled(settled(Mixed()))


class Attends(nn.Module):
    """Its attention has no layer of its own, so that its lifted graph is what is factorised."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(12, 32)
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)
        self.wide, self.narrow, self.head = nn.Linear(32, 64), nn.Linear(64, 32), nn.Linear(32, 4)

    def forward(self, x):
        x = self.embed(x.flatten(1, 2))
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.head((x + self.narrow(torch.relu(self.wide(x)))).mean(1))


def attends() -> nn.Module:
    torch.manual_seed(0)
    return Attends().eval()


def kept(model: TorchModel, before: TorchModel, tmp_path: Path) -> TorchModel:
    save_stage(tmp_path, "key", model)
    again = load_stage(tmp_path, "key", before)
    assert isinstance(again, TorchModel)
    return again


def same(one: nn.Module, other: nn.Module) -> bool:
    with torch.no_grad():
        return torch.equal(one(X), other(X))


@pytest.mark.parametrize("source", ["module", "view", "lifted"])
def test_a_factorised_model_meets_its_budget_survives_the_disk_and_exports(dense, tmp_path, source):
    model = {
        "module": lambda: dense, "view": lambda: to_torch(dense.reference), "lifted": lambda: modelled(attends())
    }[source]()  # fmt: skip
    before = copy.deepcopy(model.module.state_dict())
    made = Factorize(macs=0.7, round_to=4, samples=64).apply(model, context(tmp_path))
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.module.state_dict().values(), strict=True))
    step = made.history[-1]
    assert is_lifted(made.module) == (source == "lifted")
    assert isinstance(made.module, Mixed) == (source == "module")
    assert any(isinstance(part, Factored) for part in made.module.modules())
    exported = to_onnx(made)
    assert step.macs == cost(exported.proto).macs <= 0.7 * cost(model.reference.proto).macs
    assert step.parameters == sum(p.numel() for p in made.module.parameters())
    with torch.no_grad():
        np.testing.assert_allclose(run_onnx(exported.proto, [X.numpy()])[0], made.module(X), atol=1e-4, rtol=1e-3)
    assert same(kept(made, model, tmp_path).module, made.module)


@pytest.mark.parametrize("asked", [0.6, "6.4 kB"])
@pytest.mark.parametrize("source", ["module", "view"])
def test_a_size_is_met_by_the_weights_of_the_file(dense, tmp_path, source, asked):
    model = dense if source == "module" else to_torch(dense.reference)
    made = Factorize(bytes=asked, round_to=1, samples=64).apply(model, context(tmp_path))
    whole, left = (stored(one) for one in (dense.reference, to_onnx(made)))
    wanted = 0.6 * whole if asked == 0.6 else 6400
    assert 0.9 * wanted < left <= wanted
    assert any(note.endswith("kB of float32 weights") for note in made.history[-1].notes)


def stored(model) -> int:
    """Bytes of a graph's float32 weights."""
    return 4 * sum(math.prod(one.dims) for one in model.proto.graph.initializer if one.data_type == TensorProto.FLOAT)


@pytest.mark.parametrize("source", ["module", "lifted"])
def test_pruned_after_it_and_before_it_and_factorised_again(dense, tmp_path, source):
    model = dense if source == "module" else modelled(attends())
    ctx, (a, b, c) = context(tmp_path), (tmp_path / name for name in "abc")
    prune, factorize = Prune(macs=0.7, round_to=4, samples=64), Factorize(parameters=0.8, round_to=2, samples=64)
    one = prune.apply(model, ctx)
    two = factorize.apply(one, ctx)
    three = Prune(macs=0.8, round_to=2, samples=64).apply(two, ctx)
    four = factorize.apply(three, ctx)
    assert [step.name for step in four.history] == ["prune", "factorize", "prune", "factorize"]
    for folder in (a, b, c):
        folder.mkdir()
    read = kept(two, kept(one, model, a), b)
    assert same(read.module, two.module)
    assert same(kept(three, read, c).module, three.module)
    assert same(kept(four, model, c).module, four.module)  # from the source at once
    assert four.history[-1].parameters < three.history[-1].parameters < two.history[-1].parameters


@pytest.mark.parametrize("source", ["module", "view"])
def test_distilled_and_quantized_afterwards(dense, tmp_path, source):
    model = dense if source == "module" else to_torch(dense.reference)
    ctx = context(tmp_path)
    made = Factorize(macs=0.6, round_to=4, samples=64).apply(model, ctx)
    trained = Distill(epochs=1, learning_rate=0.01).apply(made, ctx)
    assert same(kept(trained, made, tmp_path).module, trained.module)
    quantized = Quantize(effort="fast", samples=64).apply(to_onnx(trained), ctx)
    assert cost(quantized.proto).macs == made.history[-1].macs


def test_a_budget_that_cannot_be_met_names_what_binds(dense, tmp_path):
    step = Factorize(macs=0.01, round_to=4, samples=64).apply(dense, context(tmp_path)).history[-1]
    assert any(
        "asked for 1% of the multiply-accumulates, reached" in note and "b.0" in note and "can give no more" in note
        for note in step.notes
    )
    assert "left whole: depthwise (grouped)" in step.notes
    assert "left whole: head (two layers of rank 4 cost no less)" in step.notes


def test_a_network_of_low_rank_is_recovered_without_loss(tmp_path):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(144, 96), nn.ReLU(), nn.Linear(96, 96), nn.ReLU(), nn.Linear(96, 4))
    with torch.no_grad():
        module[1].weight.copy_(torch.randn(96, 8) @ torch.randn(8, 144) / 30)
        module[3].weight.copy_(torch.randn(96, 16) @ torch.randn(16, 96) / 30)
    made = Factorize(macs=0.25, samples=200).apply(modelled(module.eval()), context(tmp_path))
    assert [(len(made.module[i][0].weight)) for i in (1, 3)] == [8, 16]
    with torch.no_grad():
        torch.testing.assert_close(made.module(X), module(X), atol=1e-4, rtol=1e-3)


class Borrows(nn.Module):
    """The forward takes the layer's weight without calling it."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(144, 64), nn.Linear(64, 64)

    def forward(self, x):
        return nn.functional.linear(self.first(x.flatten(1)), self.second.weight)[:, :4]


def test_a_weight_that_is_used_without_its_layer_is_factorised_in_the_graph(tmp_path):
    made = Factorize(macs=0.5, samples=64).apply(modelled(Borrows().eval()), context(tmp_path))
    assert is_lifted(made.module)


def by_work(model, target, *, backend, against=None):
    """A device that takes a millisecond and another one for a million multiply-accumulates; the Pi has none."""
    if target.name != "x86-64":
        return {"latency_s": None, "precision": "fp32"}
    taken = [1e-3 + 1e-9 * count_macs(one.module, (X[:1],)) for one in (model, against or model)]
    ratio = taken[0] / taken[1]
    seen = {"ratio": ratio, "low": ratio, "high": ratio} if against else {}
    return {"latency_s": taken[0], "precision": "int8", "where": "here", **seen}


@pytest.mark.parametrize("asked", [0.8, "80%", "1.59 ms"])
def test_a_time_is_met_as_measured_on_the_first_target_with_a_device(dense, tmp_path, asked):
    ctx = context(tmp_path, "raspberry-pi-5", "x86-64", measure=by_work)
    made = Factorize(latency=asked, round_to=2, samples=64).apply(dense, ctx)
    ratio = by_work(made, ctx.targets[1], backend="", against=dense)["ratio"]
    assert 0.76 <= ratio <= 0.8
    assert any(note.startswith("measured on x86-64, int8: 1.99 ms -> ") for note in made.history[-1].notes)
    assert f"{ratio:.3f}" in " ".join(made.history[-1].notes)


def test_a_time_that_cannot_be_measured_or_met(dense, tmp_path):
    ctx = context(tmp_path, "raspberry-pi-5", "x86-64", measure=by_work)
    step = Factorize(latency=0.3, round_to=4, samples=64).apply(dense, ctx).history[-1]
    assert any(note.startswith("asked for 30% of the time, reached ") for note in step.notes)
    with pytest.raises(UsageError, match="raspberry-pi-5 has no device"):
        Factorize(latency=0.5, target="raspberry-pi-5", samples=64).apply(dense, ctx)
    with pytest.raises(UsageError, match=r"the recipe has no target 'pi'\. It has: raspberry-pi-5, x86-64"):
        Factorize(latency=0.5, target="pi", samples=64).apply(dense, ctx)
    with pytest.raises(UsageError, match="no target of the recipe has a device"):
        Factorize(latency=0.5, samples=64).apply(dense, context(tmp_path, "raspberry-pi-5", measure=by_work))


def test_what_cannot_be_factorised_is_refused(dense, tmp_path):
    with pytest.raises(UsageError, match="put it before 'quantize'"):
        Factorize(macs=0.5).apply(dense.reference, context(tmp_path))
    with pytest.raises(UsageError, match=r"No layer of the model can be factorised: left whole: .*, or 'prune'"):
        Factorize(macs=0.5, round_to=64, samples=64).apply(dense, context(tmp_path))
    for wrong in (
        {},
        {"macs": 0.5, "latency": 0.5},
        {"macs": 0},
        {"macs": 0.5, "target": "a"},
        {"macs": 0.5, "round_to": 0},
    ):
        with pytest.raises(ValidationError):
            Factorize(**wrong)
    whole = Factorize(macs=1.0, samples=64).apply(dense, context(tmp_path))
    assert "nothing was factorised" in whole.history[-1].notes


@pytest.mark.parametrize("view", [False, True])
def test_recovery_may_compare_features_of_a_network_whose_layers_became_two(dense, tmp_path, view):
    model = to_torch(dense.reference) if view else dense
    smaller = Factorize(macs=0.5).apply(model, context(tmp_path))
    split = [path for path, part in smaller.module.named_modules() if isinstance(part, Factored)]
    assert split
    teacher = torch_view(dense.reference.proto)
    student, untouched = (layers(module, X) for module in (smaller.module, model.module))
    assert [(layer.kind, layer.shape) for layer in student] == [(layer.kind, layer.shape) for layer in untouched]
    assert len(paired(student, layers(teacher, X))) == len(paired(untouched, layers(teacher, X)))
    settings = {"epochs": 2, "batch_size": 32, "learning_rate": 0.02, "augment": "none", "precision": "fp32"}
    again = Distill(match={"features": 1.0, "attention": 10.0}, **settings).apply(smaller, context(tmp_path))
    start, *_, end = (entry["train_loss"] for entry in again.history[-1].curve)
    assert end < start
