"""Recovery training: the smaller network learns from the labels and from the untouched one.

The loss is `(1 - alpha) * cross-entropy + alpha * T^2 * KL(teacher || student)` on logits softened by the temperature
`T` (Hinton et al. 2015, arXiv:1503.02531); without labels the second term alone. Outputs that are no logits are held
against the teacher's by the energy of the difference, as a share of that of the teacher's. Every epoch draws its order
and its augmentation from (seed, epoch), so a run that goes on from a checkpoint gives the same bits as one that never
stopped.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgekit.context import Progress, Silent
from edgekit.errors import UsageError
from edgekit.prune.shapes import laid_out
from edgekit.train.augment import Augment, augmented
from edgekit.train.checkpoint import Checkpoint, digest
from edgekit.train.samples import Samples

Precision = Literal["auto", "fp32", "bf16"]
Objective = Literal["classes", "outputs"]
WARM_UP = 0.1
"""Share of all steps during which the learning rate rises."""


@dataclass(frozen=True)
class Settings:
    """How to train. `learning_rate` is the peak of a linear warm-up and a cosine down to zero."""

    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    temperature: float
    alpha: float
    label_smoothing: float
    augment: Augment
    patience: int
    clip: float
    precision: Literal["fp32", "bf16"]
    seed: int
    objective: Objective = "classes"
    """What the network gives: the logits of classes, or outputs of any kind."""

    @property
    def score(self) -> str:
        """What judges an epoch beside its loss: a share of hits, or a signal-to-noise ratio in dB."""
        return "accuracy" if self.objective == "classes" else "snr_db"


@dataclass(frozen=True)
class Recovered:
    """The best epoch's module; `start` is held-out loss and score before training, `curve` one entry an epoch."""

    module: nn.Module
    best_epoch: int
    start: tuple[float, float]
    curve: tuple[dict[str, float], ...]
    stopped: str = ""
    resumed_at: int = 0


