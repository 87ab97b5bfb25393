"""Layers of student and teacher find each other: by name after pruning, by order after an export."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "prune"))

from prune_models import Mixed, ResNet20, settled  # noqa: E402
from torch import nn  # noqa: E402

from edgekit.errors import UsageError  # noqa: E402
from edgekit.graph.crossing import export_module  # noqa: E402
from edgekit.graph.torch_view import torch_view  # noqa: E402
from edgekit.model import TensorSpec  # noqa: E402
from edgekit.train.taps import Taps, layers, paired  # noqa: E402


def small(width: int) -> nn.Module:
    torch.manual_seed(width)
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
        nn.Conv2d(width, width, 3, stride=2, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, 4),
    ).eval()  # fmt: skip


def test_a_narrower_network_is_paired_by_name_at_the_end_of_every_size():
    found = paired(layers(small(4), torch.randn(2, 1, 8, 8)), layers(small(8), torch.randn(2, 1, 8, 8)))
    # Behind the BatchNorm where there is one; the last layer is the outputs' own.
    assert [pair.student for pair in found] == ["1", "4", "6"]
    assert all(pair.student == pair.teacher and pair.conv for pair in found)


@pytest.mark.parametrize(("network", "shape"), [(Mixed, (1, 12, 12)), (ResNet20, (3, 32, 32))])
def test_a_module_and_its_exported_graph_are_paired_by_order_with_equal_outputs(network, shape):
    module = settled(network())
    view = torch_view(export_module(module, (TensorSpec("image", "float32", ("batch", *shape)),), "net").proto)
    taps = Taps.of(module, view, torch.randn(4, *shape), features=True)
    assert len(taps.pairs) >= 3
    assert not len(taps.projections)
    with torch.no_grad(), taps.recording():
        x = torch.randn(3, *shape)
        module(x)
        view(x)
        for pair, one, other in taps.outputs():
            assert pair.student != pair.teacher
            torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
        assert all(float(term) < 1e-6 for term in taps.terms(1.0, 1.0).values())
    assert not taps.seen


def test_projections_start_as_the_best_linear_map_and_learn():
    teacher, student = small(8), small(4)
    x = torch.randn(16, 1, 8, 8)
    taps = Taps.of(student, teacher, x, features=True)
    assert set(taps.projections) == {"1", "4", "6"}
    with taps.recording():
        student(x)
        with torch.no_grad():
            teacher(x)
        found = {pair.student: (one.detach(), other) for pair, one, other in taps.outputs()}
        term = taps.terms(1.0, 0.0)
    assert set(term) == {"features"}
    for key, (one, other) in found.items():
        one, other = one.reshape(-1, one.shape[-1]), other.reshape(-1, other.shape[-1])
        best = one @ torch.linalg.lstsq(one, other).solution
        seen = (taps.projections[key](one) - other).square().sum()
        assert float(seen.detach()) == pytest.approx(float((best - other).square().sum()), rel=1e-3)
    term["features"].backward()
    assert all(p.grad is not None and float(p.grad.abs().sum()) > 0 for p in taps.projections.parameters())


def test_networks_without_common_layers_are_one_clear_error():
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 4))
    renamed = nn.Sequential(nn.Identity(), *copy.deepcopy(dense))
    with pytest.raises(UsageError, match=r"cannot be paired with the network's.*`relations` needs no pairs"):
        Taps.of(renamed, small(4), torch.randn(2, 1, 8, 8), features=True)


def test_hooks_and_modes_are_gone_afterwards():
    student, teacher = small(4).train(), small(8)
    Taps.of(student, teacher, torch.randn(4, 1, 8, 8), features=True)
    assert student.training
    assert not any(module._forward_hooks for module in (*student.modules(), *teacher.modules()))
    assert float(student[1].running_mean.abs().sum()) == 0
