"""What student and teacher make of a batch: the loss that is driven down, and how well the student does."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from edgekit.errors import UsageError
from edgekit.train.adversarial import Attacker
from edgekit.train.batch import Batch
from edgekit.train.losses import Truth, relations, terms, truth_or
from edgekit.train.processes import Processes
from edgekit.train.regularize import train_mode
from edgekit.train.samples import Samples
from edgekit.train.settings import Settings
from edgekit.train.taps import Taps

Outputs = Tensor | tuple[Tensor, ...]


class Objective:
    """The loss of a student with its teacher. `projections` are learned with the student; there may be none."""

    def __init__(self, student: nn.Module, teacher: nn.Module, settings: Settings, processes: Processes) -> None:
        self.student, self.teacher = student, teacher.requires_grad_(False).eval()
        self.settings, self.processes, self.device = settings, processes, processes.device(settings.device)
        self.shares = (False, False)
        """Whether student and teacher give probabilities rather than logits."""
        self.taps: Taps | None = None
        self.attacker: Attacker | None = None

    @property
    def projections(self) -> nn.ModuleDict:
        """Maps from the student's channels to the teacher's, where features are compared."""
        return self.taps.projections if self.taps else nn.ModuleDict()

    def prepare(self, samples: Samples) -> list[nn.Parameter]:
        """Make ready what the settings ask for beside labels and teacher; what of that is learned."""
        match = self.settings.match
        if match.inside:
            inputs = Batch(samples.batch(np.arange(min(64, len(samples))))[0], Truth(None)).to(self.device).inputs
            self.taps = Taps.of(self.student, self.teacher, inputs, features=match.features > 0)
            self.taps.projections.to(self.device)
        if self.settings.adversarial:
            self.attacker = Attacker.of(self.settings.adversarial, samples, self.device)
        return list(self.projections.parameters())

    @torch.no_grad()
    def check_classes(self, samples: Samples, stage: str) -> None:
        """Refuse a teacher that knows other classes than the student; see which of them gives probabilities."""
        if self.settings.objective != "classes":
            return
        inputs = Batch(samples.batch(np.arange(min(8, len(samples))))[0], Truth(None)).to(self.device).inputs
        outputs = [_logits(module(inputs)) for module in (self.student.eval(), self.teacher)]
        self.shares = _are_shares(outputs[0]), _are_shares(outputs[1])
        own, other = (output.shape[1] for output in outputs)
        if own != other:
            raise UsageError(
                f"The teacher gives {other} classes and the network {own}: they must be the same, in the same order. "
                f"Take another {stage}.teacher, or leave it out: the untouched network serves."
            )

    def loss(self, batch: Batch) -> Tensor:
        """The mean over a batch of everything that is driven down."""
        match, l1 = self.settings.match, self.settings.regularize.l1
        with self.taps.recording() if self.taps else nullcontext():
            found, seen, wanted = self.compared(batch)
            if self.taps:
                found |= self.taps.terms(match.features, match.attention)
        if match.relations:
            found["relations"] = match.relations * relations(_flat(seen), _flat(wanted))
        if self.attacker:
            share = self.attacker.settings.share
            found = {name: (1 - share) * term for name, term in found.items()}
            found["adversarial"] = share * _summed(self.compared(self.attacked(batch, wanted), wanted)[0])
        if l1:
            kernels = [p for p in self.student.parameters() if p.requires_grad and p.ndim > 1]
            found["l1"] = l1 * _summed({str(i): kernel.abs().sum() for i, kernel in enumerate(kernels)})
        return _summed(found)

    def attacked(self, batch: Batch, wanted: Outputs) -> Batch:
        """The batch with inputs that were changed against the student as it is when it does not train."""
        assert self.attacker is not None
        self.student.eval()
        changed = self.attacker.changed(
            batch.inputs, batch.start, lambda x: _summed(self.compared(replace(batch, inputs=x), wanted)[0])
        )
        train_mode(self.student)
        return replace(batch, inputs=changed)

    def compared(self, batch: Batch, wanted: Outputs | None = None) -> tuple[dict[str, Tensor], Outputs, Outputs]:
        """The terms of labels and teacher, what the student gives, and what the teacher gives, or gave before."""
        settings = self.settings
        if settings.objective == "outputs":
            if wanted is None:
                with torch.no_grad():
                    wanted = self.teacher(batch.inputs)
            seen = self.student(batch.inputs)
            noise, signal = energies(seen, wanted)
            return {"teacher": noise / signal.clamp(min=1e-30)}, seen, wanted
        dtype = torch.float16 if settings.precision == "fp16" else torch.bfloat16
        with torch.autocast(self.device.type, dtype=dtype, enabled=settings.precision != "fp32"):
            logits = _logits(self.student(batch.inputs), shares=self.shares[0])
            if wanted is None:
                with torch.no_grad():
                    wanted = _logits(self.teacher(batch.inputs), shares=self.shares[1])
        assert isinstance(wanted, Tensor)
        return terms(logits, wanted, batch.truth, settings), logits, wanted

    @torch.no_grad()
    def evaluate(self, samples: Samples) -> tuple[float, float]:
        """Loss and score on samples, by labels and teacher alone.

        The score is accuracy, agreement with the teacher where there are no labels, or a signal-to-noise ratio in dB
        where the outputs are no classes.
        """
        self.student.eval()
        classes, sums = self.settings.objective == "classes", [0.0, 0.0]
        for number, (inputs, labels) in enumerate(samples.batches(256)):
            if number % self.processes.count != self.processes.rank:
                continue
            batch = Batch(inputs, Truth(labels)).to(self.device)
            found, seen, wanted = self.compared(batch)
            if classes:
                assert isinstance(seen, Tensor)
                assert isinstance(wanted, Tensor)
                sums[0] += float(_summed(found)) * len(inputs)
                sums[1] += int((seen.argmax(-1) == truth_or(batch.truth.labels, wanted)).sum())
            else:
                noise, signal = energies(seen, wanted)
                sums = [sums[0] + float(noise), sums[1] + float(signal)]
            if not math.isfinite(sums[0]):
                batch.check_finite(samples.names(np.arange(256 * number, 256 * number + len(inputs))))
        first, second = self.processes.total(sums)
        if classes:
            return first / len(samples), second / len(samples)
        share = first / max(second, 1e-30)
        return share, -10 * math.log10(max(share, 1e-20))


def scored(settings: Settings, entry: Mapping[str, float]) -> str:
    """The score of an entry of the curve, in words."""
    value = entry[settings.score]
    return f"accuracy {value:.2%}" if settings.objective == "classes" else f"{value:.1f} dB"


def energies(seen: Outputs, wanted: Outputs) -> tuple[Tensor, Tensor]:
    """The energy of the difference of all outputs, and that of the wanted ones."""
    pairs = list(zip(_several(seen), _several(wanted), strict=True))
    noise, signal = pairs[0][0].new_zeros((), dtype=torch.float32), pairs[0][0].new_zeros((), dtype=torch.float32)
    for one, other in pairs:
        noise = noise + (one.float() - other.float()).square().sum()
        signal = signal + other.float().square().sum()
    return noise, signal


def _summed(found: Mapping[str, Tensor]) -> Tensor:
    return functools.reduce(operator.add, found.values())


def _several(outputs: Outputs) -> tuple[Tensor, ...]:
    return (outputs,) if isinstance(outputs, Tensor) else outputs


def _flat(outputs: Outputs) -> Tensor:
    return _several(outputs)[0].float().flatten(1)


def _are_shares(outputs: Tensor) -> bool:
    """Whether rows are probabilities: logits of several samples neither are all positive nor add up to 1."""
    return bool((outputs >= 0).all()) and bool(((outputs.sum(1) - 1).abs() < 1e-3).all())


def _logits(output: Outputs, *, shares: bool = False) -> Tensor:
    """What a softmax makes probabilities of, `[N, classes]`; of probabilities (`shares`) that is their logarithm."""
    logits = (output if isinstance(output, Tensor) else output[0]).float()
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise UsageError(
            f"Recovery training needs class logits [N, classes] as the model's first output, got {list(logits.shape)}."
        )
    return logits.clamp(min=1e-20).log() if shares else logits
