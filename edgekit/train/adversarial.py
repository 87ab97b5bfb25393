"""Samples that are changed against the network in training, so that it learns to bear small changes.

The loss becomes `(1 - share) * loss(sample) + share * loss(changed sample)`; the teacher, which was never trained so,
sees the sample itself in both (Goldblum et al. 2020, arXiv:1905.09747). `fgsm` is one step along the sign of the
gradient (Goodfellow et al. 2015, arXiv:1412.6572), `pgd` several within the same box from a random start (Madry et al.
2018, arXiv:1706.06083).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from edgekit.robust.settings import read_epsilon
from edgekit.train.samples import Samples
from edgekit.train.settings import AdversarialTraining

STRIDE = 2.5
"""Steps of PGD are this share of epsilon over their number, as in the code of Madry et al.: they reach the border."""


@dataclass(frozen=True)
class Attacker:
    """Makes changed samples. `low` and `high` `[1, ...]` bound a sample as the network takes it."""

    settings: AdversarialTraining
    low: Tensor
    high: Tensor

    @classmethod
    def of(cls, settings: AdversarialTraining, samples: Samples, device: torch.device) -> Attacker:
        """Bounds of the stored values, brought to what the network takes."""
        array, preprocess = samples.split.array, samples.split.preprocess
        ends = (0, 255) if array.dtype == np.uint8 else (array.min(), array.max())
        found = [torch.from_numpy(preprocess.apply(np.full_like(array[:1], end))).to(device) for end in ends]
        return cls(settings, torch.minimum(*found), torch.maximum(*found))

    def changed(self, inputs: Tensor, start: Tensor | None, loss: Callable[[Tensor], Tensor]) -> Tensor:
        """`inputs` moved by at most epsilon of the range of values, so that `loss` of them rises.

        `start` in -1 ... 1 says where in the box around the inputs to begin. `loss` is called with inputs that want a
        gradient; gradients of parameters are left alone.
        """
        reach = (self.high - self.low) * read_epsilon(self.settings.epsilon)
        steps = self.settings.steps if self.settings.attack == "pgd" else 1
        stride = reach * (STRIDE / steps if self.settings.attack == "pgd" else 1.0)
        moved = inputs if start is None else self._within(inputs + start * reach, inputs, reach)
        for _ in range(steps):
            moved = moved.detach().requires_grad_(True)
            (slope,) = torch.autograd.grad(loss(moved), moved)
            moved = self._within(moved.detach() + stride * slope.sign(), inputs, reach)
        return moved.detach()

    def _within(self, moved: Tensor, inputs: Tensor, reach: Tensor) -> Tensor:
        near = torch.maximum(torch.minimum(moved, inputs + reach), inputs - reach)
        return torch.maximum(torch.minimum(near, self.high), self.low)