@dataclass
class _State:
    """What changes from epoch to epoch, and goes into the checkpoint."""

    epoch: int = 0
    best_epoch: int = 0
    best_loss: float = math.inf
    best: dict[str, Tensor] = field(default_factory=dict)
    curve: list[dict[str, float]] = field(default_factory=list)


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

    The checkpoint in `folder` is used if it is of this very training, and replaced after every epoch. `stage` is what
    messages call the training; `optimizer` makes one for the copy, by default SGD over all of its parameters.

    Raises:
        UsageError: the loss is no longer a number.
    """
    with _reproducible(settings.seed):
        made = optimizer or sgd
        return _Training(student, teacher, train, held_out, settings, folder, progress, deadline, stage, made).run()


def judged(student: nn.Module, teacher: nn.Module, held_out: Samples, settings: Settings) -> tuple[float, float]:
    """Loss and score of a network that is not trained; the score is a share of hits, or dB."""
    return _Training(student, teacher, held_out, held_out, settings, Path(), Silent(), None, "", sgd).evaluate()


@contextmanager
def _reproducible(seed: int) -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before[0], warn_only=before[1])


class _DeadlineError(Exception):
    """The time lent to this stage is over."""


class _Training:
    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        train: Samples,
        held_out: Samples,
        settings: Settings,
        folder: Path,
        progress: Progress,
        deadline: float | None,
        stage: str,
        optimizer: Optimizers,
    ) -> None:
        self.student = laid_out(copy.deepcopy(student), torch.channels_last).requires_grad_(True)
        self.teacher = laid_out(copy.deepcopy(teacher), torch.channels_last).requires_grad_(False).eval()
        self.train, self.held_out, self.settings = train, held_out, settings
        self.progress, self.deadline, self.stage = progress, deadline, stage
        self.steps = max(len(train) // settings.batch_size, 1)
        self.optimizer = optimizer(self.student, settings)
        self.checkpoint = Checkpoint(folder, digest(settings, student, teacher, train, held_out))
        self.state = _State()

    def run(self) -> Recovered:
        start = self.evaluate()
        self.state.best_loss, self.state.best = start[0], _snapshot(self.student)
        resumed = self.resume()
        stopped = ""
        total = self.settings.epochs * self.steps
        with self.progress.task(self.stage, total=total) as task:
            task.advance(self.state.epoch * self.steps, note=self.note())
            while self.state.epoch < self.settings.epochs and not stopped:
                try:
                    self.epoch(lambda: task.advance(1, note=self.note()))
                except _DeadlineError:
                    stopped = f"stopped at the deadline in epoch {self.state.epoch + 1} of {self.settings.epochs}"
                    break
                if self.state.epoch - self.state.best_epoch >= self.settings.patience:
                    stopped = f"stopped early: no better for {self.settings.patience} epochs"
        self.student.load_state_dict(self.state.best)
        module = laid_out(self.student, torch.contiguous_format).eval()
        return Recovered(module, self.state.best_epoch, start, tuple(self.state.curve), stopped, resumed)

    def resume(self) -> int:
        saved = self.checkpoint.load()
        if saved is None:
            return 0
        self.student.load_state_dict(saved["student"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.state = _State(saved["epoch"], saved["best_epoch"], saved["best_loss"], saved["best"], saved["curve"])
        return self.state.epoch

    def note(self) -> str:
        last = self.state.curve[-1] if self.state.curve else None
        return f"held-out loss {last['held_out_loss']:.3f}, {scored(self.settings, last)}" if last else ""

    def epoch(self, advance: Callable[[], None]) -> None:
        """One pass over the training samples, its evaluation and its checkpoint."""
        settings, state, started = self.settings, self.state, time.monotonic()
        draw = torch.Generator().manual_seed(settings.seed * 1_000_003 + state.epoch)
        torch.manual_seed(settings.seed * 1_000_003 + state.epoch)
        order = torch.randperm(len(self.train), generator=draw).numpy()
        self.student.train()
        losses = 0.0
        for step in range(self.steps):
            if self.deadline is not None and time.monotonic() > self.deadline:
                raise _DeadlineError
            rate = self.rate(state.epoch * self.steps + step)
            rows = order[step * settings.batch_size : (step + 1) * settings.batch_size]
            losses += self.step(rows, rate, draw)
            advance()
        held_out, score = self.evaluate()
        state.epoch += 1
        if held_out < state.best_loss:
            state.best_loss, state.best_epoch, state.best = held_out, state.epoch, _snapshot(self.student)
        state.curve.append(
            {
                "epoch": float(state.epoch),
                "train_loss": losses / self.steps,
                "held_out_loss": held_out,
                settings.score: score,
                "seconds": time.monotonic() - started,
                "learning_rate": rate,
            }
        )
        self.checkpoint.save(
            {
                "student": self.student.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "epoch": state.epoch,
                "best_epoch": state.best_epoch,
                "best_loss": state.best_loss,
                "best": state.best,
                "curve": state.curve,
            }
        )

    def rate(self, step: int) -> float:
        """Linear warm-up, then a cosine to zero (Loshchilov & Hutter 2016, arXiv:1608.03983)."""
        total = self.settings.epochs * self.steps
        warm = max(int(total * WARM_UP), 1)
        share = (step + 1) / warm if step < warm else (1 + math.cos(math.pi * (step - warm) / max(total - warm, 1))) / 2
        return self.settings.learning_rate * share

    def step(self, rows: np.ndarray, rate: float, draw: torch.Generator) -> float:
        inputs, labels = self.train.batch(rows)
        inputs = augmented(inputs, self.settings.augment, draw)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get("faster", 1.0)
        loss = self.loss(inputs, labels)[0]
        value = float(loss.detach())
        if not math.isfinite(value):
            raise UsageError(
                f"Recovery training diverged: the loss is {value} in epoch {self.state.epoch + 1} at learning rate "
                f"{rate:.3g}. Set {self.stage}.learning_rate lower than {self.settings.learning_rate:g}."
            )
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(self.student.parameters(), self.settings.clip)
        self.optimizer.step()
        return value

    def loss(self, inputs: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """The mean loss of a batch, the student's logits and the teacher's."""
        settings = self.settings
        if inputs.ndim == 4:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        if settings.objective == "outputs":
            return self.distance(inputs)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=settings.precision == "bf16"):
            logits = _logits(self.student(inputs))
            with torch.no_grad():
                wanted = _logits(self.teacher(inputs))
        soft = settings.temperature
        distance = F.kl_div(
            F.log_softmax(logits / soft, -1), F.log_softmax(wanted / soft, -1), reduction="none", log_target=True
        )
        kl = distance.sum(-1).mean() * soft * soft
        if labels is None:
            return kl, logits, wanted
        hard = F.cross_entropy(logits, labels, label_smoothing=settings.label_smoothing)
        return (1 - settings.alpha) * hard + settings.alpha * kl, logits, wanted

    def distance(self, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The energy of the outputs' noise against the teacher's as a share of the signal's; noise and signal too."""
        noise, signal = inputs.new_zeros(()), inputs.new_zeros(())
        with torch.no_grad():
            wanted = self.teacher(inputs)
        for seen, output in zip(_several(self.student(inputs)), _several(wanted), strict=True):
            noise = noise + (seen.float() - output.float()).square().sum()
            signal = signal + output.float().square().sum()
        return noise / signal.clamp(min=1e-30), noise, signal

    @torch.no_grad()
    def evaluate(self) -> tuple[float, float]:
        """Loss and score on the held-out samples.

        The score is accuracy, agreement with the teacher where there are no labels, or a signal-to-noise ratio in dB
        where the outputs are no classes.
        """
        self.student.eval()
        if self.settings.objective == "outputs":
            energies = [self.distance(inputs)[1:] for inputs, _ in self.held_out.batches(256)]
            share = sum(float(n) for n, _ in energies) / max(sum(float(s) for _, s in energies), 1e-30)
            return share, -10 * math.log10(max(share, 1e-20))
        loss, hits = 0.0, 0
        for inputs, labels in self.held_out.batches(256):
            mean, logits, wanted = self.loss(inputs, labels)
            truth = wanted.argmax(-1) if labels is None else labels
            loss += float(mean) * len(inputs)
            hits += int((logits.argmax(-1) == truth).sum())
        return loss / len(self.held_out), hits / len(self.held_out)


Optimizers = Callable[[nn.Module, Settings], torch.optim.Optimizer]


def sgd(module: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    """Momentum over all parameters."""
    groups = _decayed(module, settings.weight_decay)
    return torch.optim.SGD(groups, settings.learning_rate, momentum=0.9, nesterov=True)


def scored(settings: Settings, entry: Mapping[str, float]) -> str:
    """The score of an entry of the curve, in words."""
    value = entry[settings.score]
    return f"accuracy {value:.2%}" if settings.objective == "classes" else f"{value:.1f} dB"


def _several(outputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (outputs,) if isinstance(outputs, Tensor) else outputs


def _decayed(module: nn.Module, decay: float) -> list[dict[str, object]]:
    """Weight decay for matrices and kernels alone, not for biases and normalisation."""
    parameters = list(module.parameters())
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def _snapshot(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def _logits(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    logits = (output if isinstance(output, Tensor) else output[0]).float()
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise UsageError(
            f"Recovery training needs class logits [N, classes] as the model's first output, got {list(logits.shape)}."
        )
    return logits
