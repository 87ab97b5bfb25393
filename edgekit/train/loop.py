"""Recovery training: the smaller network learns from the labels and from the untouched one.

What is driven down is `edgekit.train.objective`'s. Every epoch draws its order and its augmentation from (seed, epoch),
and checkpoints hold the state of every generator, so a run that goes on from one gives the same bits as one that never
stopped. A loss that runs away takes training back to the last good state.
"""

from __future__ import annotations

import copy
import errno
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from edgekit.context import Progress, Silent, Task
from edgekit.errors import EdgekitError, UsageError
from edgekit.prune.shapes import laid_out
from edgekit.train.batch import Batch
from edgekit.train.checkpoint import Checkpoint, digest
from edgekit.train.found import RANGE_BATCHES, RANGE_STEPS, batch_size, free_bytes, learning_rate, rates
from edgekit.train.losses import Truth
from edgekit.train.objective import Objective, scored
from edgekit.train.processes import Processes
from edgekit.train.regularize import Average, thawed, train_mode, with_dropout
from edgekit.train.samples import Samples
from edgekit.train.schedule import Schedule, Watch, steps_within
from edgekit.train.settings import Settings

TIMED = 5
"""Steps that tell how long one takes, where a time budget plans by it."""
TRIES = 3
"""So often a training that runs away goes back and halves its learning rate."""


@dataclass(frozen=True)
class Recovered:
    """The best epoch's module; `start` is held-out loss and score before training, `curve` one entry an epoch.

    `settings` are those of the training with everything decided, `resumed_at` says where a killed one went on,
    `warnings` are for the top of the report, `frozen` counts numbers that were not to be learned, `found` says in lines
    which settings were chosen here.
    """

    module: nn.Module
    best_epoch: int
    start: tuple[float, float]
    curve: tuple[dict[str, float], ...]
    settings: Settings
    stopped: str = ""
    resumed_at: str = ""
    warnings: tuple[str, ...] = ()
    frozen: int = 0
    found: tuple[str, ...] = ()


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
    device = torch.device(settings.device)
    module = laid_out(copy.deepcopy(student), torch.channels_last).to(device).requires_grad_(True)
    inputs = Batch(train.batch(np.arange(min(4, len(train))))[0], Truth(None)).to(device).inputs
    size = batch_size(module, inputs, len(train), free_bytes(device))
    return int(Processes().agree(size))


def judged(student: nn.Module, teacher: nn.Module, held_out: Samples, settings: Settings) -> tuple[float, float]:
    """Loss and score of a network that is not trained; the score is a share of hits, or dB."""
    return Training(student, teacher, held_out, held_out, settings).objective.evaluate(held_out)


@contextmanager
def _reproducible(seed: int) -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before[0], warn_only=before[1])


class _DeadlineError(Exception):
    """The time lent to this stage is over."""


class _DivergedError(Exception):
    """The loss runs away."""

    def __init__(self, loss: float, rate: float) -> None:
        super().__init__()
        self.loss, self.rate = loss, rate


