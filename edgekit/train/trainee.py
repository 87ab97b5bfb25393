"""The network that learns, with everything that changes while it does: what a checkpoint holds."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from edgekit.train.batch import Batch
from edgekit.train.objective import Objective
from edgekit.train.processes import Processes
from edgekit.train.regularize import Average
from edgekit.train.schedule import Schedule, Watch
from edgekit.train.settings import Settings


@dataclass
class State:
    """What changes while training, beside weights and generators; it goes into the checkpoint.

    `epoch` counts those that are over, `done` steps in all, `step` those of the running epoch, of which `losses` is the
    sum and `seconds` the time. `spent` is the time of the whole training.
    """

    epoch: int = 0
    done: int = 0
    step: int = 0
    losses: float = 0.0
    seconds: float = 0.0
    spent: float = 0.0
    best_epoch: int = 0
    best_loss: float = math.inf
    best: dict[str, Tensor] = field(default_factory=dict)
    curve: list[dict[str, float]] = field(default_factory=list)
    halved: int = 0


class DivergedError(Exception):
    """The loss runs away."""

    def __init__(self, loss: float, rate: float) -> None:
        super().__init__()
        self.loss, self.rate = loss, rate


class Trainee:
    """A student with its optimizer, its averages, its generators, and where it stands; `step` learns from a batch."""

    def __init__(
        self, objective: Objective, settings: Settings, optimizer: Optimizers, processes: Processes, steps: int
    ) -> None:
        self.objective, self.settings, self.processes = objective, settings, processes
        self.student, self.device = objective.student, objective.device
        self.optimizer = optimizer(self.student, settings)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=settings.precision == "fp16")
        self.zeros = zeros_in(self.student) if settings.keep_zeros else []
        self.average = Average(self.student, settings.regularize.ema) if settings.regularize.ema else None
        self.schedule = Schedule(settings.learning_rate, settings.epochs * steps)
        self.state, self.watch, self.draw = State(), Watch(), torch.Generator()

    def learn_too(self, parameters: list[nn.Parameter]) -> None:
        """Parameters beside the student's."""
        if parameters:
            self.optimizer.add_param_group({"params": parameters})

    @property
    def finite(self) -> bool:
        """Whether all parameters are numbers."""
        return all(bool(parameter.isfinite().all()) for parameter in self.student.parameters())

    def seeded(self, count: int) -> Tensor:
        """The order of `count` samples in the running epoch; at its start all generators are set by (seed, epoch)."""
        seed = self.settings.seed * 1_000_003 + self.state.epoch
        draw = self.draw if self.state.step == 0 else torch.Generator()
        order = torch.randperm(count, generator=draw.manual_seed(seed))
        if self.state.step == 0:
            torch.manual_seed(seed)
        return order

    def step(self, batch: Batch, rate: float) -> float:
        """One step of the optimizer, of this process on its part of the batch; the answer is the loss of the whole.

        Raises:
            DivergedError: the loss is no number, or stays far above what is usual.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get("faster", 1.0)
        self.optimizer.zero_grad(set_to_none=True)
        value, count = 0.0, len(batch.inputs)
        for rows in parts(self.processes.part(count), self.settings.accumulate):
            loss, share = self.objective.loss(batch.part(rows)), (rows.stop - rows.start) / count
            loss = loss if share == 1.0 else loss * share
            value += float(loss.detach())
            torch.autograd.backward(self.scaler.scale(loss))
        (value,) = self.processes.total([value])
        if self.watch.diverged(value):
            raise DivergedError(value, rate)
        self.processes.add_gradients(p for group in self.optimizer.param_groups for p in group["params"])
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.student.parameters(), self.settings.regularize.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        with torch.no_grad():
            for weight, zero in self.zeros:
                weight.masked_fill_(zero, 0.0)
        if self.average:
            self.average.update(self.student)
        return value

    def content(self) -> dict[str, Any]:
        """Everything that changes, as copies: what a checkpoint holds."""
        return {
            "student": snapshot(self.student),
            "optimizer": copy.deepcopy(self.optimizer.state_dict()),
            "projections": snapshot(self.objective.projections),
            "average": self.average.state() if self.average else {},
            "scaler": self.scaler.state_dict(),
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state_all() if self.device.type == "cuda" else [],
            "draw": self.draw.get_state(),
            "schedule": asdict(self.schedule),
            "watch": asdict(self.watch),
            **vars(self.state),
            "curve": [dict(entry) for entry in self.state.curve],
        }

    def restore(self, content: Mapping[str, Any]) -> None:
        """Be as when `content` was taken."""
        self.student.load_state_dict(content["student"])
        self.optimizer.load_state_dict(copy.deepcopy(content["optimizer"]))
        self.objective.projections.load_state_dict(content["projections"])
        if self.average:
            self.average.load(content["average"])
        self.scaler.load_state_dict(content["scaler"])
        torch.set_rng_state(content["random"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state_all(content["random_cuda"])
        self.draw.set_state(content["draw"])
        self.schedule, self.watch = Schedule(**content["schedule"]), Watch(**content["watch"])
        self.state = State(**{name: content[name] for name in vars(self.state)})
        self.state.curve = [dict(entry) for entry in content["curve"]]


Optimizers = Callable[[nn.Module, Settings], torch.optim.Optimizer]


def sgd(module: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    """Momentum over all parameters."""
    groups = _decayed(module, settings.weight_decay)
    return torch.optim.SGD(groups, settings.learning_rate, momentum=0.9, nesterov=True)


def parts(rows: slice, count: int) -> Iterator[slice]:
    """`rows` in at most `count` parts of nearly one size."""
    length = rows.stop - rows.start
    count = min(count, length)
    for i in range(count):
        yield slice(rows.start + length * i // count, rows.start + length * (i + 1) // count)


def zeros_in(module: nn.Module) -> list[tuple[nn.Parameter, Tensor]]:
    """Kernels and matrices that are zero in part, and where."""
    found = [(p, p.detach() == 0) for p in module.parameters() if p.ndim > 1]
    return [(weight, zero) for weight, zero in found if zero.any() and not zero.all()]


def _decayed(module: nn.Module, decay: float) -> list[dict[str, object]]:
    """Weight decay for matrices and kernels alone, not for biases and normalisation."""
    parameters = list(module.parameters())
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    """Copies of all tensors of a module."""
    return {name: value.detach().clone() for name, value in module.state_dict().items()}
