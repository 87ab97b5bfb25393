"""The stage `prune`, on a module with BatchNorm and on the torch view of its ONNX file, which has none."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from pydantic import ValidationError

torch = pytest.importorskip("torch")

from prune_models import Mixed, settled, stripes  # noqa: E402

from edgekit.context import Silent  # noqa: E402
from edgekit.errors import UsageError  # noqa: E402
from edgekit.graph.cost import cost  # noqa: E402
from edgekit.graph.crossing import export_module, to_onnx, to_torch  # noqa: E402
from edgekit.model import TensorSpec, TorchModel  # noqa: E402
from edgekit.prune.correct import channel_moments, correct_biases, reestimate_batchnorm  # noqa: E402
from edgekit.prune.cost import count_macs  # noqa: E402
from edgekit.stages.prune import Prune  # noqa: E402
from edgekit.train.checkpoint import load_torch, save_torch  # noqa: E402

INPUTS = (TensorSpec("image", "float32", ("batch", 1, 12, 12)),)


def context(tmp_path: Path, data=None):
    return SimpleNamespace(data=data or stripes(), targets=(), seed=0, work=tmp_path, deadline=None, progress=Silent())


@pytest.fixture(scope="module")
def dense() -> TorchModel:
    module = settled(Mixed())
    reference = export_module(module, INPUTS, "mixed")
    return TorchModel(name="mixed", module=module, inputs=INPUTS, outputs=reference.outputs, reference=reference)


@pytest.mark.parametrize("source", ["module", "view"])
def test_macs_and_parameters_shrink_and_the_model_given_is_untouched(dense, tmp_path, source):
    model = dense if source == "module" else to_torch(dense.reference)
    before = copy.deepcopy(model.module.state_dict())
    pruned = Prune(macs=0.5, round_to=4, samples=64).apply(model, context(tmp_path))
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.module.state_dict().values(), strict=True))
    step = pruned.history[-1]
    assert step.name == "prune"
    assert step.config["macs"] == 0.5
    assert step.parameters == sum(p.numel() for p in pruned.module.parameters())
    x = torch.randn(3, 1, 12, 12)
    with torch.no_grad():
        assert pruned.module(x).shape == (3, 4)
    word = "BatchNorm statistics measured anew" if source == "module" else "(there is no BatchNorm)"
    assert any(word in note for note in step.notes)

    from edgekit.graph.cost import cost
    from edgekit.graph.crossing import to_onnx

    exported = cost(to_onnx(pruned).proto).macs
    assert 0.35 < exported / cost(dense.reference.proto).macs <= 0.5
    assert step.macs == exported


@pytest.mark.parametrize("source", ["module", "view"])
def test_a_pruned_model_survives_the_disk(dense, tmp_path, source):
    model = dense if source == "module" else to_torch(dense.reference)
    pruned = Prune(macs=0.6, round_to=4, importance="l2", samples=64).apply(model, context(tmp_path))
    save_torch(pruned, tmp_path / "kept")
    again = load_torch(tmp_path / "kept", model)
    x = torch.randn(2, 1, 12, 12)
    with torch.no_grad():
        assert torch.equal(again.module(x), pruned.module(x))
    (tmp_path / "kept" / "model.json").unlink()
    with pytest.raises(UsageError, match="holds no saved model"):
        load_torch(tmp_path / "kept", model)


def test_without_labels_the_networks_own_choices_rank_the_channels(dense, tmp_path):
    """As labels that are those choices do; where outputs are no classes, the outputs rank."""
    stage, data = Prune(macs=0.7, importance="taylor", round_to=4, samples=64), stripes(labels=False)
    pruned = stage.apply(dense, context(tmp_path, data))
    assert any("own choices stand for the labels of 64 samples" in note for note in pruned.history[-1].notes)
    split = data.splits["train"]
    with torch.no_grad():
        chosen = dense.module(torch.from_numpy(split.ready(INPUTS)[0])).argmax(1).numpy()
    known = replace(data, splits={**data.splits, "train": replace(split, labels=chosen)})
    again = stage.apply(dense, context(tmp_path, known))
    for a, b in zip(pruned.module.parameters(), again.module.parameters(), strict=True):
        assert torch.equal(a, b)
    other = stage.apply(dense, context(tmp_path, replace(data, task="embedding")))
    assert any("importance 'outputs' instead of 'taylor'" in note for note in other.history[-1].notes)


def test_two_runs_give_the_same_bits(dense, tmp_path):
    one, two = (Prune(macs=0.5, round_to=4, samples=64).apply(dense, context(tmp_path)) for _ in range(2))
    for a, b in zip(one.module.state_dict().values(), two.module.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_in_steps_each_ranks_what_is_left(dense, tmp_path):
    stage = Prune(macs=0.4, round_to=2, samples=64, iterations=3, keep_at_least=0.25)
    step = stage.apply(dense, context(tmp_path)).history[-1]
    total = cost(dense.reference.proto).macs
    assert 0.3 * total < step.macs <= 0.4 * total
    pruned = stage.apply(dense, context(tmp_path))
    assert min(pruned.module.c.out_channels / 24, pruned.module.d.out_channels / 16) >= 0.25  # of what was there first
    save_torch(pruned, tmp_path / "steps")
    again = load_torch(tmp_path / "steps", dense).module
    x = torch.randn(2, 1, 12, 12)
    with torch.no_grad():
        assert torch.equal(again(x), pruned.module(x))


def test_all_of_it_removes_nothing_and_too_little_is_said(dense, tmp_path):
    whole = Prune(macs=1.0, samples=64).apply(dense, context(tmp_path))
    assert whole.history[-1].parameters == sum(p.numel() for p in dense.module.parameters())
    assert "nothing was removed" in whole.history[-1].notes
    least = Prune(macs=0.01, round_to=4, keep_at_least=0.5, samples=64).apply(dense, context(tmp_path))
    assert any("asked for 1% of the multiply-accumulates, reached" in note for note in least.history[-1].notes)


def test_what_cannot_be_pruned_is_refused(dense, tmp_path):
    with pytest.raises(UsageError, match="put it before 'quantize'"):
        Prune(macs=0.5).apply(dense.reference, context(tmp_path))
    several = replace(dense, inputs=(*INPUTS, *INPUTS))
    with pytest.raises(UsageError, match="has 2 inputs"):
        Prune(macs=0.5).apply(several, context(tmp_path))
    for wrong in (
        {},
        {"macs": 0.5, "memory": 0.5},
        {"macs": 1.5},
        {"macs": 0},
        {"macs": 0.5, "round_to": 0},
        {"macs": 0.5, "importance": "luck"},
    ):
        with pytest.raises(ValidationError):
            Prune(**wrong)


class Repeats(torch.nn.Module):
    """One convolution twice; dense scores where asked."""

    def __init__(self, dense=False):
        super().__init__()
        self.first, self.same = torch.nn.Conv2d(1, 8, 3), torch.nn.Conv2d(8, 8, 3, padding=1)
        self.wide, self.last, self.dense = torch.nn.Conv2d(8, 16, 1), torch.nn.Conv2d(16, 4, 1), dense

    def forward(self, x):
        x = torch.relu(self.same(torch.relu(self.same(torch.relu(self.first(x))))))
        x = self.last(torch.relu(self.wide(x)))
        return x if self.dense else x.mean((2, 3))


def test_a_view_whose_operators_share_a_weight(tmp_path):
    model = to_torch(export_module(Repeats().eval(), INPUTS, "repeats"))
    before = cost(model.reference.proto)
    made = Prune(macs=0.9, round_to=4, samples=64).apply(model, context(tmp_path))
    assert 0 < made.history[-1].macs <= 0.9 * before.macs
    assert made.history[-1].macs == cost(to_onnx(made).proto).macs


class Expanded(torch.nn.Module):
    def forward(self, x, count):
        return x.expand(count, -1)


class Token(torch.nn.Module):
    """A module hands out a view of a parameter, as in the torch view of a transformer's class token."""

    def __init__(self):
        super().__init__()
        self.token, self.expand, self.head = torch.nn.Parameter(torch.ones(1, 8)), Expanded(), torch.nn.Linear(8, 3)

    def forward(self, x):
        return self.head(x + self.expand(self.token, len(x)))


