"""A batch as it is learned from: changed inputs, and what is true of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from edgekit.errors import UsageError
from edgekit.train.augment import augmented, mixed
from edgekit.train.losses import Truth
from edgekit.train.settings import Settings


@dataclass(frozen=True)
class Batch:
    """Inputs `[N, ...]`, their truth, and, where they are to be attacked, the start of that in -1 ... 1."""

    inputs: Tensor
    truth: Truth
    start: Tensor | None = None

    @classmethod
    def made(cls, inputs: Tensor, labels: Tensor | None, settings: Settings, draw: torch.Generator) -> Batch:
        """Samples augmented and mixed as the settings say."""
        how, attack = settings.regularize, settings.adversarial
        changed = augmented(inputs, settings.augment, draw)
        changed, truth = mixed(changed, labels, how.mixup, how.cutmix, draw)
        start = torch.rand(changed.shape, generator=draw) * 2 - 1 if attack and attack.attack == "pgd" else None
        return cls(changed, truth, start)

    def to(self, device: torch.device) -> Batch:
        """The batch where the networks are, images laid out as they like it."""
        inputs = self.inputs
        if inputs.ndim == 4:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        start = None if self.start is None else self.start.to(device)
        return Batch(inputs.to(device), self.truth.to(device), start)

    def part(self, rows: slice) -> Batch:
        """Some of the samples."""
        if rows == slice(0, len(self.inputs)):
            return self
        return Batch(self.inputs[rows], self.truth.part(rows), None if self.start is None else self.start[rows])

    def check_finite(self, ids: Sequence[str]) -> None:
        """Name the sample that holds values which are no numbers, if one does.

        Raises:
            UsageError: it is told.
        """
        for name, values in zip(ids, self.inputs, strict=True):
            if not bool(values.isfinite().all()):
                raise UsageError(f"Sample {name!r} holds NaN or infinity after preprocessing. Remove or repair it.")
