"""Simple label-preserving changes of image batches, drawn from a generator of their own."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Augment = Literal["none", "shift", "flip_shift"]
"""`shift`: each image moves by up to 1/14 of its extent (2 of 28 pixels), its border repeated; safe for most images.
`flip_shift` also mirrors half of them: right for photographs and clothes, wrong for digits and letters."""


def augmented(images: Tensor, how: Augment, generator: torch.Generator) -> Tensor:
    """A changed copy of `[N, C, H, W]`; tensors that are not images stay as they are."""
    if how == "none" or images.ndim != 4 or min(images.shape[2:]) < 8:
        return images
    if how == "flip_shift":
        mirrored = torch.rand(len(images), generator=generator) < 0.5
        images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
    return _shifted(images, generator)


def _shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    count, channels, height, width = images.shape
    up, left = max(height // 14, 1), max(width // 14, 1)
    padded = F.pad(images, (left, left, up, up), mode="replicate")
    top = torch.randint(0, 2 * up + 1, (count,), generator=generator)
    side = torch.randint(0, 2 * left + 1, (count,), generator=generator)
    rows = (top[:, None] + torch.arange(height))[:, None, :, None]
    columns = (side[:, None] + torch.arange(width))[:, None, None, :]
    samples = torch.arange(count)[:, None, None, None]
    return padded[samples, torch.arange(channels)[None, :, None, None], rows, columns]