def test_macs_of_a_module_that_hands_out_a_view_of_a_parameter():
    assert count_macs(Token(), (torch.zeros(2, 8),)) == 24


def test_taylor_on_something_else_than_class_scores_is_refused(tmp_path):
    reference = export_module(Repeats(dense=True).eval(), INPUTS, "dense")
    with pytest.raises(UsageError, match=r"class logits .* got \[64, 4, 10, 10\]. Set prune.importance to 'outp"):
        Prune(macs=0.9, importance="taylor", round_to=4, samples=64).apply(to_torch(reference), context(tmp_path))


class Chooses(Mixed):
    """Gives the number of a class."""

    def forward(self, x):
        return super().forward(x).argmax(1)


def test_outputs_without_a_slope_are_refused(tmp_path):
    numbers = TensorSpec("class", "int64", ("batch",))
    model = TorchModel(
        name="net", module=settled(Chooses()), inputs=INPUTS, outputs=(numbers,),
        reference=export_module(settled(Chooses()), INPUTS, "net"),
    )  # fmt: skip
    with pytest.raises(UsageError, match=r"needs outputs with a slope.* Use 'activation'"):
        Prune(macs=0.9, samples=64).apply(model, context(tmp_path))


def test_reestimated_statistics_are_the_plain_mean_and_variance():
    norm = torch.nn.BatchNorm2d(3, momentum=0.3)
    batches = [torch.randn(16, 3, 4, 4) * 2 + 1 for _ in range(4)]
    reestimate_batchnorm(norm, batches)
    torch.testing.assert_close(norm.running_mean, torch.stack([b.mean((0, 2, 3)) for b in batches]).mean(0))
    torch.testing.assert_close(norm.running_var, torch.stack([b.var((0, 2, 3)) for b in batches]).mean(0))
    assert norm.momentum == 0.3
    assert not norm.training


def test_bias_correction_restores_every_mean_and_deviation():
    nn = torch.nn
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(512, 4)
    ).eval()
    x = torch.randn(16, 1, 12, 12)
    wanted = channel_moments(module, x)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.01 * torch.randn_like(parameter)
    assert correct_biases(module, x, wanted) == 3
    for name, (mean, deviation) in channel_moments(module, x).items():
        torch.testing.assert_close(mean, wanted[name][0], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(deviation, wanted[name][1], atol=1e-5, rtol=1e-4)
