"""A small residual network for 28 x 28 grey images: the model that the demo compresses.

About 47 million multiply-accumulates and 1.4 million parameters. It mixes what makes compression
interesting: plain residual blocks, a depthwise inverted-residual block and a squeeze-and-excite gate.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def conv_bn(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """A convolution without bias, followed by BatchNorm."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    )


class Residual(nn.Module):
    """Two 3 x 3 convolutions with a shortcut (He et al. 2015, arXiv:1512.03385)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = conv_bn(inputs, outputs, 3, stride)
        self.second = conv_bn(outputs, outputs, 3)
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else conv_bn(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(torch.relu(self.first(x)))
        return torch.relu(y + self.shortcut(x))


class Gate(nn.Module):
    """Squeeze-and-excite: scales every channel by what the whole image holds (Hu et al. 2017, arXiv:1709.01507)."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, squeezed, 1)
        self.excite = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = torch.nn.functional.adaptive_avg_pool2d(x, 1)
        return x * torch.sigmoid(self.excite(torch.relu(self.squeeze(pooled))))


class InvertedResidual(nn.Module):
    """Expand, depthwise 3 x 3, gate, project, add (Sandler et al. 2018, arXiv:1801.04381)."""

    def __init__(self, channels: int, expanded: int) -> None:
        super().__init__()
        self.expand = conv_bn(channels, expanded, 1)
        self.depthwise = conv_bn(expanded, expanded, 3, groups=expanded)
        self.gate = Gate(expanded, expanded // 8)
        self.project = conv_bn(expanded, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.expand(x))
        y = self.gate(torch.relu(self.depthwise(y)))
        return x + self.project(y)


class FashionNet(nn.Module):
    """`[N, 1, 28, 28]` float images, normalised, to `[N, 10]` logits."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(1, 32, 3)
        self.stages = nn.Sequential(
            Residual(32, 64, stride=2),
            Residual(64, 128, stride=2),
            InvertedResidual(128, 256),
            Residual(128, 256, stride=2),
        )
        self.classifier = nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stages(torch.relu(self.stem(x)))
        return self.classifier(torch.nn.functional.adaptive_avg_pool2d(y, 1).flatten(1))


def build() -> nn.Module:
    """The network with fresh weights, in training mode."""
    return FashionNet()