class Training:
    """One training of a copy of `student`; `run` does it, `objective` says where it stands."""

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        train: Samples,
        held_out: Samples,
        settings: Settings,
        *,
        progress: Progress | None = None,
        deadline: float | None = None,
        stage: str = "",
        optimizer: Optimizers | None = None,
        checkpoint: Checkpoint | None = None,
    ) -> None:
        self.device = torch.device(settings.device)
        self.student = laid_out(copy.deepcopy(student), torch.channels_last).to(self.device)
        self.frozen = thawed(self.student)
        wise = laid_out(copy.deepcopy(teacher), torch.channels_last).to(self.device)
        self.train, self.held_out, self.settings, self.asked = train, held_out, settings, settings
        self.progress, self.deadline, self.stage = progress or Silent(), deadline, stage
        self.checkpoint, self.processes = checkpoint, Processes()
        self.objective = Objective(self.student, wise, settings, self.processes)
        self.steps = max(len(train) // settings.batch_size, 1)
        self.optimizer = (optimizer or sgd)(self.student, settings)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=settings.precision == "fp16")
        self.average = Average(self.student, settings.regularize.ema) if settings.regularize.ema else None
        self.schedule = Schedule(settings.learning_rate, settings.epochs * self.steps)
        self.state, self.watch, self.draw = State(), Watch(), torch.Generator()
        self.good: dict[str, Any] = {}
        self.begun = self.saved = time.monotonic()
        self.evaluation_s = 0.0
        self.warnings: list[str] = []

    def run(self, saved: Mapping[str, Any] | None = None) -> Recovered:
        """Train to the end, or until it is of no more use; `saved` is what a checkpoint held."""
        start = self.begin()
        resumed = self.resume(saved) if saved else ""
        self.good = self.content()
        undo = with_dropout(self.student, self.settings.regularize.dropout)
        try:
            with self.processes.sharing_norms(self.student):
                self.find_rate()
                self.plan()
                with self.progress.task(self.stage, total=self.schedule.total) as task:
                    task.advance(self.state.done, note=self.note())
                    stopped = self.epochs(task)
        finally:
            undo()
        self.student.load_state_dict(self.state.best)
        module = laid_out(self.student.to("cpu"), torch.contiguous_format).eval()
        if self.state.halved:
            times = "once" if self.state.halved == 1 else f"{self.state.halved} times"
            self.warnings.append(
                f"{self.stage}: the loss ran away {times}; training went back and on at a learning rate of "
                f"{self.schedule.peak:.3g}. Set {self.stage}.learning_rate to that or lower."
            )
        settings = replace(self.settings, epochs=self.last_epoch)
        return Recovered(
            module, self.state.best_epoch, start, tuple(self.state.curve), settings, stopped, resumed,
            tuple(self.warnings), self.frozen, tuple(self.found()),
        )  # fmt: skip

    def found(self) -> Iterator[str]:
        """Which settings were chosen here, in lines."""
        if not self.asked.learning_rate:
            yield f"learning rate {self.settings.learning_rate:.3g} by a range test of {RANGE_STEPS} steps"
        if self.settings.time_budget_s is not None:
            yield (
                f"{self.schedule.total:,} steps of {self.settings.batch_size} samples fit in "
                f"{self.settings.time_budget_s:g} s ({self.spent():.1f} s were used)"
            )

    @property
    def last_epoch(self) -> int:
        """How many epochs there are to be; the last one may be a part."""
        return -(-self.schedule.total // self.steps)

    def begin(self) -> tuple[float, float]:
        """Where it starts from; what the settings ask for beside the plain loss is made ready."""
        self.objective.check_classes(self.held_out, self.stage)
        started = time.monotonic()
        start = self.objective.evaluate(self.held_out)
        self.evaluation_s = time.monotonic() - started
        if not math.isfinite(start[0]):
            raise UsageError(
                f"{self.stage} cannot begin: the held-out loss is {start[0]}. The network or its teacher gives NaN or "
                "infinity; see what the stages before made of it."
            )
        self.state.best_loss, self.state.best = start[0], _snapshot(self.student)
        learned = self.objective.prepare(self.train)
        if learned:
            self.optimizer.add_param_group({"params": learned})
        return start

    def epochs(self, task: Task) -> str:
        """One after the other; the answer says why it ended early, if it did."""
        settings, state, shown = self.settings, self.state, self.state.done

        def advance() -> None:
            nonlocal shown
            task.advance(max(self.state.done - shown, 0), note=self.note())
            shown = max(shown, self.state.done)

        while (state := self.state).done < self.schedule.total:
            if settings.time_budget_s is None and state.epoch - state.best_epoch >= settings.patience:
                return f"stopped early: no better for {settings.patience} epochs"
            try:
                self.epoch(advance)
            except _DeadlineError:
                return f"stopped at the deadline in epoch {state.epoch + 1} of {self.last_epoch}"
            except _DivergedError as error:
                self.go_back(error)
        return ""

    def go_back(self, error: _DivergedError) -> None:
        """To the last good state, at half the learning rate."""
        halved = self.state.halved + 1
        if halved > TRIES:
            raise UsageError(
                f"Recovery training diverged: the loss is {error.loss:.6g} in epoch {self.state.epoch + 1} at learning "
                f"rate {error.rate:.3g}, after going back {TRIES} times to the last good state at half the rate. "
                f"Set {self.stage}.learning_rate lower than {self.settings.learning_rate:g}."
            ) from None
        self.restore(self.good)
        self.state.halved = halved
        self.schedule.peak = self.settings.learning_rate / 2**halved
        self.good = self.content()

    def note(self) -> str:
        """How it went so far, for the line of progress."""
        last = self.state.curve[-1] if self.state.curve else None
        return f"held-out loss {last['held_out_loss']:.3f}, {scored(self.settings, last)}" if last else ""

    def epoch(self, advance: Callable[[], None]) -> None:
        """One pass over the training samples, or what is left of it, its evaluation and its checkpoint."""
        settings, state, started = self.settings, self.state, time.monotonic()
        order, before, rate = self.order(), state.seconds, self.schedule.rate(state.done)
        train_mode(self.student)
        while state.step < self.steps and state.done < self.schedule.total:
            now = self.processes.agree(time.monotonic())
            if self.deadline is not None and now > self.deadline:
                raise _DeadlineError
            rate = self.schedule.rate(state.done)
            rows = order[state.step * settings.batch_size : (state.step + 1) * settings.batch_size]
            state.losses += self.step(rows, rate)
            state.step, state.done = state.step + 1, state.done + 1
            state.seconds = before + time.monotonic() - started
            advance()
            self.replan()
            if now - self.saved >= settings.save_every_s and state.step < self.steps:
                self.save(now)
        self.finish_epoch(rate, started - before)

    def order(self) -> npt.NDArray[np.int64]:
        """The order of the samples in the running epoch. At its start all generators are set by (seed, epoch)."""
        seed = self.settings.seed * 1_000_003 + self.state.epoch
        draw = self.draw if self.state.step == 0 else torch.Generator()
        order: npt.NDArray[np.int64] = torch.randperm(len(self.train), generator=draw.manual_seed(seed)).numpy()
        if self.state.step == 0:
            torch.manual_seed(seed)
        return order

    def finish_epoch(self, rate: float, started: float) -> None:
        """Judge it, keep it if it is the best, and write it down."""
        state, trained = self.state, self.state.seconds
        judged = {"": (self.objective.evaluate(self.held_out), _snapshot(self.student))}
        if self.average:
            self.student.load_state_dict(self.average.values)
            for module in self.student.modules():
                if callable(constrain := getattr(module, "constrain", None)):
                    constrain()  # an average of what is allowed need not be
            judged["ema_"] = self.objective.evaluate(self.held_out), _snapshot(self.student)
            self.student.load_state_dict(judged[""][1])
        state.epoch += 1
        entry = {"epoch": float(state.epoch), "train_loss": state.losses / max(state.step, 1)}
        for prefix, ((loss, score), weights) in judged.items():
            entry |= {f"{prefix}held_out_loss": loss, f"{prefix}{self.settings.score}": score}
            if loss < state.best_loss:
                state.best_loss, state.best_epoch, state.best = loss, state.epoch, weights
        entry |= {
            "seconds": time.monotonic() - started,
            "learning_rate": rate,
            "samples_per_second": state.step * min(self.settings.batch_size, len(self.train)) / max(trained, 1e-9),
        }
        state.curve.append(entry)
        state.step, state.losses, state.seconds = 0, 0.0, 0.0
        self.save(self.processes.agree(time.monotonic()))

    def step(self, rows: npt.NDArray[np.int64], rate: float) -> float:
        """One step of the optimizer on the samples at `rows`; the answer is the loss of the batch."""
        batch = self.batch(rows)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get("faster", 1.0)
        self.optimizer.zero_grad(set_to_none=True)
        value = 0.0
        for rows_of_part in parts(self.processes.part(len(rows)), self.settings.accumulate):
            loss, share = (
                self.objective.loss(batch.part(rows_of_part)),
                (rows_of_part.stop - rows_of_part.start) / len(rows),
            )
            loss = loss if share == 1.0 else loss * share
            value += float(loss.detach())
            torch.autograd.backward(self.scaler.scale(loss))
        (value,) = self.processes.total([value])
        if self.watch.diverged(value):
            batch.check_finite(self.train.names(rows))
            raise _DivergedError(value, rate)
        self.processes.add_gradients(p for group in self.optimizer.param_groups for p in group["params"])
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.student.parameters(), self.settings.regularize.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average:
            self.average.update(self.student)
        return value

    def batch(self, rows: npt.NDArray[np.int64]) -> Batch:
        """The samples at `rows`, augmented and mixed."""
        try:
            inputs, labels = self.train.batch(rows)
        except (EdgekitError, MemoryError):
            raise
        except Exception as error:
            seen = f"in epoch {self.state.epoch + 1} of {self.stage} ({type(error).__name__}: {error})"
            raise UsageError(
                f"{self.train.unreadable(rows)} cannot be read, {seen}. Repair it: the same command with --resume then "
                "goes on from the last checkpoint."
            ) from error
        made = Batch.made(inputs, labels, self.settings, self.draw)
        return made.to(self.device)

    def find_rate(self) -> None:
        """Where no learning rate is given: the one that a range test finds. Its steps are undone."""
        asked = self.settings
        if asked.learning_rate:
            return
        order = self.order()
        # What is drawn at random would hide what the rate does.
        plain = asked.regularize.model_copy(update={"mixup": 0.0, "cutmix": 0.0})
        self.settings = replace(asked, augment="none", regularize=plain)

        def step(batch: int, rate: float) -> float:
            at = batch * self.settings.batch_size
            try:
                return self.step(order[at : at + self.settings.batch_size], rate)
            except _DivergedError:
                return math.nan

        train_mode(self.student)
        with self.progress.task(f"{self.stage}: find the learning rate"):
            found = learning_rate(step, rates(asked.highest_rate), min(RANGE_BATCHES, self.steps))
        self.restore(self.good)
        self.settings = replace(asked, learning_rate=found)
        self.schedule.peak = found
        self.good = self.content()

    def plan(self) -> None:
        """Where time is given instead of epochs: how many steps that is, by some that are made and undone."""
        budget = self.settings.time_budget_s
        if budget is None or self.state.done:
            return
        train_mode(self.student)
        order, taken = self.order(), []
        for _ in range(TIMED):
            started = time.monotonic()
            self.step(order[: self.settings.batch_size], 0.0)
            taken.append(time.monotonic() - started)
        self.restore(self.good)
        left = budget - self.spent()
        fits = int(self.processes.agree(steps_within(left, min(taken[1:]), self.steps, self.evaluation_s)))
        if not fits:
            raise UsageError(
                f"{self.stage}.time_budget of {budget:g} s is too short: a step takes {min(taken):.2g} s, an "
                f"evaluation {self.evaluation_s:.2g} s, and {max(left, 0):.2g} s are left. Give more time, or set "
                f"{self.stage}.held_out lower."
            )
        self.schedule.replan(0, fits)
        self.good = self.content()

    def replan(self) -> None:
        """Where time is given: now and then, what still fits at the pace of the running epoch."""
        budget, state = self.settings.time_budget_s, self.state
        if budget is None:
            return
        left = self.processes.agree(budget - self.spent())
        often = max(self.schedule.total // 20, 1)
        if left > self.evaluation_s and (state.done % often or state.step < TIMED):
            return
        pace = self.processes.agree(state.seconds / state.step)
        fits = state.done + steps_within(left, pace, self.steps, self.evaluation_s)
        if not self.schedule.total <= fits <= 1.1 * self.schedule.total:
            self.schedule.replan(state.done, fits)

    def spent(self) -> float:
        """Seconds of this training, those before a kill too."""
        return self.state.spent + time.monotonic() - self.begun

    def content(self) -> dict[str, Any]:
        """Everything that changes, as copies: what a checkpoint holds."""
        return {
            "student": _snapshot(self.student),
            "optimizer": copy.deepcopy(self.optimizer.state_dict()),
            "projections": _snapshot(self.objective.projections),
            "average": self.average.state() if self.average else {},
            "scaler": self.scaler.state_dict(),
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state_all() if self.device.type == "cuda" else [],
            "draw": self.draw.get_state(),
            "schedule": asdict(self.schedule),
            "watch": asdict(self.watch),
            **vars(self.state),
            "curve": [dict(entry) for entry in self.state.curve],
            "spent": self.spent(),
            "batch_size": self.settings.batch_size,
            "learning_rate": self.settings.learning_rate,
        }

    def restore(self, content: Mapping[str, Any]) -> None:
        """Be as when `content` was taken, but for the time that it took."""
        spent = self.spent()
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
        self.state.spent = spent - (time.monotonic() - self.begun)

    def save(self, now: float) -> None:
        """Keep the present state, to go back or on from; a full disk is told and does not end the training."""
        self.good, self.saved = self.content(), now
        if self.checkpoint is None or not self.processes.first:
            return
        try:
            self.checkpoint.save(self.good)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            line = (
                f"{self.stage}: no room for the checkpoint {self.checkpoint.path} ({error.strerror}). Training goes "
                "on; after a kill it would start from the last one that was written. Free some space."
            )
            if line not in self.warnings:
                self.warnings.append(line)
                self.progress.say(line)

    def resume(self, saved: Mapping[str, Any]) -> str:
        """Go on from what a checkpoint held; where that was."""
        self.restore(saved)
        self.state.spent += saved["spent"]
        self.settings = replace(self.settings, learning_rate=saved["learning_rate"])
        state = self.state
        return f"step {state.step} of epoch {state.epoch + 1}" if state.step else f"epoch {state.epoch}"


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


def _decayed(module: nn.Module, decay: float) -> list[dict[str, object]]:
    """Weight decay for matrices and kernels alone, not for biases and normalisation."""
    parameters = list(module.parameters())
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def _snapshot(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}
