"""The temporary BatchNorm changes nothing when it comes, and nothing when it goes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "prune"))

from prune_models import Mixed, settled  # noqa: E402
from torch import nn  # noqa: E402

from edgekit.graph.crossing import export_module  # noqa: E402
from edgekit.graph.torch_view import torch_view  # noqa: E402
from edgekit.model import TensorSpec  # noqa: E402
from edgekit.train.normed import with_batchnorm, without_batchnorm  # noqa: E402


def folded() -> nn.Module:
    specs = (TensorSpec("image", "float32", ("batch", 1, 12, 12)),)
    return torch_view(export_module(settled(Mixed()), specs, "mixed").proto)


def test_coming_and_going_change_nothing_and_training_between_is_kept():
    view = folded()
    assert not any(isinstance(m, nn.BatchNorm2d) for m in view.modules())
    batches = [torch.randn(16, 1, 12, 12) for _ in range(3)]
    normed, count = with_batchnorm(view, batches)
    assert count == 5  # not the gate, which sees one position
    x = torch.randn(8, 1, 12, 12)
    with torch.no_grad():
        torch.testing.assert_close(normed(x), view(x), atol=1e-5, rtol=1e-4)
        every = torch.cat(batches)
        torch.testing.assert_close(normed.train()(every), view(every), atol=1e-2, rtol=1e-2)
        normed.eval()
        for parameter in normed.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
        back = without_batchnorm(normed)
        torch.testing.assert_close(back(x), normed(x), atol=1e-5, rtol=1e-4)
    assert {n: v.shape for n, v in back.state_dict().items()} == {n: v.shape for n, v in view.state_dict().items()}


def test_a_transposed_convolution_folds_too():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.ConvTranspose2d(4, 6, 3, stride=2)).eval()
    x = torch.randn(4, 1, 12, 12)
    normed, count = with_batchnorm(module, [x])
    with torch.no_grad():
        for layer in normed.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.weight *= 1.5
                layer.bias += 0.3
        torch.testing.assert_close(without_batchnorm(normed)(x), normed(x), atol=1e-5, rtol=1e-4)
    assert count == 2
