"""Recovery training: the smaller network learns from the labels and from the untouched one.

What is driven down is `edgekit.train.objective`'s. Every epoch draws its order and its augmentation from (seed, epoch),
and checkpoints hold the state of every generator, so a run that goes on from one gives the same bits as one that never
stopped. A loss that runs away takes training back to the last good state.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from edgekit.context import Progress
from edgekit.errors import UsageError
from edgekit.prune.shapes import laid_out
from edgekit.train.batch import Batch
from edgekit.train.checkpoint import Checkpoint, digest
from edgekit.train.found import batch_size, free_bytes
from edgekit.train.losses import Truth
from edgekit.train.processes import Processes
from edgekit.train.samples import Samples
from edgekit.train.settings import Settings
from edgekit.train.trainee import Optimizers, sgd
from edgekit.train.training import Recovered, Training


def native_bf16() -> bool:
    """Whether this processor multiplies bfloat16 itself (AMX or AVX-512 BF16) rather than by emulation."""
    cpu = torch.cpu
    return any(
        bool(getattr(cpu, name)())
        for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
        if hasattr(cpu, name)
    )


def recover(
    student: nn.Module,
    teacher: nn.Module,
    train: Samples,
    held_out: Samples,
    settings: Settings,
    *,
    folder: Path,
    progress: Progress,
    deadline: float | None = None,
    stage: str = "distill",
    optimizer: Optimizers | None = None,
) -> Recovered:
    """A trained copy of `student`, from the epoch with the lowest loss on `held_out`; the start counts as epoch 0.

    The checkpoint in `folder` is used if it is of this very training, and replaced after every epoch, and within one
    that takes long. `stage` is what messages call the training; `optimizer` makes one for the copy, by default SGD over
    all of its parameters.

    Raises:
        UsageError: the loss keeps running away, a sample cannot be read, or the teacher does not fit.
    """
    with _reproducible(settings.seed):
        checkpoint = Checkpoint(folder, digest(settings, student, teacher, train, held_out))
        saved = checkpoint.load()
        together = Processes()
        if together.agree(saved is not None) != (saved is not None):
            raise UsageError(
                f"Process {together.rank} does not find the checkpoint of the first one in {folder}. All of them need "
                "the same output folder (--out), model and data."
            )
        if saved is not None:
            settings = replace(settings, batch_size=saved["batch_size"])
        elif not settings.batch_size:
            settings = replace(settings, batch_size=_fitting(student, train, settings))
        made = Training(
            student, teacher, train, held_out, settings,
            progress=progress, deadline=deadline, stage=stage, optimizer=optimizer or sgd, checkpoint=checkpoint,
        )  # fmt: skip
        return made.run(saved)


def _fitting(student: nn.Module, train: Samples, settings: Settings) -> int:
    """A batch size by memory and number of samples."""
    together = Processes()
    device = together.device(settings.device)
    module = laid_out(copy.deepcopy(student), torch.channels_last).to(device).requires_grad_(True)
    inputs = Batch(train.batch(np.arange(min(4, len(train))))[0], Truth(None)).to(device).inputs
    size = batch_size(module, inputs, len(train), free_bytes(device))
    return int(together.agree(size))


def judged(student: nn.Module, teacher: nn.Module, held_out: Samples, settings: Settings) -> tuple[float, float]:
    """Loss and score of a network that is not trained; the score is a share of hits, or dB."""
    return Training(student, teacher, held_out, held_out, settings).objective.evaluate(held_out)


@contextmanager
def _reproducible(seed: int) -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        torch.use_deterministic_algorithms(True, warn_only=True)
        # What is written before it is read need not be filled first: that takes 5 to 8 % of a step of ResNet-20.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        try:
            yield
        finally:
            torch.utils.deterministic.fill_uninitialized_memory = filled  # type: ignore[attr-defined]
            torch.use_deterministic_algorithms(before[0], warn_only=before[1])
