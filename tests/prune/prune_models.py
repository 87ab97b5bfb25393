"""Small trained-looking networks for the tests of pruning and recovery."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgekit.data import DataSet, Preprocess, Split


class Block(nn.Module):
    """The basic block of the classic CIFAR ResNet, with a shortcut without weights (option A)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.pad = (outputs - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.pad:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad))
        return F.relu(x + y)


class ResNet20(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(Block(16, 16, 1), Block(16, 16, 1), Block(16, 16, 1))
        self.layer2 = nn.Sequential(Block(16, 32, 2), Block(32, 32, 1), Block(32, 32, 1))
        self.layer3 = nn.Sequential(Block(32, 64, 2), Block(64, 64, 1), Block(64, 64, 1))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x))))))
        return self.linear(F.adaptive_avg_pool2d(y, 1).flatten(1))


class Mixed(nn.Module):
    """A residual add, a concat, a depthwise convolution, a gate, and a flatten of 4 x 4 positions."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.b = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.PReLU(16))
        self.c = nn.Conv2d(32, 24, 1)
        self.depthwise = nn.Conv2d(24, 24, 3, padding=1, groups=24)
        self.gate = nn.Conv2d(24, 24, 1)
        self.d = nn.Conv2d(24, 16, 3, padding=1)
        self.head = nn.Linear(16 * 16, 4)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        y = self.depthwise(self.c(torch.cat([a, a + self.b(a)], 1)).relu()).relu()
        y = y * torch.sigmoid(self.gate(y.mean((2, 3), keepdim=True)))
        return self.head(F.adaptive_avg_pool2d(self.d(y).relu(), 4).flatten(1))


def settled(module: nn.Module, *shape: int) -> nn.Module:
    """`module` with statistics and scales that are not those of a fresh one."""
    torch.manual_seed(1)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias, 0, 0.2)
            layer.running_mean.normal_(0, 0.1)
            layer.running_var.uniform_(0.5, 1.5)
    return module.eval()


def least(found, share: float) -> dict[str, int]:
    """So many channels of every group, as a share."""
    return {group.name: math.ceil(group.channels * share) for group in found.groups}


def stripes(count: int = 240, *, labels: bool = True, name: str = "stripes") -> DataSet:
    """Noisy 12 x 12 grey images of four kinds of stripes, as bytes: learned in seconds."""
    rng = np.random.default_rng(0)

    def split(kind: str, size: int) -> Split:
        y = rng.integers(0, 4, size).astype(np.int64)
        rows, columns = np.mgrid[:12, :12]
        patterns = np.stack([rows % 2, columns % 2, rows // 3 % 2, columns // 3 % 2])
        x = (patterns[y] * 120 + rng.integers(0, 130, (size, 12, 12))).astype(np.uint8)
        scale = Preprocess(scale=(1 / 64,), offset=(-2.0,), layout="NHW", to="NCHW")
        return Split(kind, x, y if labels else None, tuple(f"{kind}{i}" for i in range(size)), scale)

    return DataSet(name, {"train": split("train", count), "test": split("test", 100)}, ("a", "b", "c", "d"))
