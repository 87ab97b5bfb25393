"""Changes of batches, drawn from a generator of their own: those that keep the label, and mixtures of two samples."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from edgekit.errors import UsageError
from edgekit.train.losses import Truth
from edgekit.train.settings import Augment


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


def mixed(
    inputs: Tensor, labels: Tensor | None, mixup: float, cutmix: float, generator: torch.Generator
) -> tuple[Tensor, Truth]:
    """Every sample mixed with another of the batch, and the labels of both with the share of the first.

    `mixup` adds the two up (Zhang et al. 2018, arXiv:1710.09412); `cutmix` puts a box of the one into the other (Yun et
    al. 2019, arXiv:1905.04899). Each is the parameter of the beta distribution that shares are drawn from, 0 leaves it
    out; with both, a coin decides for each batch.

    Raises:
        UsageError: there is nothing to cut a box out of.
    """
    if not (mixup or cutmix) or len(inputs) < 2:
        return inputs, Truth(labels)
    draw = np.random.default_rng(int(torch.randint(2**31, (), generator=generator)))
    cut = bool(cutmix) and (not mixup or draw.random() < 0.5)
    share = float(draw.beta(cutmix, cutmix) if cut else draw.beta(mixup, mixup))
    partner = torch.randperm(len(inputs), generator=generator)
    if cut:
        if inputs.ndim < 3:
            raise UsageError(
                f"regularize.cutmix cuts boxes out of images or signals; samples of shape {list(inputs.shape[1:])} "
                "have no positions. Use mixup."
            )
        inputs, share = _pasted(inputs, inputs[partner], share, draw)
    else:
        inputs = inputs * share + inputs[partner] * (1 - share)
    return inputs, Truth(labels, None if labels is None else labels[partner], share if labels is not None else 1.0)


def _pasted(inputs: Tensor, others: Tensor, share: float, draw: np.random.Generator) -> tuple[Tensor, float]:
    """A box of the others over all channels, and the share of positions that are left."""
    extents = inputs.shape[2:]
    side = (1 - share) ** (1 / len(extents))
    box: list[slice] = [slice(None), slice(None)]
    for extent in extents:
        middle, half = int(draw.integers(0, extent)), int(extent * side) // 2
        box.append(slice(max(middle - half, 0), min(middle + half, extent)))
    result = inputs.clone()
    result[tuple(box)] = others[tuple(box)]
    inside = np.prod([part.stop - part.start for part in box[2:]])
    return result, 1 - float(inside) / float(np.prod(extents))
