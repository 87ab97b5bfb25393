"""Four small networks that no library of image classifiers has, as their users write them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def _conv(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


class UNet(nn.Module):
    """Segmentation with transposed convolutions and skips (Ronneberger et al. 2015, arXiv:1505.04597).

    `[N, 3, H, W]` to `[N, classes, H, W]`.
    """

    def __init__(self, width: int = 24, depth: int = 3, classes: int = 5) -> None:
        super().__init__()
        widths = [width << level for level in range(depth + 1)]
        self.down = nn.ModuleList()
        before = 3
        for after in widths:
            self.down.append(nn.Sequential(_conv(before, after), _conv(after, after)))
            before = after
        pairs = list(zip(widths[::-1], widths[-2::-1], strict=False))
        self.grow = nn.ModuleList(nn.ConvTranspose2d(deep, flat, 2, 2) for deep, flat in pairs)
        self.up = nn.ModuleList(nn.Sequential(_conv(2 * flat, flat), _conv(flat, flat)) for _, flat in pairs)
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Scores of every pixel."""
        skips: list[Tensor] = []
        for level, block in enumerate(self.down):
            x = block(F.max_pool2d(x, 2) if level else x)
            skips.append(x)
        skips.pop()
        for grow, block in zip(self.grow, self.up, strict=True):
            x = block(torch.cat([skips.pop(), grow(x)], 1))
        return self.head(x)


class Detector(nn.Module):
    """Boxes and scores from three scales, as in SSD (Liu et al. 2016, arXiv:1512.02325).

    `[N, 3, H, W]` to `[N, anchors, 4]` and `[N, anchors, classes]`.
    """

    def __init__(self, width: int = 32, anchors: int = 4, classes: int = 6) -> None:
        super().__init__()
        self.classes = classes
        self.stem = nn.Sequential(_conv(3, width, 2), _conv(width, width), _conv(width, 2 * width, 2))
        widths = (2 * width, 4 * width, 4 * width)
        self.stages = nn.ModuleList(
            nn.Sequential(_conv(before, after, 2), _conv(after, after))
            for before, after in zip((2 * width, *widths), widths, strict=False)
        )
        self.boxes = nn.ModuleList(nn.Conv2d(one, anchors * 4, 3, padding=1) for one in widths)
        self.scores = nn.ModuleList(nn.Conv2d(one, anchors * classes, 3, padding=1) for one in widths)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Offsets of the boxes, and probabilities of the classes."""
        x = self.stem(x)
        boxes, scores = [], []
        for stage, box, score in zip(self.stages, self.boxes, self.scores, strict=True):
            x = stage(x)
            boxes.append(box(x).permute(0, 2, 3, 1).reshape(x.shape[0], -1, 4))
            scores.append(score(x).permute(0, 2, 3, 1).reshape(x.shape[0], -1, self.classes))
        return torch.cat(boxes, 1), torch.cat(scores, 1).softmax(-1)


class _Residual1d(nn.Module):
    """Two dilated convolutions around a shortcut."""

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.first = nn.Conv1d(width, width, 3, padding=dilation, dilation=dilation, bias=False)
        self.norm1 = nn.BatchNorm1d(width)
        self.second = nn.Conv1d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm1d(width)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, C, T]` to the same shape."""
        return F.gelu(x + self.norm2(self.second(F.gelu(self.norm1(self.first(x))))))


class Audio(nn.Module):
    """Keywords from a raw waveform: strided and dilated 1-D convolutions. `[N, 1, T]` to `[N, classes]`."""

    def __init__(self, width: int = 48, classes: int = 12) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv1d(1, width, 80, 8, 40, bias=False), nn.BatchNorm1d(width), nn.GELU())
        layers: list[nn.Module] = []
        for level in range(3):
            inputs, outputs = width << level, width << level + 1
            layers += [_Residual1d(inputs, 1 << level), nn.Conv1d(inputs, outputs, 4, 4), nn.GroupNorm(1, outputs)]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(width << 3, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Scores of the keywords."""
        return self.head(self.body(self.stem(x)).mean(2))


class _Block(nn.Module):
    """Causal attention and an MLP, each behind a LayerNorm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.width, self.heads = width, heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """`[N, T, C]` to the same shape."""
        count, length, width = x.shape
        parts = self.qkv(self.norm1(x)).split(self.width, dim=2)
        q, k, v = (part.view(count, length, self.heads, width // self.heads).transpose(1, 2) for part in parts)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(count, length, width))
        return x + self.mlp(self.norm2(x))


class Gpt(nn.Module):
    """A small GPT-2 (Radford et al. 2019), its output tied to its embedding: `[N, T]` to `[N, T, vocabulary]`."""

    def __init__(
        self, vocabulary: int = 256, length: int = 32, width: int = 128, heads: int = 4, layers: int = 4
    ) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(_Block(width, heads) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, tokens: Tensor) -> Tensor:
        """Scores of the next token at every position."""
        places = torch.arange(tokens.shape[1], device=tokens.device)
        return self.head(self.norm(self.blocks(self.tokens(tokens) + self.positions(places))))
