"""Budgets in time, on a device whose times follow a known formula: a staircase of 16 channels, and dear large maps."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from pydantic import ValidationError

torch = pytest.importorskip("torch")

from prune_models import settled, stripes  # noqa: E402

from edgekit.context import Silent  # noqa: E402
from edgekit.errors import UsageError  # noqa: E402
from edgekit.graph.crossing import export_module, to_onnx  # noqa: E402
from edgekit.graph.lifted import lift  # noqa: E402
from edgekit.model import TensorSpec, TorchModel  # noqa: E402
from edgekit.prune.cost import Bytes  # noqa: E402
from edgekit.prune.find import find_groups  # noqa: E402
from edgekit.stages.prune import Prune  # noqa: E402
from edgekit.testing.subjects import host  # noqa: E402

INPUTS = (TensorSpec("image", "float32", ("batch", 1, 12, 12)),)
TARGET = host("onnxruntime")
BLOCK = 16


class Plain(torch.nn.Sequential):
    """Four convolutions: two on large maps, two on small ones."""

    def __init__(self) -> None:
        def block(inputs: int, outputs: int, stride: int) -> list[torch.nn.Module]:
            conv = torch.nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
            return [conv, torch.nn.BatchNorm2d(outputs), torch.nn.ReLU()]

        widths = [(1, 64, 1), (64, 64, 1), (64, 128, 2), (128, 128, 1)]
        layers = [layer for width in widths for layer in block(*width)]
        super().__init__(*layers, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(128, 4))


class Lent(SimpleNamespace):
    """A context that counts what it measures."""

    def measure(self, model, target, *, backend="", against=None):
        assert target is TARGET
        self.asked += 1
        ratio = formula(model.module) / formula(self.dense.module)
        ratio *= 1 + 0.004 * ((self.asked * 7) % 5 - 2)
        found = {"latency_s": formula(model.module), "precision": "fp32", "where": "nowhere"}
        return found if against is None else {**found, "ratio": ratio, "low": ratio / 1.01, "high": ratio * 1.01}


def lent(dense: TorchModel, work: Path) -> Lent:
    return Lent(
        data=stripes(), targets=(TARGET,), seed=0, work=work, deadline=None, progress=Silent(), asked=0,
        dense=dense,
    )  # fmt: skip


def formula(module: torch.nn.Module) -> float:
    """Seconds: 20 us, and 1 us for 10^4 multiply-accumulates in full blocks, five of that in the first two layers."""
    total = 20.0
    for number, layer in enumerate(m for m in module.modules() if isinstance(m, torch.nn.Conv2d)):
        made, read = (-(-n // BLOCK) * BLOCK for n in layer.weight.shape[:2])
        pixels, dear = (144, 5) if number < 2 else (36, 1)
        total += made * read * 9 * pixels * dear / 1e4
    return total * 1e-6


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path))


@pytest.fixture(scope="module")
def dense() -> TorchModel:
    module = settled(Plain())
    reference = export_module(module, INPUTS, "plain")
    return TorchModel(name="plain", module=module, inputs=INPUTS, outputs=reference.outputs, reference=reference)


def test_the_step_is_found_and_the_time_is_met_by_measurement(dense, tmp_path):
    ctx = lent(dense, tmp_path)
    pruned = Prune(latency=0.6, samples=64).apply(dense, ctx)
    share = formula(pruned.module) / formula(dense.module)
    assert 0.5 < share <= 0.6 * 1.01
    widths = [layer.out_channels for layer in pruned.module.modules() if isinstance(layer, torch.nn.Conv2d)]
    assert all(width % BLOCK == 0 for width in widths)
    assert any("in multiples of 16" in note and "times as long" in note for note in pruned.history[-1].notes)


def test_time_is_taken_where_it_is_and_not_where_the_work_is(dense, tmp_path):
    """Equal work on the large maps takes five times as long: a budget in time cuts there, and cuts less in all."""
    timed = Prune(latency=0.6, samples=64, importance="l2").apply(dense, lent(dense, tmp_path))
    share = timed.history[-1].macs / Prune(macs=1.0, samples=64).apply(dense, lent(dense, tmp_path)).history[-1].macs
    worked = Prune(macs=share, samples=64, importance="l2", round_to=16).apply(dense, lent(dense, tmp_path))
    assert formula(timed.module) < formula(worked.module)


def test_what_was_measured_is_measured_once(dense, tmp_path):
    first, again = lent(dense, tmp_path), lent(dense, tmp_path)
    stage = Prune(latency=0.7, samples=64)
    assert stage.plan(dense, first).timed.networks > 10
    planned = stage.plan(dense, again)
    assert again.asked <= 6 < first.asked
    assert planned.timed.target == TARGET.name and planned.round_to == 16
    (file,) = (tmp_path / "latency").iterdir()
    held = json.loads(file.read_text())
    assert all(low <= share <= high for share, low, high in held["shares"].values())
    file.write_text("{")
    stage.plan(dense, again)
    assert again.asked > 10, "a damaged file is none"


def test_an_amount_is_a_time_and_what_cannot_be_met_names_what_binds(dense, tmp_path):
    planned = Prune(latency=f"{1e3 * 0.7 * formula(dense.module)} ms", samples=64).plan(dense, lent(dense, tmp_path))
    assert planned.reached and planned.asked == pytest.approx(0.7)
    least = Prune(latency="1 us", samples=64, keep_at_least=0.5).plan(dense, lent(dense, tmp_path))
    assert not least.reached and least.binding
    assert any("can give no more" in note for note in least.notes)


def test_without_a_device_it_says_so(dense, tmp_path):
    ctx = lent(dense, tmp_path)
    ctx.measure = lambda model, target, **_: {"latency_s": None, "precision": "fp32", "where": "nowhere"}
    with pytest.raises(UsageError, match="no target of the recipe has a device"):
        Prune(latency=0.5).apply(dense, ctx)
    with pytest.raises(UsageError, match="no target 'elsewhere'"):
        Prune(latency=0.5, target="elsewhere").apply(dense, ctx)


@pytest.mark.parametrize(
    "settings", [{"latency": 5}, {"macs": 1.5}, {"macs": "half"}, {"bytes": "many"}, {"macs": 0.5, "target": "x"}]
)
def test_what_is_no_budget_is_refused(settings):
    with pytest.raises(ValidationError):
        Prune(**settings)


def test_bytes_are_those_of_the_file(dense):
    probe = (torch.randn(2, 1, 12, 12),)
    found = find_groups(lift(dense.module, probe), probe)
    held = to_onnx(replace(dense)).proto.graph.initializer
    wanted = sum(4 * int(torch.tensor(list(one.dims)).prod()) for one in held if one.data_type == 1)
    assert Bytes(found).total == wanted
